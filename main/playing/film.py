"""What a video shows: every state of an episode, with what the student thinks and what its motivation makes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from main.playing.trained import Trained
from main.training.actor import Actor
from torchbeast.core.success import solved
from utils_folder import video
from utils_folder.minigrid import carried_name
from utils_folder.minigrid.view import OUT_OF_VIEW
from utils_folder.motivations.base import Motivation

EVENT_SECONDS, OUTCOME_SECONDS = 0.8, 2.4  # time to read a badge


class Arrival(NamedTuple):
    """What led to a state: of its episode so far, and of the step into it."""

    step: int = 0
    total: float = 0.0
    reached: int = 0
    reward: float = 0.0
    intrinsic: float = 0.0
    event: str = ""


def watch(agent: Trained, num_episodes: int, show: Callable[[np.ndarray, float], None]) -> list[int]:
    """Plays episodes one after the other; `show(picture, seconds)` gets each state, and each episode's outcome.

    Returns the episodes' numbers of steps.
    """
    actor = agent.actor(1, "video", telling=True)
    actor.start()
    steps = [_watch_episode(agent, actor, f"episode {i + 1} of {num_episodes}", show) for i in range(num_episodes)]
    actor.environment.close()
    return steps


def _watch_episode(agent: Trained, actor: Actor, number: str, show: Callable[[np.ndarray, float], None]) -> int:
    (mission,) = actor.environment.missions()
    caption = f"{number}: {mission}" if mission else number
    arrival, following = Arrival(), _copied(actor.row)
    done = False
    while not done:
        row, following = following, _copied(actor.advance())
        show(_picture(agent, row, following, arrival, caption), EVENT_SECONDS if arrival.event else 0)
        arrival = _arrive(agent.motivation, row, following, arrival)
        done = bool(following["done"][0])
    # The state that the last step led to is gone (the next episode's first frame is there): show the one it was taken in.
    outcome = _outcome(arrival, bool(following["truncated"][0]))
    show(_picture(agent, row, following, arrival, caption, outcome), OUTCOME_SECONDS)
    return arrival.step


def _copied(row: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value.copy() for name, value in row.items()}


@torch.no_grad()
def _arrive(motivation: Motivation, row: dict, following: dict, before: Arrival) -> Arrival:
    """What led to the state of `following`, one step after that of `row`."""
    steps = {name: torch.from_numpy(np.stack([row[name], following[name]])) for name in row}
    event = motivation.shown(following).event
    return Arrival(
        step=int(following["episode_step"][0]),
        total=float(following["episode_return"][0]),
        reached=before.reached + bool(event),
        reward=float(following["reward"][0]),
        intrinsic=motivation.intrinsic_reward(steps).item(),
        event=event,
    )


def _outcome(arrival: Arrival, truncated: bool) -> tuple[str, video.Colour]:
    if solved(arrival.total):
        return "task solved", video.GOOD
    return "time is up" if truncated else "episode over", video.BAD


def _picture(
    agent: Trained,
    row: dict,
    following: dict,
    arrival: Arrival,
    caption: str,
    outcome: tuple[str, video.Colour] | None = None,
) -> np.ndarray:
    """The state of `row`; what the student thought and did in it stands in the row that follows."""
    shown = agent.motivation.shown(row)
    lines = [("step", str(arrival.step)), ("return", f"{arrival.total:.3f}")]
    if shown.goal is not None:
        lines.append(("goals reached", str(arrival.reached)))
        if agent.sight.partial:
            (place,) = agent.sight.inputs(row, row["goal"])["goal"]
            lines.append(("goal in view", "no" if place == OUT_OF_VIEW else "yes"))
    lines += [
        ("extrinsic reward", f"{arrival.reward:.3f}"),
        ("intrinsic reward", f"{arrival.intrinsic:.3f}"),
        ("carries", carried_name(int(row["carried_obj"][0]), int(row["carried_col"][0]))),
        *shown.notes,
        ("student's value", f"{following['baseline'][0]:.3f}"),
    ]
    shares = torch.from_numpy(following["policy_logits"][0]).softmax(-1).tolist()
    badges = [(arrival.event, video.TEACHER_COLOUR)] if arrival.event else []
    panel = video.Panel(
        lines,
        bars=list(zip(agent.survey.action_names, shares, strict=True)),
        chosen=int(following["action"][0]),
        badges=badges + ([outcome] if outcome is not None else []),
    )
    return video.render(
        row["frame"][0],
        goal=shown.goal,
        seen=agent.sight.cells(row),
        probabilities=shown.probabilities,
        panel=panel,
        caption=caption,
    )


def record(agent: Trained, num_episodes: int, path: str) -> list[int]:
    """Records episodes in one file. Returns their numbers of steps."""
    with video.VideoWriter(path) as writer:
        return watch(agent, num_episodes, writer.add)

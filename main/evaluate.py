"""Playing with a trained agent: statistics over fresh episodes, video, a window."""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats

from main import flags as flags_module
from main import outputs
from main.actor import Actor
from main.flags import UsageError
from main.learner import make_student
from torchbeast.core import checkpoint
from torchbeast.core.sampling import derive_seed, torch_generator
from torchbeast.core.weights import Reader, SharedWeights
from utils_folder import env_utils, video
from utils_folder.motivation import Motivation, Task, make_motivation

logger = logging.getLogger("amigo")

CONFIDENCE = 0.95
MAX_BATCH = 256
EVENT_SECONDS, OUTCOME_SECONDS = 0.8, 2.4  # time to read a badge
# What a checkpoint decides about an agent and what rewards it; the rest of its flags told how it was trained.
AGENT_FLAGS = (
    "model",
    "num_input_frames",
    "use_lstm",
    "num_lstm_layers",
    "state_embedding_dim",
    "goal_dim",
    "disable_use_embedding",
    "inner",
    "modify",
    "no_boundary_awareness",
    "as_published",
    "intrinsic_reward_coef",
    "novelty_coef",
    "novelty_scale",
    "novelty_view",
    "novelty_output",
    "novelty_optimizer",
)


class Episodes(NamedTuple):
    """One entry per episode: float32 [N], int32 [N]."""

    returns: np.ndarray
    steps: np.ndarray


def evaluate(flags: argparse.Namespace, given: dict[str, Any]) -> None:
    """--mode test and test_render. Raises UsageError for everything that cannot work, before anything is written."""
    agent = load_agent(flags, given)
    flags = agent.flags
    _check_outputs(flags)
    if flags.mode == "test_render":
        return _render(flags, agent)
    summary = score(agent)
    print(report(flags, summary))
    if flags.json is not None:
        weights = str(Path(flags.weight_path))
        about = {"env": flags.env, "weights": weights, "model": flags.model, "greedy": flags.greedy, "seed": flags.seed}
        outputs.write({flags.json: (json.dumps({**about, **summary}, indent=2) + "\n").encode()})
    if flags.record_video:
        try:
            steps = record(agent, flags.video_episodes, flags.video_path)
        except OSError as error:
            raise UsageError(
                f"--video_path {flags.video_path} cannot be written: {error.strerror}; give another file"
            ) from error
        print(f"recorded in {flags.video_path}: {len(steps)} episode(s), steps: {', '.join(map(str, steps))}")


def load_agent(flags: argparse.Namespace, given: dict[str, Any]) -> Agent:
    """The agent at `flags.weight_path`; its `flags` are these, with those that the checkpoint decides. Raises: UsageError."""
    try:
        state = checkpoint.load(Path(flags.weight_path))
    except checkpoint.CheckpointError as error:
        raise UsageError(f"--weight_path {error}") from None
    flags = _with_agent_flags(flags, given, state)
    flags_module.check(flags)
    return Agent(flags, state)


def score(agent: Agent) -> dict[str, Any]:
    """Means with intervals (`summarise`) over `num_episodes` fresh episodes."""
    num_episodes = agent.flags.num_episodes
    return summarise(play(agent.actors(num_episodes, "evaluation"), num_episodes))


def _with_agent_flags(flags: argparse.Namespace, given: dict[str, Any], state: dict) -> argparse.Namespace:
    """The flags, with those of the network and the variant as the checkpoint has them."""
    stored = {**flags_module.defaults(), "as_published": checkpoint.is_published(state), **flags_module.stored(state["flags"])}
    for name in AGENT_FLAGS:
        if name in given and given[name] != stored[name]:
            logger.warning(f"--{name} {given[name]}: the agent was trained with {stored[name]}, which is used")
    env = given.get("env", stored["env"])
    merged = {**vars(flags), **{name: stored[name] for name in AGENT_FLAGS}, "env": env}
    merged["seed"] = flags.seed if flags.seed is not None else int.from_bytes(os.urandom(4), "little") >> 1
    return argparse.Namespace(**merged)


def _check_outputs(flags: argparse.Namespace) -> None:
    """Refuses outputs that could not be written, before minutes are spent on them."""
    if flags.mode == "test_render" and (flags.json is not None or flags.record_video):
        raise UsageError(
            "--mode test_render shows episodes and writes nothing: leave out --json and --record_video, or use test"
        )
    if flags.json is not None:
        outputs.check("--json", flags.json)
    if flags.record_video:
        outputs.check("--video_path", flags.video_path)
        if Path(flags.video_path).suffix.lower() not in video.VIDEO_SUFFIXES:
            raise UsageError(
                f"--video_path {flags.video_path}: choose a name that ends with {' or '.join(video.VIDEO_SUFFIXES)}"
            )


class Agent:
    """A trained student and what motivates it (`motivation`), as a checkpoint holds them."""

    def __init__(self, flags: argparse.Namespace, state: dict):
        self.flags = flags
        self._width, self._height = env_utils.grid_size(flags.env)
        cells = state["model_state_dict"].get("embed_agent_loc.weight", torch.empty(0))
        if not isinstance(cells, torch.Tensor) or cells.dim() != 2:
            raise UsageError(f"--weight_path {flags.weight_path}: holds no student of this program (no embed_agent_loc)")
        if len(cells) != self._width * self._height + 1:
            raise UsageError(
                f"--weight_path {flags.weight_path}: trained on a grid of {len(cells) - 1} cells "
                f"({state['flags'].get('env')}), and {flags.env} has {self._width}x{self._height}; choose the agent's own --env"
            )
        task = Task.of(env_utils.probe(flags.env, engine=flags.engine, num_input_frames=flags.num_input_frames))
        try:
            self.motivation = make_motivation(flags, task)
            self.motivation.load_state_dict(state)
            self._student = make_student(flags, task, self.motivation)
            self._student.load_state_dict(state["model_state_dict"])
        except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UsageError(f"--weight_path {flags.weight_path}: its weights do not fit its own flags ({first})") from None
        self._shared = SharedWeights(self._student)

    def _environments(self, seeds: list[int]):
        return env_utils.make_environments(
            self.flags.env,
            seeds,
            engine=self.flags.engine,
            num_input_frames=self.flags.num_input_frames,
            fixed_seed=self.flags.env_seed if self.flags.fix_seed else None,
        )

    def actor(self, num_envs: int, stream: str) -> Actor:
        """Plays in E fresh environments; `stream` names its randomness."""
        seeds = [derive_seed(self.flags.seed, f"{stream} environment", e) for e in range(num_envs)]
        generator = torch_generator(self.flags.seed, f"{stream} actor")
        student = Reader(copy.deepcopy(self._student), self._shared)
        motivation = self.motivation.actor(num_envs, generator)
        return Actor(self._environments(seeds), student, motivation, generator, greedy=self.flags.greedy)

    def actors(self, num_episodes: int, stream: str) -> Iterator[Actor]:
        """Actors with that many environments in all."""
        for first in range(0, num_episodes, MAX_BATCH):
            yield self.actor(min(MAX_BATCH, num_episodes - first), f"{stream} {first}")


def play(actors: Iterator[Actor], num_episodes: int) -> Episodes:
    """The first episode of every environment. (The first N to end of a batch that goes on would favour short ones.)"""
    returns, steps = np.zeros(num_episodes, np.float32), np.zeros(num_episodes, np.int32)
    first = 0
    for actor in actors:
        last = first + actor.environment.num_envs
        actor.start()
        running = np.ones(last - first, np.bool_)
        while running.any():
            row = actor.advance()
            ended = np.flatnonzero(running & row["done"])
            returns[first + ended] = row["episode_return"][ended]
            steps[first + ended] = row["episode_step"][ended]
            running[ended] = False
        actor.environment.close()
        first = last
    return Episodes(returns, steps)


def summarise(episodes: Episodes) -> dict[str, Any]:
    """Means with 95% intervals: Wilson's for the success rate, Student's t for return and steps (None for one episode)."""
    solved = int((episodes.returns > 0).sum())
    rate = stats.binomtest(solved, len(episodes.returns)).proportion_ci(CONFIDENCE, method="wilson")
    return {
        "episodes": len(episodes.returns),
        "success_rate": solved / len(episodes.returns),
        "success_rate_interval": [float(rate.low), float(rate.high)],
        **_mean("return", episodes.returns),
        **_mean("steps", episodes.steps),
    }


def _mean(name: str, values: np.ndarray) -> dict[str, Any]:
    mean = float(values.mean())
    if len(values) < 2:
        return {f"mean_{name}": mean, f"mean_{name}_interval": None}
    spread = stats.sem(values)
    # With no spread at all t's interval is undefined; it is then the mean itself.
    low, high = stats.t.interval(CONFIDENCE, len(values) - 1, mean, spread) if spread > 0 else (mean, mean)
    return {f"mean_{name}": mean, f"mean_{name}_interval": [float(low), float(high)]}


def report(flags: argparse.Namespace, summary: dict[str, Any]) -> str:
    """The summary for a person."""

    def line(title: str, key: str) -> str:
        interval = summary[f"{key}_interval"]
        text = "no interval from one episode" if interval is None else "95% interval {:.3f} to {:.3f}".format(*interval)
        return f"  {title:<14}{summary[key]:9.3f}   {text}"

    actions = "greedy" if flags.greedy else "sampled"
    return "\n".join(
        [
            f"{flags.weight_path} on {flags.env}: {summary['episodes']} episodes, {actions} actions, seed {flags.seed}",
            line("success rate", "success_rate"),
            line("mean return", "mean_return"),
            line("mean steps", "mean_steps"),
        ]
    )


class Arrival(NamedTuple):
    """What led to a state: of its episode so far, and of the step into it."""

    step: int = 0
    total: float = 0.0
    goals_reached: int = 0
    reward: float = 0.0
    intrinsic: float = 0.0
    event: str = ""


def watch(agent: Agent, num_episodes: int, show: Callable[[np.ndarray, float], None]) -> list[int]:
    """Plays episodes one after the other; `show(picture, seconds)` gets each state, and each episode's outcome.

    Returns the episodes' numbers of steps.
    """
    actor = agent.actor(1, "video")
    actor.start()
    steps = [_watch_episode(agent.motivation, actor, show) for _ in range(num_episodes)]
    actor.environment.close()
    return steps


def _watch_episode(motivation: Motivation, actor: Actor, show: Callable[[np.ndarray, float], None]) -> int:
    arrival, following = Arrival(), _copied(actor.row)
    done = False
    while not done:
        row, following = following, _copied(actor.advance())
        show(_picture(motivation, row, following, arrival), EVENT_SECONDS if arrival.event else 0)
        arrival = _arrive(motivation, row, following, arrival)
        done = bool(following["done"][0])
    # The state that the last step led to is gone (the next episode's first frame is there): show the one it was taken in.
    outcome = _outcome(arrival, actor.environment.max_steps)
    show(_picture(motivation, row, following, arrival, outcome), OUTCOME_SECONDS)
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
        goals_reached=before.goals_reached + bool(event),
        reward=float(following["reward"][0]),
        intrinsic=motivation.intrinsic_reward(steps).item(),
        event=event,
    )


def _outcome(arrival: Arrival, max_steps: int) -> tuple[str, video.Colour]:
    if arrival.total > 0:  # what the success rate counts
        return "task solved", video.GOOD
    return "time is up" if arrival.step >= max_steps else "episode over", video.BAD


def _picture(
    motivation: Motivation, row: dict, following: dict, arrival: Arrival, outcome: tuple[str, video.Colour] | None = None
) -> np.ndarray:
    """The state of `row`; what the student thought and did in it stands in the row that follows."""
    shown = motivation.shown(row)
    lines = [("step", str(arrival.step)), ("return", f"{arrival.total:.3f}")]
    if shown.goal is not None:
        lines.append(("goals reached", str(arrival.goals_reached)))
    lines += [
        ("extrinsic reward", f"{arrival.reward:.3f}"),
        ("intrinsic reward", f"{arrival.intrinsic:.3f}"),
        *shown.notes,
        ("student's value", f"{following['baseline'][0]:.3f}"),
    ]
    shares = torch.from_numpy(following["policy_logits"][0]).softmax(-1).tolist()
    badges = [(arrival.event, video.TEACHER_COLOUR)] if arrival.event else []
    panel = video.Panel(
        lines,
        bars=list(zip(env_utils.ACTION_NAMES, shares, strict=False)),  # some environments allow the first actions only
        chosen=int(following["action"][0]),
        badges=badges + ([outcome] if outcome is not None else []),
    )
    return video.render(row["frame"][0], goal=shown.goal, probabilities=shown.probabilities, panel=panel)


def record(agent: Agent, num_episodes: int, path: str) -> list[int]:
    """Records episodes in one file. Returns their numbers of steps."""
    with video.VideoWriter(path) as writer:
        return watch(agent, num_episodes, writer.add)


def _render(flags: argparse.Namespace, agent: Agent) -> None:
    try:
        window = video.Window(flags.env)
    except RuntimeError as error:
        raise UsageError(str(error)) from None

    watch(agent, flags.video_episodes, window.show)
    window.close()

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
from main.actor import Actor
from main.flags import UsageError
from main.learner import make_student
from torchbeast.core.sampling import derive_seed, torch_generator
from torchbeast.core.weights import Reader, SharedWeights
from utils_folder import checkpoint, env_utils, video
from utils_folder.motivation import Task, make_motivation

logger = logging.getLogger("amigo")

CONFIDENCE = 0.95
MAX_BATCH = 256
# What a checkpoint decides about an agent; the rest of its flags told how it was trained.
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
)


class Episodes(NamedTuple):
    """One entry per episode: float32 [N], int32 [N]."""

    returns: np.ndarray
    steps: np.ndarray


def evaluate(flags: argparse.Namespace, given: dict[str, Any]) -> None:
    """--mode test and test_render. Raises UsageError for everything that cannot work, before anything is written."""
    path = Path(flags.weight_path)
    try:
        state = checkpoint.load(path)
    except checkpoint.CheckpointError as error:
        raise UsageError(f"--weight_path {error}") from None
    flags = _with_agent_flags(flags, given, state)
    flags_module.check(flags)
    _check_outputs(flags)
    agent = Agent(flags, state)
    if flags.mode == "test_render":
        return _render(flags, agent)
    episodes = play(agent.actors(flags.num_episodes, "evaluation"), flags.num_episodes)
    summary = summarise(episodes)
    print(report(flags, summary))
    if flags.json is not None:
        about = {"env": flags.env, "weights": str(path), "model": flags.model, "greedy": flags.greedy, "seed": flags.seed}
        Path(flags.json).write_text(json.dumps({**about, **summary}, indent=2) + "\n")
    if flags.record_video:
        frames = record(agent, flags.video_path)
        print(f"one episode of {frames - 1} steps recorded in {flags.video_path}")


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
    targets = [flags.json] if flags.json is not None else []
    if flags.record_video:
        targets.append(flags.video_path)
        if Path(flags.video_path).suffix not in video.VIDEO_SUFFIXES:
            raise UsageError(
                f"--video_path {flags.video_path}: choose a name that ends with {' or '.join(video.VIDEO_SUFFIXES)}"
            )
    for target in targets:
        if not Path(target).resolve().parent.is_dir():
            raise UsageError(f"{target}: its folder does not exist; create it or choose another")


class Agent:
    """A trained student and what motivates it, as a checkpoint holds them."""

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
            self._motivation = make_motivation(flags, task)
            self._motivation.load_state_dict(state)
            self._student = make_student(flags, task, self._motivation)
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
        motivation = self._motivation.actor(num_envs, generator)
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
    """Means with 95% intervals: Wilson's for the success rate, Student's t for return and steps."""
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
    spread = stats.sem(values) if len(values) > 1 else 0.0
    # With no spread at all t's interval is undefined; it is then the mean itself.
    low, high = stats.t.interval(CONFIDENCE, len(values) - 1, mean, spread) if spread > 0 else (mean, mean)
    return {f"mean_{name}": mean, f"mean_{name}_interval": [float(low), float(high)]}


def report(flags: argparse.Namespace, summary: dict[str, Any]) -> str:
    """The summary for a person."""

    def line(title: str, key: str) -> str:
        low, high = summary[f"{key}_interval"]
        return f"  {title:<14}{summary[key]:9.3f}   95% interval {low:.3f} to {high:.3f}"

    actions = "greedy" if flags.greedy else "sampled"
    return "\n".join(
        [
            f"{flags.weight_path} on {flags.env}: {summary['episodes']} episodes, {actions} actions, seed {flags.seed}",
            line("success rate", "success_rate"),
            line("mean return", "mean_return"),
            line("mean steps", "mean_steps"),
        ]
    )


def watch(agent: Agent, show: Callable[[np.ndarray], None]) -> int:
    """Plays one episode and shows each state as a picture. Returns how many there were."""
    actor = agent.actor(1, "video")
    row = actor.start()
    goals_reached = 0
    pictures = 0
    done = False
    while not done:
        frame, goal = row["frame"][0, ..., -3:].copy(), int(row["goal"][0]) if "goal" in row else None
        total, step = (0.0, 0) if pictures == 0 else (float(row["episode_return"][0]), int(row["episode_step"][0]))
        show(_picture(frame, goal, step, total, goals_reached))
        pictures += 1
        row = actor.advance()
        done = bool(row["done"][0])
        goals_reached += int(row["reached"][0] and not done) if "reached" in row else 0
    # The last step's own picture is gone (the frame is the next episode's already): show where it ended, with its outcome.
    show(_picture(frame, goal, int(row["episode_step"][0]), float(row["episode_return"][0]), goals_reached))
    actor.environment.close()
    return pictures + 1


def _picture(frame: np.ndarray, goal: int | None, step: int, total: float, goals_reached: int) -> np.ndarray:
    caption = [f"step {step}", f"return {total:.2f}"]
    if goal is not None:
        caption.append(f"goals {goals_reached}")
    return video.render(frame, goal=goal, caption=caption)


def record(agent: Agent, path: str) -> int:
    """Records one episode. Returns how many pictures it has."""
    with video.VideoWriter(path) as writer:
        return watch(agent, writer.add)


def _render(flags: argparse.Namespace, agent: Agent) -> None:
    try:
        window = video.Window(flags.env)
    except RuntimeError as error:
        raise UsageError(str(error)) from None

    watch(agent, window.show)
    window.close()

"""The one table of flags, the parser made from it, and the check that refuses impossible ones."""

from __future__ import annotations

import argparse
import difflib
import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

from torchbeast.core import ranks
from torchbeast.core.optimizer import METHODS
from utils_folder import minigrid, motivation


class UsageError(Exception):
    """A wrong input: its message names the remedy; the program ends with exit code 2."""


class Flag(NamedTuple):
    """One flag. A default of False makes a switch. `resumable`: may be given again together with --resume."""

    name: str
    default: Any
    meaning: str
    type: type = str
    choices: tuple[str, ...] | None = None
    resumable: bool = False


GROUPS: dict[str, tuple[Flag, ...]] = {
    "What to run": (
        Flag("env", "MiniGrid-Empty-8x8-v0", "MiniGrid environment"),
        Flag(
            "mode",
            "train",
            "train, test (play with a trained agent), test_render (play in a window)",
            str,
            ("train", "test", "test_render"),
            True,
        ),
        Flag("model", "default", "variant: " + ", ".join(motivation.registry())),
        Flag("total_frames", 600_000_000, "environment frames to train for, of all ranks together", int, resumable=True),
        Flag("seed", None, "everything random derives from it (default: drawn, and recorded)", int),
    ),
    "Files": (
        Flag("xpid", None, "name of the run (default: ENV_INITIALS_MMDD-HHMM; under torchrun it must be given)"),
        Flag("initials", "anonymous", "whose run it is"),
        Flag("savedir", "./experimentsMinigrid", "folder for runs", resumable=True),
        Flag("resume", None, "go on with the run in this folder, where its last checkpoint left it", resumable=True),
        Flag("disable_checkpoint", False, "write no checkpoints", resumable=True),
        Flag("checkpoint_minutes", 10.0, "minutes between checkpoints", float, resumable=True),
        Flag("keep_checkpoints", 2, "how many of the newest checkpoints are kept", int, resumable=True),
        Flag("milestone_frames", None, "also keep a checkpoint every so many frames", int, resumable=True),
        Flag("dry_run", False, "check the machine, measure the speed for ten seconds, and stop", resumable=True),
        Flag("save_env", False, "every save_every frames store the current frames and goals of some environments"),
        Flag("save_every", 50_000, "frames between two such stores", int),
    ),
    "Processes": (
        Flag("num_actors", 4, "number of environments, each with rollouts of its own (of each rank)", int),
        Flag(
            "num_actor_processes",
            None,
            "processes that host them (default: from the cores; 0: act and learn in turn in the main process, reproducibly)",
            int,
            resumable=True,
        ),
        Flag(
            "max_actor_restarts",
            10,
            "actor processes that die or get stuck are started again so often within ten minutes",
            int,
            resumable=True,
        ),
        Flag(
            "num_buffers",
            None,
            "rollouts in shared memory (default: max(2 * num_actors, batch_size), or more where the actor processes need more)",
            int,
            resumable=True,
        ),
        Flag("num_threads", 4, "learner threads", int, resumable=True),
        Flag("disable_cuda", False, "learn on the CPU even if there is a GPU", resumable=True),
        Flag(
            "engine",
            "auto",
            f"what plays MiniGrid: {minigrid.engines_explained()}",
            str,
            minigrid.engine_names(),
            True,
        ),
    ),
    "Environment": (
        Flag("fix_seed", False, "every episode is the level of env_seed"),
        Flag("env_seed", 1, "seed of that level", int),
        Flag("num_input_frames", 1, "frames stacked into one observation", int),
    ),
    "Student": (
        Flag("batch_size", 8, "rollouts in a student update (of each rank)", int),
        Flag("unroll_length", 100, "steps in a rollout", int),
        Flag("learning_rate", 0.001, "student's learning rate; it falls linearly to 0 over total_frames", float),
        Flag("discounting", 0.99, "discount factor gamma", float),
        Flag("entropy_cost", 0.0005, "weight of the entropy loss", float),
        Flag("baseline_cost", 0.5, "weight of the baseline loss (student and teacher)", float),
        Flag("alpha", 0.99, "RMSprop's smoothing constant", float),
        Flag("momentum", 0.0, "RMSprop's momentum", float),
        Flag("epsilon", 0.01, "RMSprop's epsilon", float),
        Flag("state_embedding_dim", 256, "width of the student's hidden layers", int),
        Flag("use_lstm", False, "put an LSTM before the student's heads"),
        Flag("num_lstm_layers", 1, "its layers", int),
        Flag("disable_use_embedding", False, "feed raw channel values to the networks, not embeddings"),
        Flag("intrinsic_reward_coef", 1.0, "scale of the reward for reaching a goal", float),
        Flag("no_extrinsic_rewards", False, "learn from intrinsic rewards alone"),
    ),
    "Teacher": (
        Flag("generator_batch_size", 32, "ended goals in a teacher update (for each rank)", int),
        Flag("generator_learning_rate", 0.002, "teacher's learning rate", float),
        Flag("generator_entropy_cost", 0.05, "weight of its entropy loss", float),
        Flag("generator_reward_negative", -0.1, "its reward (-beta) for a goal that failed or was too easy", float),
        Flag("generator_reward_coef", 1.0, "scale of the positive part of its reward", float),
        Flag("generator_threshold", -0.5, "mean reward from which a teacher update counts as good", float),
        Flag("generator_counts", 10, "good updates before t* moves", int),
        Flag("generator_maximum", 100, "t* grows while it is not above this", int),
        Flag("generator_start", None, "t* at the start (default: 7; window_adaptive: 100)", int),
        Flag("window", 50, "window_adaptive: goals must take t* steps, give or take this", int),
        Flag("window_rule", "published", "window_adaptive: how t* moves", str, ("published", "tracking")),
        Flag("goal_dim", 10, "width of the unused goal embedding of published checkpoints", int),
        Flag("inner", False, "propose no goals on the outer wall"),
        Flag("modify", False, "a goal is reached when its cell changes (else: when the agent stands on it)"),
        Flag("restart_episode", False, "reaching a goal ends the episode"),
        Flag("no_boundary_awareness", False, "an episode's end does not count as reaching a goal"),
        Flag("as_published", False, "reproduce the two indexing slips of the published code"),
    ),
    "Novelty": (
        Flag("novelty_coef", 0.1, "scale of the novelty reward", float),
        Flag("novelty_scale", 1.0, "weight of the novelty of the state that is left (NovelD: 0.5)", float),
        Flag(
            "novelty_view",
            "full",
            "what novelty is judged by: the full grid, or the 7x7 cells before the agent (partial; so NovelD)",
            str,
            ("full", "partial"),
        ),
        Flag(
            "novelty_output",
            "relu",
            "how target and predictor end: relu, as published, which keeps known states novel, or linear (so RND)",
            str,
            ("relu", "linear"),
        ),
        Flag("novelty_optimizer", "rmsprop", "the predictor's: rmsprop or adam", str, METHODS),
        Flag("novelty_learning_rate", None, "the predictor's learning rate (default: learning_rate)", float),
    ),
    "Evaluation": (
        Flag("weight_path", "model.tar", "checkpoint of the agent to play with", resumable=True),
        Flag("num_episodes", 100, "episodes to play", int, resumable=True),
        Flag("greedy", False, "take the most probable action (default: sample)", resumable=True),
        Flag("json", None, "also write the statistics to this file", resumable=True),
        Flag("record_video", False, "record episodes as video", resumable=True),
        Flag("video_episodes", 1, "how many, in one file (or, with test_render, in the window)", int, resumable=True),
        Flag("video_path", "minigrid_video.mp4", "where to (.mp4 or .gif)", resumable=True),
    ),
}

BY_NAME = {flag.name: flag for group in GROUPS.values() for flag in group}


class Parser(argparse.ArgumentParser):
    """Raises UsageError, one line, for what is no command line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message.removeprefix('argument ')}; see {self.prog} --help")


def make_parser() -> argparse.ArgumentParser:
    """The command line. Flags that are not given are absent from the namespace: `parse` puts in the defaults."""
    parser = Parser(
        prog="python -m main.main",
        description="AMIGo: adversarially motivated intrinsic goals, on MiniGrid.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for title, flags in GROUPS.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            default = "" if flag.default is None or flag.default is False else f" (default: {flag.default})"
            text = (flag.meaning + default).replace("%", "%%")
            if flag.default is False:
                group.add_argument(f"--{flag.name}", action="store_true", help=text)
            else:
                group.add_argument(f"--{flag.name}", type=flag.type, choices=flag.choices, help=text, metavar="X")
    return parser


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Returns all flags, defaults put in, and those that were given. Raises: UsageError."""
    known, others = make_parser().parse_known_args(argv)
    if others:
        raise UsageError(f"no such flag: {others[0]}; {_close_flags(others[0])}")
    given = vars(known)
    if "model" in given:
        given["model"] = _model(given["model"])
    return argparse.Namespace(**{**defaults(), **given}), given


def _close_flags(word: str) -> str:
    close = difflib.get_close_matches(word.partition("=")[0].lstrip("-"), BY_NAME, n=3)
    return f"did you mean {' or '.join(f'--{name}' for name in close)}?" if close else "--help lists them"


def stored(values: dict[str, Any]) -> dict[str, Any]:
    """The flags among a checkpoint's, after a look at their types: it may come from anywhere. Others are left out."""
    known = {name: value for name, value in values.items() if name in BY_NAME}
    for name, value in known.items():
        flag = BY_NAME[name]
        expected = bool if flag.default is False else flag.type
        fits = type(value) is expected or (expected is float and type(value) is int) or (value is None and flag.default is None)
        if not fits:
            raise UsageError(f"the checkpoint's flag {name} is {str(value)[:40]!r}, which is no {expected.__name__}")
    if "model" in known:
        known["model"] = _model(known["model"])
    return known


def _model(name: str) -> str:
    try:
        return motivation.canonical_name(name)
    except ValueError as error:
        raise UsageError(str(error)) from None


def defaults() -> dict[str, Any]:
    return {name: flag.default for name, flag in BY_NAME.items()}


def cores() -> int:
    """Cores that this process may use: of several ranks on a machine each takes its part."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, available // ranks.local_size())


def processes(flags: argparse.Namespace) -> int:
    """How many actor processes: as asked, else one per core but the learner's, at most one per two environments."""
    if flags.num_actor_processes is not None:
        return flags.num_actor_processes
    return max(1, min(cores() - 1, flags.num_actors // 2))


def hosted(flags: argparse.Namespace) -> list[int]:
    """How many environments each actor process hosts (one entry for the main process where there are none)."""
    count = max(1, processes(flags))
    return [flags.num_actors // count + (i < flags.num_actors % count) for i in range(count)]


def min_buffers(flags: argparse.Namespace) -> int:
    """Fewest rollouts with which nobody can wait for ever: one process's, beside an incomplete batch."""
    return max(hosted(flags)) + flags.batch_size - 1


def num_buffers(flags: argparse.Namespace) -> int:
    """How many rollouts there are in shared memory."""
    if flags.num_buffers is not None:
        return flags.num_buffers
    return max(2 * flags.num_actors, flags.batch_size, min_buffers(flags))


AT_LEAST_ONE = (
    "total_frames",
    "num_actors",
    "num_threads",
    "num_input_frames",
    "batch_size",
    "unroll_length",
    "save_every",
    "state_embedding_dim",
    "num_lstm_layers",
    "generator_batch_size",
    "generator_counts",
    "goal_dim",
    "num_episodes",
    "video_episodes",
    "keep_checkpoints",
)
NOT_NEGATIVE = (
    "window", "learning_rate", "generator_learning_rate", "entropy_cost", "generator_entropy_cost", "baseline_cost", "momentum",
    "intrinsic_reward_coef", "generator_reward_coef", "novelty_coef", "novelty_scale", "env_seed", "generator_maximum",
    "max_actor_restarts",
)  # fmt: skip


def problems(flags: argparse.Namespace) -> list[str]:
    """Every reason why these flags cannot work, a line each, with the remedy."""
    found = [f"--{name} must be at least 1, got {getattr(flags, name)}" for name in AT_LEAST_ONE if getattr(flags, name) < 1]
    found += [f"--{name} must not be negative, got {getattr(flags, name)}" for name in NOT_NEGATIVE if getattr(flags, name) < 0]
    found += [
        f"--{name} must be a finite number, got {value}"
        for name, value in vars(flags).items()
        if isinstance(value, float) and not math.isfinite(value)
    ]
    found += _range_problems(flags)
    try:
        minigrid.check_name(flags.env)
        found += _grid_problems(flags)
        minigrid.choose_engine(flags.env, flags.engine)
    except ValueError as error:
        found.append(f"--env: {error}")
    return found


def _range_problems(flags: argparse.Namespace) -> list[str]:
    checks = [
        (not (flags.discounting < 0 or flags.discounting > 1), f"--discounting must be in [0, 1], got {flags.discounting}"),
        (0 < flags.alpha <= 1, f"--alpha must be in (0, 1], got {flags.alpha}"),
        (flags.epsilon > 0, f"--epsilon must be above 0, got {flags.epsilon}"),
        (flags.checkpoint_minutes > 0, f"--checkpoint_minutes must be above 0, got {flags.checkpoint_minutes}"),
        (
            flags.milestone_frames is None or flags.milestone_frames >= 1,
            f"--milestone_frames must be at least 1, got {flags.milestone_frames}",
        ),
        (
            flags.novelty_learning_rate is None or flags.novelty_learning_rate >= 0,
            f"--novelty_learning_rate must not be negative, got {flags.novelty_learning_rate}",
        ),
        (flags.seed is None or flags.seed >= 0, f"--seed must not be negative, got {flags.seed}"),
        (flags.generator_start is None or flags.generator_start >= 1,
         f"--generator_start must be at least 1, got {flags.generator_start}"),
    ]  # fmt: skip
    found = [message for holds, message in checks if not holds]
    count = flags.num_actor_processes
    if count is not None and not 0 <= count <= flags.num_actors:
        return [*found, f"--num_actor_processes must be in 0..num_actors ({flags.num_actors}), got {count}"]
    if flags.num_buffers is not None and flags.num_actors >= 1 and flags.num_buffers < min_buffers(flags):
        found.append(
            f"--num_buffers {flags.num_buffers} is too few: a process fills up to {max(hosted(flags))} rollouts at once beside "
            f"an incomplete batch of {flags.batch_size - 1}; use at least {min_buffers(flags)}, or leave it out"
        )
    return found


def _grid_problems(flags: argparse.Namespace) -> list[str]:
    width, height = minigrid.grid_size(flags.env)
    if max(width, height) > minigrid.MAX_GRID:
        return [f"--env {flags.env}: its grid is {width}x{height}, the networks end at 32x32; choose a smaller one"]
    if flags.inner and min(width, height) < 3:
        return [f"--inner: a {width}x{height} grid has no cells inside its outer wall"]
    return []


def check(flags: argparse.Namespace) -> None:
    """Raises UsageError with all problems at once."""
    found = problems(flags)
    if found:
        raise UsageError("\n".join(found))

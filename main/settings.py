"""The settings of a run: its own groups, the whole with those of students and motivations, and what must hold across groups."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from main.amigo import program
from main.training.processes import ProcessSettings, Spread
from models import STUDENTS
from models.grid import CellSettings
from torchbeast.core import run_folder
from torchbeast.core import settings as core
from torchbeast.core.optimizer import LearningSettings
from torchbeast.core.settings import TRAINING, Flag, Settings, UsageError, flag
from utils_folder import minigrid
from utils_folder.minigrid import EnvironmentSettings
from utils_folder.motivations import MOTIVATIONS, canonical_name
from utils_folder.motivations.base import Motivation
from utils_folder.motivations.rewards import APART, GoalRewardSettings, RewardSettings

logger = logging.getLogger("amigo")

LIST = "list"  # in place of an environment
MAX_EPISODES = 10_000_000  # of an evaluation: some numbers of each are kept

DESCRIPTION = (
    "AMIGo: adversarially motivated intrinsic goals, on MiniGrid. Trains an agent, or plays with a trained one. "
    "Other commands: python -m main.plot, main.thin, main.curriculum, main.reproduce, main.report and main.benchmark, each "
    "with --help."
)


@dataclass(frozen=True)
class RunSettings:
    """What is run, and for how long."""

    title = "What to run"
    example = "--env MiniGrid-KeyCorridorS3R3-v0 --num_actors 40 --total_frames 3e7 --seed 1"
    env: str = flag(
        "MiniGrid-Empty-8x8-v0",
        f"MiniGrid environment (--env {LIST} names those that are there); MODULE:NAME is one that MODULE registers",
        first=True,
    )
    mode: str = flag(
        "train",
        "train, test (play with a trained agent), test_render (play in a window)",
        choices=("train", "test", "test_render"),
        resumable=True,
        first=True,
    )
    model: str = flag("default", "variant: " + ", ".join(MOTIVATIONS), canonical=canonical_name, agent=True, first=True)
    also: str | None = flag(
        None, "a second variant, whose intrinsic reward is added to that of the first", canonical=canonical_name, agent=True
    )
    student_network: str = flag(
        "convolutional", "the student's network: " + ", ".join(STUDENTS), choices=tuple(STUDENTS), agent=True
    )
    total_frames: int = flag(
        600_000_000, "environment frames to train for, of all ranks together", at_least=1, resumable=True, experiment=True,
        needs=TRAINING, first=True,
    )  # fmt: skip
    seed: int | None = flag(
        None, "everything random derives from it (default: drawn, and recorded)", at_least=0, experiment=False, first=True
    )

    @property
    def variants(self) -> list[str]:
        """Those that are asked for: one, or two whose rewards are added."""
        return [self.model] if self.also is None else [self.model, self.also]

    @property
    def motivations(self) -> list[type[Motivation]]:
        """What they are."""
        return [MOTIVATIONS[name] for name in self.variants]

    def problems(self) -> list[str]:
        """Why these cannot be had together, with the remedy."""
        if self.also is None:
            return []
        first, second = self.motivations
        if second.goal_conditioned:
            return [f"--also {self.also}: a variant with goals is the --model, and --also names the other one"]
        if not second.pays:
            return [f"--also {self.also} adds no reward: leave it out, or name another variant"]
        if self.also == self.model or set(first.groups) & set(second.groups):
            return [f"--also {self.also} is the --model, or has the same flags: leave it out, or name another variant"]
        return []


@dataclass(frozen=True)
class FileSettings:
    """What a run leaves, and when."""

    title = "Files"
    example = "--savedir runs --xpid first --checkpoint_minutes 5"
    needs = TRAINING
    xpid: str | None = flag(
        None, "name of the run (default: ENV_INITIALS_MMDD-HHMM; under torchrun its --rdzv_id)", experiment=False,
        first=True,
    )  # fmt: skip
    initials: str = flag("anonymous", "whose run it is", experiment=False)
    savedir: str = flag("./experimentsMinigrid", "folder for runs", path=True, resumable=True, not_with=("resume",), first=True)
    resume: str | None = flag(
        None, "go on with a run: its folder, a checkpoint in it, or a folder of runs, for its latest", resumable=True,
        first=True, path=True,
    )  # fmt: skip
    disable_checkpoint: bool = flag(False, "write no checkpoints", resumable=True)
    checkpoint_minutes: float = flag(
        10.0, "minutes between checkpoints", above=0, resumable=True, not_with=("disable_checkpoint",)
    )
    keep_checkpoints: int = flag(
        2, "how many of the newest checkpoints are kept", at_least=1, at_most=1000, resumable=True,
        not_with=("disable_checkpoint",),
    )  # fmt: skip
    milestone_frames: int | None = flag(
        None, "also keep a checkpoint every so many frames", at_least=1, resumable=True, not_with=("disable_checkpoint",)
    )
    evaluate_minutes: float | None = flag(
        None,
        "every so many minutes a process beside training plays num_episodes episodes; the best agent is kept (default: never)",
        above=0,
        resumable=True,
    )
    video_minutes: float | None = flag(
        None, "every so many minutes film the newest checkpoint's agent, for TensorBoard", above=0, resumable=True
    )
    dry_run: bool = flag(False, "check the machine, measure the speed for ten seconds, and stop", resumable=True, first=True)
    save_env: bool = flag(
        False, "every save_every frames store the current frames and goals of some environments", experiment=False
    )
    save_every: int = flag(50_000, "frames between two such stores", at_least=1, experiment=False, needs=("save_env",))

    def problems(self) -> list[str]:
        """Why these cannot be had, with the remedy: of a new run its name too."""
        if self.video_minutes is not None and self.disable_checkpoint:
            return ["--video_minutes shows checkpoints, and --disable_checkpoint writes none: leave out one of the two"]
        if self.resume is not None:
            return []
        if self.xpid is not None:
            return [] if run_folder.is_plain(self.xpid) else [f"--xpid must be {run_folder.not_plain(self.xpid)}"]
        if run_folder.is_plain(f"_{self.initials}_"):
            return []
        return [f"--initials must be part of {run_folder.not_plain(self.initials)}"]


@dataclass(frozen=True)
class EvaluationSettings:
    """How a trained agent plays, and what is shown of it."""

    title = "Evaluation"
    example = "--mode test --weight_path runs/first --num_episodes 200 --record_video --video_path episode.mp4"
    needs = ("mode=test", "mode=test_render")
    weight_path: str = flag(
        run_folder.CHECKPOINT, "the agent: a run's folder, a checkpoint in it, or a folder of runs, for its latest",
        resumable=True,
        first=True,
        path=True,
    )
    num_episodes: int = flag(
        100, "episodes to play", at_least=1, at_most=MAX_EPISODES, resumable=True, needs=("mode=test", "evaluate_minutes"),
        first=True,
    )  # fmt: skip
    greedy: bool = flag(
        False, "take the most probable action (default: sample)", resumable=True,
        needs=("mode=test", "mode=test_render", "evaluate_minutes"), first=True,
    )  # fmt: skip
    json: str | None = flag(None, "also write the statistics to this file", path=True, resumable=True)
    record_video: bool = flag(False, "record episodes as video", resumable=True, first=True)
    video_episodes: int = flag(
        1, "how many, in one file (or, with test_render, in the window)", at_least=1, resumable=True,
        needs=("record_video", "mode=test_render"),
    )  # fmt: skip
    video_path: str = flag(
        "minigrid_video.mp4", "where to (.mp4 or .gif)", path=True, resumable=True, needs=("record_video",), first=True
    )


def groups() -> tuple[type, ...]:
    """Every group of a run, in the order of the command line: those of all that is registered among them."""
    students = (group for student in STUDENTS.values() for group in student.groups)
    motivations = (group for motivation in MOTIVATIONS.values() for group in motivation.groups)
    ours = (RunSettings, FileSettings, ProcessSettings, EnvironmentSettings, LearningSettings)
    every = (*ours, *students, CellSettings, GoalRewardSettings, RewardSettings, *motivations, EvaluationSettings)
    return tuple(dict.fromkeys(every))


def flags() -> dict[str, Flag]:
    """Every flag by its name."""
    return core.flags_of(groups())


def defaults() -> dict[str, Any]:
    """Every flag's default by its name."""
    return {name: about.default for name, about in flags().items()}


def parse(argv: Sequence[str]) -> tuple[Settings, dict[str, Any]]:
    """All settings, defaults put in, and those that were given by flag. Raises: UsageError."""
    return core.parse(core.make_parser(groups(), program("main.main"), DESCRIPTION), groups(), argv)


def stored(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The flags among those of the checkpoint `path`, after a look at each: it may come from anywhere. Raises: UsageError."""
    try:
        return core.stored(groups(), values)
    except UsageError as error:
        raise UsageError(f"{path}: {error}; give another checkpoint, or use the program that wrote it") from None


def make(values: Mapping[str, Any]) -> Settings:
    """Settings with these values by flag, and the defaults of all others."""
    return Settings.of(groups(), values)


def spread(settings: Settings) -> Spread:
    """How the run's environments and rollouts are spread over processes."""
    return Spread(settings[ProcessSettings], settings[LearningSettings].batch_size)


def problems(settings: Settings) -> list[str]:
    """Every reason why these settings cannot work, a line each, with the remedy."""
    found = settings.problems()
    found += spread(settings).problems()
    found += settings[FileSettings].problems()
    run, environment = settings[RunSettings], settings[EnvironmentSettings]
    found += run.problems()
    found += _reward_problems(settings)
    found += minigrid.problems(run.env, environment)
    try:
        size = minigrid.survey(environment.task(run.env), environment.fixed_seed).size
    except ValueError:  # said above
        return found
    return found + [problem for motivation in run.motivations for problem in motivation.problems(settings, *size)]


def _reward_problems(settings: Settings) -> list[str]:
    run, own = settings[RunSettings], settings[RewardSettings]
    found, pays = [], any(motivation.pays for motivation in run.motivations)
    if own.no_extrinsic_rewards and not pays:
        found.append(f"--no_extrinsic_rewards leaves --model {run.model} no reward at all: leave out one of the two")
    if own.apart and not pays:
        found.append(f"--reward_mixing {APART}: --model {run.model} has no intrinsic reward: leave out one of the two")
    if own.apart and not STUDENTS[run.student_network].has_intrinsic_value:
        which = f"--student_network {run.student_network}"
        found.append(f"--reward_mixing {APART}: {which} has no value of intrinsic rewards: leave out one of the two")
    return found


def idle(settings: Settings, names: Iterable[str]) -> dict[str, str]:
    """Those of these flags that do nothing among these settings, and whose they are."""
    return core.idle(settings, names, _users(settings[RunSettings]))


def warn_of_idle(settings: Settings, given: Iterable[str]) -> None:
    """One line on those of the given flags that do nothing."""
    tell_idle({f"--{name}": reason for name, reason in idle(settings, given).items()})


def tell_idle(found: Mapping[str, str]) -> None:
    """One line on what does nothing where it stands, with the reasons; none if there is nothing such."""
    if found:
        logger.warning(f"without effect here: {', '.join(f'{name} ({reason})' for name, reason in found.items())}")


def _users(run: RunSettings) -> dict[type, list[str]]:
    """By group of what is registered: the choices that use it."""
    users: dict[type, list[str]] = {}
    also = {run.also: MOTIVATIONS[run.also]} if run.also is not None else {}
    for flag_name, registry in (("model", MOTIVATIONS), ("also", also), ("student_network", STUDENTS)):
        for name, registered in registry.items():
            for group in registered.groups:
                if group is not CellSettings:  # of all networks, whoever has them
                    users.setdefault(group, []).append(f"{flag_name}={name}")
    return users


def refuse_foreign_module(env: str, given: Mapping[str, Any], checkpoint: Path) -> None:
    """A checkpoint names its environment, and perhaps a module, which importing would run.

    It is imported if `--env` names it, or the metadata beside the checkpoint, which this program wrote when the run began.
    Raises: UsageError otherwise.
    """
    if minigrid.module_of(env) is None or given.get("env") == env:
        return
    try:
        own = run_folder.read_metadata(checkpoint.parent)["args"]["env"] == env
    except (OSError, ValueError, KeyError, TypeError):
        own = False
    if not own:
        raise UsageError(
            f"{checkpoint} names the environment {env}, whose module is not imported for a checkpoint from elsewhere: if you "
            f"trust it, give --env {env}"
        )


def check(settings: Settings) -> None:
    """Raises UsageError with all problems at once."""
    found = problems(settings)
    if found:
        raise UsageError("\n".join(found))


if __name__ == "__main__":
    raise SystemExit("main.settings is no command: python -m main --help names them")

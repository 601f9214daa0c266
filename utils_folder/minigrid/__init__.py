"""Batches of MiniGrid environments, and the registry of `--engine` names.

A new engine is one file that ends in an `Engine`, and one line in `REGISTRY`.
"""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
from numba.core.event import Event, Listener, install_listener

from models.grid import MAX_SIDE
from torchbeast.core.environment import Environment, FrameStack
from torchbeast.core.settings import flag
from utils_folder.minigrid.base import CARRIED_FIELDS, Engine, carried, carried_name
from utils_folder.minigrid.engine import COMPILED
from utils_folder.minigrid.gym import GYM
from utils_folder.minigrid.minigrid3 import MINIGRID3
from utils_folder.minigrid.names import Survey, UnknownEnvironment, canonical_args, close_to, module_of, task_name
from utils_folder.minigrid.view import FULL, PARTIAL, VIEW_SHAPE, VIEWS, Views

__all__ = [
    "CARRIED_FIELDS",
    "REGISTRY",
    "Engine",
    "EnvironmentSettings",
    "Survey",
    "UnknownEnvironment",
    "carried",
    "carried_name",
    "choose_engine",
    "engine_names",
    "engines_explained",
    "listing",
    "make_environments",
    "module_of",
    "probe",
    "problems",
    "survey",
    "telling_engine",
    "why_not_first",
]

logger = logging.getLogger("amigo")

PROBED_LEVELS = 8  # what they show that the networks have no number for is refused before anything is written
LONGEST_MISSION = 50  # in the listing
AUTO = "auto"

# The order in which `auto` asks them.
REGISTRY: dict[str, Engine] = {
    "compiled": COMPILED,
    "gym": GYM,
    "minigrid3": MINIGRID3,
}


def engine_names() -> tuple[str, ...]:
    """What can be asked for: "auto", the first engine that plays the environment, or an engine by its name."""
    return (AUTO, *REGISTRY)


def engines_explained() -> str:
    """The names of the engines, and of "auto", with what they mean."""
    explained = [f"{name} ({engine.title})" if engine.title else name for name, engine in REGISTRY.items()]
    return f"{', '.join(explained)}, or {AUTO} ({next(iter(REGISTRY))} where it can)"


@dataclass(frozen=True)
class EnvironmentSettings:
    """Who plays the games, and what is seen of them."""

    title = "Environment"
    example = "--env MiniGrid-Empty-8x8-v0 --env_args '{\"max_steps\": 100}' --fix_seed --env_seed 4"
    env_args: str | None = flag(
        None,
        "what the environment is made with: a JSON object of what gym.make takes, max_steps among them",
        canonical=canonical_args,
    )
    engine: str = flag(
        AUTO, f"what plays MiniGrid: {engines_explained()}", choices=engine_names(), resumable=True
    )
    fix_seed: bool = flag(False, "every episode is the level of env_seed")
    env_seed: int = flag(1, "seed of that level", at_least=0, needs=("fix_seed",))
    num_input_frames: int = flag(1, "frames stacked into one observation", at_least=1, at_most=100, agent=True)
    student_view: str = flag(
        FULL,
        "what the student sees: the full grid, or the 7x7 cells before the agent (partial)",
        choices=VIEWS,
        agent=True,
    )

    def task(self, env: str) -> str:
        """The task that `--env` and `--env_args` mean; other functions take it as `env_name`."""
        return task_name(env, self.env_args)

    @property
    def fixed_seed(self) -> int | None:
        """The seed of every level; None where each is another."""
        return self.env_seed if self.fix_seed else None

    @property
    def student_is_partial(self) -> bool:
        """Whether the student sees the partial view, view.py's, in place of the frame."""
        return self.student_view == PARTIAL

    def student_shape(self, frame_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Of what the student sees as its frame, where the environments' frames have this one."""
        return VIEW_SHAPE if self.student_is_partial else frame_shape


def survey(env_name: str, fixed_seed: int | None = None) -> Survey:
    """A first look at a task, by the first engine that has it.

    Raises: ValueError, one line, if it cannot be played; UnknownEnvironment, which is one, if no engine has it.
    """
    unknown = []
    for engine in REGISTRY.values():
        try:
            return engine.survey(env_name, fixed_seed)
        except UnknownEnvironment as error:
            unknown.append(error)
    if module_of(env_name) is not None:
        raise unknown[0]
    name = env_name.partition(" ")[0]
    known = list(dict.fromkeys(name for engine in REGISTRY.values() for name in engine.names()))
    hint = close_to(name, known) or f"known ones are {known[0]} and {len(known) - 1} others"
    absent = [name for name, engine in REGISTRY.items() if not engine.names()]
    maybe = [f" ({_title(absentee)} may have it, but {REGISTRY[absentee].playable(env_name)})" for absentee in absent]
    raise UnknownEnvironment(
        f"unknown environment {name!r}: {hint}{''.join(maybe)}; one of your own is MODULE:NAME, whose module registers it"
    )


def listing() -> Iterator[str]:
    """A table of every environment that is installed, a line each as soon as it has been looked at, and its legend."""
    names = list(dict.fromkeys(name for engine in REGISTRY.values() for name in engine.names()))
    line = f"{{:{max(map(len, names))}}}  {{:>6}}  {{:>7}}  {{:9}}  {{}}".format
    yield line("environment", "grid", "actions", "engine", "mission")
    for name in names:
        try:
            seen, engine = survey(name), choose_engine(name, AUTO)
        except ValueError as error:
            yield line(name, "", "", "none", error)
            continue
        size = f"{seen.size[0]}x{seen.size[1]}"
        fits = max(seen.size) <= MAX_SIDE
        one = textwrap.shorten(seen.missions[0], LONGEST_MISSION, placeholder=" ...") if seen.missions else ""
        mission = f"matters: {one!r} or another" if len(seen.missions) > 1 else "always the same"
        yield line(name, size, seen.num_actions, engine if fits else "none", mission if fits else "too large for the networks")
    yield ""
    yield "engine: what plays it unless --engine says otherwise. mission: where it matters, it differs by episode, and the"
    yield "agent does not see it: what the grid does not show of it, it can only guess."
    for name, engine in REGISTRY.items():
        if not engine.names():
            yield f"{_title(name)} has more, but {engine.playable('')}"


def problems(env: str, settings: EnvironmentSettings) -> list[str]:
    """Why this environment cannot be played so, a line each with the remedy."""
    if " " in env:
        return [f"--env {env}: a name has no spaces; arguments are given by --env_args"]
    if settings.student_is_partial and settings.num_input_frames > 1:
        return ["--student_view partial is of one frame: leave out --num_input_frames (--use_lstm gives the student a memory)"]
    env_name = settings.task(env)
    try:
        width, height = survey(env_name, settings.fixed_seed).size
        if max(width, height) > MAX_SIDE:
            largest = f"{MAX_SIDE}x{MAX_SIDE}"
            return [f"--env {env_name}: its grid is {width}x{height}, the networks end at {largest}; choose a smaller one"]
        choose_engine(env_name, settings.engine)
    except ValueError as error:
        return [f"--env: {error}"]
    return []


def make_environments(
    env_name: str,
    seeds: Sequence[int],
    *,
    engine: str = AUTO,
    num_input_frames: int = 1,
    fixed_seed: int | None = None,
    views: bool = False,
) -> Environment:
    """A batch of len(seeds) environments of one kind.

    Its output has, besides the fields every Environment has, carried_obj and carried_col (uint8 [E]): the indices of the
    carried object's type and colour, (1, 5) where nothing is carried.

    Args:
        env_name: a task, as names.py has it: a MiniGrid environment's registered name, with its module and arguments.
        seeds: environment e's levels come from a generator seeded with seeds[e].
        engine: one of `engine_names()`; they all play the same games.
        num_input_frames: how many frames are stacked.
        fixed_seed: if given, every episode of every environment is the level of this seed.
        views: the output also has the VIEW_FIELDS (view.py), of the newest frame if several are stacked.
    Raises: ValueError with a remedy if there is no such environment, or the engine cannot play it.
    """
    environment = REGISTRY[choose_engine(env_name, engine)].make(env_name, seeds, fixed_seed=fixed_seed)
    environment = Views(environment) if views else environment
    return environment if num_input_frames == 1 else FrameStack(environment, num_input_frames)


class CompileNotice(Listener):
    """Says once that Numba compiles; what Numba finds in its cache it does not compile."""

    def __init__(self):
        self._said = False

    def on_start(self, event: Event) -> None:
        if not self._said:
            logger.info("compiling the environment engine: some 20 seconds, once on a machine")
        self._said = True

    def on_end(self, event: Event) -> None:
        pass


def probe(env_name: str, *, engine: str = AUTO, num_input_frames: int = 1) -> Environment:
    """One environment that has taken steps: tells shapes and limits, and has what the engine compiles ready before a fork.

    Raises: UsageError if the networks have no number for something that they show.
    """
    environment = make_environments(env_name, [0], engine=engine, num_input_frames=num_input_frames)
    with install_listener("numba:compile", CompileNotice()):
        environment.initial()
        for _ in range(PROBED_LEVELS):
            environment.step(np.zeros(1, np.int64))
            environment.restart(np.ones(1, bool))
    environment.close()
    return environment


def choose_engine(env_name: str, engine: str) -> str:
    """The name of the engine that plays `env_name` if `engine`, one of `engine_names()`, is asked for.

    Raises: ValueError with a remedy if there is no such engine, or it cannot play the environment.
    """
    if engine not in engine_names():
        raise ValueError(f"unknown engine {engine!r}: choose from {', '.join(engine_names())}")
    if engine == AUTO:
        chosen = next(_able(env_name), None)
        if chosen is None:
            survey(env_name)  # it may be unknown
            raise ValueError(f"no engine plays {env_name}")
        return chosen
    reason = REGISTRY[engine].playable(env_name)
    if reason is not None:
        instead = " or ".join([*_able(env_name), AUTO])
        raise ValueError(f"{_title(engine)} cannot play {env_name} ({reason}): use --engine {instead}")
    return engine


def telling_engine(env_name: str, engine: str) -> str:
    """As `choose_engine`; but if that one does not tell missions, one that plays the same games and does, if there is one."""
    chosen = choose_engine(env_name, engine)
    if REGISTRY[chosen].tells:
        return chosen
    return next((name for name in _able(env_name) if REGISTRY[name].tells), chosen)


def why_not_first(env_name: str, engine: str) -> str | None:
    """One line on which engine plays `env_name` and why none before it, if "auto" is asked for and it is not the first one.

    None if there is nothing to say.
    """
    if engine != AUTO:
        return None
    chosen = choose_engine(env_name, engine)
    before = takewhile(lambda name: name != chosen, REGISTRY)
    reasons = dict.fromkeys(REGISTRY[name].playable(env_name) for name in before)  # each once
    return f"{_title(chosen)} plays {env_name}: {'; '.join(reasons)}" if reasons else None


def _able(env_name: str) -> Iterator[str]:
    """Names of the engines that play an environment, in their order."""
    return (name for name, engine in REGISTRY.items() if engine.playable(env_name) is None)


def _title(name: str) -> str:
    return REGISTRY[name].title or f"the {name} engine"

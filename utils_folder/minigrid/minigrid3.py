"""Minigrid 3, the successor of gym-minigrid, on Gymnasium: BabyAI's tasks, ObstructedMaze-*-v1 and what else is new in it.

It is optional (`requirements-minigrid.txt`), and imported only when an environment is asked for that the engines before it
do not play.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from torchbeast.core.environment import GymEnvironment
from utils_folder.minigrid.base import Engine
from utils_folder.minigrid.frames import Frames
from utils_folder.minigrid.names import GYM_TASKS, Survey, Tasks, UnknownEnvironment

TITLE = "Minigrid 3"
NO_SUCH = f"{TITLE} has no environment of that name"
REMEDY = "pip install -r requirements-minigrid.txt"
PYTHON = (3, 11)
VERSION = (3, 2)  # before it, some of BabyAI's tasks carry things from one episode over into the next


def playable(env_name: str) -> str | None:
    """None if it is installed, has this environment and plays it as gym-minigrid does; else one line that says why not."""
    if (why := _absence()) is not None:
        return why
    if not _tasks().has(env_name):
        return NO_SUCH
    if GYM_TASKS.has(env_name):
        mine, theirs = _tasks().survey(env_name).max_steps, GYM_TASKS.survey(env_name).max_steps
        if mine != theirs:
            return f"its episodes end after {mine} steps in {TITLE}, after {theirs} in gym-minigrid"
    return None


def names() -> list[str]:
    """The environments that it has; none where it is not installed."""
    return [] if _absence() is not None else _tasks().names()


def survey(env_name: str, fixed_seed: int | None = None) -> Survey:
    """As `Tasks.survey`; where it is not installed it has none."""
    if _absence() is not None:
        raise UnknownEnvironment(NO_SUCH)
    return _tasks().survey(env_name, fixed_seed)


def make(env_name: str, seeds: Sequence[int], *, fixed_seed: int | None = None) -> GymEnvironment:
    """len(seeds) environments, stepped one after the other."""
    package, tasks = _minigrid(), _tasks()
    envs = [package.wrappers.FullyObsWrapper(tasks.make(env_name)) for _ in seeds]
    ordinary = frozenset(getattr(package.core.world_object, kind) for kind in OBJECTS) | {type(None)}
    observe = Frames(env_name, ordinary=ordinary)
    max_steps = survey(env_name, fixed_seed).max_steps
    return GymEnvironment(
        envs, observe, seeds=seeds, max_steps=max_steps, fixed_seed=fixed_seed, playing=observe.naming
    )


OBJECTS = ("Wall", "Floor", "Door", "Key", "Ball", "Box", "Goal", "Lava")


@functools.cache
def _absence() -> str | None:
    """Why it cannot be had here, with the remedy; None where it can."""
    if sys.version_info < PYTHON:
        return f"it needs Python {PYTHON[0]}.{PYTHON[1]} or newer, and {REMEDY}"
    try:
        version = _minigrid().__version__
    except ModuleNotFoundError:
        return f"it is not installed: {REMEDY}"
    except ImportError as error:
        return f"it cannot be imported ({error}): {REMEDY}"
    if tuple(int(part) for part in version.split(".")[:2]) < VERSION:
        return f"version {VERSION[0]}.{VERSION[1]} is needed, {version} is installed: {REMEDY}"
    return None


@functools.cache
def _minigrid() -> ModuleType:
    """The package, which registers its environments. It is silenced: it prints a line for each level that it throws away."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    package = importlib.import_module("minigrid")
    importlib.import_module("minigrid.envs.babyai.core.roomgrid_level").print = lambda *told: None
    return package


@functools.cache
def _tasks() -> Tasks:
    """Its own, and any that a user's module has registered with Gymnasium."""
    package, gymnasium = _minigrid(), importlib.import_module("gymnasium")

    def own() -> list[str]:
        """Not WFC's levels: the patterns that they are made from are not in the package."""
        found = {name: str(spec.entry_point) for name, spec in gymnasium.envs.registry.items()}
        return [name for name, entry in found.items() if entry.startswith("minigrid.") and "minigrid.envs.wfc" not in entry]

    return Tasks(gymnasium, package.minigrid_env.MiniGridEnv, package.wrappers.FullyObsWrapper, own)


MINIGRID3 = Engine(playable, make, names, survey, title=TITLE, tells=True)

"""gym-minigrid itself: the games that the other engines are measured against."""

from __future__ import annotations

from collections.abc import Sequence

from gym_minigrid.wrappers import FullyObsWrapper

from torchbeast.core.environment import GymEnvironment
from utils_folder.minigrid.base import NO_SUCH, Engine
from utils_folder.minigrid.frames import Frames
from utils_folder.minigrid.names import GYM_TASKS


def playable(env_name: str) -> str | None:
    """None: it plays every environment that it has, being what defines how they are played; else that it has none."""
    return None if GYM_TASKS.has(env_name) else NO_SUCH


def make(env_name: str, seeds: Sequence[int], *, fixed_seed: int | None = None) -> GymEnvironment:
    """len(seeds) environments, stepped one after the other; what is seen of them is looked at (`Frames`)."""
    max_steps = GYM_TASKS.survey(env_name, fixed_seed).max_steps
    envs = [FullyObsWrapper(GYM_TASKS.make(env_name)) for _ in seeds]
    observe = Frames(env_name)
    return GymEnvironment(
        envs, observe, seeds=seeds, max_steps=max_steps, fixed_seed=fixed_seed, playing=observe.naming
    )


GYM = Engine(playable, make, GYM_TASKS.names, GYM_TASKS.survey, title="gym-minigrid itself", tells=True)

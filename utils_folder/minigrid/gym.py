"""gym-minigrid itself: the games that the other engines are measured against."""

from __future__ import annotations

from collections.abc import Sequence

from gym_minigrid.wrappers import FullyObsWrapper

from torchbeast.core.environment import GymEnvironment
from utils_folder.minigrid.base import Engine
from utils_folder.minigrid.frames import Frames
from utils_folder.minigrid.names import make_game, survey


def playable(env_name: str) -> None:
    """None: it plays every environment, being what defines how they are played."""


def make(env_name: str, seeds: Sequence[int], *, fixed_seed: int | None = None) -> GymEnvironment:
    """len(seeds) environments, stepped one after the other; what is seen of them is looked at (`Frames`)."""
    max_steps = survey(env_name, fixed_seed).max_steps
    envs = [FullyObsWrapper(make_game(env_name)) for _ in seeds]
    return GymEnvironment(envs, Frames(env_name), seeds=seeds, max_steps=max_steps, fixed_seed=fixed_seed)


GYM = Engine(playable, make, title="gym-minigrid itself")

"""gym-minigrid itself: the games that the other engines are measured against."""

from __future__ import annotations

from collections.abc import Sequence

import gym
from gym_minigrid.wrappers import FullyObsWrapper

from torchbeast.core.environment import GymEnvironment
from utils_folder.minigrid.base import Engine
from utils_folder.minigrid.frames import Frames


def playable(env_name: str) -> None:
    """None: it plays every environment, being what defines how they are played."""


def make(env_name: str, seeds: Sequence[int], *, fixed_seed: int | None = None) -> GymEnvironment:
    """len(seeds) environments, stepped one after the other; what is seen of them is looked at (`Frames`)."""
    envs = [FullyObsWrapper(gym.make(env_name, disable_env_checker=True)) for _ in seeds]
    max_steps = envs[0].unwrapped.max_steps
    return GymEnvironment(envs, Frames(env_name), seeds=seeds, max_steps=max_steps, fixed_seed=fixed_seed)


GYM = Engine(playable, make, title="gym-minigrid itself")

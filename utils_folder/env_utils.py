"""Batches of MiniGrid environments."""

from __future__ import annotations

import difflib
import logging
import threading
from collections.abc import Sequence
from typing import Any

import gym
import numpy as np
from gym_minigrid.minigrid import COLOR_TO_IDX, OBJECT_TO_IDX, MiniGridEnv
from gym_minigrid.wrappers import FullyObsWrapper

from torchbeast.core.environment import Environment, FrameStack, GymEnvironment
from torchbeast.core.rollouts import Field
from utils_folder import minigrid_engine

logger = logging.getLogger("amigo")

ENGINES = ("auto", "compiled", "gym")
MAX_GRID = 32
COMPILE_NOTICE_SECONDS = 1.0
ACTION_NAMES = tuple(action.name for action in MiniGridEnv.Actions)
NOTHING_CARRIED = (OBJECT_TO_IDX["empty"], COLOR_TO_IDX["grey"])

CARRIED_FIELDS = {"carried_obj": Field((), np.uint8), "carried_col": Field((), np.uint8)}


def make_environments(
    env_name: str,
    seeds: Sequence[int],
    *,
    engine: str = "auto",
    num_input_frames: int = 1,
    fixed_seed: int | None = None,
) -> Environment:
    """A batch of len(seeds) environments of one kind.

    Its output has, besides the fields every Environment has, carried_obj and carried_col (uint8 [E]): the indices of the
    carried object's type and colour, (1, 5) where nothing is carried.

    Args:
        env_name: a MiniGrid environment's registered name.
        seeds: environment e's levels come from a generator seeded with seeds[e].
        engine: "compiled" or "gym", which play the same games; "auto" takes the compiled one where it can.
        num_input_frames: how many frames are stacked.
        fixed_seed: if given, every episode of every environment is the level of this seed.
    Raises: ValueError with a remedy if there is no such environment, or the engine cannot play it.
    """
    check_name(env_name)
    if choose_engine(env_name, engine) == "compiled":
        environment: Environment = minigrid_engine.MiniGridEngine(env_name, seeds, fixed_seed=fixed_seed)
    else:
        envs = [FullyObsWrapper(gym.make(env_name, disable_env_checker=True)) for _ in seeds]
        max_steps = envs[0].unwrapped.max_steps
        environment = GymEnvironment(envs, _observe, seeds=seeds, max_steps=max_steps, fixed_seed=fixed_seed)
    return environment if num_input_frames == 1 else FrameStack(environment, num_input_frames)


def probe(env_name: str, *, engine: str = "auto", num_input_frames: int = 1) -> Environment:
    """One environment that has taken a step: tells shapes and limits, and has the compiled engine ready before a fork."""
    environment = make_environments(env_name, [0], engine=engine, num_input_frames=num_input_frames)
    notice = threading.Timer(
        COMPILE_NOTICE_SECONDS, logger.info, ["compiling the environment engine: some 20 seconds, once on a machine"]
    )
    notice.start()
    try:
        environment.initial()
        environment.step(np.zeros(1, np.int64))
    finally:
        notice.cancel()
        notice.join()  # no thread may run while actors are forked
    environment.close()
    return environment


def choose_engine(env_name: str, engine: str) -> str:
    """Which engine plays `env_name`: "compiled" or "gym". ValueError if it must be compiled and cannot."""
    if engine not in ENGINES:
        raise ValueError(f"unknown engine {engine!r}: choose from {', '.join(ENGINES)}")
    if engine == "gym":
        return "gym"
    reason = minigrid_engine.playable(env_name)
    if reason is None:
        return "compiled"
    if engine == "compiled":
        raise ValueError(f"the compiled engine cannot play {env_name} ({reason}): use --engine gym or auto")
    return "gym"


def check_name(env_name: str) -> None:
    """Raises ValueError, naming close matches, unless `env_name` is a registered MiniGrid environment."""
    known = [name for name in gym.envs.registry if name.startswith("MiniGrid-")]
    if env_name in known:
        return
    close = difflib.get_close_matches(env_name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known ones are {known[0]} and {len(known) - 1} others"
    raise ValueError(f"unknown environment {env_name!r}: {hint}")


def grid_size(env_name: str) -> tuple[int, int]:
    """(W, H) of a registered environment."""
    env = gym.make(env_name, disable_env_checker=True).unwrapped
    return env.width, env.height


def _observe(env: Any, observation: dict) -> dict[str, Any]:
    obj, col = carried(env.unwrapped)
    return {"frame": observation["image"], "carried_obj": np.uint8(obj), "carried_col": np.uint8(col)}


def carried(env: MiniGridEnv) -> tuple[int, int]:
    """Indices of the carried object's type and colour."""
    if env.carrying is None:
        return NOTHING_CARRIED
    return OBJECT_TO_IDX[env.carrying.type], COLOR_TO_IDX[env.carrying.color]

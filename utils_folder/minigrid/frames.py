"""What is seen of gym-minigrid's own games, as long as the networks have numbers for it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from gym_minigrid.minigrid import MiniGridEnv

from models.grid import COLOURS, OBJECTS, STATES
from torchbeast.core.settings import UsageError
from utils_folder.minigrid.base import OBJECT_CLASSES, carried

LIMITS = np.array([OBJECTS, COLOURS, STATES], np.uint8)
KNOWN = f"the networks know {OBJECTS} objects (0 to {OBJECTS - 1}), {COLOURS} colours and {STATES} states"
REMEDY = "use objects, colours and states that gym-minigrid has"


class Frames:
    """Makes the fields of an output from a game and FullyObsWrapper's observation of it, and looks at each of them.

    Args:
        env_name: what messages call the game.
        size: (W, H) that all its grids must have; None: the first one's.
        ordinary: classes of objects that need no second look after a level's start.
    """

    def __init__(
        self, env_name: str, size: tuple[int, int] | None = None, *, ordinary: Collection[type] = OBJECT_CLASSES | {type(None)}
    ):
        self._env_name = env_name
        self._size = size
        self._ordinary = frozenset(ordinary)

    def __call__(self, env: Any, observation: dict) -> dict[str, Any]:
        """frame, carried_obj and carried_col.

        Raises: UsageError, naming the object, where the networks have no number for something; or if the size has changed.
        """
        game, frame = env.unwrapped, np.asarray(observation["image"])
        if frame.ndim != 3 or frame.shape[2] != len(LIMITS):
            raise UsageError(f"{self._env_name}: its grid is seen as {list(frame.shape)}, where [W, H, 3] is needed")
        self._check_size(frame.shape[:2])
        if game.step_count == 0 or not self._ordinary.issuperset(map(type, game.grid.grid)):
            self._check_objects(game)
        beyond = frame >= LIMITS if frame.dtype == np.uint8 else (frame < 0) | (frame >= LIMITS) | (frame % 1 != 0)
        if beyond.any():
            x, y = (int(at) for at in np.argwhere(beyond)[0, :2])
            self._refuse(f"cell ({x}, {y})", frame[x, y], "the agent" if (x, y) == tuple(game.agent_pos) else "seen so")
        pair = carried(game)
        if game.carrying is not None:
            self._check("what the agent carries", (*pair, 0), game.carrying)
        return {"frame": frame.astype(np.uint8, copy=False), "carried_obj": np.uint8(pair[0]), "carried_col": np.uint8(pair[1])}

    @contextmanager
    def naming(self, env: Any) -> Iterator[None]:
        """For what makes a frame of the game: under NumPy 2 that ends in an OverflowError where a number is beyond a byte.

        Raises: UsageError, naming the object, in place of that.
        """
        try:
            yield
        except OverflowError:
            self._check_objects(env.unwrapped)
            raise

    def _check_size(self, size: tuple[int, int]) -> None:
        self._size = self._size or size
        if size != self._size:
            (W, H), (w, h) = self._size, size
            raise UsageError(
                f"{self._env_name}: a grid of {w}x{h} after one of {W}x{H}; the networks take one size: "
                "put smaller levels into the largest grid, with walls around"
            )

    def _check_objects(self, game: MiniGridEnv) -> None:
        """What objects say of themselves, before it is cut down to a byte."""
        for index, thing in enumerate(game.grid.grid):
            if thing is not None:
                self._check(f"cell ({index % game.grid.width}, {index // game.grid.width})", thing.encode(), thing)

    def _check(self, where: str, cell: tuple, thing: Any) -> None:
        for number, limit in zip(cell, LIMITS.tolist()):
            if not (isinstance(number, (int, np.integer)) and 0 <= number < limit):
                self._refuse(where, cell, f"{type(thing).__name__}, a {thing.color} {thing.type}")

    def _refuse(self, where: str, cell: Any, what: str) -> None:
        numbers = ", ".join(str(number) for number in cell)
        raise UsageError(f"{self._env_name}: {where} is ({numbers}), {what}; {KNOWN}: {REMEDY}")

"""What an engine is, and what all engines share: what MiniGrid calls things, and what is told of the carried object."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from gym_minigrid.minigrid import (
    COLOR_TO_IDX,
    IDX_TO_COLOR,
    IDX_TO_OBJECT,
    OBJECT_TO_IDX,
    Ball,
    Box,
    Door,
    Floor,
    Goal,
    Key,
    Lava,
    MiniGridEnv,
    Wall,
)

from torchbeast.core import forms
from torchbeast.core.environment import Environment
from torchbeast.core.rollouts import Field
from utils_folder.minigrid.names import Survey

NOTHING_CARRIED = (1, 5)  # "empty" and "grey"
OBJECT_CLASSES = frozenset((Wall, Floor, Door, Key, Ball, Box, Goal, Lava))
NO_SUCH = "gym-minigrid has no environment of that name"

CARRIED_FIELDS = {
    "carried_obj": Field((), np.uint8, fits=forms.within(0, len(OBJECT_TO_IDX) - 1)),
    "carried_col": Field((), np.uint8, fits=forms.within(0, len(COLOR_TO_IDX) - 1)),
}


class Engine(NamedTuple):
    """What plays MiniGrid. All engines play the same games: from the same seeds and actions come the same outputs.

    playable: `playable(env_name)` is None if the engine plays that task (names.py), exactly as gym-minigrid does if that has
        it, else one line that says why it does not.
    make: `make(env_name, seeds, fixed_seed=...)` is a batch of len(seeds) of these environments, not stacked, whose output
        has the `CARRIED_FIELDS` too; seeds as in `make_environments`. It is asked only for what is playable.
    names: `names()` are the environments that it has without a user's module, playable or not; none where the engine is not
        installed, and then `playable` says so of each.
    survey: `survey(env_name, fixed_seed)` is a first look at a task, a `Survey`; it raises UnknownEnvironment for one that the
        engine does not have.
    title: what messages call it, where "the NAME engine" does not say it.
    tells: its environments know their `missions`; where an engine does not, another one plays what is shown to people.
    """

    playable: Callable[[str], str | None]
    make: Callable[..., Environment]
    names: Callable[[], list[str]]
    survey: Callable[..., Survey]
    title: str = ""
    tells: bool = False


def carried(env: MiniGridEnv) -> tuple[int, int]:
    """Indices of the carried object's type and colour; -1 for what gym-minigrid's tables do not have."""
    if env.carrying is None:
        return NOTHING_CARRIED
    return OBJECT_TO_IDX.get(env.carrying.type, -1), COLOR_TO_IDX.get(env.carrying.color, -1)


def carried_name(obj: int, col: int) -> str:
    """What `carried` means, in words."""
    return "nothing" if obj == NOTHING_CARRIED[0] else f"{IDX_TO_COLOR[col]} {IDX_TO_OBJECT[obj]}"

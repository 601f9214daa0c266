"""What a student is told of states: by its actor in each, by the learner in all of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from torchbeast.core.settings import Settings
from utils_folder.minigrid import CARRIED_FIELDS, EnvironmentSettings
from utils_folder.minigrid.view import VIEW_FIELDS, cell_in_view, seen_cells
from utils_folder.motivations.base import Task


class Sight(NamedTuple):
    """The full grid, or, with --student_view partial, the view before the agent.

    partial: which of the two.
    height: of the full grid.
    """

    partial: bool = False
    height: int = 0

    @classmethod
    def of(cls, settings: Settings, task: Task) -> Sight:
        return cls(settings[EnvironmentSettings].student_is_partial, task.frame_shape[1])

    @property
    def fields(self) -> tuple[str, ...]:
        """What of an environment's output a student needs."""
        return (*(VIEW_FIELDS if self.partial else ("frame",)), *CARRIED_FIELDS)

    def inputs(self, told: Mapping[str, Any], goal: Any = None) -> dict[str, Any]:
        """A student's inputs, but `done`: arrays or tensors [...], as `told` has them.

        Args:
            told: `fields`, [...] each.
            goal: int64 [...], cells x * H + y of the full grid; None where the student has none. In the partial view it is
                that view's cell i * 7 + j where the goal is among its 49, hidden or not, and 49, no cell, where it is not.
        """
        seen = {"frame": told["view" if self.partial else "frame"], **{name: told[name] for name in CARRIED_FIELDS}}
        if goal is not None:
            seen["goal"] = cell_in_view(goal, told["pose"], height=self.height) if self.partial else goal
        return seen

    def cells(self, told: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """Which cells the first environment's student sees, bool [W, H]; None where it sees all. `told` as `inputs` has it."""
        if not self.partial:
            return None
        width, height = told["frame"].shape[1:3]
        return seen_cells(told["view"][0], told["pose"][0], width=width, height=height)


FULL = Sight()

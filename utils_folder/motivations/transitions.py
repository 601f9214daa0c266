"""States as motivations judge them, and transitions (s, a, s'): where an episode ends, s' is its last state."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.distinct import over_distinct
from models.grid import COLOURS, are_cells
from torchbeast.core.environment import LAST
from torchbeast.core.rollouts import Field
from torchbeast.core.settings import flag
from utils_folder.minigrid import CARRIED_FIELDS
from utils_folder.minigrid.view import FULL, PARTIAL, VIEW_FIELDS, VIEWS
from utils_folder.motivations.base import Batch, Task

STATE = ("frame", *CARRIED_FIELDS)  # what tells a state from others


def view_flag(judged: str, more: str = "") -> str:
    """A flag for what a motivation judges states by; `judged`, as "novelty is judged", goes into its meaning."""
    meaning = f"what {judged} by: the full grid, or the 7x7 cells before the agent (partial{more})"
    return flag(FULL, meaning, choices=VIEWS, agent=True)


class States:
    """The states of a batch by the names of STATE; `frame` is the full grid, or the 7x7 cells before the agent (PARTIAL).

    Attributes:
        frame: the array that has it, of an environment's output and of a batch: "frame", or "view".
        shape: of one: (W, H, 3k), or (7, 7, 3).
        fields, transition_fields: what a rollout must hold besides for all methods but `after`, and for `after` too.
        reads, transition_reads: what these read of a batch.
    """

    def __init__(self, task: Task, view: str):
        self.frame = "view" if view == PARTIAL else "frame"
        field = VIEW_FIELDS["view"] if view == PARTIAL else Field(task.frame_shape, "uint8", fits=are_cells)
        seen = {self.frame: field} | CARRIED_FIELDS
        self.shape = field.shape
        self.fields = {self.frame: field} if view == PARTIAL else {}
        last = {LAST + name: field for name, field in seen.items()}
        self.transition_fields = self.fields | last
        self.reads = tuple(seen)
        self.transition_reads = ("done", *self.reads, *last)

    def visited(self, batch: Batch) -> Batch:
        """The states 0..T, [T+1, B, ...] by name; where an episode has ended, the first one of the next."""
        return {name: batch[field] for name, field in zip(STATE, self.reads)}

    def before(self, batch: Batch) -> Batch:
        """The states 0..T-1 that were acted in, [T, B, ...] by name; the action taken there is batch["action"][1:]."""
        return {name: values[:-1] for name, values in self.visited(batch).items()}

    def after(self, batch: Batch) -> Batch:
        """The states that the steps 1..T led to, [T, B, ...] by name.

        Whether that was the episode's end by its task, or by the time limit, batch["done"][1:] and batch["truncated"][1:] tell.
        """
        done = batch["done"][1:]
        return {
            name: torch.where(done.view(*done.shape, *[1] * (values.dim() - 2)), batch[LAST + field][1:], values[1:])
            for field, (name, values) in zip(self.reads, self.visited(batch).items())
        }


def of_states(compute: Callable[[Batch], Tensor], states: Batch) -> Tensor:
    """compute(states), [T, B, ...], for a function of each state by itself: computed once of those that are equal.

    Args:
        compute: of states [N, ...] by name gives [N, ...].
        states: the names of STATE, [T, B, ...] each.
    """
    columns = [states[name].flatten(0, 1) for name in STATE]
    others = columns[1].long() * COLOURS + columns[2]
    found = over_distinct(lambda *seen: compute(dict(zip(STATE, seen))), columns, columns[0], others)
    return found.unflatten(0, states["carried_obj"].shape)

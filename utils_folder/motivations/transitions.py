"""Transitions (s, a, s') of rollouts, whole ones: where an episode ends, s' is its last state, not the next one's first."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.distinct import over_distinct
from models.grid import COLOURS, are_cells
from torchbeast.core.environment import LAST
from torchbeast.core.rollouts import Field
from utils_folder.minigrid import CARRIED_FIELDS
from utils_folder.motivations.base import Batch, Task

STATE = ("frame", *CARRIED_FIELDS)  # what tells a state from others
READS = ("done", *STATE, *(LAST + name for name in STATE))  # of a batch, by `before` and `after`


def fields(task: Task) -> dict[str, Field]:
    """What a rollout must hold for `after`."""
    return {LAST + "frame": Field(task.frame_shape, "uint8", fits=are_cells)} | {
        LAST + name: field for name, field in CARRIED_FIELDS.items()
    }


def before(batch: Batch) -> Batch:
    """The states 0..T-1 that were acted in, [T, B, ...] by name; the action taken there is batch["action"][1:]."""
    return {name: batch[name][:-1] for name in STATE}


def after(batch: Batch) -> Batch:
    """The states that the steps 1..T led to, [T, B, ...] by name.

    Whether that was the episode's end by its task, or by the time limit, batch["done"][1:] and batch["truncated"][1:] tell.
    """
    done = batch["done"][1:]
    return {
        name: torch.where(done.view(*done.shape, *[1] * (batch[name].dim() - 2)), batch[LAST + name][1:], batch[name][1:])
        for name in STATE
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

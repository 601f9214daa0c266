"""Rollouts in shared memory: one block per field, [T+1, num_buffers, ...], written by actors, read by the learner.

Row t of a rollout belongs to state t. Row T is row 0 of the same environment's next rollout, so every transition is learned
exactly once. `reward[t]`, `done[t]`, `truncated[t]`, `action[t]`, `policy_logits[t]` and `baseline[t]` tell of the step that
led to state t (the action is stored beside what it caused).
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchbeast.core import forms

CORE_STATE = "core_state_"  # begins the names of the fields that hold a student's memory, each with its number
POISON = 0xFF  # as a byte: NaN in floats, -1 in signed integers, 255 in uint8, no valid bool


class Field(NamedTuple):
    """One field of a rollout.

    per_row: one value per state; else one per rollout, as of its state 0.
    fits: which values it can have, as a checkpoint's are looked at (`forms.tensor`); None: all that are finite.
    younger: there are checkpoints without it; what they hold has zeros there.
    """

    shape: tuple[int, ...]
    dtype: np.dtype | type
    per_row: bool = True
    fits: forms.Fits | None = None
    younger: bool = False

    def form(self, *leading: int | None) -> forms.Form:
        """A tensor of this field's values, with these axes before its own."""
        return forms.tensor((*leading, *self.shape), forms.dtype_of(self.dtype), self.fits)


def younger(fields: Mapping[str, Field]) -> list[str]:
    """Those that some checkpoints lack."""
    return [name for name, field in fields.items() if field.younger]


def agent_fields(frame_shape: tuple[int, int, int], num_actions: int) -> dict[str, Field]:
    """What any IMPALA agent's rollout holds (torchbeast.core.environment and the agent's outputs)."""
    return {
        "frame": Field(frame_shape, np.uint8),
        "reward": Field((), np.float32),
        "done": Field((), np.bool_),
        "truncated": Field((), np.bool_, younger=True),
        "episode_return": Field((), np.float32),
        "episode_step": Field((), np.int32, fits=forms.within(0, forms.MOST)),
        "action": Field((), np.int64, fits=forms.within(0, num_actions - 1)),
        "policy_logits": Field((num_actions,), np.float32),
        "baseline": Field((), np.float32),
        "policy_version": Field((), np.int64, False, forms.within(0, forms.MOST)),  # torchbeast.core.weights.Reader.version
    }


def shared_array(shape: Sequence[int], dtype: np.dtype | type) -> np.ndarray:
    """A zeroed array that forked processes share.

    Anonymous shared memory: it has no name, so nothing can be left behind, and it does not count against /dev/shm, which
    containers keep small.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    return np.frombuffer(mmap.mmap(-1, max(size, 1)), dtype=dtype, count=math.prod(shape)).reshape(shape)


def _shape(field: Field, unroll_length: int, num_buffers: int) -> tuple[int, ...]:
    return (*((unroll_length + 1,) if field.per_row else ()), num_buffers, *field.shape)


def rollout_bytes(fields: Mapping[str, Field], *, unroll_length: int, num_buffers: int) -> int:
    """How much memory such rollouts take."""
    return sum(math.prod(_shape(f, unroll_length, num_buffers)) * np.dtype(f.dtype).itemsize for f in fields.values())


class Rollouts:
    """num_buffers rollouts of T+1 rows, poisoned at the start so that a field nobody writes shows."""

    def __init__(self, fields: Mapping[str, Field], *, unroll_length: int, num_buffers: int):
        self.fields = dict(fields)
        self.unroll_length = unroll_length
        self.num_buffers = num_buffers
        self.arrays = {name: shared_array(_shape(f, unroll_length, num_buffers), f.dtype) for name, f in self.fields.items()}
        for array in self.arrays.values():
            array.view(np.uint8).fill(POISON)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())

    def form(self, count: int) -> forms.Form:
        """What `batch` gives of so many slots."""
        rows = self.unroll_length + 1
        fields = {name: f.form(*([rows] if f.per_row else []), count) for name, f in self.fields.items()}
        return forms.record(fields, optional=younger(self.fields))

    @staticmethod
    def place(slots: np.ndarray) -> np.ndarray | slice:
        """`slots` as `write` takes them fastest: slots that follow each other need no index."""
        first, last = int(slots[0]), int(slots[-1])
        return slice(first, last + 1) if np.array_equal(slots, np.arange(first, last + 1)) else slots

    def write(self, t: int, slots: np.ndarray | slice, row: Mapping[str, np.ndarray]) -> None:
        """Writes row t ([E, ...] per field) of the rollouts `slots` (integers [E], or their `place`)."""
        for name, field in self.fields.items():
            if field.per_row:
                self.arrays[name][t, slots] = row[name]
            elif t == 0:
                self.arrays[name][slots] = row[name]

    def batch(self, slots: Sequence[int]) -> dict[str, Tensor]:
        """Copies of the rollouts `slots`: [T+1, B, ...] per field, [B, ...] for fields that are one per rollout."""
        return {
            name: torch.from_numpy(array.take(slots, axis=1 if self.fields[name].per_row else 0))
            for name, array in self.arrays.items()
        }

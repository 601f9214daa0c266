"""Lifelong counts: how often states have been visited in all of training, by all ranks."""

from __future__ import annotations

from collections import Counter
from hashlib import blake2b
from operator import itemgetter

import torch
from torch import Tensor

from models.distinct import over_distinct
from models.grid import CELL_CHANNELS
from torchbeast.core import forms
from torchbeast.core.ranks import ALONE, Alone

MOST_STATES = 2**20  # beyond it the half that has been visited least often, and longest ago for the first time, is forgotten
DIGEST_BYTES = 6  # ranks tell each other numbers as float64, which holds 53 bits
MOST_BYTES = 16 * MOST_STATES  # of a state_dict: two int64 a state
DIGESTS = forms.tensor((None,), torch.int64, forms.within(0, 2 ** (8 * DIGEST_BYTES) - 1))
VISITS = forms.tensor((None,), torch.int64, forms.within(1, forms.MOST))
FORM = forms.record({"digest": DIGESTS, "visits": VISITS, "forgotten": forms.whole()})


def digests(frames: Tensor) -> Tensor:
    """A number for each frame, uint8 [T, B, W, H, 3k], by which it is known again: int64 [T, B]; of stacked ones the newest's.

    Of a million frames two have the same number with a chance of 0.2%; these count as one.
    """
    newest = frames[..., -CELL_CHANNELS:].flatten(0, 1).contiguous()
    return over_distinct(_digests, [newest], newest).view(frames.shape[:2])


def _digests(frames: Tensor) -> Tensor:
    found = (blake2b(frame.tobytes(), digest_size=DIGEST_BYTES).digest() for frame in frames.numpy())
    return torch.tensor([int.from_bytes(digest, "little") for digest in found])


class LifelongCounts:
    """Counts visits of states, which are known by their digests; the same on all ranks.

    Attributes:
        forgotten: how many states have been forgotten, as there were more than MOST_STATES.
    """

    def __init__(self, ranks: Alone = ALONE):
        self._ranks = ranks
        self._visits: Counter[int] = Counter()
        self.forgotten = 0

    def visits(self, states: Tensor) -> Tensor:
        """How often these have been visited so far: int64 [T, B] of digests, int64 [T, B]."""
        return torch.tensor([self._visits[state] for state in states.flatten().tolist()]).view_as(states)

    def update(self, states: Tensor) -> None:
        """Counts these visits, int64 [T, B], of every rank; all ranks must be in here at once."""
        for visited in self._ranks.gather(states.flatten().tolist()):
            self._visits.update(map(int, visited))
        if len(self._visits) > MOST_STATES:
            newest_first = reversed(self._visits.items())  # as new ones must not be forgotten before they are seen again
            kept = dict(sorted(newest_first, key=itemgetter(1), reverse=True)[: MOST_STATES // 2])
            self.forgotten += len(self._visits) - len(kept)
            self._visits = Counter({state: visits for state, visits in self._visits.items() if state in kept})  # oldest first

    def state_dict(self) -> dict:
        """Tensors [N], a number for each state, and how many have been forgotten."""
        columns = {"digest": self._visits.keys(), "visits": self._visits.values()}
        tensors = {name: torch.tensor([*column], dtype=torch.int64) for name, column in columns.items()}
        return tensors | {"forgotten": self.forgotten}

    def load_state_dict(self, state: dict, name: str) -> None:
        """Raises: EntryError, with the entry's `name`, for what is no such state."""
        FORM(name, state)
        visits = dict(zip(state["digest"].tolist(), state["visits"].tolist()))
        if not len(visits) == len(state["digest"]) == len(state["visits"]):
            raise forms.EntryError(f"{name} does not have one number of visits for each state")
        self._visits, self.forgotten = Counter(visits), state["forgotten"]

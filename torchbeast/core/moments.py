"""Mean and standard deviation of everything that has been seen so far, the same on all ranks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torchbeast.core import forms
from torchbeast.core.ranks import ALONE, Alone

FORM = forms.record(
    {
        "seen": forms.whole(),
        "mean": forms.number(-forms.LARGEST, forms.LARGEST),
        "squares": forms.number(0, forms.LARGEST**2),
    }
)


class Moments:
    """Running mean and variance of scalars.

    Attributes:
        seen: how many values there were; mean: theirs; squares: the sum of their squared distances from it.
    Source: Chan, Golub, LeVeque 1983, for joining what parts of the values give.
    """

    def __init__(self, ranks: Alone = ALONE):
        self._ranks = ranks
        self.seen, self.mean, self.squares = 0, 0.0, 0.0

    @property
    def std(self) -> float:
        """Of all values so far; 0 where there are none."""
        return math.sqrt(self.squares / self.seen) if self.seen else 0.0

    @torch.no_grad()
    def update(self, values: Tensor) -> None:
        """Sees `values` (of any shape, not empty) of every rank; all ranks must be in here at once."""
        values = values.double()
        own = [values.numel(), values.mean().item(), (values - values.mean()).square().sum().item()]
        for count, mean, squares in self._ranks.gather(own):
            total, distance = self.seen + int(count), mean - self.mean
            self.squares += squares + distance**2 * self.seen * count / total
            self.mean += distance * count / total
            self.seen = total

    def state_dict(self) -> dict:
        return {"seen": self.seen, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: dict, name: str = "moments") -> None:
        """Raises: EntryError, with the entry's `name`, for what is no such state."""
        FORM(name, state)
        self.seen, self.mean, self.squares = state["seen"], float(state["mean"]), float(state["squares"])

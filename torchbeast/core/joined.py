"""Parameters that are views of one vector: what is done with all of them is one call, where calls are what costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

STEP = "step"  # the scalar among the statistics of PyTorch's rules: how many steps there were
Statistics = dict[str, Tensor]  # by name, of one parameter or of all


class Joined:
    """The parameters, and their gradients, as one vector each, from the first `join` on.

    Attributes:
        parameters: themselves; what has no gradient has a gradient of zeros.
        vector: all of them, float32 [P], with their gradients.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]):
        self.parameters = list(parameters)
        self.vector = nn.Parameter(torch.empty(0))
        self._views: list[tuple[Tensor, Tensor | None]] = [(self.vector, None)]

    def join(self) -> None:
        """Puts them together, where that has not been done: a network that is moved lies in other memory."""
        if all(_is_at(p, view) and p.grad is gradient for p, (view, gradient) in zip(self.parameters, self._views)):
            return
        vector = parameters_to_vector(self.parameters).detach()
        vector_to_parameters(vector, self.parameters)
        self.vector.data, self.vector.grad = vector, torch.zeros_like(vector)
        self._views = list(zip(self._split(vector), self._split(self.vector.grad)))
        for parameter, (_, gradient) in zip(self.parameters, self._views):
            parameter.grad = gradient

    def _split(self, vector: Tensor) -> list[Tensor]:
        """The parts of it that are the parameters', in their shapes."""
        parts = vector.split([parameter.numel() for parameter in self.parameters])
        return [part.view_as(parameter) for part, parameter in zip(parts, self.parameters)]

    def split(self, statistics: Statistics) -> dict[int, Statistics]:
        """Of each parameter, by its number, from those of the vector."""
        found: dict[int, Statistics] = {i: {} for i in range(len(self.parameters))}
        for name, value in statistics.items():
            for i, part in enumerate([value.clone() for _ in found] if name == STEP else self._split(value)):
                found[i][name] = part
        return found

    def gather(self, statistics: Mapping[int, Statistics]) -> Statistics:
        """The reverse of `split`, on the statistics' device; of parameters that are not in there, zeros."""
        found = dict(next(iter(statistics.values())))
        for name in found.keys() - {STEP}:
            zeros = (found[name].new_zeros(parameter.shape) for parameter in self.parameters)
            parts = [statistics[i][name] if i in statistics else zero for i, zero in enumerate(zeros)]
            found[name] = parameters_to_vector(parts)
        return found


def _is_at(tensor: Tensor, view: Tensor) -> bool:
    """Whether both begin at the same place."""
    return tensor.data_ptr() == view.data_ptr() and tensor.device == view.device

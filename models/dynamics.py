"""What follows from what: the next state's representation from a state's and the action, and the action from both states'."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.grid import RELU_GAIN, initialise
from models.linear import linear

HIDDEN = 256


class _TwoLayers(nn.Module):
    def __init__(self, size_in: int, size_out: int):
        super().__init__()
        self.fc = nn.Sequential(
            initialise(nn.Linear(size_in, HIDDEN), RELU_GAIN), nn.ReLU(), initialise(nn.Linear(HIDDEN, size_out), 1.0)
        )

    def _two_layers(self, x: Tensor) -> Tensor:
        hidden = linear(x, self.fc[0].weight, self.fc[0].bias, "relu")
        return linear(hidden, self.fc[2].weight, self.fc[2].bias)


class ForwardModel(_TwoLayers):
    """phi(s') as it is foretold from phi(s) and the action: float32 [N, D] of float32 [N, D] and int64 [N] in [0, A).

    Source: ICM (arXiv 1705.05363), equation 4.
    """

    def __init__(self, size: int, num_actions: int):
        super().__init__(size + num_actions, size)
        self.num_actions = num_actions

    def forward(self, phi: Tensor, action: Tensor) -> Tensor:
        return self._two_layers(torch.cat([phi, F.one_hot(action, self.num_actions).to(phi.dtype)], dim=-1))


class InverseModel(_TwoLayers):
    """Logits of the action that led from s to s': float32 [N, A] of phi(s) and phi(s'), float32 [N, D] each.

    Source: ICM (arXiv 1705.05363), equation 2.
    """

    def __init__(self, size: int, num_actions: int):
        super().__init__(2 * size, num_actions)

    def forward(self, phi: Tensor, following: Tensor) -> Tensor:
        return self._two_layers(torch.cat([phi, following], dim=-1))

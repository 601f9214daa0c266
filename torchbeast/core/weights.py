"""A network's weights in shared memory: the learner publishes, actors re-read when they changed."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from torchbeast.core.rollouts import shared_array


class SharedWeights:
    """One writer, many readers. The version is odd while the writer is at work.

    What the writer stores may reach a reader in any order: on ARM, a new version before the weights. So a reader goes by none:
    it takes what it has copied if the checksum of that, with its version, is the published one. No lock is needed, which a
    process that is killed could hold for ever.
    """

    def __init__(self, network: nn.Module):
        size = sum(parameter.numel() for parameter in network.parameters())
        self._values = torch.from_numpy(shared_array((size,), "float32"))
        self._version = shared_array((1,), "int64")
        self._checksum = shared_array((1,), "int64")
        self.publish(network)

    @property
    def version(self) -> int:
        """Twice the number of times that weights have been published."""
        return int(self._version[0])

    @torch.no_grad()
    def publish(self, network: nn.Module, version: int | None = None) -> None:
        """Makes the network's parameters the ones that `read_into` gives; `version`: as it was when a checkpoint was made."""
        values = parameters_to_vector(network.parameters()).cpu()
        version = self.version + 2 if version is None else version
        self._version += 1
        self._values.copy_(values)
        self._checksum[0] = _checksum(values, version)
        self._version[0] = version

    def read_into(self, flat: torch.Tensor) -> int:
        """Copies the newest whole set of weights to `flat` and returns its version."""
        while True:
            version = self.version
            flat.copy_(self._values)
            if version % 2 == 0 and _checksum(flat, version) == self._checksum[0]:
                return version


def _checksum(values: torch.Tensor, version: int) -> int:
    """Of the sum of the weights' bits, in a quarter of a CRC's time.

    That of a mixture of two sets is nearly always another; where it is not, the two differ by roundings alone.
    """
    return hash((int(values.numpy().view(np.uint32).sum(dtype=np.int64)), version))


class Reader:
    """A reader's own copy of a network, kept up to date, and its weights in the form that its forward pass uses.

    Attributes:
        network: the copy, without gradients.
        composed: `network.compose()`.
        version: which of the published weights they are.
    """

    def __init__(self, network: nn.Module, shared: SharedWeights):
        self.network = network.requires_grad_(False).eval()
        self._shared = shared
        self._flat = torch.empty(sum(parameter.numel() for parameter in network.parameters()))
        vector_to_parameters(self._flat, network.parameters())  # from here on the parameters are views of _flat
        self._take()

    def refresh(self) -> bool:
        """Takes over newly published weights; True if there were any."""
        version = self._shared.version
        if version == self.version or version % 2:  # nothing new, or the writer is at work: it will be there next time
            return False
        self._take()
        return True

    @torch.no_grad()
    def _take(self) -> None:
        self.version = self._shared.read_into(self._flat)
        self.composed = self.network.compose()

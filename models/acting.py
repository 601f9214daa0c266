"""Networks without gradients on the CPU, all of their layers in one compiled call: of an actor's few rows calls are what costs.

The products are BLAS's (SciPy's OpenBLAS): of ten rows in half the time that one call of PyTorch's takes. The networks in
PyTorch, with which the learner learns, stay the definition: what is computed here is the same up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg.cython_blas  # noqa: F401  (what np.dot calls in compiled code; loaded here so that it is found below)
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

from models.grid import NO_NUMBERS, TAPS, ConvWeights, GridConvolutions, find_rows, gather_patches, sum_rows
from models.linear import elu
from torchbeast.core.compiled import compiled

NONE, RELU, ELU = range(3)
NO_TABLE = np.empty((0, 0), np.float32)

# So small products gain nothing by more threads, and every actor process would start as many as there are cores.
ThreadpoolController().select(internal_api="openblas").limit(limits=1)


class Layer(NamedTuple):
    """activation(x @ weight.T + bias), of weight [F, K] and bias [F]."""

    weight: Tensor
    bias: Tensor
    activation: int


class Forward:
    """What a network computes of frames: its convolutions, what is carried beside their features, and further layers.

    Made anew after every change of the weights, which it copies.

    Args:
        convolutions, weights: the network's, and what `compose` made of them.
        carried: float32 [66, C], what each carried pair adds to the features; None: nothing.
        layers: those that follow.
    """

    def __init__(
        self, convolutions: GridConvolutions, weights: ConvWeights, carried: Tensor | None = None, layers: Sequence[Layer] = ()
    ):
        convs = [Layer(kernel, bias, ELU) for kernel, bias in convolutions.as_products(weights)]
        layers = (*convs, *layers)
        reads = [*convolutions.reads, *[NO_NUMBERS] * (len(layers) - len(convolutions.reads))]
        self._plan = np.array([(len(r), *layer.weight.shape, layer.activation) for r, layer in zip(reads, layers)], np.int64)
        self._reads = np.concatenate(reads)
        self._numbers = torch.cat([part for w, b, _ in layers for part in (w.t().reshape(-1), b)]).numpy()
        self._lookup, self._frames = convolutions.lookup, convolutions.num_frames
        self._table = weights.table.numpy()
        self._carried = NO_TABLE if carried is None else carried.numpy()
        self._joined = len(convs)

    def __call__(
        self, frame: np.ndarray, goal: np.ndarray | None = None, carried: np.ndarray | None = None,
        chosen: np.ndarray | None = None,
    ) -> np.ndarray:  # fmt: skip
        """float32 [M, D], the last layer's outputs of the rows `chosen`, int64 [M] (None: of all).

        Args:
            frame: uint8 [N, W, H, 3k]; goal: int64 [N], cells x * H + y; carried: int64 [N], numbers of carried pairs.
        Raises: IndexError for numbers in frame or goal that are none.
        """
        chosen = np.arange(len(frame)) if chosen is None else chosen
        frame = frame.reshape(len(frame), -1, 3)
        goal = NO_NUMBERS if goal is None else goal * self._frames
        carried = NO_NUMBERS if carried is None else carried
        constants = (*self._lookup, self._table, self._reads, self._plan, self._numbers, self._carried, self._joined)
        return _forward(frame, goal, carried, chosen, self._frames * TAPS, *constants)


@compiled(nogil=True)
def _forward(
    frame, goal, carried, chosen, summands,
    columns, starts, factors, goal_bit, outside, table, reads, plan, numbers, pairs, joined,
):  # fmt: skip
    """`Forward`: in `plan` each layer's number of reads per row (0: none, it takes what is there), F, K and activation."""
    count = len(chosen)
    rows = np.empty((count, columns.shape[0]), np.int32)
    find_rows(frame[chosen], goal[chosen] if len(goal) else goal, columns, starts, factors, goal_bit, outside, rows)
    x = np.empty((rows.size // summands, table.shape[1]), np.float32)
    sum_rows(rows.reshape(-1, summands), table, x)
    _activate(x, np.zeros(table.shape[1], np.float32), ELU)
    at, start = 0, 0
    for i in range(len(plan)):
        read, filters, width, activation = plan[i]
        if i == joined and len(carried):
            x = _join(x.reshape(count, -1), carried, chosen, pairs)
        if read:
            patches = np.empty((count, read, width // TAPS), np.float32)
            gather_patches(x.reshape(count, -1, width // TAPS), reads[start : start + read], patches)
            x = patches.reshape(-1, width)
            start += read
        weight = numbers[at : at + width * filters].reshape(width, filters)
        at += width * filters
        x = np.dot(x.reshape(-1, width), weight)
        _activate(x, numbers[at : at + filters], activation)
        at += filters
    return x.reshape(count, -1)


@compiled(nogil=True)
def _activate(x, bias, activation):
    """x = activation(x + bias), in place."""
    for i in range(x.shape[0]):
        if activation == ELU:
            for j in range(x.shape[1]):
                x[i, j] = elu(x[i, j] + bias[j])
        elif activation == RELU:
            for j in range(x.shape[1]):
                y = x[i, j] + bias[j]
                x[i, j] = np.float32(0) if y <= 0 else y  # what is no number stays none
        else:
            for j in range(x.shape[1]):
                x[i, j] += bias[j]


@compiled(nogil=True)
def _join(features, carried, chosen, pairs):
    """features [M, F] and beside them pairs[carried[chosen]]."""
    size = features.shape[1]
    joined = np.empty((len(features), size + pairs.shape[1]), np.float32)
    for i in range(len(features)):
        for j in range(size):
            joined[i, j] = features[i, j]
        for j in range(pairs.shape[1]):
            joined[i, size + j] = pairs[carried[chosen[i]], j]
    return joined

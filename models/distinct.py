"""Which rows of a batch are distinct: what a network computes of equal rows is equal, and need be computed once.

An agent that explores sees the same again and again (it bumps into a wall, drops a thing and picks it up): of the rows of an
update, one in four to one in seven is new. Nothing is approximated: the outputs of the distinct rows are copied to all, and
their gradients are the sums over the copies.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchbeast.core.compiled import compiled

LEAST_ROWS = 64  # fewer are not worth looking at
WORTH = 0.9  # so large a share of distinct rows, or a larger one, is no gain


class Distinct(NamedTuple):
    """first: int64 [M], where each distinct row stands first; group: int64 [N], which of the distinct ones each row is."""

    first: Tensor
    group: Tensor


def distinct(*columns: Tensor) -> Distinct | None:
    """The distinct rows of columns [N, ...] that belong together; None where there is nothing to gain, and off the CPU."""
    count = len(columns[0])
    if count < LEAST_ROWS or not columns[0].is_cpu:
        return None
    words = _words([column.reshape(count, -1).numpy() for column in columns])
    first, group = _group(words, _hashes(words, _factors(words.shape[1])))
    return Distinct(torch.from_numpy(first), torch.from_numpy(group)) if len(first) < WORTH * count else None


def over_distinct(compute: Callable[..., Tensor], *columns: Tensor) -> Tensor:
    """compute(*columns), [N, ...], for a function of each row by itself; of equal rows it is computed once."""
    rows = distinct(*columns)
    if rows is None:
        return compute(*columns)
    return compute(*(column.index_select(0, rows.first) for column in columns)).index_select(0, rows.group)


def _words(columns: list[np.ndarray]) -> np.ndarray:
    """Their bytes side by side, as uint64 [N, words]."""
    parts = [np.ascontiguousarray(column).view(np.uint8) for column in columns]
    size = sum(part.shape[1] for part in parts)
    rows = np.zeros((len(parts[0]), -(-size // 8) * 8), np.uint8)
    np.concatenate(parts, axis=1, out=rows[:, :size])
    return rows.view(np.uint64)


@functools.cache
def _factors(count: int) -> np.ndarray:
    """Odd numbers, uint64 [count]."""
    return np.random.default_rng(0).integers(2**64, size=count, dtype=np.uint64) | np.uint64(1)


@compiled(nogil=True)
def _hashes(words, factors):
    """uint64 [N]: of each row, a number that seldom is another row's too; its upper bits are the better ones.

    Source: Dietzfelbinger 1996, multiply-shift hashing of vectors.
    """
    hashes = np.empty(words.shape[0], np.uint64)
    for i in range(words.shape[0]):
        mixed = np.uint64(0)
        for j in range(words.shape[1]):
            mixed += words[i, j] * factors[j]
        hashes[i] = mixed
    return hashes


@compiled(nogil=True)
def _group(words, hashes):
    """`Distinct` of these rows, in the order in which they come. Rows of one hash are compared before they count as equal."""
    count, bits = words.shape[0], 1
    while (1 << bits) < 2 * count:
        bits += 1
    table = np.full(1 << bits, -1, np.int64)  # distinct rows by hash; of those that fall on one place the second is further on
    first, group, found = np.empty(count, np.int64), np.empty(count, np.int64), 0
    for i in range(count):
        place = np.int64(hashes[i] >> np.uint64(64 - bits))
        while table[place] >= 0:
            other = first[table[place]]
            equal = hashes[other] == hashes[i]
            for j in range(words.shape[1] if equal else 0):
                equal &= words[other, j] == words[i, j]
            if equal:
                break
            place = (place + 1) & ((1 << bits) - 1)
        if table[place] < 0:
            table[place] = found
            first[found] = i
            found += 1
        group[i] = table[place]
    return first[:found].copy(), group

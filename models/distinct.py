"""Which rows are distinct: what a network computes of equal rows is equal, and need be computed once.

An agent that explores sees the same again and again (it bumps into a wall, drops a thing and picks it up): of the rows of an
update, one in four to one in seven is new. Nothing is approximated: the outputs of the distinct rows are copied to all, and
their gradients are the sums over the copies. A row is a frame, and a number for all else that a network is told.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from torchbeast.core.compiled import compiled

LEAST_ROWS = 64  # fewer are not worth looking at
WORTH = 0.9  # so large a share of distinct rows, or a larger one, is no gain
# oneDNN compiles a product anew for each number of rows (1 ms, 0.7 MB), and keeps the last thousand: so there are few numbers.
MULTIPLE = 32
MOST_KNOWN, MOST_KNOWN_BYTES = 4096, 2**22

Columns = Sequence[Tensor | None]  # [N, ...] each


def over_distinct(compute: Callable[..., Tensor], columns: Columns, frame: Tensor, others: Tensor | None = None) -> Tensor:
    """compute(*columns), [N, ...], for a function of each row by itself, which `frame` and `others` tell apart.

    It is computed once of equal rows, up to a multiple of rows; of all of them where there is nothing to gain, and off the CPU.
    """
    count = len(frame)
    if count < LEAST_ROWS or not frame.is_cpu:
        return compute(*columns)
    numbers = np.zeros(count, np.int64) if others is None else others.numpy()
    first, group = Rows(count, frame[0].numel()).find(frame.numpy(), numbers)
    first = np.pad(first, (0, -len(first) % MULTIPLE))  # those that fill up are row 0 again, and nobody asks for them
    if len(first) >= WORTH * count:
        return compute(*columns)
    first = torch.from_numpy(first)
    seen = [column if column is None else column.index_select(0, first) for column in columns]
    return compute(*seen).index_select(0, torch.from_numpy(group))


class Known:
    """What has been computed of rows, under weights that do not change meanwhile: such a row is not computed again.

    Of the last some thousand rows: where there is no room for more, all are forgotten.

    Args:
        compute: a function of each row by itself, float32 [M, D] of M rows' places.
    """

    def __init__(self, compute: Callable[..., np.ndarray]):
        self._compute = compute
        self._rows: Rows | None = None
        self._results: np.ndarray | None = None

    def __call__(self, frame: np.ndarray, others: np.ndarray, *more: np.ndarray | None) -> np.ndarray:
        """compute(frame, *more, places), float32 [N, D] in the end, of the N rows that frame and others tell apart."""
        count, size = len(frame), frame[0].size
        if self._rows is None or not self._rows.has_room(count):
            room = min(MOST_KNOWN, MOST_KNOWN_BYTES // size)
            self._rows, self._results = Rows(max(count, room), size), None
        before = self._rows.found
        first, group = self._rows.find(frame, others)
        if self._rows.found > before:
            results = self._compute(frame, *more, first)
            if self._results is None:
                self._results = np.empty((self._rows.capacity, results.shape[1]), np.float32)
            self._results[before : self._rows.found] = results
        return self._results.take(group, axis=0)


class Rows:
    """Distinct rows, found by their hashes.

    Args and attributes:
        capacity: how many there is room for; size: bytes of a frame; found: how many there are.
    """

    def __init__(self, capacity: int, size: int):
        self.capacity, self.size, self.found = 0, size, 0
        self._words, self._hashes = np.empty((0, size // 8 + 2), np.uint64), np.empty(0, np.uint64)
        self.keep(np.empty(0, np.bool_), capacity)

    def has_room(self, count: int) -> bool:
        return self.found + count <= self.capacity

    def find(self, frame: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(where each row stands first that was not there yet, the number of each one): int64 [M], [N].

        frame: uint8 [N, ...], of `size` bytes each; others: int64 [N].
        """
        known = (self._words, self._bytes, self._hashes, self._table, self._shift, self.found)
        first, group = _find(frame.reshape(-1, self.size), others, _factors(self._words.shape[1]), *known)
        self.found += len(first)
        return first, group

    def content(self) -> tuple[np.ndarray, np.ndarray]:
        """The distinct rows by their numbers: uint8 [found, size], int64 [found]. What comes later may overwrite them."""
        return self._bytes[: self.found, : self.size], self._words[: self.found, -1].view(np.int64)

    def keep(self, which: np.ndarray, capacity: int) -> None:
        """Only those rows, bool [found], numbered anew in their order; there is then room for `capacity` of them at least."""
        kept = np.flatnonzero(which)
        words, hashes, self.found = self._words, self._hashes, len(kept)
        if capacity > self.capacity:
            self.capacity, bits = capacity, (2 * capacity - 1).bit_length()
            self._table, self._shift = np.empty(1 << bits, np.int32), np.uint64(64 - bits)
            self._words = np.zeros((capacity + 1, words.shape[1]), np.uint64)  # one more to compare with
            self._bytes, self._hashes = self._words.view(np.uint8), np.empty(capacity, np.uint64)
        self._words[: self.found], self._hashes[: self.found] = words[kept], hashes[kept]
        _place(self._hashes[: self.found], self._table, self._shift)


@functools.cache
def _factors(count: int) -> np.ndarray:
    """Odd numbers, uint64 [count]."""
    return np.random.default_rng(0).integers(2**64, size=count, dtype=np.uint64) | np.uint64(1)


@compiled(nogil=True)
def _find(frames, others, factors, words, as_bytes, hashes, table, shift, known):
    """`Rows.find`, with `known` rows there already. Rows of one hash are compared before they count as equal.

    Source of the hash: Dietzfelbinger 1996, multiply-shift hashing of vectors; its upper bits are the good ones.
    """
    count, size = frames.shape
    first, group, found = np.empty(count, np.int64), np.empty(count, np.int64), 0
    for i in range(count):
        new = known + found
        for j in range(size):
            as_bytes[new, j] = frames[i, j]
        words[new, -1] = np.uint64(others[i])
        hashed = np.uint64(0)
        for j in range(words.shape[1]):
            hashed += words[new, j] * factors[j]
        place = np.int64(hashed >> shift)
        while table[place] >= 0:  # of rows that fall on one place the second is further on
            other = table[place]
            equal = hashes[other] == hashed
            for j in range(words.shape[1] if equal else 0):
                equal &= words[other, j] == words[new, j]
            if equal:
                break
            place = (place + 1) % len(table)
        if table[place] < 0:
            table[place], hashes[new], first[found] = new, hashed, i
            found += 1
        group[i] = table[place]
    return first[:found].copy(), group


@compiled(nogil=True)
def _place(hashes, table, shift):
    """Fills the table with distinct rows of these hashes."""
    table[:] = -1
    for i in range(len(hashes)):
        place = np.int64(hashes[i] >> shift)
        while table[place] >= 0:
            place = (place + 1) % len(table)
        table[place] = i

"""Several learners in step: the ranks that torchrun starts, and everything that they do together.

Every rank has its own actors and makes every update at the same time as the others, from its own rollouts, with the mean of
all ranks' gradients; so weights, optimisers and schedules stay equal without being sent.
Source: IMPALA (arXiv 1802.01561), section 3.1, several synchronised learners; `torch.distributed` does the sending.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

WAIT_SECONDS = 300.0  # a rank that has not come after so long will not come
GOODBYE_SECONDS = 30.0
POLL_SECONDS = 0.02


class RanksFailed(Exception):
    """The ranks cannot go on together; the message says why, and which rank it was where that is known."""


class Alone:
    """One learner by itself: a mean over ranks is what this one has. Nothing is started, copied or waited for.

    Attributes:
        rank, size: this rank's number and how many there are, on all machines.
        local_rank: its number on this machine.
        alone: there is no process group.
    """

    rank, size, local_rank, alone = 0, 1, 0, True

    @property
    def first(self) -> bool:
        """Whether this rank writes the run's folder and speaks to the user."""
        return self.rank == 0

    def share(self, value: Any) -> Any:
        """Rank 0's value (of the kinds that JSON has). Before `connect` too."""
        return value

    def connect(self, device: torch.device) -> None:
        """Makes the process group, when actors have been forked: from here on there are threads, perhaps CUDA."""

    def average(self, gradient: Tensor, weight: float = 1.0) -> None:
        """Replaces it by its mean over ranks, each rank's times its `weight`; the mean of the weights must be 1."""

    def mean(self, values: Mapping[str, float], weights: Mapping[str, float] | None = None) -> dict[str, float]:
        """The mean of each value over ranks, NaN left out; `weights`: this rank's, by name, where it is not 1."""
        return dict(values)

    def gather(self, values: Sequence[float]) -> list[list[float]]:
        """Every rank's values, in the order of ranks."""
        return [list(values)]

    def collect(self, state: dict) -> list[dict]:
        """On rank 0 every rank's `state`, in the order of ranks; elsewhere nothing."""
        return [state]

    def check_equal(self, content: bytes, what: str) -> None:
        """Raises: RanksFailed, on every rank, if `content` differs between ranks; it names those that differ from most."""

    def tell(self, text: str) -> None:
        """Leaves a message for rank 0's `news`."""

    def news(self) -> Iterator[str]:
        """On rank 0: what other ranks have told since the last call, each with its rank."""
        return iter(())

    def fail(self, error: BaseException) -> None:
        """Leaves word of why this rank is about to end, for the others and for torchrun's report."""

    def close(self) -> None:
        """Ends the process group, when all ranks have come here."""


ALONE = Alone()


class Ranks(Alone):
    """This process's part of several. Every rank must call the collective methods (all but tell, news and fail) in one order.

    Any of them raises RanksFailed when another rank is gone or does not come within `seconds`.

    Args:
        store: where the ranks find each other; keys that an earlier attempt left there do no harm.
    """

    alone = False

    def __init__(self, rank: int, size: int, store: dist.Store, *, local_rank: int = 0, seconds: float = WAIT_SECONDS):
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self._timeout = timedelta(seconds=seconds)
        self._shared = self._read = 0
        store.set_timeout(self._timeout)
        with self._failures("the ranks did not find each other"):
            self._store = dist.PrefixStore(_meet(store, rank, size, seconds), store)

    def share(self, value: Any) -> Any:
        key = f"shared/{self._shared}"
        self._shared += 1
        with self._failures("rank 0 did not answer"):
            if self.first:
                self._store.set(key, json.dumps(value))
            return json.loads(_awaited(self._store, key, self._timeout.total_seconds()))

    def connect(self, device: torch.device) -> None:
        backend = "gloo"
        if device.type == "cuda":  # small numbers stay on the CPU, and keep out of the way of what the GPU computes
            torch.cuda.set_device(device)
            backend = "cpu:gloo,cuda:nccl"
        with self._failures("the ranks could not be connected"):
            dist.init_process_group(backend, store=self._store, rank=self.rank, world_size=self.size, timeout=self._timeout)
        self.check_equal(device.type.encode(), "the kind of device that is learned on")

    def average(self, gradient: Tensor, weight: float = 1.0) -> None:
        with self._failures():
            dist.all_reduce(gradient.mul_(weight / self.size))

    def mean(self, values: Mapping[str, float], weights: Mapping[str, float] | None = None) -> dict[str, float]:
        own = [(weights or {}).get(name, 1.0) for name in values]
        columns = list(zip(*self.gather([*values.values(), *own])))
        return {name: _weighted_mean(columns[i], columns[len(own) + i]) for i, name in enumerate(values)}

    def gather(self, values: Sequence[float]) -> list[list[float]]:
        mine = torch.tensor(values, dtype=torch.float64)
        rows = [torch.empty_like(mine) for _ in range(self.size)]
        with self._failures():
            dist.all_gather(rows, mine)
        return [row.tolist() for row in rows]

    def collect(self, state: dict) -> list[dict]:
        states = [None] * self.size if self.first else None
        with self._failures():
            dist.gather_object(state, states)
        return states or []

    def check_equal(self, content: bytes, what: str) -> None:
        digest = int.from_bytes(hashlib.blake2b(content, digest_size=6).digest(), "little")  # float64 holds 53 bits
        digests = [number for (number,) in self.gather([digest])]
        counts = Counter(digests)
        usual = max(counts, key=lambda number: (counts[number], number == digests[0]))
        odd = [str(rank) for rank, number in enumerate(digests) if number != usual]
        if odd:
            raise RanksFailed(f"rank {', '.join(odd)}: {what} differs from that of the other ranks")

    def tell(self, text: str) -> None:
        with self._failures("the message cannot be delivered"):
            self._store.set(f"news/{self._store.add('news', 1)}", f"rank {self.rank}: {text}")

    def news(self) -> Iterator[str]:
        with self._failures("torchrun's agent is gone"):
            while self._store.check([key := f"news/{self._read + 1}"]):
                self._read += 1
                yield self._store.get(key).decode()
                self._store.delete_key(key)

    def fail(self, error: BaseException) -> None:
        with contextlib.suppress(RuntimeError):  # the first one's is the cause
            self._store.compare_set("failure", "", f"rank {self.rank} failed: {str(error) or type(error).__name__}")
        if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
            from torch.distributed.elastic.multiprocessing.errors import get_error_handler

            with contextlib.suppress(OSError):
                get_error_handler().record_exception(error)
                os.chmod(path, 0o644)

    def close(self) -> None:
        with contextlib.suppress(RuntimeError):  # who is first to go must not take an answer with him
            self._store.add("closed", 1)
            deadline = time.monotonic() + GOODBYE_SECONDS
            while self._store.add("closed", 0) < self.size and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
        if dist.is_initialized():  # there was something to do together
            dist.destroy_process_group()

    @contextlib.contextmanager
    def _failures(self, what: str = "another rank is gone, or did not come in time") -> Iterator[None]:
        """torch.distributed's errors, as RanksFailed with the cause that a rank left before it ended."""
        try:
            yield
        except RuntimeError as error:
            detail = re.sub(r"\[\S*gloo\S*\] |\. This is .*|\n.*", "", str(error), flags=re.DOTALL)  # without gloo's advice
            raise RanksFailed(f"{self._cause() or what} ({detail})") from error

    def _cause(self) -> str | None:
        with contextlib.suppress(RuntimeError, AttributeError):  # no store any more, or not yet
            if self._store.check(["failure"]):
                return self._store.get("failure").decode()
        return None


def _weighted_mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """NaN where there is nothing to take the mean of."""
    pairs = [(value, weight) for value, weight in zip(values, weights) if weight and not math.isnan(value)]
    total = sum(weight for _, weight in pairs)
    return sum(value * weight for value, weight in pairs) / total if pairs else math.nan


def _awaited(store: dist.Store, key: str, seconds: float) -> bytes:
    """What is stored there, as soon as it is. (The store's own waiting hears no signals.) Raises: RuntimeError."""
    deadline = time.monotonic() + seconds
    while not store.check([key]):
        if time.monotonic() > deadline:
            raise RuntimeError(f"nothing came within {seconds:.0f} s")
        time.sleep(POLL_SECONDS)
    return store.get(key)


def _meet(store: dist.Store, rank: int, size: int, seconds: float) -> str:
    """A name for this attempt, the same on all ranks and on no other attempt.

    torchrun's store outlives the ranks, and with it what they wrote: after a restart a rank could read an answer to the one
    before it. So each rank asks with a token that nobody has used, and rank 0 answers whoever asks, until all have the name.
    """
    token = os.urandom(8).hex()
    if rank:
        store.set(f"asks/{rank}", token)
        name = _awaited(store, f"answer/{token}", seconds).decode()
        store.add(f"{name}/met", 1)
        return name
    deadline = time.monotonic() + seconds
    while store.add(f"{token}/met", 0) < size - 1:
        for other in range(1, size):
            if store.check([f"asks/{other}"]):
                store.set(f"answer/{store.get(f'asks/{other}').decode()}", token)
        if time.monotonic() > deadline:
            raise RuntimeError(f"not all {size} ranks came within {seconds:.0f} s")
        time.sleep(POLL_SECONDS)
    return token


def from_environment() -> Alone:
    """Ranks where torchrun has started this process, else ALONE. Starts no thread. Raises: RanksFailed."""
    if not launched():
        return ALONE
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=timedelta(seconds=WAIT_SECONDS)))
    except (RuntimeError, ValueError) as error:
        raise RanksFailed(f"torchrun's store does not answer ({error})") from error
    return Ranks(rank, size, store, local_rank=int(os.environ["LOCAL_RANK"]))


def launched() -> bool:
    """Whether torchrun has started this process."""
    return dist.is_available() and dist.is_torchelastic_launched()


def local_size() -> int:
    """How many ranks share this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if launched() else 1

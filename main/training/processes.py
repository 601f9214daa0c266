"""How a run is spread over processes: actor processes, environments, rollouts."""

from __future__ import annotations

import os
from dataclasses import dataclass

from torchbeast.core import forms, ranks
from torchbeast.core.settings import TRAINING, flag

MAX_PROCESSES, MAX_THREADS = 10_000, 1000
LEAST_HOSTED = 2


@dataclass(frozen=True)
class ProcessSettings:
    """Actors, learner threads, and what they share."""

    title = "Processes"
    example = "--num_actors 40 --num_actor_processes 4"
    needs = TRAINING
    num_actors: int = flag(
        4,
        "number of environments, each with rollouts of its own (of each rank); to use many cores take more, and as many times "
        "the batch_size",
        at_least=1,
        first=True,
    )
    num_actor_processes: int | None = flag(
        None,
        "processes that host them (default: as many as learning needs, by what acting and learning cost at the start, at most "
        "one per core but one; 0: act and learn in turn in the main process, reproducibly)",
        resumable=True,
    )
    max_actor_restarts: int = flag(
        10,
        "actor processes that die or get stuck are started again so often within ten minutes",
        at_least=0,
        resumable=True,
        not_with=("num_actor_processes=0",),
    )
    num_buffers: int | None = flag(
        None,
        "rollouts in shared memory (default: max(2 * num_actors, batch_size), or more where the actor processes need more)",
        resumable=True,
    )
    num_threads: int = flag(
        4,
        "batches in hand: one is learned from, a second thread makes the others ready",
        at_least=1,
        at_most=MAX_THREADS,
        resumable=True,
        not_with=("num_actor_processes=0",),
    )
    disable_cuda: bool = flag(False, "learn on the CPU even if there is a GPU", resumable=True, first=True)


@dataclass(frozen=True)
class Spread:
    """How environments and rollouts are spread over processes: as asked for, else within what the machine allows.

    own: what was asked for; batch_size: of an update.
    """

    own: ProcessSettings
    batch_size: int

    @property
    def counts(self) -> range:
        """How many actor processes there can be: as asked, else one to one per core but the learner's, as far as each hosts
        LEAST_HOSTED, and no fewer than num_buffers suffices for."""
        asked, buffers = self.own.num_actor_processes, self.own.num_buffers
        if asked is not None:
            return range(asked, asked + 1)
        most = max(1, min(cores() - 1, self.own.num_actors // LEAST_HOSTED))
        least = 1 if buffers is None else next((n for n in range(1, most) if self.least_buffers(n) <= buffers), most)
        return range(least, most + 1)

    def hosted(self, count: int) -> list[int]:
        """How many environments each of `count` actor processes hosts (one entry for the main process where there are none)."""
        count = max(1, count)
        return [self.own.num_actors // count + (i < self.own.num_actors % count) for i in range(count)]

    def least_buffers(self, count: int) -> int:
        """Fewest rollouts with which nobody can wait for ever: one process's, beside an incomplete batch."""
        return max(self.hosted(count)) + self.batch_size - 1

    @property
    def buffers(self) -> int:
        """How many rollouts there are in shared memory: by default so many that any of `counts` can be."""
        if self.own.num_buffers is not None:
            return self.own.num_buffers
        return max(2 * self.own.num_actors, self.batch_size, self.least_buffers(self.counts[0]))

    def problems(self) -> list[str]:
        """Why these do not go together, with the remedy."""
        if self.own.num_actors < 1:  # its own bound, which is said
            return []
        count, num_buffers = self.own.num_actor_processes, self.own.num_buffers
        bound = min(self.own.num_actors, MAX_PROCESSES)
        if count is not None and not 0 <= count <= bound:
            highest = f"num_actors ({bound})" if bound == self.own.num_actors else f"{bound}"
            return [f"--num_actor_processes must be in 0..{highest}, got {forms.shown(count)}"]
        most = self.counts[-1]
        least = self.least_buffers(most)
        if num_buffers is None or num_buffers >= least:
            return []
        return [
            f"--num_buffers {num_buffers} is too few: a process fills up to {max(self.hosted(most))} rollouts at once "
            f"beside an incomplete batch of {self.batch_size - 1}; use at least {least}, or leave it out"
        ]


def cores() -> int:
    """Cores that this process may use: of several ranks on a machine each takes its part."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, available // ranks.local_size())

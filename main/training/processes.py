"""How a run is spread over processes: actor processes, environments, rollouts."""

from __future__ import annotations

import os
from dataclasses import dataclass

from torchbeast.core import forms, ranks
from torchbeast.core.settings import TRAINING, flag

MAX_PROCESSES, MAX_THREADS = 10_000, 1000
LEAST_HOSTED = 2
FEW = 4


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
        "processes that host them (default: by the cores; more than four only if each hosts ten, or two in slow "
        "environments; 0: act and learn in turn in the main process, reproducibly)",
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
        "learner threads: one learns, with as many batches less one ready beside it",
        at_least=1,
        at_most=MAX_THREADS,
        resumable=True,
        not_with=("num_actor_processes=0",),
    )
    disable_cuda: bool = flag(False, "learn on the CPU even if there is a GPU", resumable=True, first=True)


@dataclass(frozen=True)
class Spread:
    """How environments and rollouts are spread over processes: as asked for, else by the machine and by what acting costs.

    A step has a fixed cost, as large as that of some thirteen environments: what a forward pass costs whatever it is of. So FEW
    processes are worth their cores in any case, more only if each hosts `worth` environments.

    own: what was asked for; batch_size: of an update; worth: the engine's, `Engine.worth`.
    """

    own: ProcessSettings
    batch_size: int
    worth: int

    @property
    def processes(self) -> int:
        """How many actor processes: as asked, else one per core but the learner's, as far as each is worth it."""
        if self.own.num_actor_processes is not None:
            return self.own.num_actor_processes
        actors = self.own.num_actors
        return max(1, min(cores() - 1, actors // LEAST_HOSTED, max(FEW, actors // self.worth)))

    @property
    def hosted(self) -> list[int]:
        """How many environments each actor process hosts (one entry for the main process where there are none)."""
        count = max(1, self.processes)
        return [self.own.num_actors // count + (i < self.own.num_actors % count) for i in range(count)]

    @property
    def min_buffers(self) -> int:
        """Fewest rollouts with which nobody can wait for ever: one process's, beside an incomplete batch."""
        return max(self.hosted) + self.batch_size - 1

    @property
    def buffers(self) -> int:
        """How many rollouts there are in shared memory."""
        if self.own.num_buffers is not None:
            return self.own.num_buffers
        return max(2 * self.own.num_actors, self.batch_size, self.min_buffers)

    def problems(self) -> list[str]:
        """Why these do not go together, with the remedy."""
        if self.own.num_actors < 1:  # its own bound, which is said
            return []
        count, num_buffers = self.own.num_actor_processes, self.own.num_buffers
        most = min(self.own.num_actors, MAX_PROCESSES)
        if count is not None and not 0 <= count <= most:
            highest = f"num_actors ({most})" if most == self.own.num_actors else f"{most}"
            return [f"--num_actor_processes must be in 0..{highest}, got {forms.shown(count)}"]
        if num_buffers is None or num_buffers >= self.min_buffers:
            return []
        return [
            f"--num_buffers {num_buffers} is too few: a process fills up to {max(self.hosted)} rollouts at once beside "
            f"an incomplete batch of {self.batch_size - 1}; use at least {self.min_buffers}, or leave it out"
        ]


def cores() -> int:
    """Cores that this process may use: of several ranks on a machine each takes its part."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, available // ranks.local_size())

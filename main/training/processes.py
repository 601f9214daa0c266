"""How a run is spread over processes: actor processes, environments, rollouts."""

from __future__ import annotations

import os
from dataclasses import dataclass

from torchbeast.core import forms, ranks
from torchbeast.core.settings import TRAINING, flag

MAX_PROCESSES, MAX_THREADS = 10_000, 1000


@dataclass(frozen=True)
class ProcessSettings:
    """Actors, learner threads, and what they share."""

    title = "Processes"
    example = "--num_actors 40 --num_actor_processes 4"
    needs = TRAINING
    num_actors: int = flag(4, "number of environments, each with rollouts of its own (of each rank)", at_least=1, first=True)
    num_actor_processes: int | None = flag(
        None,
        "processes that host them (default: from the cores; 0: act and learn in turn in the main process, reproducibly)",
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
        4, "learner threads", at_least=1, at_most=MAX_THREADS, resumable=True, not_with=("num_actor_processes=0",)
    )
    disable_cuda: bool = flag(False, "learn on the CPU even if there is a GPU", resumable=True, first=True)

    @property
    def processes(self) -> int:
        """How many actor processes: as asked, else one per core but the learner's, at most one per two environments."""
        if self.num_actor_processes is not None:
            return self.num_actor_processes
        return max(1, min(cores() - 1, self.num_actors // 2))

    @property
    def hosted(self) -> list[int]:
        """How many environments each actor process hosts (one entry for the main process where there are none)."""
        count = max(1, self.processes)
        return [self.num_actors // count + (i < self.num_actors % count) for i in range(count)]

    def min_buffers(self, batch_size: int) -> int:
        """Fewest rollouts with which nobody can wait for ever: one process's, beside an incomplete batch."""
        return max(self.hosted) + batch_size - 1

    def buffers(self, batch_size: int) -> int:
        """How many rollouts there are in shared memory."""
        if self.num_buffers is not None:
            return self.num_buffers
        return max(2 * self.num_actors, batch_size, self.min_buffers(batch_size))

    def problems(self, batch_size: int) -> list[str]:
        """Why these do not go together, with the remedy."""
        count = self.num_actor_processes
        most = min(self.num_actors, MAX_PROCESSES)
        if count is not None and not 0 <= count <= most:
            highest = f"num_actors ({most})" if most == self.num_actors else f"{most}"
            return [f"--num_actor_processes must be in 0..{highest}, got {forms.shown(count)}"]
        if self.num_buffers is None or self.num_actors < 1 or self.num_buffers >= self.min_buffers(batch_size):
            return []
        return [
            f"--num_buffers {self.num_buffers} is too few: a process fills up to {max(self.hosted)} rollouts at once beside "
            f"an incomplete batch of {batch_size - 1}; use at least {self.min_buffers(batch_size)}, or leave it out"
        ]


def cores() -> int:
    """Cores that this process may use: of several ranks on a machine each takes its part."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, available // ranks.local_size())

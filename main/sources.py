"""Where the learner's batches come from: actor processes, or an actor in this process."""

from __future__ import annotations

import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from main import actor as actors
from main.actor import Actor
from torchbeast.core.exchange import Exchange
from torchbeast.core.rollouts import Rollouts, shared_array

Batch = dict[str, Tensor]
STOP_SECONDS = 5.0


class Source(Protocol):
    """Gives batches of rollouts."""

    def get(self, batch_size: int) -> Batch:
        """[T+1, B, ...] per field. One thread at a time."""

    def failure(self) -> str | None:
        """Why no more batches can come; None as long as they can."""

    def stop(self) -> None:
        """Ends every wait in `get`."""

    def close(self) -> None:
        """Ends what was started."""

    def state_dict(self) -> dict:
        """What an exact continuation needs; empty where there is none."""

    def load_state_dict(self, state: dict) -> None:
        """Goes back to the moment of `state_dict`."""


class InlineActor:
    """Acts in this process, whenever the learner wants a batch: with a seed, two runs are identical."""

    def __init__(self, actor: Actor, rollouts: Rollouts):
        self._actor = actor
        self._rollouts = rollouts
        self._free = deque(range(rollouts.num_buffers))
        self._full: deque[int] = deque()

    def get(self, batch_size: int) -> Batch:
        while len(self._full) < batch_size:
            slots = [self._free.popleft() for _ in range(self._actor.environment.num_envs)]
            self._actor.fill(self._rollouts, np.array(slots))
            self._full.extend(slots)
        slots = [self._full.popleft() for _ in range(batch_size)]
        self._free.extend(slots)
        return self._rollouts.batch(slots)

    def failure(self) -> None:
        return None

    def stop(self) -> None:
        pass

    def close(self) -> None:
        self._actor.environment.close()

    def state_dict(self) -> dict:
        if not self._actor.row:
            return {}
        full = list(self._full)
        return {
            "actor": self._actor.state_dict(),
            "full": full,
            "free": list(self._free),
            "rollouts": self._rollouts.batch(full),
        }

    def load_state_dict(self, state: dict) -> None:
        if not state:
            return
        self._actor.load_state_dict(state["actor"])
        self._full, self._free = deque(state["full"]), deque(state["free"])
        for name, array in self._rollouts.arrays.items():
            index = (slice(None), state["full"]) if self._rollouts.fields[name].per_row else state["full"]
            array[index] = state["rollouts"][name].numpy()


class ActorProcesses:
    """Forked actor processes. Nothing may have touched CUDA before `start`.

    Args:
        build: `build(i)` makes process i's actor, called in that process.
        hosted: how many environments each process has.
    """

    def __init__(self, build: Callable[[int], Actor], hosted: Sequence[int], rollouts: Rollouts):
        self._rollouts = rollouts
        self._exchange = Exchange(rollouts.num_buffers, hosted)
        self._stop = shared_array((1,), np.bool_)
        context = multiprocessing.get_context("fork")
        self._processes = [
            context.Process(target=self._child, args=(build, i), name=f"actor {i}", daemon=True) for i in range(len(hosted))
        ]

    def start(self) -> None:
        if torch.cuda.is_initialized():
            raise RuntimeError("CUDA was used before the actor processes were forked")
        for process in self._processes:
            process.start()
        self._exchange.start()

    def _child(self, build: Callable[[int], Actor], index: int) -> None:
        actors.run(lambda: build(index), self._rollouts, self._exchange.child_port(index), self._stop)

    def get(self, batch_size: int) -> Batch:
        slots = self._exchange.get(batch_size)
        batch = self._rollouts.batch(slots)
        self._exchange.release(slots)
        return batch

    def failure(self) -> str | None:
        for process in self._processes:
            if process.exitcode is not None and not self._stop[0]:
                how = f"killed by signal {-process.exitcode}" if process.exitcode < 0 else f"exit code {process.exitcode}"
                return f"{process.name} (process {process.pid}) ended: {how}"
        return None

    def stop(self) -> None:
        self._stop[0] = True
        self._exchange.stop()

    def close(self) -> None:
        self.stop()
        self._exchange.close()
        deadline = time.monotonic() + STOP_SECONDS
        for process in self._processes:
            if process.pid is not None:
                process.join(max(0.0, deadline - time.monotonic()))
                if process.is_alive():
                    process.kill()
                    process.join()

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        pass

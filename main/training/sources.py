"""Where the learner's batches come from: actor processes, or an actor in this process."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from main.training import actor as actors
from main.training.actor import Actor
from torchbeast.core.exchange import ActorPort, Exchange
from torchbeast.core.rollouts import Rollouts, shared_array
from torchbeast.core.settings import UsageError
from torchbeast.core.spawner import Spawner

logger = logging.getLogger("amigo")

Batch = dict[str, Tensor]
STOP_SECONDS = 5.0
STALL_SECONDS = 4.0  # a process that has rollouts to fill and takes no step for so long is taken for stuck
STOPPED_SECONDS = 2.0  # the same for one that a signal has stopped: it certainly takes none
START_SECONDS = 60.0  # the same before its first step: it makes its environments meanwhile
RESTART_WINDOW = 600.0


class ActorsFailed(Exception):
    """The actor processes cannot go on; the message is the cause."""


class Source(Protocol):
    """Gives batches of rollouts."""

    def get(self, batch_size: int) -> Batch:
        """[T+1, B, ...] per field. One thread at a time."""

    def supervise(self) -> None:
        """Called every quarter of a second or so. Raises ActorsFailed when no more batches can come."""

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

    def supervise(self) -> None:
        pass

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
        count = len(state["full"])
        self._full, self._free = deque(range(count)), deque(range(count, self._rollouts.num_buffers))
        for name, array in self._rollouts.arrays.items():
            waiting = array[:, :count] if self._rollouts.fields[name].per_row else array[:count]
            waiting[...] = state["rollouts"][name].numpy()


class ActorProcesses:
    """Actor processes, which are started again when they die or get stuck.

    Nothing may have touched CUDA, and no thread may run, before `start`; restarts are safe at any time.

    Args:
        build: `build(i, n)` makes process i's actor when it starts for the n-th time (from 0); called in that process.
        hosted: how many environments each process has.
        max_restarts: more than so many restarts within ten minutes end the run.
    """

    def __init__(self, build: Callable[[int, int], Actor], hosted: Sequence[int], rollouts: Rollouts, *, max_restarts: int):
        self._build = build
        self._rollouts = rollouts
        self._max_restarts = max_restarts
        self._exchange = Exchange(rollouts.num_buffers, hosted)
        self._spawner = Spawner(self._work)
        self._stop = shared_array((1,), np.bool_)
        self._heartbeats = shared_array((len(hosted), 1), np.int64)
        self._incarnations = [0] * len(hosted)
        self._pulses = [_Pulse() for _ in hosted]
        self._last_look = time.monotonic()
        self._traces: dict[int, str] = {}
        self.restarts: deque[float] = deque()

    def start(self) -> None:
        if torch.cuda.is_initialized():
            raise RuntimeError("CUDA was used before the actor processes were forked")
        self._spawner.start()
        for index in range(len(self._incarnations)):
            self._launch(index)

    @property
    def pids(self) -> list[int]:
        """Process ids of the actor processes."""
        return [self._spawner.pids[index] for index in range(len(self._incarnations))]

    def _launch(self, index: int) -> None:
        self._heartbeats[index] = 0
        self._pulses[index] = _Pulse()
        self._exchange.attach(index, self._spawner.spawn(index, self._incarnations[index]))
        self._incarnations[index] += 1

    def _work(self, index: int, incarnation: int, connection: Connection) -> None:
        actors.run(
            lambda: self._build(index, incarnation),
            self._rollouts,
            ActorPort(connection),
            self._stop,
            self._heartbeats[index],
        )

    def get(self, batch_size: int) -> Batch:
        slots = self._exchange.get(batch_size)
        batch = self._rollouts.batch(slots)
        self._exchange.release(slots)
        return batch

    def supervise(self) -> None:
        """Notices processes that ended or are stuck, says why, and starts them again.

        Raises: UsageError if an environment cannot be played.
        """
        try:
            self._kill_stuck()
            for ended in self._spawner.ended():
                if not self._stop[0]:
                    self._replace(ended.index, ended.pid, ended.exit_code)
        except (EOFError, OSError):
            raise ActorsFailed("the process that starts the actor processes has ended") from None

    def _replace(self, index: int, pid: int, exit_code: int) -> None:
        how = f"was killed by signal {-exit_code}" if exit_code < 0 else f"ended with exit code {exit_code}"
        cause = f"actor {index} (process {pid}) {how}"
        trace = self._trace(index) if exit_code > 0 else None
        if trace is not None and exit_code == actors.WRONG_INPUT:
            raise UsageError(trace)
        if trace is not None:
            cause = f"{cause}\n{trace.rstrip()}"
        now = time.monotonic()
        while self.restarts and now - self.restarts[0] > RESTART_WINDOW:
            self.restarts.popleft()
        if len(self.restarts) >= self._max_restarts:
            allowed = f"{self._max_restarts} restarts within ten minutes are allowed (--max_actor_restarts)"
            raise ActorsFailed(f"{cause}\n{allowed}")
        self.restarts.append(now)
        logger.warning(f"{cause}; starting it again")
        self._launch(index)

    def _trace(self, index: int) -> str | None:
        """The traceback that process `index` sent before it ended; the learner's thread may be about to receive it."""
        deadline = time.monotonic() + 1.0
        while index not in self._traces and time.monotonic() < deadline:
            while not self._exchange.failures.empty():
                sender, trace = self._exchange.failures.get()
                self._traces[sender] = trace
            time.sleep(0.01)
        return self._traces.pop(index, None)

    def _kill_stuck(self) -> None:
        now = time.monotonic()
        slept = now - self._last_look > STALL_SECONDS / 2  # this process itself stood still: it has seen nothing
        self._last_look = now
        for index, pulse in enumerate(self._pulses):
            beats = int(self._heartbeats[index, 0])
            if slept or beats != pulse.beats or not self._exchange.holds(index):
                pulse.beats, pulse.since = beats, now
            elif now - pulse.since > self._patience(index, beats) and not pulse.killed:
                logger.warning(
                    f"actor {index} (process {self._spawner.pids[index]}) took no step for {now - pulse.since:.0f} s"
                )
                pulse.killed = True
                self._spawner.kill(index)

    def _patience(self, index: int, beats: int) -> float:
        if _is_stopped(self._spawner.pids[index]):
            return STOPPED_SECONDS
        return STALL_SECONDS if beats else START_SECONDS

    def stop(self) -> None:
        self._stop[0] = True
        self._exchange.stop()

    def close(self) -> None:
        self.stop()
        self._exchange.close()
        self._spawner.close(STOP_SECONDS)

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        pass


def _is_stopped(pid: int) -> bool:
    """Whether a signal has stopped the process (state T in Linux's account of it)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"
    except OSError:
        return False


class _Pulse:
    """What was last seen of a process: its heartbeats, since when they stand still, and whether it has been killed for it."""

    def __init__(self):
        self.beats = 0
        self.since = time.monotonic()
        self.killed = False

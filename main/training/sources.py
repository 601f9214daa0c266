"""Where the learner's batches come from: actor processes, or an actor in this process."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from main.training import actor as actors
from main.training.actor import Actor
from torchbeast.core import forms
from torchbeast.core.exchange import ActorPort, Exchange
from torchbeast.core.rollouts import Rollouts, shared_array, younger
from torchbeast.core.settings import UsageError
from torchbeast.core.spawner import Refused, Spawner, is_stopped

logger = logging.getLogger("amigo")

Batch = dict[str, Tensor]
STOP_SECONDS = 5.0
STALL_SECONDS = 4.0  # a process that has rollouts to fill and takes no step for so long is taken for stuck
STOPPED_SECONDS = 2.0  # the same for one that a signal has stopped: it certainly takes none
START_SECONDS = 60.0  # the same before its first step: it makes its environments meanwhile
RESTART_WINDOW = 600.0
TOLD_SECONDS = 60.0  # what lasts is told again
REMEDY = "raise the limits on processes and open files (ulimit -u, ulimit -n, the container's), or use fewer actor processes"
REFUSED_SECONDS = 1.0  # between attempts to start a process that the system refuses


class ActorsFailed(Exception):
    """The actor processes cannot go on; the message is the cause."""


class Source(Protocol):
    """Gives batches of rollouts."""

    def get(self, batch_size: int) -> Batch:
        """[T+1, B, ...] per field. One thread at a time."""

    def supervise(self) -> None:
        """Called every quarter of a second or so. Raises ActorsFailed when no more batches can come."""

    def standing(self) -> str:
        """What keeps batches from coming, as far as it can be seen."""

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

    def standing(self) -> str:
        return "this process acts and learns in turn: a step of its environments takes longer than that"

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
        self._check(state)
        self._actor.load_state_dict(state["actor"])
        count = len(state["full"])
        self._full, self._free = deque(range(count)), deque(range(count, self._rollouts.num_buffers))
        for name, array in self._rollouts.arrays.items():
            waiting = array[:, :count] if self._rollouts.fields[name].per_row else array[:count]
            waiting[...] = state["rollouts"][name].numpy() if name in state["rollouts"] else 0
            if self._rollouts.fields[name].per_row and name not in self._actor.row:
                self._actor.row[name] = np.zeros((self._actor.environment.num_envs, *array.shape[2:]), array.dtype)

    def _check(self, state: dict) -> None:
        """Rollouts and rows are of this run's fields; the actor looks at the rest of its own."""
        rollouts, num_envs = self._rollouts, self._actor.environment.num_envs
        full, free = forms.each(forms.whole(), at_most=rollouts.num_buffers), forms.each(forms.whole())
        forms.record({"full": full, "free": free, "actor": forms.anything, "rollouts": forms.anything})("source", state)
        if sorted(state["full"] + state["free"]) != list(range(len(state["full"]) + len(state["free"]))):
            raise forms.EntryError("source/full and source/free are not all slots, each once")
        rollouts.form(len(state["full"]))("source/rollouts", state["rollouts"])
        rows = forms.record({"observed": forms.mapping, "results": forms.mapping}, exact=False)
        rows("source/actor", state["actor"])
        row = {name: field.form(num_envs) for name, field in rollouts.fields.items() if field.per_row}
        observed = state["actor"]["observed"] | state["actor"]["results"]
        forms.record(row, exact=False, optional=younger(rollouts.fields))("source/actor/row", observed)


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
        self._spawner_pulse = _Pulse()
        self._stop = shared_array((1,), np.bool_)
        self._heartbeats = shared_array((len(hosted), 1), np.int64)
        self._incarnations = [0] * len(hosted)
        self._pulses = [_Pulse() for _ in hosted]
        self._last_look = time.monotonic()
        self._ended: list[tuple[int, int, int]] = []  # index, process id, exit code of those not yet started again
        self._traces: dict[int, str] = {}
        self._refused: dict[int, _Refusal] = {}
        self.restarts: deque[float] = deque()

    def start(self) -> None:
        """Forks the processes. Raises: ActorsFailed."""
        if torch.cuda.is_initialized():
            raise RuntimeError("CUDA was used before the actor processes were forked")
        try:
            self._spawner.start()
        except OSError as error:
            raise ActorsFailed(f"no process can be started ({error.strerror}): {REMEDY}") from None
        try:
            for index in range(len(self._incarnations)):
                self._launch(index)
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        """Process ids of the actor processes."""
        return [self._spawner.pids[index] for index in range(len(self._incarnations))]

    def _launch(self, index: int) -> None:
        """Starts a process; where the system refuses, says so, and `supervise` tries again."""
        self._heartbeats[index] = 0
        try:
            connection = self._spawner.spawn(index, self._incarnations[index])
        except Refused as error:
            refusal = self._refused.setdefault(index, _Refusal())
            if time.monotonic() - refusal.since > RESTART_WINDOW:
                raise ActorsFailed(f"actor {index} could not be started for ten minutes ({error.strerror}): {REMEDY}") from None
            if refusal.tell():
                logger.warning(f"actor {index} cannot be started ({error.strerror}), and is tried again: {REMEDY}")
            return
        except (EOFError, OSError) as error:
            raise ActorsFailed(_gone(error)) from None
        if self._refused.pop(index, None) is not None:
            logger.info(f"actor {index} has been started")
        self._pulses[index] = _Pulse()
        self._exchange.attach(index, connection)
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
        """Notices processes that ended or are stuck, says why, starts them again. Raises: UsageError from an environment."""
        now = time.monotonic()
        slept = now - self._last_look > STALL_SECONDS / 2  # this process itself stood still: it has seen nothing
        self._last_look = now
        self._look_at_the_spawner(now, slept)
        try:
            self._kill_stuck(now, slept)
            self._ended += self._spawner.ended()
        except (EOFError, OSError) as error:
            raise ActorsFailed(_gone(error)) from None
        explained = [each for each in self._ended if self._is_explained(*each)]
        self._ended = [each for each in self._ended if each not in explained]
        while not self._exchange.failures.empty():
            index, trace = self._exchange.failures.get()
            self._traces[index] = trace
        for index, pid, exit_code in explained:
            if not self._stop[0]:
                self._replace(index, pid, exit_code)
        for index in [index for index, refusal in self._refused.items() if refusal.due()]:
            self._launch(index)

    def _look_at_the_spawner(self, now: float, slept: bool) -> None:
        """While it stands still no end of an actor is told: a stopped one is woken, and one that stays stuck ends the run."""
        pulse, pid = self._spawner_pulse, self._spawner.pid
        if slept or self._spawner.beats != pulse.beats:
            pulse.beats, pulse.since, pulse.killed = self._spawner.beats, now, False
        elif now - pulse.since > STOPPED_SECONDS and not pulse.killed and self._spawner.wake():
            pulse.killed = True
        elif now - pulse.since > STALL_SECONDS + STOPPED_SECONDS:
            raise ActorsFailed(f"the process that starts the actor processes (process {pid}) is stuck")

    def standing(self) -> str:
        everyone = range(len(self._pulses))
        stopped = sum(is_stopped(pid) for pid in [self._spawner.pid, *list(self._spawner.pids.values())])
        return (
            f"of {len(everyone)} actor processes {len(everyone) - len(self._refused)} have been started, "
            f"{sum(map(self._exchange.holds, everyone))} have rollouts to fill and send none, {stopped} are stopped by a signal"
        )

    def _replace(self, index: int, pid: int, exit_code: int) -> None:
        how = f"was killed by signal {-exit_code}" if exit_code < 0 else f"ended with exit code {exit_code}"
        cause = f"actor {index} (process {pid}) {how}"
        trace = self._traces.pop(index, None)
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

    def _is_explained(self, index: int, _: int, exit_code: int) -> bool:
        """Whether all that can be known of why a process ended is: the learner's thread reads what it sent, between updates."""
        return exit_code < 0 or self._exchange.read_out(index)

    def _kill_stuck(self, now: float, slept: bool) -> None:
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
        if is_stopped(self._spawner.pids[index]):
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


def _gone(error: Exception) -> str:
    what = "does not answer" if isinstance(error, TimeoutError) else "has ended"
    return f"the process that starts the actor processes {what}"


class _Pulse:
    """What was last seen of a process: its heartbeats, since when they stand still, and whether it has been killed for it."""

    def __init__(self):
        self.beats = 0
        self.since = time.monotonic()
        self.killed = False


class _Refusal:
    """Since when the system refuses to start a process, when it is asked again, and when the user was last told."""

    def __init__(self):
        self.since = time.monotonic()
        self._asked = self.since
        self._told: float | None = None

    def due(self) -> bool:
        """Whether to ask again now."""
        if time.monotonic() - self._asked < REFUSED_SECONDS:
            return False
        self._asked = time.monotonic()
        return True

    def tell(self) -> bool:
        """Whether to tell the user: the first time, and every minute."""
        now = time.monotonic()
        if self._told is not None and now - self._told < TOLD_SECONDS:
            return False
        self._told = now
        return True

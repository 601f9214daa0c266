"""Who may use which rollout: slots go round from the learner to actor processes and back.

Every actor process has a pipe of its own to the learner, so no lock is shared between processes: one that is killed at any
moment can block nobody else, and what it held is given back.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue

import numpy as np

POLL_SECONDS = 0.2
AHEAD = 2  # sets of slots an actor process may hold: one that it fills, one that lies ready


class Stopped(Exception):
    """The run is ending: no further batch will come."""


class ActorPort:
    """An actor process's end."""

    def __init__(self, connection: Connection):
        self.connection = connection

    def next_slots(self) -> np.ndarray:
        """Waits for slots to fill, int64 [E]. EOFError when the learner's side is gone."""
        return np.array(self.connection.recv(), np.int64)

    def full(self, slots: np.ndarray) -> None:
        """Hands filled slots over."""
        self.connection.send(("full", slots.tolist()))

    def failed(self, trace: str) -> None:
        """Reports the exception that ends this process."""
        self.connection.send(("failed", trace))


class Exchange:
    """The learner's end: gives out free slots, takes full ones.

    Actor processes come and go: `attach` gives number i a new pipe, after which the process that had that number before is
    forgotten, and the slots it held are free again. `get` and `release` are for one thread at a time; `attach`, `holds`,
    `read_out` and `stop` may be called from any.

    Args:
        num_buffers: slots 0..num_buffers-1.
        hosted: how many environments, and so slots at a time, each actor process has.

    Attributes:
        failures: (number, traceback) of every process that reported an exception.
    """

    def __init__(self, num_buffers: int, hosted: Sequence[int]):
        self._hosted = list(hosted)
        self._free = deque(range(num_buffers))
        self._full: deque[int] = deque()
        self._held: list[deque[list[int]]] = [deque() for _ in self._hosted]  # sets of slots, oldest first
        self._turns = list(range(len(self._hosted)))  # served longest ago first
        self._connections: list[Connection | None] = [None] * len(self._hosted)
        self._arrivals: SimpleQueue[tuple[int, Connection]] = SimpleQueue()
        self._attached = [0] * len(self._hosted)  # processes so far; another thread counts than the one below,
        self._dismissed = [0] * len(self._hosted)  # so that no count is lost
        self._stopped = threading.Event()
        self.failures: SimpleQueue[tuple[int, str]] = SimpleQueue()

    def attach(self, index: int, connection: Connection) -> None:
        """From the next `get` on, process `index` is at the other end of this pipe."""
        self._attached[index] += 1
        self._arrivals.put((index, connection))

    def read_out(self, index: int) -> bool:
        """Whether all that the processes with this number sent before they ended has been read, so that `failures` has it."""
        return self._dismissed[index] == self._attached[index]

    def holds(self, index: int) -> bool:
        """Whether process `index` has slots to fill, and has sent nothing that waits to be read: then it may be waiting."""
        connection = self._connections[index]
        try:
            unread = connection is not None and connection.poll()
        except (OSError, ValueError):  # closed meanwhile
            unread = True
        return bool(self._held[index]) and not unread

    def stop(self) -> None:
        """Ends every wait, now and later, with Stopped."""
        self._stopped.set()

    def close(self) -> None:
        """Closes the pipes: waiting actors see the end. Not while another thread is in `get`: `stop` it first."""
        self.stop()
        self._welcome()
        for index in range(len(self._hosted)):
            self._dismiss(index)

    def get(self, batch_size: int) -> list[int]:
        """Waits for that many full slots, oldest first. Raises Stopped."""
        while len(self._full) < batch_size:
            if self._stopped.is_set():
                raise Stopped
            self._welcome()
            ends = [c for c in self._connections if c is not None]
            if not ends:
                self._stopped.wait(POLL_SECONDS)  # all are gone; who watches the processes attaches new ones, or stops
                continue
            for connection in wait(ends, POLL_SECONDS):
                if connection in self._connections:  # else a grant has found its process dead meanwhile
                    self._receive(self._connections.index(connection))
        return [self._full.popleft() for _ in range(batch_size)]

    def release(self, slots: Sequence[int]) -> None:
        """Gives slots from `get` back for filling."""
        self._free.extend(slots)
        self._grant()

    def _welcome(self) -> None:
        while not self._arrivals.empty():
            index, connection = self._arrivals.get()
            self._dismiss(index)
            self._connections[index] = connection
            self._grant()

    def _dismiss(self, index: int) -> None:
        """Forgets a process that is gone; half-filled slots are as good as empty ones."""
        if self._connections[index] is not None:
            self._connections[index].close()
            self._connections[index] = None
            self._dismissed[index] += 1
        while self._held[index]:
            self._free.extend(self._held[index].popleft())

    def _receive(self, index: int) -> None:
        try:
            kind, content = self._connections[index].recv()
        except (EOFError, OSError):
            self._dismiss(index)
            self._grant()  # others may have waited behind it
            return
        if kind == "failed":
            self.failures.put((index, content))
            return
        self._held[index].popleft()
        self._full.extend(content)
        self._grant()

    def _grant(self) -> None:
        """Gives free slots, a whole set at a time, to the process that has fewest; among equals, to the one served longest ago.

        While the free ones are too few for that process, nobody overtakes it: it would never be served.
        """
        gone: set[int] = set()
        while waiting := [
            i for i in self._turns if len(self._held[i]) < AHEAD and self._connections[i] is not None and i not in gone
        ]:
            i = min(waiting, key=lambda i: len(self._held[i]))
            if len(self._free) < self._hosted[i]:
                return
            slots = [self._free.popleft() for _ in range(self._hosted[i])]
            try:
                self._connections[i].send(slots)
            except OSError:  # the process is gone; what it sent before, a traceback perhaps, is still to be read
                self._free.extend(slots)
                gone.add(i)
                continue
            self._held[i].append(slots)
            self._turns.remove(i)
            self._turns.append(i)

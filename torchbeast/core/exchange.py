"""Who may use which rollout: slots go round from the learner to actor processes and back.

Every actor process has a pipe of its own to the learner, so no lock is shared between processes: one that is killed at any
moment can block nobody else.
"""

from __future__ import annotations

import multiprocessing
import threading
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait

import numpy as np

POLL_SECONDS = 0.2
AHEAD = 2  # sets of slots an actor process may hold: one that it fills, one that lies ready


class Stopped(Exception):
    """The run is ending: no further batch will come."""


class ActorFailed(Exception):
    """An actor process ended with an exception; the message is its traceback."""


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

    Args:
        num_buffers: slots 0..num_buffers-1.
        hosted: how many environments, and so slots at a time, each actor process has.
    """

    def __init__(self, num_buffers: int, hosted: Sequence[int]):
        self._hosted = list(hosted)
        self._free = deque(range(num_buffers))
        self._full: deque[int] = deque()
        self._outstanding = [0] * len(self._hosted)
        self._turns = list(range(len(self._hosted)))  # served longest ago first
        self._stopped = threading.Event()
        pairs = [multiprocessing.Pipe() for _ in self._hosted]
        self._connections = [ours for ours, _ in pairs]
        self._ports = [ActorPort(theirs) for _, theirs in pairs]

    def child_port(self, index: int) -> ActorPort:
        """For the process `index`, in that process: its port; every other end is closed there."""
        for connection in self._connections:
            connection.close()
        for i, port in enumerate(self._ports):
            if i != index:
                port.connection.close()
        return self._ports[index]

    def start(self) -> None:
        """In the learner's process, after all actor processes have been forked."""
        for port in self._ports:
            port.connection.close()
        self._grant()

    def stop(self) -> None:
        """Ends every wait, now and later, with Stopped."""
        self._stopped.set()

    def close(self) -> None:
        """Closes the pipes: waiting actors see the end."""
        self.stop()
        for connection in self._connections:
            connection.close()

    def get(self, batch_size: int) -> list[int]:
        """Waits for that many full slots, oldest first. Raises Stopped or ActorFailed. One thread at a time."""
        while len(self._full) < batch_size:
            if self._stopped.is_set():
                raise Stopped
            open_ends = [c for c in self._connections if not c.closed]
            if not open_ends:
                self._stopped.wait(POLL_SECONDS)  # all are gone; who watches the processes ends the run
            for connection in wait(open_ends, POLL_SECONDS) if open_ends else ():
                self._receive(connection)
        return [self._full.popleft() for _ in range(batch_size)]

    def release(self, slots: Sequence[int]) -> None:
        """Gives slots from `get` back for filling."""
        self._free.extend(slots)
        self._grant()

    def _receive(self, connection: Connection) -> None:
        try:
            kind, content = connection.recv()
        except (EOFError, OSError):
            connection.close()  # the process is gone; who watches the processes says why
            self._grant()  # others may have waited behind it
            return
        if kind == "failed":
            raise ActorFailed(content)
        self._full.extend(content)
        self._outstanding[self._connections.index(connection)] -= 1
        self._grant()

    def _grant(self) -> None:
        """Gives free slots, a whole set at a time, to the process that has fewest; among equals, to the one served longest ago.

        While the free ones are too few for that process, nobody overtakes it: it would never be served.
        """
        while waiting := [i for i in self._turns if self._outstanding[i] < AHEAD and not self._connections[i].closed]:
            i = min(waiting, key=self._outstanding.__getitem__)
            if len(self._free) < self._hosted[i]:
                return
            slots = [self._free.popleft() for _ in range(self._hosted[i])]
            try:
                self._connections[i].send(slots)
            except OSError:  # the process is gone
                self._free.extend(slots)
                self._connections[i].close()
                continue
            self._outstanding[i] += 1
            self._turns.remove(i)
            self._turns.append(i)

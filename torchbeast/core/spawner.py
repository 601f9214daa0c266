"""Forking worker processes at any time, also when the main process has threads and uses CUDA.

A process with threads or a CUDA context must not fork. So a small process is forked early, before either exists, and does
all later forking: the spawner. Workers are its children; it tells the main process when one ends, and when the main process
is gone it ends them and itself.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import recv_handle, send_handle
from typing import NamedTuple


class Ended(NamedTuple):
    """A worker has ended: its number, process id, and exit code (minus the signal's number if a signal killed it)."""

    index: int
    pid: int
    exit_code: int


class Spawner:
    """Forks workers on request.

    Args:
        work: `work(index, incarnation, connection)` is a worker's whole life; it sees this process's memory as of `start`.
    """

    def __init__(self, work: Callable[[int, int, Connection], None]):
        self._work = work
        self._ended: list[Ended] = []
        self.pids: dict[int, int] = {}

    def start(self) -> None:
        """Forks the spawner. From now on this process may have threads and use CUDA."""
        self._connection, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("fork").Process(
            target=self._serve, args=(theirs,), name="spawner", daemon=True
        )
        self._process.start()
        theirs.close()

    def spawn(self, index: int, incarnation: int) -> Connection:
        """Forks worker `index` and returns this process's end of a new pipe to it."""
        ours, theirs = multiprocessing.Pipe()
        self._connection.send(("spawn", index, incarnation))
        send_handle(self._connection, theirs.fileno(), self._process.pid)
        theirs.close()
        while (message := self._connection.recv())[0] != "pid":
            self._ended.append(Ended(*message[1:]))
        self.pids[index] = message[1]
        return ours

    def kill(self, index: int) -> None:
        """Kills worker `index`; its end is reported as any other."""
        self._connection.send(("kill", self.pids[index]))

    def ended(self) -> list[Ended]:
        """Workers that have ended since the last call. EOFError if the spawner itself has."""
        while self._connection.poll():
            self._ended.append(Ended(*self._connection.recv()[1:]))
        ended, self._ended = self._ended, []
        return ended

    def close(self, seconds: float) -> None:
        """Gives the workers that long to end, kills the rest, and ends the spawner."""
        with contextlib.suppress(OSError):  # it may have gone already, and its workers with it
            self._connection.send(("close", seconds))
        self._process.join(seconds + 2)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._connection.close()

    # -- in the spawner -----------------------------------------------------------------------------------------------

    def _serve(self, connection: Connection) -> None:
        os.setpgid(0, 0)  # signals to the group, Ctrl-C among them, are the main process's: it decides what ends
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)
        self._connection.close()  # the main process's end: while it were open here, its end would not be noticed
        workers: dict[int, tuple[int, int]] = {}  # a descriptor that becomes readable when the worker ends: index, pid
        closing = None
        while closing is None or workers:
            ready = wait([*([connection] if closing is None else []), *workers], closing)
            if not ready:
                break
            for item in ready:
                if item is not connection:
                    self._bury(item, workers, connection)
                    continue
                try:
                    message = connection.recv()
                except EOFError:
                    message = ("close", 0.0)  # the main process is gone
                if message[0] == "spawn":
                    self._fork(connection, workers, *message[1:])
                elif message[0] == "kill" and message[1] in [pid for _, pid in workers.values()]:
                    os.kill(message[1], signal.SIGKILL)
                elif message[0] == "close":
                    closing = message[1]
        for _, pid in workers.values():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def _fork(self, connection: Connection, workers: dict, index: int, incarnation: int) -> None:
        theirs = Connection(recv_handle(connection))
        pid = os.fork()
        if pid == 0:
            connection.close()
            for descriptor in workers:
                os.close(descriptor)
            code = 1
            try:
                self._work(index, incarnation, theirs)
                code = 0
            except SystemExit as error:
                code = int(error.code or 0)
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()  # os._exit does not
            finally:
                os._exit(code)
        theirs.close()
        workers[os.pidfd_open(pid)] = (index, pid)
        connection.send(("pid", pid))

    def _bury(self, descriptor: int, workers: dict, connection: Connection) -> None:
        index, pid = workers.pop(descriptor)
        os.close(descriptor)
        _, status = os.waitpid(pid, 0)
        with contextlib.suppress(OSError):  # the main process may be gone
            connection.send(("ended", index, pid, os.waitstatus_to_exitcode(status)))

"""Forking worker processes at any time, also when the main process has threads and uses CUDA.

A process with threads or a CUDA context must not fork. So a small process is forked early, before either exists, and does
all later forking: the spawner. Workers are its children; it tells the main process when one ends, and when the main process
is gone it ends them and itself. (Where it cannot, being stopped or killed itself, the kernel does.)
"""

from __future__ import annotations

import contextlib
import errno
import logging
import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple

import numpy as np

from torchbeast.core import parent
from torchbeast.core.console import cut
from torchbeast.core.rollouts import shared_array

logger = logging.getLogger("amigo")

BEAT_SECONDS = 0.5
ANSWER_SECONDS = 10.0  # a fork takes milliseconds
LOOK_SECONDS = 1.0  # while an answer is waited for: what is stopped gives none
SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")  # the main process's: it decides what ends


def is_stopped(pid: int) -> bool:
    """Whether a signal has stopped the process (state T in Linux's account of it)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"
    except OSError:
        return False


def lacking() -> list[str]:
    """What this system, or this Python, does not have and a spawner needs."""
    needed = {"fork": os, "pidfd_open": os, "recv_fds": socket}
    return [name for name, place in needed.items() if not hasattr(place, name)]


class Refused(OSError):
    """The system has not let a worker be forked now: too many processes or open files, or too little memory."""


class Ended(NamedTuple):
    """A worker has ended: its number, process id, and exit code (minus the signal's number if a signal killed it)."""

    index: int
    pid: int
    exit_code: int


class Spawner:
    """Forks workers on request.

    Args:
        work: `work(index, incarnation, connection)` is a worker's whole life; it sees this process's memory as of `start`.

    Attributes:
        pid: the spawner's process.
        pids: the workers' processes, by their numbers.
    """

    def __init__(self, work: Callable[[int, int, Connection], None]):
        self._work = work
        self._ended: list[Ended] = []
        self._beats = shared_array((1,), np.int64)
        self.pid = 0
        self.pids: dict[int, int] = {}

    @property
    def beats(self) -> int:
        """Grows every BEAT_SECONDS while the spawner is at work."""
        return int(self._beats[0])

    def start(self) -> None:
        """Forks the spawner. From now on this process may have threads and use CUDA. Raises: OSError if it cannot be."""
        self._connection, theirs = multiprocessing.Pipe()
        main = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            _alone(lambda: self._serve(theirs, main))
        theirs.close()

    def spawn(self, index: int, incarnation: int) -> Connection:
        """Forks worker `index` and returns this process's end of a new pipe to it.

        Raises: Refused; EOFError, BrokenPipeError or TimeoutError if the spawner itself is gone or does not answer.
        """
        try:
            ours, theirs = multiprocessing.Pipe()
        except OSError as error:  # this process has too many open files
            raise Refused(error.errno, error.strerror) from None
        with theirs:
            self._connection.send(("spawn", index, incarnation))
            _hand_over(self._connection, theirs)
        while (message := self._answer())[0] == "ended":
            self._ended.append(Ended(*message[1:]))
        if message[0] == "refused":
            ours.close()
            raise Refused(*message[1:])
        self.pids[index] = message[1]
        return ours

    def _answer(self) -> tuple:
        deadline = time.monotonic() + ANSWER_SECONDS
        while not self._connection.poll(LOOK_SECONDS):
            if time.monotonic() > deadline:
                raise TimeoutError
            self.wake()
        return self._connection.recv()

    def wake(self) -> bool:
        """Lets the spawner go on if a signal has stopped it, and says so. Returns whether it was stopped."""
        if not is_stopped(self.pid):
            return False
        logger.warning(f"the process that starts the actor processes (process {self.pid}) was stopped by a signal; waking it")
        os.kill(self.pid, signal.SIGCONT)
        return True

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
        """Gives the workers that long to end, kills the rest, and ends the spawner. Later calls do nothing."""
        if not self.pid:
            return
        with contextlib.suppress(OSError):  # it may have gone already, and its workers with it
            self._connection.send(("close", seconds))
        deadline = time.monotonic() + seconds + 2
        while os.waitpid(self.pid, os.WNOHANG)[0] == 0:
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                deadline = float("inf")
            time.sleep(0.005)
        self.pid = 0
        self._connection.close()

    # -- in the spawner -----------------------------------------------------------------------------------------------

    def _serve(self, connection: Connection, main: int) -> None:
        os.setpgid(0, 0)
        for name in SIGNALS:
            signal.signal(getattr(signal, name), signal.SIG_IGN)
        parent.die_with(main)
        self._connection.close()  # the main process's end: while it were open here, its end would not be noticed
        workers: dict[int, tuple[int, int]] = {}  # a descriptor that becomes readable when the worker ends: index, pid
        deadline = None
        while deadline is None or (workers and time.monotonic() < deadline):
            self._beats[0] += 1
            ready = wait([*([connection] if deadline is None else []), *workers], BEAT_SECONDS if deadline is None else 0.1)
            for item in ready:
                if item is not connection:
                    self._bury(item, workers, connection)
                    continue
                try:
                    message = connection.recv()
                except (EOFError, OSError):
                    message = ("close", 0.0)  # the main process is gone
                if message[0] == "spawn":
                    self._fork(connection, workers, *message[1:])
                elif message[0] == "kill" and message[1] in [pid for _, pid in workers.values()]:
                    os.kill(message[1], signal.SIGKILL)
                elif message[0] == "close":
                    deadline = time.monotonic() + message[1]
        for _, pid in workers.values():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def _fork(self, connection: Connection, workers: dict, index: int, incarnation: int) -> None:
        try:
            pid = self._forked(connection, workers, index, incarnation)
        except OSError as error:
            answer = ("refused", error.errno, error.strerror)
        else:
            answer = ("pid", pid)
        with contextlib.suppress(OSError):  # the main process may be gone
            connection.send(answer)

    def _forked(self, connection: Connection, workers: dict, index: int, incarnation: int) -> int:
        """The worker's process id. Raises: OSError, with nothing left, if it cannot be had."""
        spawner = os.getpid()
        with _received(connection) as theirs:
            pid = os.fork()
            if pid == 0:
                connection.close()
                for descriptor in workers:
                    os.close(descriptor)
                parent.die_with(spawner)
                _alone(lambda: self._work(index, incarnation, theirs))
        try:
            workers[os.pidfd_open(pid)] = (index, pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        return pid

    def _bury(self, descriptor: int, workers: dict, connection: Connection) -> None:
        index, pid = workers.pop(descriptor)
        os.close(descriptor)
        _, status = os.waitpid(pid, 0)
        with contextlib.suppress(OSError):  # the main process may be gone
            connection.send(("ended", index, pid, os.waitstatus_to_exitcode(status)))


# (As multiprocessing.reduction does it, but without another descriptor on the way: there may be none left, and then half a
# message would be.)


def _hand_over(connection: Connection, end: Connection) -> None:
    """Sends an end of a pipe."""
    through = socket.socket(fileno=connection.fileno())
    try:
        socket.send_fds(through, [b"."], [end.fileno()])
    finally:
        through.detach()


def _received(connection: Connection) -> Connection:
    """The end that was handed over. Raises: OSError."""
    through = socket.socket(fileno=connection.fileno())
    try:
        _, descriptors, *_ = socket.recv_fds(through, 1, 1)
    finally:
        through.detach()
    if not descriptors:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return Connection(descriptors[0])


def _alone(life: Callable[[], None]) -> None:
    """The whole of a forked process. It returns nowhere: what lies above it on the stack is its parent's."""
    code = 1
    try:
        life()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        sys.stderr.write(cut(traceback.format_exc()))
        sys.stderr.flush()  # os._exit does not
    finally:
        os._exit(code)

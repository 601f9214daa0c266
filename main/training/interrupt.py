"""The wish to stop: what a signal or another part of the program asks of a run, and the exit code that it stands for.

From a command's first line to its last a signal finds somebody: while the program is still being imported, `end_at_once`; while
it works, `stopping`; while a run has something to save, its `Interrupt`. (So this module imports nothing that takes time.)
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

PREEMPTED = 75  # EX_TEMPFAIL: what a job script requeues on
CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": PREEMPTED, "SIGHUP": 129}  # after a checkpoint
EXIT_CODES = {getattr(signal, name): code for name, code in CODES.items() if hasattr(signal, name)}  # of those that there are


class Stopped(BaseException):
    """A signal ends what the program is at, as KeyboardInterrupt does. `number`: the signal."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


def numbers() -> list[signal.Signals]:
    """The signals that are taken: a hangup is not, where it is ignored, as nohup has it."""
    return [number for number in EXIT_CODES if number.name != "SIGHUP" or signal.getsignal(number) != signal.SIG_IGN]


def take(handler: Callable[[int, object], None]) -> dict[int, object]:
    """Has every one of these signals handled so, if this is the main thread; returns the handlers before."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in numbers()}


def give_back(handlers: dict[int, object]) -> None:
    """The handlers before `take`."""
    for number, handler in handlers.items():
        signal.signal(number, handler)


def end_at_once() -> None:
    """From now on a signal ends this process, with its exit code: nothing has been started or written yet."""
    take(lambda number, _: os._exit(EXIT_CODES[number]))


@contextlib.contextmanager
def stopping() -> Iterator[None]:
    """While entered, the first signal raises Stopped, wherever the main thread is; a later SIGINT ends the process at once."""
    taken: list[int] = []

    def stop(number: int, _frame: object) -> None:
        taken.append(number)
        if len(taken) == 1:
            raise Stopped(number)
        if number == signal.SIGINT:
            os._exit(EXIT_CODES[number])

    before = take(stop)
    try:
        yield
    finally:
        give_back(before)


class Interrupt:
    """From `take` or from its being entered until it is left, takes the signals of EXIT_CODES as a wish; a SIGINT after any
    of them ends the process at once.

    Attributes:
        asked: the run is to stop.
        number: the signal that asked; None if none did.
    """

    def __init__(self):
        self.asked = False
        self.number: int | None = None
        self._previous: dict[int, object] = {}

    def ask(self) -> None:
        """Asks the run to stop as soon as the present update is done."""
        self.asked = True

    def take(self) -> None:
        """From now on there is something to save."""
        if not self._previous:
            self._previous = take(self._take)

    def leave(self) -> None:
        """Signals are handled as before `take`."""
        give_back(self._previous)
        self._previous = {}

    def __enter__(self) -> Interrupt:
        self.take()
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def _take(self, number: int, _frame: object) -> None:
        if self.number is not None and number == signal.SIGINT:
            os._exit(EXIT_CODES[number])  # the actors see that this process is gone
        self.number = number
        self.asked = True

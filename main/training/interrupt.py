"""The wish to stop: what a signal or another part of the program asks of a run, and the exit code that it stands for."""

from __future__ import annotations

import os
import signal

PREEMPTED = 75  # EX_TEMPFAIL: what a job script requeues on
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: PREEMPTED}  # after a checkpoint


class Interrupt:
    """While entered, takes the signals of EXIT_CODES; a second SIGINT ends the process at once.

    Attributes:
        asked: the run is to stop.
        number: the signal that asked; None if none did.
    """

    def __init__(self):
        self.asked = False
        self.number: int | None = None

    def ask(self) -> None:
        """Asks the run to stop as soon as the present update is done."""
        self.asked = True

    def __enter__(self) -> Interrupt:
        self._previous = {number: signal.signal(number, self._take) for number in EXIT_CODES}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _take(self, number: int, _frame: object) -> None:
        if self.number is not None and number == signal.SIGINT:
            os._exit(EXIT_CODES[number])  # the actors see that this process is gone
        self.number = number
        self.asked = True

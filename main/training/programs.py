"""Training programs beside each other: each a process with cores of its own and one line of progress; signals reach all."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence

from tqdm import tqdm

from main.training import interrupt, preflight, processes
from main.training.beside import PROGRESS_LINE, PROGRESS_RECORD
from main.training.processes import ProcessSettings
from torchbeast.core.settings import Settings

logger = logging.getLogger("amigo")

READ_SECONDS = 5.0  # for what a program that has ended said last


def most(runs: Sequence[Settings]) -> int:
    """How many of these runs there may be at once so that each has cores and memory of its own, at least 1.

    One takes a core for each actor process, or one if their number follows from the cores, and one for each thread that
    computes for its learner. Where a process cannot be kept to some cores, nothing keeps two runs apart.
    """
    if not hasattr(os, "sched_setaffinity"):
        return 1
    asked = [own.num_actor_processes for own in (settings[ProcessSettings] for settings in runs)]
    acting = max((1 if count is None else count for count in asked), default=1)
    threads = os.environ.get("OMP_NUM_THREADS", "")
    cores = acting + max(1, int(threads) if threads.isdecimal() else 1)
    memory = preflight.MAIN_BYTES + acting * preflight.PROCESS_BYTES  # rollouts are little beside these
    return max(1, min(len(runs), processes.cores() // cores, preflight.available_memory() // memory))


def shares(places: int) -> list[set[int] | None]:
    """This process' cores, in parts of like size, one for each place; [None] for a single one, which has all."""
    if places == 1 or not hasattr(os, "sched_setaffinity"):
        return [None] * places
    cores = sorted(os.sched_getaffinity(0))
    parts = [cores[i * len(cores) // places : (i + 1) * len(cores) // places] for i in range(places)]
    return [set(part) or {cores[i % len(cores)]} for i, part in enumerate(parts)]


@contextlib.contextmanager
def _kept_to(cores: set[int] | None) -> Iterator[None]:
    """What this thread starts meanwhile has these cores only."""
    if cores is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Program:
    """One that runs. What it says and its end become events: (name, line) and (name, exit code).

    Args:
        place: its number, and that of its line of progress; None: the console is its own.
    """

    def __init__(self, name: str, arguments: Sequence[str], place: int | None, events: queue.SimpleQueue):
        self.name = name
        self._events = events
        own = {} if place is None else {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        # A session of its own: of Ctrl-C it hears once, from here.
        self._process = subprocess.Popen(arguments, start_new_session=True, **own)
        self._bar = tqdm(bar_format="{desc}", position=place, leave=False, disable=place is None or not sys.stderr.isatty())
        threading.Thread(target=self._watch, daemon=True).start()

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def show(self, line: str) -> None:
        """A line of progress, or what else it said."""
        text = f"{self.name}: {line}"
        if not PROGRESS_LINE.match(line):
            logger.info(text)
            return
        logger.info(text, extra=PROGRESS_RECORD)
        self._bar.set_description_str(text[: shutil.get_terminal_size().columns - 1])

    def close(self) -> None:
        self._bar.close()

    def _watch(self) -> None:
        reader = threading.Thread(target=self._read, daemon=True)
        reader.start()
        code = self._process.wait()
        reader.join(READ_SECONDS)  # processes of its own, which outlive it a little, have that stream too
        self._events.put((self.name, code if code >= 0 else 128 - code))

    def _read(self) -> None:
        for line in self._process.stdout or ():
            self._events.put((self.name, line.decode(errors="replace").rstrip()))


class Programs:
    """Programs side by side; while it is entered, a signal that this process gets is handed on to all: they know how to end.

    Args:
        places: so many at once. A single one has the console to itself.

    Attributes:
        asked: the signals so far.
    """

    def __init__(self, places: int):
        self._free = list(enumerate(shares(places)))
        self._alone = places == 1
        self._running: dict[str, tuple[Program, tuple]] = {}
        self._events: queue.SimpleQueue = queue.SimpleQueue()  # whose put a signal handler may call
        self.asked: list[int] = []

    @property
    def full(self) -> bool:
        return not self._free

    def start(self, name: str, arguments: Sequence[str]) -> None:
        """Where there is a place."""
        place, cores = self._free.pop(0)
        with _kept_to(cores):
            program = Program(name, arguments, None if self._alone else place, self._events)
        self._running[name] = program, (place, cores)

    def wait(self) -> tuple[str, int]:
        """Until one has ended: its name and exit code, 128 and the signal's number if a signal ended it."""
        while True:
            name, value = self._events.get()
            if name is None:
                for program, _ in self._running.values():
                    program.signal(value)
            elif isinstance(value, str):
                self._running[name][0].show(value)
            else:
                program, place = self._running.pop(name)
                program.close()
                self._free.insert(0, place)
                return name, value

    def __enter__(self) -> Programs:
        self._before = interrupt.take(self._take)
        return self

    def __exit__(self, *_: object) -> None:
        """Whatever goes wrong here, each still ends with a checkpoint."""
        if self._running:
            self._take(signal.SIGTERM, None)
        while self._running:
            self.wait()
        interrupt.give_back(self._before)

    def _take(self, number: int, _frame: object) -> None:
        self.asked.append(number)
        self._events.put((None, number))

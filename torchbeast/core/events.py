"""TensorBoard events, written by whoever calls: TensorBoard's own writer has a thread, whose failures nobody can catch."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

logger = logging.getLogger("amigo")

_numbers = itertools.count()  # of the files of this process


class Events:
    """Event files in a folder, one after the other where one fails. Whatever goes wrong is told once, and tried again in a new
    file: nobody's training hangs on it.

    Args:
        purge_step: TensorBoard hides what files of before say of this step and later ones; None: of none.
    """

    def __init__(self, purge_step: int | None):
        self._purge_step = purge_step
        self._file: EventFile | None = None
        self._failed = False

    def add(self, folder: Path, step: int, values: Mapping) -> None:
        """Adds scalars at `step`; None and NaN are left out."""
        try:
            if self._file is not None and self._file.deleted:
                logger.warning("the file of TensorBoard events is gone from %s: a new one is begun", folder)
                self.close()
            if self._file is None:
                self._file = EventFile(folder, self._purge_step)
                self._purge_step = None
            self._file.add(step, values)
            self._failed = False
        except Exception as error:
            self.close()
            if not self._failed:
                logger.warning("TensorBoard events cannot be written (%s: %s)", type(error).__name__, error)
            self._failed = True

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()


class EventFile:
    """An event file in `folder`, which is made if it is not there. Whatever is added is in the file at once.

    Args:
        purge_step: TensorBoard hides what earlier files say of this step and later ones; None: of none.
    Raises: OSError; or whatever a damaged installation of TensorBoard raises.
    """

    def __init__(self, folder: Path, purge_step: int | None):
        # Imported late: it is slow, and not everybody has it.
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._Event, self._Summary = event_pb2.Event, summary_pb2.Summary
        folder.mkdir(exist_ok=True)
        stamp = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        self._path = folder / f"events.out.tfevents.{stamp}"
        self._file = open(self._path, "xb", buffering=0)  # noqa: SIM115
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        if purge_step is not None:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(step=purge_step, session_log=start)

    def add(self, step: int, values: Mapping) -> None:
        """Adds scalars at `step`; None and NaN are left out."""
        there = {name: float(value) for name, value in values.items() if value is not None and not math.isnan(value)}
        scalars = [self._Summary.Value(tag=name, simple_value=value) for name, value in there.items()]
        self._write(step=step, summary=self._Summary(value=scalars))

    @property
    def deleted(self) -> bool:
        """Whether the file is not where it was put: nobody will find what is added."""
        try:
            return not os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return True

    def close(self) -> None:
        self._file.close()

    def _write(self, **event) -> None:
        self._records.write(self._Event(wall_time=time.time(), **event).SerializeToString())

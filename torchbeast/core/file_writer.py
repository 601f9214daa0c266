"""What a run says of itself while it goes on: rows of numbers, TensorBoard events, log text, metadata."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from torchbeast.core import held, provenance, rows, run_folder
from torchbeast.core.console import cut
from torchbeast.core.events import Events
from torchbeast.core.held import HeldFolder
from torchbeast.core.rows import Rows

logger = logging.getLogger("amigo")

OUTCOMES = ("final_success",)  # the scalars that TensorBoard's table of runs shows


class _QuietFileHandler(logging.FileHandler):
    """A full disk loses lines of out.log; the console has them, and its own warning."""

    def format(self, record: logging.LogRecord) -> str:
        return cut(super().format(record))

    def follow(self, path: Path) -> bool:
        """Goes on at `path`, with every line so far; whether the file was not there. Raises: OSError."""
        with self.lock:
            if held.is_at(self.stream, path):
                return False
            held.put_back(self.stream, path)
            self.stream.close()
            self.baseFilename = os.path.abspath(path)
            self.stream = self._open()
            return True

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class FileWriter:
    """Writes SAVEDIR/XPID/: meta.json, out.log, fields.csv, logs.csv, tensorboard/. `create` or `resume` makes one.

    logs.csv starts with the line `# _tick,_time,FIELDS...`; every further line is one row. `_tick` counts rows from 0,
    `_time` is seconds since 1970; a value that does not exist is left empty. fields.csv holds the names once more,
    without the comment sign. Until `close`, what the logger "amigo" says at level INFO and above is copied to out.log.

    Rows are buffered, as `Rows` does it. Threads may share a writer.

    Attributes:
        run_dir: SAVEDIR/XPID.
        fields: the names of a row's values, without _tick and _time.
    """

    def __init__(self, run_dir: Path, meta: dict, fields: Sequence[str], lock: IO, *, tick: int, events: Events):
        self.run_dir = run_dir
        self.fields = tuple(fields)
        self._meta = meta
        self._folder_lock = lock
        self._lock = threading.Lock()
        self._folder = HeldFolder(run_dir)
        self._events = events
        self._rows = Rows(run_dir / run_folder.LOG, fields, tick)
        self._handler = _QuietFileHandler(
            run_dir / run_folder.MESSAGES, mode="a+", encoding="utf-8", errors="backslashreplace"
        )
        self._handler.setLevel(logging.INFO)
        self._handler.setFormatter(logging.Formatter("[%(levelname)s:%(process)d %(asctime)s] %(message)s"))
        self._level_before = logger.level
        logger.addHandler(self._handler)
        if not logger.isEnabledFor(logging.INFO):
            logger.setLevel(logging.INFO)

    @classmethod
    def create(
        cls, savedir: Path, xpid: str, *, args: Mapping, fields: Sequence[str], table: Mapping | None = None
    ) -> FileWriter:
        """Starts the run SAVEDIR/XPID and points SAVEDIR/latest at it.

        Args:
            savedir: made if it is not there.
            xpid: the run's name, one plain folder name.
            args: what the run was called with, for meta.json.
            fields: names of the values of a row; "frames" must be among them.
            table: of the run's arguments, those that TensorBoard's table of runs shows.
        Raises: FileExistsError if the folder holds a run already; ValueError for an unusable xpid or fields.
        """
        run_dir = run_folder.of(savedir, xpid)
        rows.check_fields(fields)
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = run_folder.claim(run_dir, rows.header(fields))
        rows.write_fields(run_dir, fields)
        meta = provenance.metadata(xpid, args)
        run_folder.write_metadata(run_dir, meta)
        run_folder.point_latest_at(run_dir)
        return cls(run_dir, meta, fields, lock, tick=0, events=Events(None, table, OUTCOMES))

    @classmethod
    def resume(
        cls, run_dir: Path, *, args: Mapping, fields: Sequence[str], frames: int, table: Mapping | None = None
    ) -> FileWriter:
        """Goes on with a run from its state at `frames`: later rows, and torn ones, are cut from logs.csv.

        meta.json's list "resumed" gets one more entry (date, frames, args, command).

        Args:
            run_dir: SAVEDIR/XPID, as `create` made it.
            args, fields, table: as for `create`; the run's own fields must be among these, and get those that they lack.
            frames: rows whose value of "frames" is larger are cut; TensorBoard hides its later events too.
        Raises: FileNotFoundError if there is no run; ValueError if it has fields that are not among these.
        """
        run_dir = Path(run_dir)
        fields = list(fields)
        rows.check_fields(fields)
        if not (run_dir / run_folder.METADATA).is_file():
            raise FileNotFoundError(f"{run_dir} holds no run to resume: it has no meta.json")
        run_folder.refuse_no_files(run_dir)
        lock = run_folder.lock(run_dir)
        meta = run_folder.read_metadata(run_dir)
        log = run_dir / run_folder.LOG
        added = rows.lacking(log, fields)
        tick = rows.cut(log, fields, frames)
        if added:
            with run_folder.replacing(run_dir / run_folder.FIELDS, alone=True) as temporary:
                temporary.write_text(rows.header(fields)[2:], encoding="utf-8")
        meta.setdefault("resumed", []).append(provenance.resumption(args, frames))
        meta.update(date_end=None, successful=None)
        run_folder.write_metadata(run_dir, meta)
        run_folder.point_latest_at(run_dir)
        writer = cls(run_dir, meta, fields, lock, tick=tick, events=Events(frames + 1, table, OUTCOMES))
        if added:
            names = ", ".join(added)
            logger.info(f"{log} lacked the columns {names}, which are younger than the run: its rows so far leave them empty")
        return writer

    def log(self, row: Mapping) -> None:
        """Writes one row. Absent, None and NaN become empty; any other number is read back exactly as it was.

        Args:
            row: value by field name: numbers, or arrays and tensors of one number.
        Raises: KeyError for a name that is not among the fields; TypeError for a value that is no number.
        """
        with self._lock:
            self._rows.write(row)

    def scalars(self, step: int, values: Mapping) -> None:
        """Adds scalars, histograms and animations to TensorBoard's at `step` (frames); None and NaN are left out.

        Whatever goes wrong is told once, and tried again in a new file: nobody's training hangs on it.
        """
        with self._lock:
            self._events.add(self.run_dir / run_folder.TENSORBOARD, step, values)

    def flush(self) -> None:
        """Brings the rows to the disk, so that a checkpoint written next is never ahead of the log."""
        with self._lock:
            self._rows.flush()

    def look(self) -> list[str]:
        """Sees to it that the run's folder and the files in it are there: follows it if it was moved, and puts back what was
        deleted, the log with all of its rows. Returns what has happened, for the user. Raises: OSError if it cannot be done.
        """
        with self._lock:
            moved = self._folder.find()
            if moved is not None:
                self.run_dir = self._folder.path
                run_folder.point_latest_at(self.run_dir)
            self._folder_lock = run_folder.locked_still(self._folder_lock, self.run_dir)
            put_back = [name for name in run_folder.ALWAYS if self._put_back(name)]
            gone = "was deleted or replaced by another file; it has been put back"
            return [moved] if moved is not None else [f"{self.run_dir / name} {gone}" for name in put_back]

    def _put_back(self, name: str) -> bool:
        """Whether the file was gone."""
        path = self.run_dir / name
        if name == run_folder.LOG:
            return self._rows.follow(path)
        if name == run_folder.MESSAGES:
            return self._handler.follow(path)
        if path.exists():
            return False
        if name == run_folder.FIELDS:
            rows.write_fields(self.run_dir, self.fields)
        else:
            run_folder.write_metadata(self.run_dir, self._meta)
        return True

    def close(self, successful: bool) -> None:
        """Ends the run: closes the files, detaches out.log, notes date_end and `successful`. Later calls do nothing."""
        if self._rows.closed:
            return
        try:
            self.flush()
        finally:  # a full disk must not leave the handler on the logger
            with self._lock:
                self._detach()
        self._meta.update(date_end=provenance.now(), successful=bool(successful))
        run_folder.write_metadata(self.run_dir, self._meta)

    def _detach(self) -> None:
        logger.removeHandler(self._handler)
        logger.setLevel(self._level_before)
        self._handler.close()
        self._events.close()
        self._folder.close()
        self._rows.close()
        self._folder_lock.close()


class NoWriter:
    """In the place of a FileWriter, where another process writes the run's folder: takes everything, writes nothing."""

    def __init__(self, run_dir: Path):
        self.run_dir = run_dir

    def log(self, row: Mapping) -> None:
        pass

    def scalars(self, step: int, values: Mapping) -> None:
        pass

    def flush(self) -> None:
        pass

    def look(self) -> list[str]:
        return []

    def close(self, successful: bool) -> None:
        pass

"""The log of a run, logs.csv: its header, its rows, and what is left of them when a run goes on."""

from __future__ import annotations

import codecs
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from torchbeast.core import held
from torchbeast.core.run_folder import FIELDS, replacing

logger = logging.getLogger("amigo")

FLUSH_SECONDS = 2.0
ENDS = ("\n", "\r")  # of lines, on any system
TICK_DIGITS = 18  # no run has more rows; Python reads no number of more than 4,300 digits


class Rows:
    """Adds rows to a log that has its header. They are buffered: they reach the file every FLUSH_SECONDS, at `flush`
    and at `close`.

    Args:
        path: the log.
        fields: the names of a row's values, without _tick and _time.
        tick: of the row to write next.
    """

    def __init__(self, path: Path, fields: Sequence[str], tick: int):
        self._fields = tuple(fields)
        self._known = frozenset(fields)
        self._tick = tick
        self._file = self._open(path)
        self._flush_at = time.monotonic() + FLUSH_SECONDS

    @staticmethod
    def _open(path: Path) -> IO:
        # A large buffer, so that a row is torn only if the process dies inside a flush.
        return open(path, "a+", buffering=1 << 20, newline="", encoding="utf-8")

    @property
    def closed(self) -> bool:
        return self._file.closed

    def follow(self, path: Path) -> bool:
        """Goes on at `path`, with every row so far; whether the log was not there. Raises: OSError."""
        if held.is_at(self._file, path):
            return False
        held.put_back(self._file, path)
        before, self._file = self._file, self._open(path)
        before.close()
        return True

    def write(self, row: Mapping) -> None:
        """Writes one row; raises as `FileWriter.log` does."""
        if not self._known.issuperset(row):
            raise KeyError(f"not among the fields of logs.csv: {', '.join(sorted(set(row) - self._known))}")
        cells = ",".join([_cell(row.get(name)) for name in self._fields])
        self._file.write(f"{self._tick},{time.time()!r},{cells}\n")
        self._tick += 1
        now = time.monotonic()  # the clock may be set
        if now >= self._flush_at:
            self._file.flush()
            self._flush_at = now + FLUSH_SECONDS

    def flush(self) -> None:
        """Brings the rows to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def columns(fields: Sequence[str]) -> list[str]:
    """The names of all columns."""
    return ["_tick", "_time", *fields]


def header(fields: Sequence[str]) -> str:
    """The log's first line."""
    return "# " + ",".join(columns(fields)) + "\n"


def write_fields(run_dir: Path, fields: Sequence[str]) -> None:
    """The names of all columns once more, in a file of their own."""
    (run_dir / FIELDS).write_text(",".join(columns(fields)) + "\n", encoding="utf-8")


def check_fields(fields: Sequence[str]) -> None:
    """Raises: ValueError for names that no log can have."""
    names = columns(fields)
    if "frames" not in fields or len(set(names)) != len(names):
        raise ValueError(f"fields must have frames and no name twice (nor _tick, _time): {', '.join(fields)}")


def encoding(head: bytes) -> str:
    """Of a text that begins so: UTF-8, but for a mark of UTF-16 before it, as editors on Windows may leave one."""
    return "utf-16" if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"


def cut(path: Path, fields: Sequence[str], frames: int) -> int:
    """Leaves in logs.csv its header and its whole rows up to `frames`; returns the _tick of the row to write next.

    Where only rows at the end go, no room on the disk is needed. Ends of lines, and a mark before the first one, become ours.
    Fields that it lacks, which are younger than the run, are added; its rows leave them empty.
    Raises: ValueError if it was written with fields that are not among these.
    """
    path.touch()
    tick, last, size, sound = 0, 0.0, 0, not _is_marked(path)
    for line, mended in _kept(path, fields, frames):
        sound = sound and line == mended  # None where a line between them goes
        size += len(mended)
        if not mended.startswith("#"):
            tick, last = int(mended.split(",", 1)[0]) + 1, _frames(mended, fields)
    if sound:
        with open(path, "r+b") as file:
            file.truncate(size)
            os.fsync(file.fileno())
    else:
        with replacing(path, alone=True) as temporary, open(temporary, "w", newline="", encoding="utf-8") as new:
            new.writelines(mended for _, mended in _kept(path, fields, frames))
            new.flush()
            os.fsync(new.fileno())
    if last < frames:
        logger.warning(f"{path} ends at {last:,.0f} frames, the checkpoint is of {frames:,}: the rows between them are missing")
    return tick


def _is_marked(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(3).startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


def _kept(path: Path, fields: Sequence[str], frames: int) -> Iterator[tuple[str | None, str]]:
    """The header and each row that stays: (as it is, as it is to be); instead of the first, None after a line that goes."""
    first = header(fields)
    own = fields
    with open(path, newline="", encoding=_encoding_of(path), errors="replace") as file:
        found = file.readline()
        # A run that died at once may have left no whole header; then there are no rows either.
        if found.endswith(ENDS):
            own = _named(found)
        if found.endswith(ENDS) and (found.rstrip("\r\n") != header(own)[:-1] or not {"frames", *own} <= set(fields)):
            raise ValueError(
                f"{path} was written with other fields ({found[2:].strip()}): resume it with the version that "
                "wrote it, or start a new run (another --xpid)"
            )
        yield found, first
        gap = False
        for line in file:
            mended = line.rstrip("\r\n") + "\n"
            if line.endswith(ENDS) and _is_whole(mended, own) and _frames(mended, own) <= frames:
                yield None if gap else line, _moved(mended, own, fields)
            else:
                gap = True


def _encoding_of(path: Path) -> str:
    with open(path, "rb") as file:
        return encoding(file.read(2))


def _named(line: str) -> list[str]:
    """The fields that a log's first line names."""
    return line.removeprefix("# ").strip().split(",")[2:]


def _frames(line: str, fields: Sequence[str]) -> float:
    return float(line.split(",")[2 + fields.index("frames")])


def lacking(path: Path, fields: Sequence[str]) -> list[str]:
    """Those of `fields` that the log's first line does not name; none where it has no whole one, or is not there."""
    if not path.exists():
        return []
    with open(path, newline="", encoding=_encoding_of(path), errors="replace") as file:
        found = file.readline()
    return [name for name in fields if name not in _named(found)] if found.endswith(ENDS) else []


def _moved(line: str, own: Sequence[str], fields: Sequence[str]) -> str:
    """A row of the fields `own` as one of `fields`."""
    tick, at, *cells = line[:-1].split(",")
    there = dict(zip(own, cells))
    return ",".join([tick, at, *(there.get(name, "") for name in fields)]) + "\n"


def _is_whole(line: str, fields: Sequence[str]) -> bool:
    cells = line[:-1].split(",")
    if not line.isascii() or len(cells) != 2 + len(fields) or not all(map(_is_number, cells)):
        return False
    return cells[0].isdecimal() and len(cells[0]) <= TICK_DIGITS and cells[2 + fields.index("frames")] != ""


def _is_number(cell: str) -> bool:
    try:
        float(cell or "0")
    except ValueError:
        return False
    return True


def _cell(value) -> str:
    if hasattr(value, "item"):  # NumPy and PyTorch numbers, whose own repr may name their type
        value = value.item()
    if value is None or value != value:
        return ""
    if not isinstance(value, (int, float)):
        raise TypeError(f"a row of logs.csv holds numbers, not {value!r}")
    return repr(value if isinstance(value, float) else int(value))

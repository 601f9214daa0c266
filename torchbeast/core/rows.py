"""The log of a run, logs.csv: its header, its rows, and what is left of them when a run goes on."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from torchbeast.core import held
from torchbeast.core.run_folder import FIELDS, replacing

FLUSH_SECONDS = 2.0


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
        return open(path, "a", buffering=1 << 20, newline="", encoding="utf-8")

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


def cut(path: Path, fields: Sequence[str], frames: int) -> int:
    """Leaves in logs.csv its header and its whole rows up to `frames`; returns the _tick of the row to write next.

    Raises: ValueError if it was written with other fields.
    """
    first = header(fields)
    tick = 0
    with open(path, "a+", newline="", encoding="utf-8", errors="replace") as old:
        old.seek(0)
        found = old.readline()
        # A run that died at once may have left no whole header; then there are no rows either.
        if found.endswith("\n") and found != first:
            raise ValueError(
                f"{path} was written with other fields ({found[2:].strip()}): resume it with the version that "
                "wrote it, or start a new run (another --xpid)"
            )
        with replacing(path, alone=True) as temporary, open(temporary, "w", newline="", encoding="utf-8") as new:
            new.write(first)
            for line in old:
                if _is_whole(line, fields) and float(line.split(",")[2 + fields.index("frames")]) <= frames:
                    new.write(line)
                    tick = int(line.split(",", 1)[0]) + 1
            new.flush()
            os.fsync(new.fileno())
    return tick


def _is_whole(line: str, fields: Sequence[str]) -> bool:
    if not line.endswith("\n"):
        return False
    cells = line[:-1].split(",")
    if len(cells) != 2 + len(fields) or not all(map(_is_number, cells)):
        return False
    return cells[0].isdecimal() and cells[2 + fields.index("frames")] != ""


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

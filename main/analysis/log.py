"""Logs of runs: ours, TorchBeast's and the published re-implementation's `logs.csv`, read into one form."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from torchbeast.core import rows as rows_module
from torchbeast.core import run_folder
from torchbeast.core.columns import JOINS, Column
from torchbeast.core.settings import UsageError

EXPERIMENT = "experiment"  # an argument that every run with metadata has: EXPERIMENT-SEED is what main.reproduce names its runs


HEADS = {"frames", "step", "_tick"}
AT_ONCE = 10_000  # rows of a log that are text in memory


class NoRows(UsageError):
    """A log in which nothing stands yet."""


class Declared(NamedTuple):
    """What a program declares of its runs, as far as their files do not say it.

    columns: of its logs, by name.
    seed_like: flags in which the seeds of one experiment may differ.
    defaults: every flag's, by name: what a run had that is older than the flag.
    """

    columns: Mapping[str, Column]
    seed_like: frozenset[str]
    defaults: Mapping[str, Any]


class Log(NamedTuple):
    """One run's log.

    Attributes:
        name: the folder's, or the file's if that is not called logs.csv or logs.csv.gz.
        path: the log.
        arguments: what the run was called with, by name; None where no meta.json says it.
        frames: float64 [N], strictly increasing.
        columns: float64 [N] by name; NaN where a value does not exist.
        hours: float64 [N], hours of training without pauses; None where the log has no times.
        declared: what columns are, by name; those that it lacks are as `join` says.
    """

    name: str
    path: Path
    arguments: dict[str, Any] | None
    frames: np.ndarray
    columns: dict[str, np.ndarray]
    hours: np.ndarray | None
    declared: Mapping[str, Column]

    def has(self, column: str) -> bool:
        return column in self.columns and bool(np.isfinite(self.columns[column]).any())

    def join(self, column: str) -> str:
        """How rows of the column are joined, as Column.join says; a column that nobody declares has a mean."""
        return _join(self.declared, column)

    def spans(self, column: str) -> np.ndarray:
        """What each row counts in the column's mean over a window, float64 [N]: the frames since its last value.

        Not its episodes: a policy that solves the task ends nine times as many as one that has collapsed, and would hide it.
        For the same reason not the row's own frames alone: where rows are short, those of a collapsed one mostly end none.
        Of the first value those alone, since a column may begin late. Where rows are so short that the episodes of one policy
        end in many of them, a rare success counts for more frames than its episode had: `keep.thinned` joins such rows.
        """
        spans, there = np.zeros(len(self.frames)), np.flatnonzero(np.isfinite(self.columns[column]))
        before = np.append(0, self.frames)[there[:1]]  # where the row of the first value began
        spans[there] = np.diff(self.frames[there], prepend=before)
        return spans


class Meta(NamedTuple):
    """What a run's meta.json says: its newest arguments, the frames at which it was resumed, whether it came to its end."""

    arguments: dict[str, Any] | None
    resumed_at: list[float]
    finished: bool


def means(values: np.ndarray, weights: np.ndarray, add: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Weighted means over windows of rows, of the values that there are.

    Args:
        values: float64 [N], NaN where there is none.
        weights: float64 [N], not negative.
        add: the windows: adds rows [N] up to sums [K], one of each window.
    Returns: float64 [K], NaN where a window has no value of a weight above 0.
    """
    weights = np.isfinite(values) * weights
    total, weight = add(weights * np.nan_to_num(values)), add(weights)
    return np.divide(total, weight, out=np.full(len(weight), math.nan), where=weight > 0)


def joined(columns: Mapping[str, np.ndarray], starts: np.ndarray, join: Callable[[str], str]) -> dict[str, np.ndarray]:
    """The columns with one row in place of all from one start to the next, float64, NaN where nothing was.

    Args:
        columns: float64 [N] by name.
        starts: int64 [K], increasing from 0.
        join: how a column's values become one, as Column.join says.
    """
    number = len(next(iter(columns.values())))
    ends = np.append(starts[1:], number) - 1

    def add(values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(values, starts)

    def one(name: str, values: np.ndarray) -> np.ndarray:
        how = join(name)
        if how == "last":
            return values[ends]
        if how == "sum":
            return add(np.nan_to_num(values))
        weights = np.nan_to_num(columns.get(how, np.zeros(number)))
        return means(values, weights if weights.any() else np.ones(number), add)

    return {name: one(name, values) for name, values in columns.items()}


def _join(declared: Mapping[str, Column], column: str) -> str:
    if column in declared:
        return declared[column].join
    return "last" if column in ("_tick", "_time", "frames", "step") else "mean"


def read_log(given: str | Path, declared: Declared, most: int | None = None) -> Log:
    """The log in a run's folder, or one log file: ours, TorchBeast's or the published re-implementation's.

    Where the frames go back (a resumed run that wrote rows again) the later rows count. Torn rows are left out.

    Args:
        most: of a log of more than twice so many rows, neighbours are joined while it is read, to so many at least. None: none.
    Raises: UsageError if there is no log, or nothing in it.
    """
    path = _log_path(Path(given))
    gathered = _Gathered(declared.columns, most)
    columns, left_out = read_columns(path, gathered)
    frames = _frames(columns)
    if frames is None and run_folder.has_rows(path):
        raise UsageError(f"{path} has no column frames (nor step): it is no log of a training run; give a run's logs.csv")
    rows, seams = _last_history(np.empty(0) if frames is None else frames)
    if not len(rows):
        if run_folder.has_rows(path):
            raise UsageError(f"{path} has no row that can be read: it is no log of a training run; give a run's logs.csv")
        raise NoRows(f"{path} has no rows yet: wait until the run has logged some, or leave it out")
    left_out += int((~np.isfinite(frames)).sum())
    if left_out:
        print(f"note: {path}: left out rows that are torn or unreadable: {left_out}", file=sys.stderr)
    if len(rows) < len(frames):
        columns = {name: values[rows] for name, values in columns.items()}
    meta = read_meta(path.with_name(run_folder.METADATA), declared.defaults)
    frames = frames[rows]
    seams[np.searchsorted(frames, [f for f in meta.resumed_at if f < frames[-1]], side="right")] = True
    seams[np.searchsorted(frames, [f for f in gathered.seams if f <= frames[-1]])] = True
    hours = _hours(columns["_time"], frames, seams) if "_time" in columns else None
    of_run, stem = path.name in run_folder.LOGS, path.with_suffix("").stem if is_compressed(path) else path.stem
    name = run_folder.real(path).parent.name if of_run else stem
    return Log(name, path, meta.arguments, frames, columns, hours, declared.columns)


def runs_in(folder: Path) -> list[Path]:
    """The runs in a folder such as SAVEDIR, by name, each once: SAVEDIR/latest is none of its own. [] if it is a run itself."""
    if run_folder.log_in(folder) is not None:
        return []
    return _with_log(run for run in folder.glob("*") if run.name != run_folder.LATEST)


def _with_log(folders: Iterable[Path]) -> list[Path]:
    return sorted(folder for folder in folders if run_folder.log_in(folder) is not None)


def _log_path(given: Path) -> Path:
    if given.is_file():
        return given
    if not given.exists():
        raise UsageError(f"{given} does not exist: give the folder of a run, or its logs.csv")
    if (log := run_folder.log_in(given)) is not None:
        return log
    if runs := runs_in(given):
        remedy = f"but folders in it have one: give one of them, as {runs[0]}"
    elif deeper := _with_log(given.glob("*/*")):
        remedy = f"but folders further down have one: give theirs, as {deeper[0].parent}"
    else:
        remedy = "give the folder of a run (SAVEDIR/XPID)"
    raise UsageError(f"{given} has no logs.csv; {remedy}")


def read_columns(path: Path, gathered: _Gathered | None = None) -> tuple[dict[str, np.ndarray], int]:
    """Columns of a log by name, float64 [N], NaN where a cell is empty or no number; and how many rows were left out.

    A line that names frames, step or _tick is a header (a comment sign before it is not part of the name) and holds for the
    rows after it. TorchBeast adds columns without a new header: rows longer than it are named by the line of fields.csv,
    beside the log, that has their length. Other rows are torn. So is the last one if no newline ends it.

    `gathered`: what joins rows on their way; None is all of them as they are.
    """
    gathered = _Gathered({}, None) if gathered is None else gathered
    longer = {len(names): names for names in _table(path.with_name(run_folder.FIELDS))}
    header: list[str] = max(longer.values(), key=len, default=[])
    lines = _Lines(path)
    left_out = 0
    for row in _parse(path, lines):
        row[0] = row[0].lstrip("# ")
        if not HEADS.isdisjoint(row):
            header = row
            continue
        names = header if len(row) == len(header) else longer.get(len(row), []) if len(row) > len(header) else []
        if names:
            gathered.add(names, row)
        else:
            left_out += 1
    return gathered.columns() or dict.fromkeys(header, np.empty(0)), left_out + lines.torn


class _Gathered:
    """Rows of a log on their way to columns: a few as text, all others as numbers; neighbours are joined if there are too many.

    Args: as for `read_log`.

    Attributes:
        seams: frames at which rows that were joined followed rows that had been written again.
    """

    def __init__(self, declared: Mapping[str, Column], most: int | None):
        self._declared = declared
        self._most = most
        self._every = 1  # so many rows have become one
        self._names: list[str] = []
        self._texts: list[list[str]] = []
        self._parts: dict[str, list[np.ndarray]] = {}
        self._size = 0
        self.seams: list[float] = []

    def add(self, names: list[str], row: list[str]) -> None:
        if names is not self._names or len(self._texts) >= AT_ONCE:
            self._to_numbers()
            self._names = names
        self._texts.append(row)

    def columns(self) -> dict[str, np.ndarray]:
        """All of them, float64 [N] by name."""
        self._to_numbers()
        for name, parts in self._parts.items():
            self._parts[name] = [np.concatenate(parts)]  # one after the other: there is never a second copy of all
        return {name: part for name, (part,) in self._parts.items()}

    def _to_numbers(self) -> None:
        if not self._texts:
            return
        texts, self._texts = self._texts, []
        here = dict(zip(self._names, np.ascontiguousarray(_numbers(texts).T)))
        self._append(here if self._every == 1 else self._thinned(here, self._every))
        if self._most is not None and self._size > 2 * self._most and _frames(self._parts) is not None:
            whole = self._thinned(self.columns(), 2)
            self._every *= 2
            self._parts, self._size = {}, 0
            self._append(whole)

    def _append(self, columns: Mapping[str, np.ndarray]) -> None:
        number = len(next(iter(columns.values())))
        for name in columns:
            self._parts.setdefault(name, [np.full(self._size, math.nan)])
        for name, parts in self._parts.items():
            parts.append(columns[name] if name in columns else np.full(number, math.nan))
        self._size += number

    def _thinned(self, columns: Mapping[str, np.ndarray], every: int) -> Mapping[str, np.ndarray]:
        """`every` rows become one, after those that were written again have gone.

        Each counts the same, its episodes too: they are rows of a window, see `Log.spans`.
        """
        frames = _frames(columns)
        rows, seams = _last_history(frames)
        self.seams += frames[rows[seams]].tolist()
        there = {name: values[rows] for name, values in columns.items()}

        def how(name: str) -> str:
            return join if (join := _join(self._declared, name)) in JOINS else "mean"

        return joined(there, np.arange(0, len(rows), every), how) if len(rows) else there


def _frames(columns: Mapping[str, Any]) -> Any:
    return columns.get("frames", columns.get("step"))


def _numbers(texts: Sequence[Sequence[str]]) -> np.ndarray:
    """float64 [rows, columns], NaN for cells that are empty or no number."""
    try:
        flat = [float(cell or "nan") for row in texts for cell in row]
    except ValueError:
        flat = [_number(cell) for row in texts for cell in row]
    table = np.array(flat).reshape(len(texts), -1)
    table[~np.isfinite(table)] = math.nan
    return table


def _number(cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _text(path: Path) -> str:
    try:
        # A machine that crashed may leave zero bytes, which older csv modules refuse.
        content = path.read_bytes()
        return content.decode(rows_module.encoding(content), errors="replace").replace("\0", "")
    except OSError as error:
        raise _unreadable(path, error) from None


class _Lines:
    """The lines of a file, read as they are asked for.

    Attributes:
        torn: after the last one: whether (1 or 0) there was more, which no newline ended.
    """

    def __init__(self, path: Path):
        self._path = path
        self.torn = 0

    def __iter__(self) -> Iterator[str]:
        try:
            with _opened(self._path) as file:
                encoding = rows_module.encoding(file.read(2))
                file.seek(0)
                before = None
                for line in io.TextIOWrapper(file, encoding, errors="replace", newline=""):
                    if before is not None:
                        yield before
                    before = line.replace("\0", "")  # as _text does
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UsageError(f"{self._path} is damaged ({error}): copy or make it again") from None
        except OSError as error:
            raise _unreadable(self._path, error) from None
        if before is not None and before.endswith("\n"):
            yield before
        else:
            self.torn = int(bool(before))


def _opened(path: Path) -> io.BufferedIOBase:
    """A log to read, as it was before it was compressed."""
    return gzip.open(path) if is_compressed(path) else open(path, "rb")


def is_compressed(path: Path) -> bool:
    """Whether a log of this name is compressed, as kept ones are."""
    return path.suffix == ".gz"


def _unreadable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"{path} cannot be read: {error.strerror}; check its permissions")


def _parse(path: Path, lines: Iterable[str]) -> Iterator[list[str]]:
    try:
        yield from (row for row in csv.reader(lines) if row)
    except csv.Error as error:
        raise UsageError(f"{path} is no log ({error}): give a run's logs.csv") from None


def _table(path: Path) -> list[list[str]]:
    return list(_parse(path, _text(path).splitlines(keepends=True))) if path.is_file() else []


def _last_history(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which rows count, int64 [N], so that frames increase; and where one follows rows that were written again, bool [N]."""
    if (np.diff(frames) > 0).all() and not np.isnan(frames[:1]).any():  # NaN is not; this is how most logs are
        return np.arange(len(frames)), np.zeros(len(frames), bool)
    rows: list[int] = []
    seams: list[bool] = []
    for i, frame in enumerate(frames.tolist()):
        if math.isnan(frame):
            continue
        back = False
        while rows and frames[rows[-1]] >= frame:
            rows.pop()
            seams.pop()
            back = True
        rows.append(i)
        seams.append(back)
    return np.array(rows, int), np.array(seams, bool)


def _hours(time: np.ndarray, frames: np.ndarray, seams: np.ndarray) -> np.ndarray:
    """Hours of training at each row: times between rows, but the run's typical pace across a resume or a clock that moved."""
    passed, played = np.diff(time, prepend=math.nan), np.diff(frames, prepend=0)
    sound = ~seams & (passed >= 0)  # NaN is not
    pace = np.median(passed[sound] / played[sound]) if sound.any() else 0.0
    return np.cumsum(np.where(sound, passed, pace * played)) / 3600


def read_meta(path: Path, defaults: Mapping[str, Any]) -> Meta:
    """`defaults`: what our runs had of flags that are younger. Of a run without meta.json: no arguments, not finished.

    Raises: UsageError for a damaged one.
    """
    if not path.is_file():
        return Meta(None, [], False)
    try:
        meta = json.loads(_text(path))
        resumed = meta.get("resumed", [])
        arguments = resumed[-1]["args"] if resumed else meta["args"]
        # Flags that came after the run had their defaults then. Other programs' runs lack ours for another reason.
        before = defaults if "versions" in meta else {}
        experiment = str(arguments.get("xpid")).removesuffix(f"-{arguments.get('seed')}")
        resumed_at = [float(entry["frames"]) for entry in resumed]
        return Meta({**before, **arguments, EXPERIMENT: experiment}, resumed_at, meta.get("successful") is True)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise UsageError(f"{path} is damaged: repair it, or move it away to plot the run under its own name") from None

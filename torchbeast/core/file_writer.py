"""The folder of a run, as TorchBeast writes it: metadata, log text, rows of numbers, TensorBoard events."""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import importlib.metadata
import json
import logging
import math
import os
import platform
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import IO

logger = logging.getLogger("amigo")

FLUSH_SECONDS = 2.0

# Never the whole environment: it may hold tokens.
RECORDED_ENVIRONMENT = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "SLURM_JOB_ID",
    "SLURM_JOB_NAME",
    "SLURM_PROCID",
    "SLURM_NTASKS",
    "WORLD_SIZE",
    "RANK",
    "LOCAL_RANK",
)


class _QuietFileHandler(logging.FileHandler):
    """A full disk loses lines of out.log; the console has them, and its own warning."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class FileWriter:
    """Writes SAVEDIR/XPID/: meta.json, out.log, fields.csv, logs.csv, tensorboard/. `create` or `resume` makes one.

    logs.csv starts with the line `# _tick,_time,FIELDS...`; every further line is one row. `_tick` counts rows from 0,
    `_time` is seconds since 1970; a value that does not exist is left empty. fields.csv holds the names once more,
    without the comment sign. Until `close`, what the logger "amigo" says at level INFO and above is copied to out.log.

    Rows are buffered: they reach the file every FLUSH_SECONDS, at `flush` and at `close`. Threads may share a writer.

    Attributes:
        run_dir: SAVEDIR/XPID.
        fields: the names of a row's values, without _tick and _time.
    """

    def __init__(self, run_dir: Path, meta: dict, fields: Sequence[str], lock: IO, *, tick: int, purge_step: int | None):
        self.run_dir = run_dir
        self.fields = tuple(fields)
        self._known = frozenset(fields)
        self._meta = meta
        self._folder_lock = lock
        self._tick = tick
        self._purge_step = purge_step
        self._lock = threading.Lock()
        self._tensorboard = None
        # A large buffer, so that a row is torn only if the process dies inside a flush.
        self._logs = open(run_dir / "logs.csv", "a", buffering=1 << 20, newline="", encoding="utf-8")  # noqa: SIM115
        self._flush_at = time.time() + FLUSH_SECONDS
        self._handler = _QuietFileHandler(run_dir / "out.log", encoding="utf-8")
        self._handler.setLevel(logging.INFO)
        self._handler.setFormatter(logging.Formatter("[%(levelname)s:%(process)d %(asctime)s] %(message)s"))
        self._level_before = logger.level
        logger.addHandler(self._handler)
        if not logger.isEnabledFor(logging.INFO):
            logger.setLevel(logging.INFO)

    @classmethod
    def create(cls, savedir: Path, xpid: str, *, args: Mapping, fields: Sequence[str]) -> FileWriter:
        """Starts the run SAVEDIR/XPID and points SAVEDIR/latest at it.

        Args:
            savedir: made if it is not there.
            xpid: the run's name, one plain folder name.
            args: what the run was called with, for meta.json.
            fields: names of the values of a row; "frames" must be among them.
        Raises: FileExistsError if the folder holds a run already; ValueError for an unusable xpid or fields.
        """
        if xpid in ("", ".", "..", "latest") or Path(xpid).name != xpid:
            raise ValueError(f"--xpid must be a plain folder name other than latest, not {xpid!r}")
        _check_fields(fields)
        run_dir = Path(savedir) / xpid
        run_dir.mkdir(parents=True, exist_ok=True)
        _claim(run_dir, _header(fields))
        lock = _lock(run_dir)
        with open(run_dir / "fields.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow(_columns(fields))
        meta = _metadata(xpid, args)
        _write_json(run_dir / "meta.json", meta)
        _point_latest_at(run_dir)
        return cls(run_dir, meta, fields, lock, tick=0, purge_step=None)

    @classmethod
    def resume(cls, run_dir: Path, *, args: Mapping, fields: Sequence[str], frames: int) -> FileWriter:
        """Goes on with a run from its state at `frames`: later rows, and torn ones, are cut from logs.csv.

        meta.json's list "resumed" gets one more entry (date, frames, args, command).

        Args:
            run_dir: SAVEDIR/XPID, as `create` made it.
            args, fields: as for `create`; the fields must be the run's own.
            frames: rows whose value of "frames" is larger are cut; TensorBoard hides its later events too.
        Raises: FileNotFoundError if there is no run; ValueError if it was written with other fields.
        """
        run_dir = Path(run_dir)
        _check_fields(fields)
        if not (run_dir / "meta.json").is_file():
            raise FileNotFoundError(f"{run_dir} holds no run to resume: it has no meta.json")
        lock = _lock(run_dir)
        meta = _read_meta(run_dir / "meta.json")
        tick = _cut_rows(run_dir / "logs.csv", fields, frames)
        entry = {"date": _now(), "frames": frames, "args": dict(args), "command": sys.argv}
        meta.setdefault("resumed", []).append(_without_home(entry))
        meta.update(date_end=None, successful=None)
        _write_json(run_dir / "meta.json", meta)
        _point_latest_at(run_dir)
        return cls(run_dir, meta, fields, lock, tick=tick, purge_step=frames + 1)

    def log(self, row: Mapping) -> None:
        """Writes one row. Absent, None and NaN become empty; any other number is read back exactly as it was.

        Args:
            row: value by field name: numbers, or arrays and tensors of one number.
        Raises: KeyError for a name that is not among the fields; TypeError for a value that is no number.
        """
        if not self._known.issuperset(row):
            raise KeyError(f"not among the fields of logs.csv: {', '.join(sorted(set(row) - self._known))}")
        cells = ",".join([_cell(row.get(name)) for name in self.fields])
        now = time.time()
        with self._lock:
            self._logs.write(f"{self._tick},{now!r},{cells}\n")
            self._tick += 1
            if now >= self._flush_at:
                self._logs.flush()
                self._flush_at = now + FLUSH_SECONDS

    def scalars(self, step: int, values: Mapping) -> None:
        """Adds TensorBoard scalars at `step` (frames); None and NaN are left out."""
        with self._lock:
            if self._tensorboard is None:
                # Imported late: it is slow, and its thread must not be there when actors are forked.
                from torch.utils.tensorboard import SummaryWriter

                self._tensorboard = SummaryWriter(str(self.run_dir / "tensorboard"), purge_step=self._purge_step)
            with self._tensorboard_or_none():
                for name, value in values.items():
                    if value is not None and not math.isnan(value):
                        self._tensorboard.add_scalar(name, float(value), step)

    def flush(self) -> None:
        """Brings everything to the disk, so that a checkpoint written next is never ahead of the logs."""
        with self._lock:
            self._logs.flush()
            os.fsync(self._logs.fileno())
            if self._tensorboard is not None:
                with self._tensorboard_or_none():
                    self._tensorboard.flush()

    @contextlib.contextmanager
    def _tensorboard_or_none(self) -> Iterator[None]:
        """A full disk ends TensorBoard's own thread for good, which must not keep the log from being written: the next
        `scalars` starts a new one."""
        try:
            yield
        except OSError as error:
            logger.warning("TensorBoard events could not be written (%s)", error)
            self._tensorboard = None

    def close(self, successful: bool) -> None:
        """Ends the run: closes the files, detaches out.log, notes date_end and `successful`. Later calls do nothing."""
        if self._logs.closed:
            return
        try:
            self.flush()
        finally:  # a full disk must not leave the handler on the logger
            with self._lock:
                self._detach()
        self._meta.update(date_end=_now(), successful=bool(successful))
        _write_json(self.run_dir / "meta.json", self._meta)

    def _detach(self) -> None:
        logger.removeHandler(self._handler)
        logger.setLevel(self._level_before)
        self._handler.close()
        if self._tensorboard is not None:
            with self._tensorboard_or_none():
                self._tensorboard.close()
        self._logs.close()
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

    def close(self, successful: bool) -> None:
        pass


def _columns(fields: Sequence[str]) -> list[str]:
    return ["_tick", "_time", *fields]


def _header(fields: Sequence[str]) -> str:
    return "# " + ",".join(_columns(fields)) + "\n"


def _check_fields(fields: Sequence[str]) -> None:
    columns = _columns(fields)
    if "frames" not in fields or len(set(columns)) != len(columns):
        raise ValueError(f"fields must have frames and no name twice (nor _tick, _time): {', '.join(fields)}")


def _cell(value) -> str:
    if hasattr(value, "item"):  # NumPy and PyTorch numbers, whose own repr may name their type
        value = value.item()
    if value is None or value != value:
        return ""
    if not isinstance(value, (int, float)):
        raise TypeError(f"a row of logs.csv holds numbers, not {value!r}")
    return repr(value if isinstance(value, float) else int(value))


def _lock(run_dir: Path) -> IO:
    """Keeps other processes from writing to this folder until the file is closed or this process is gone.

    A record lock: children do not inherit it. Raises: FileExistsError if another process has it.
    """
    file = open(run_dir / ".lock", "w")  # noqa: SIM115
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            logger.warning("%s cannot be locked (%s): do not start a second run on it", run_dir, error)
            return open(os.devnull, "w")
        raise FileExistsError(f"another process is writing to {run_dir}: wait for it to end, or use another --xpid") from None
    return file


def _claim(run_dir: Path, header: str) -> None:
    """Makes logs.csv, as one of perhaps several processes that want this folder."""
    taken = [name for name in ("meta.json", "fields.csv", "model.tar") if (run_dir / name).exists()]
    try:
        if taken:
            raise FileExistsError
        with open(run_dir / "logs.csv", "x", newline="", encoding="utf-8") as file:
            file.write(header)
    except FileExistsError:
        raise FileExistsError(
            f"{run_dir} holds a run already: go on with it (--resume) or name this one differently (--xpid)"
        ) from None


def _cut_rows(path: Path, fields: Sequence[str], frames: int) -> int:
    """Leaves in logs.csv its header and its whole rows up to `frames`; returns the _tick of the row to write next."""
    header = _header(fields)
    temporary = path.with_name(".logs.csv.tmp")
    tick = 0
    with open(path, "a+", newline="", encoding="utf-8", errors="replace") as old:
        old.seek(0)
        found = old.readline()
        # A run that died at once may have left no whole header; then there are no rows either.
        if found.endswith("\n") and found != header:
            raise ValueError(
                f"{path} was written with other fields ({found[2:].strip()}): resume it with the version that "
                "wrote it, or start a new run (another --xpid)"
            )
        with open(temporary, "w", newline="", encoding="utf-8") as new:
            new.write(header)
            for line in old:
                if _is_whole(line, fields) and float(line.split(",")[2 + fields.index("frames")]) <= frames:
                    new.write(line)
                    tick = int(line.split(",", 1)[0]) + 1
            new.flush()
            os.fsync(new.fileno())
    os.replace(temporary, path)
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


def _point_latest_at(run_dir: Path) -> None:
    """SAVEDIR/latest -> XPID, relative, so that SAVEDIR can be moved; there is no moment without it."""
    temporary = run_dir.parent / f".latest.{os.getpid()}.tmp"
    try:
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(run_dir.name)
        os.replace(temporary, run_dir.parent / "latest")
    except OSError as error:  # a file system without links, or a folder of that name: no reason not to train
        temporary.unlink(missing_ok=True)
        logger.warning("could not make the link %s: %s", run_dir.parent / "latest", error)


def _read_meta(path: Path) -> dict:
    """Raises: ValueError if the file is no run's metadata."""
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # no JSON, or no text
        meta = None
    if not isinstance(meta, dict) or not isinstance(meta.get("resumed", []), list):
        raise ValueError(f"{path} is damaged: it is no run's metadata; start a new run (another --xpid)")
    return meta


def _write_json(path: Path, content: dict) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _metadata(xpid: str, args: Mapping) -> dict:
    meta = {
        "xpid": xpid,
        "args": dict(args),
        "command": sys.argv,
        "date_start": _now(),
        "date_end": None,
        "successful": None,
        "versions": _versions(),
        "host": {"processor": processor_name(), "cores": os.cpu_count()},
        "git": _git_state(Path(__file__).parent),
        "env": {name: os.environ[name] for name in RECORDED_ENVIRONMENT if name in os.environ},
    }
    return _without_home(meta)


def _versions() -> dict[str, str]:
    """Versions of Python and of every installed package: asking which ones matter would need to know the program."""
    packages = ((p.metadata["Name"] or "?", p.version) for p in importlib.metadata.distributions())
    return {"python": platform.python_version(), **dict(sorted((n.lower(), v) for n, v in packages))}


def processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _git_state(folder: Path) -> dict:
    """Commit, branch, is_dirty of the repository around `folder`; null where there is none (no git, detached HEAD)."""

    def git(*arguments: str) -> str | None:
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    status = git("status", "--porcelain", "--untracked-files=no")
    return {
        "commit": git("rev-parse", "--verify", "--quiet", "HEAD"),
        "branch": git("symbolic-ref", "--short", "--quiet", "HEAD"),
        "is_dirty": None if status is None else status != "",
    }


def _without_home(value):
    """A copy of a JSON-like value whose texts have "~" in place of the user's home directory."""
    home = os.path.expanduser("~")
    homes = {home.rstrip("/"), os.path.realpath(home)} - {"", "/", "~"}
    pattern = "|".join(re.escape(home) + r"(?!\w)" for home in sorted(homes, key=len, reverse=True))

    def clean(value):
        if isinstance(value, Mapping):
            return {str(key): clean(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [clean(item) for item in value]
        if value is None or isinstance(value, (bool, int, float)):
            return value
        return re.sub(pattern, "~", str(value)) if pattern else str(value)

    return clean(value)

"""A run's folder, SAVEDIR/XPID: what lies in it under which name, its lock, its metadata, and how files are replaced."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import logging
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None

logger = logging.getLogger("amigo")

CHECKPOINT = "model.tar"
MILESTONE = "milestone-"  # begins the names of checkpoints that are kept for good
BEST = "model-best.tar"  # the agent that played best beside training
CANDIDATE = ".candidate.tar"  # the one that plays there now
EVALUATIONS = "evaluations.csv"
METADATA = "meta.json"
LOG = "logs.csv"
KEPT_LOG = f"{LOG}.gz"  # of a run that is kept beside the code: thinned
LOGS = (LOG, KEPT_LOG)
FIELDS = "fields.csv"
MESSAGES = "out.log"
TENSORBOARD = "tensorboard"
ENVIRONMENTS = "environments"
LOCK = ".lock"
ALWAYS = (METADATA, FIELDS, LOG, MESSAGES)  # there from the beginning
HEADER_START = b"# _tick"  # of a log
LONGEST_HEADER = 1 << 20
LATEST = "latest"  # beside the runs: the newest one's view
VIEWS = ".latest"  # beside the runs: of each, links to what one looks for in it; TensorBoard's events are left out
SEEN = (CHECKPOINT, METADATA, LOG, FIELDS, MESSAGES)
IS_CHECKPOINT = re.compile(r"({0}|{0}-\d+|{2}\d+){1}".format(*map(re.escape, (*os.path.splitext(CHECKPOINT), MILESTONE))))
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
MOST_NAMED = 12  # runs in a message
MAX_NAME_BYTES = 255  # what file systems take
NAME_RULE = f"UTF-8, no control characters, at most {MAX_NAME_BYTES} bytes"


def is_plain(name: str) -> bool:
    """Whether `name` can be one folder's, and stand in any text: no path, not too long, UTF-8, on one line."""
    taken = (".", "..", LATEST, VIEWS)
    if not is_utf8(name) or not 0 < len(name.encode()) <= MAX_NAME_BYTES:
        return False
    return name not in taken and "/" not in name and not CONTROL.search(name)


def is_utf8(text: str) -> bool:
    """Whether it is text: bytes of the command line that are no UTF-8 are not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def not_plain(name: str) -> str:
    """The end of a sentence on a name that no folder can have."""
    return f"a plain folder name ({NAME_RULE}) other than {LATEST}, not {name if len(name) <= 80 else name[:80] + '...'!r}"


def of(savedir: str | Path, xpid: str) -> Path:
    """SAVEDIR/XPID. Raises: ValueError unless `xpid` is one plain folder name."""
    if not is_plain(xpid):
        raise ValueError(f"--xpid must be {not_plain(xpid)}")
    return Path(savedir) / xpid


def milestone(frames: int) -> str:
    """The name of the checkpoint that is kept for good at so many frames."""
    return f"{MILESTONE}{frames:012d}.tar"


@contextlib.contextmanager
def replacing(path: Path, *, alone: bool = False) -> Iterator[Path]:
    """A name beside `path`, for what is written in the block and takes `path`'s place at its end, at once and whole.

    After an error nothing is left, and what was at `path` before stays. The name has `path`'s suffix.

    Args:
        alone: no other process replaces `path` now, so what killed ones have left is removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
    for left in list(path.parent.glob(f".{glob.escape(path.name)}.*.tmp*")) if alone else [temporary]:
        _remove(left)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:  # after success too: a second name of what lies at `path` already is left by os.replace
        _remove(temporary)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def claim(run_dir: Path, header: str) -> IO:
    """Makes the log with its first line, as one of perhaps several processes that want this folder; returns its `lock`.

    What a run left that was killed before its first row and its first checkpoint is nobody's, and is replaced.
    Raises: FileExistsError if the folder holds a run already, or another process is about to begin one.
    """
    refuse_a_run(run_dir)  # before anything is written there
    file = lock(run_dir)
    try:
        refuse_a_run(run_dir)  # one that has come to its end since
        # Without a lock nobody can tell a run that was killed from one that is just beginning.
        with _new(run_dir / LOG) if is_none(file) else open(run_dir / LOG, "w", newline="", encoding="utf-8") as log:
            log.write(header)
    except BaseException:
        file.close()
        raise
    return file


def refuse_a_run(run_dir: Path) -> None:
    """Raises: FileExistsError if the folder holds a run already, or something in the place of a run's files."""
    refuse_no_files(run_dir)
    if checkpoints(run_dir) or has_rows(run_dir / LOG) or (run_dir / KEPT_LOG).exists():
        raise FileExistsError(
            f"{run_dir} holds a run already: go on with it (--resume) or name this one differently (--xpid)"
        )


def refuse_no_files(run_dir: Path) -> None:
    """Raises: FileExistsError if a folder, a pipe or a link to nothing is where a run has a file."""
    for path in (run_dir / name for name in (*ALWAYS, LOCK)):
        if os.path.lexists(path) and not path.is_file():
            raise FileExistsError(f"{path} is no ordinary file: remove it, or use another --xpid")


def _new(path: Path) -> IO:
    try:
        return open(path, "x", newline="", encoding="utf-8")
    except FileExistsError:
        raise FileExistsError(
            f"{path.parent} holds what a run left that has no row and no checkpoint; without locks nobody can tell whether it "
            "is beginning just now: remove the folder if it is not, or name this run differently (--xpid)"
        ) from None


def checkpoints(run_dir: Path) -> list[Path]:
    """Everything there that is called as a checkpoint is, by name: the newest one is the last."""
    return sorted(path for path in run_dir.glob("*") if IS_CHECKPOINT.fullmatch(path.name))


def log_in(folder: Path) -> Path | None:
    """The log of a run that lies there, whole or as it is kept; None if there is none."""
    return next((folder / name for name in LOGS if (folder / name).is_file()), None)


def has_rows(log: Path) -> bool:
    """Whether a log holds more than the beginning of a header: a row, a torn one too, or what another program wrote."""
    try:
        with open(log, "rb") as file:
            head = file.read(LONGEST_HEADER)  # at once: another process may be writing its first line just now
    except FileNotFoundError:
        return False
    first, _, rest = head.partition(b"\n")
    first = first.strip(b"\0\r")
    return bool(rest) or len(head) == LONGEST_HEADER or not (first.startswith(HEADER_START) or HEADER_START.startswith(first))


def is_a_runs(file: Path) -> bool:
    """Whether a file is one that a run keeps in its folder, or would."""
    names = (*ALWAYS, KEPT_LOG, LOCK, EVALUATIONS, BEST, CANDIDATE)
    return bool(file.name in names or IS_CHECKPOINT.fullmatch(file.name)) and (real(file.parent) / METADATA).is_file()


def real(path: str | Path) -> Path:
    """The absolute path without links. Of links in a circle one is left, which no system call then follows."""
    return Path(os.path.realpath(path))


def lock(run_dir: Path) -> IO:
    """Keeps other processes from writing to this folder until the file is closed or this process is gone.

    A record lock: children do not inherit it. Raises: FileExistsError if another process has it.
    """
    file = open(run_dir / LOCK, "w")  # noqa: SIM115
    try:
        if fcntl is None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            logger.warning("%s cannot be locked (%s): do not start a second run on it", run_dir, error)
            return open(os.devnull, "w")
        raise FileExistsError(f"another process is writing to {run_dir}: wait for it to end, or use another --xpid") from None
    return file


def locked_still(file: IO, run_dir: Path) -> IO:
    """The lock, or a new one where its file is gone from this folder. Raises: FileExistsError as `lock` does."""
    held = os.fstat(file.fileno())
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(held.st_mode) or os.path.samestat(held, os.stat(run_dir / LOCK)):
            return file
    new = lock(run_dir)
    file.close()
    return new


def is_none(lock: IO) -> bool:
    """Whether `lock` could lock nothing."""
    return lock.name == os.devnull


def point_latest_at(run_dir: Path) -> None:
    """SAVEDIR/latest -> .latest/XPID, relative, so that SAVEDIR can be moved; there is no moment without it.

    Not to XPID itself: TensorBoard follows links, and would show the newest run twice.
    """
    latest, view = run_dir.parent / LATEST, run_dir.parent / VIEWS / run_dir.name
    try:
        view.mkdir(parents=True, exist_ok=True)
        for name in SEEN:
            with replacing(view / name) as temporary:
                temporary.symlink_to(Path("..", "..", run_dir.name, name))
        with replacing(latest) as temporary:
            temporary.symlink_to(Path(VIEWS, run_dir.name))
    except OSError as error:  # a file system without links, or a folder of that name: no reason not to train
        logger.warning("could not make the link %s: %s", latest, error)


def own(path: Path) -> Path:
    """The run's folder that SAVEDIR/latest stands for, or a file in it; any other path as it is."""
    for folder, name in ((path, ""), (path.parent, path.name)):
        target = real(folder)
        if target.parent.name == VIEWS:
            return target.parent.parent / target.name / name
    return path


def meant(place: Path, holds: Callable[[Path], object] = checkpoints) -> Path:
    """The run in a folder of runs, the latest or the only one, which is said; any other folder as it is.

    Args:
        holds: whether a folder is a run that has what is wanted of it.
    Raises: FileNotFoundError, naming them, if there are several and none is known to be the latest.
    """
    if holds(place):
        return place
    names = [path.name for path in sorted(place.glob("[!.]*")) if path.name != LATEST and path.is_dir() and holds(path)]
    if not names:
        return place
    latest = real(place / LATEST).name
    chosen = names[0] if len(names) == 1 else latest
    if chosen not in names:
        shown = ", ".join(names[:MOST_NAMED]) + (f" and {len(names) - MOST_NAMED} others" if len(names) > MOST_NAMED else "")
        raise FileNotFoundError(f"{place} is a folder of runs: give one of them, as {place / names[0]}; there are {shown}")
    logger.info("%s is a folder of runs: its %s one is %s", place, "only" if len(names) == 1 else "latest", chosen)
    return place / chosen


def read_metadata(run_dir: Path) -> dict:
    """What meta.json holds. Raises: FileNotFoundError if there is none; ValueError if the file is no run's metadata."""
    path = run_dir / METADATA
    try:
        meta = json.loads(path.read_text(encoding="utf-8-sig"))  # an editor may have put a mark before it
    except (ValueError, RecursionError):  # no JSON, nested beyond reason, or no text
        meta = None
    kinds = {"args": dict, "resumed": list}
    if not isinstance(meta, dict) or not all(isinstance(meta.get(name, kind()), kind) for name, kind in kinds.items()):
        raise ValueError(f"{path} is damaged: it is no run's metadata; start a new run (another --xpid)")
    return meta


def write_metadata(run_dir: Path, meta: dict) -> None:
    """Replaces meta.json by `meta`, a JSON-like dict."""
    with replacing(run_dir / METADATA, alone=True) as temporary:
        temporary.write_text(json.dumps(meta, indent=4) + "\n", encoding="utf-8")

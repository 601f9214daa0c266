"""A run's folder, SAVEDIR/XPID: what lies in it under which name, its lock, its metadata, and how files are replaced."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import json
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

logger = logging.getLogger("amigo")

CHECKPOINT = "model.tar"
METADATA = "meta.json"
LOG = "logs.csv"
FIELDS = "fields.csv"
MESSAGES = "out.log"
TENSORBOARD = "tensorboard"
ENVIRONMENTS = "environments"
LOCK = ".lock"
ALWAYS = (METADATA, FIELDS, LOG, MESSAGES)  # there from the beginning
LATEST = "latest"  # beside the runs: the newest one


def of(savedir: str | Path, xpid: str) -> Path:
    """SAVEDIR/XPID. Raises: ValueError unless `xpid` is one plain folder name."""
    if xpid in ("", ".", "..", LATEST) or Path(xpid).name != xpid:
        raise ValueError(f"--xpid must be a plain folder name other than {LATEST}, not {xpid!r}")
    return Path(savedir) / xpid


def milestone(frames: int) -> str:
    """The name of the checkpoint that is kept for good at so many frames."""
    return f"milestone-{frames:012d}.tar"


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


def claim(run_dir: Path, header: str) -> None:
    """Makes the log with its first line, as one of perhaps several processes that want this folder.

    Raises: FileExistsError if the folder holds a run already.
    """
    taken = [name for name in (METADATA, FIELDS, CHECKPOINT) if (run_dir / name).exists()]
    try:
        if taken:
            raise FileExistsError
        with open(run_dir / LOG, "x", newline="", encoding="utf-8") as file:
            file.write(header)
    except FileExistsError:
        raise FileExistsError(
            f"{run_dir} holds a run already: go on with it (--resume) or name this one differently (--xpid)"
        ) from None


def lock(run_dir: Path) -> IO:
    """Keeps other processes from writing to this folder until the file is closed or this process is gone.

    A record lock: children do not inherit it. Raises: FileExistsError if another process has it.
    """
    file = open(run_dir / LOCK, "w")  # noqa: SIM115
    try:
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


def point_latest_at(run_dir: Path) -> None:
    """SAVEDIR/latest -> XPID, relative, so that SAVEDIR can be moved; there is no moment without it."""
    latest = run_dir.parent / LATEST
    try:
        with replacing(latest) as temporary:
            temporary.symlink_to(run_dir.name)
    except OSError as error:  # a file system without links, or a folder of that name: no reason not to train
        logger.warning("could not make the link %s: %s", latest, error)


def read_metadata(run_dir: Path) -> dict:
    """What meta.json holds. Raises: FileNotFoundError if there is none; ValueError if the file is no run's metadata."""
    path = run_dir / METADATA
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):  # no JSON, nested beyond reason, or no text
        meta = None
    if not isinstance(meta, dict) or not isinstance(meta.get("resumed", []), list):
        raise ValueError(f"{path} is damaged: it is no run's metadata; start a new run (another --xpid)")
    return meta


def write_metadata(run_dir: Path, meta: dict) -> None:
    """Replaces meta.json by `meta`, a JSON-like dict."""
    with replacing(run_dir / METADATA, alone=True) as temporary:
        temporary.write_text(json.dumps(meta, indent=4) + "\n", encoding="utf-8")

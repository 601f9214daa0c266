"""Files that a program is asked to write: looked at before the work, then written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from torchbeast.core.run_folder import is_a_runs, real, replacing
from torchbeast.core.settings import UsageError


def must_be_writable(flag: str, path: str | Path) -> None:
    """Raises: UsageError if no file can lie there, or one of a run would be written over. `flag`: what named it."""
    path = Path(path)
    try:
        if not real(path).parent.is_dir():
            raise UsageError(f"{flag} {path}: its folder does not exist; make it first")
        if path.is_dir():
            raise UsageError(f"{flag} {path} is a folder; give a file")
        if path.exists() and not path.is_file():  # it would be replaced
            raise UsageError(f"{flag} {path} is no ordinary file; give another")
        if is_a_runs(path) or is_a_runs(real(path)):
            raise UsageError(f"{flag} {path} is a file of a run, which is not written over; give another")
        if not os.access(real(path).parent, os.W_OK | os.X_OK):
            raise UsageError(f"{flag} {path}: its folder cannot be written; give another file")
    except OSError as error:  # a name that is too long, for instance
        raise UsageError(f"{flag} {path}: {error.strerror}; give another file") from None


def must_not_be_read(flag: str, path: str | Path | None, read: Iterable[str | Path]) -> None:
    """Raises: UsageError if this output is one of the files that the command reads. `flag`: what named it."""
    if path is not None and real(path) in map(real, read):
        raise UsageError(f"{flag} {path} is what is read, and is not written over; give another")


def must_be_different(**paths: str | Path | None) -> None:
    """Raises: UsageError if two of these files, each named by its flag, are one."""
    seen: dict[Path, str] = {}
    for flag, path in paths.items():
        if path is not None and (other := seen.setdefault(real(path), flag)) != flag:
            raise UsageError(f"--{other} and --{flag} name the same file; give two")


def must_hold_folders(flag: str, path: str | Path) -> None:
    """Raises: UsageError if no folder can be made there, with what is above it. `flag`: what named it."""
    there = real(path)
    try:
        for above in (Path(path).absolute(), *Path(path).absolute().parents):
            if above.is_symlink() and not above.exists():
                raise UsageError(f"{flag} {path}: {above} is a link to what is not there; choose another folder")
        while not there.exists():
            there = there.parent
        if not there.is_dir():
            raise UsageError(f"{flag} {path}: {there} is no folder; choose another folder")
    except OSError as error:  # a name that is too long, for instance
        raise UsageError(f"{flag} {path}: {error.strerror}; choose another folder") from None
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"{flag} {path}: {there} cannot be written; choose another folder")


def write(files: Mapping[str | None, bytes]) -> None:
    """Writes all of the files or none, and says their names; nothing for None. Raises: UsageError."""
    paths = {Path(name): content for name, content in files.items() if name}
    with contextlib.ExitStack() as written:
        for path, content in paths.items():
            written.enter_context(_writing(path)).write_bytes(content)
    for path in paths:
        print(path)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[Path]:
    try:
        with replacing(real(path)) as temporary:  # what a link names is written, the link stays
            yield temporary
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}; give another file") from None

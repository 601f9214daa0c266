"""A folder and files in it that a program holds open for days: found again if they are moved, put back if they are deleted."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import IO

from torchbeast.core.run_folder import replacing

CHUNK = 1 << 20


class HeldFolder:
    """A folder that is followed when it is moved, and made again when it is deleted.

    Attributes:
        path: where it is, as far as is known.
    """

    def __init__(self, path: Path):
        self.path = path
        self._home = path.absolute()  # should the working directory be what is deleted
        self._descriptor = _opened(path)

    def find(self) -> str | None:
        """Sees to it that `path` is the folder again. Returns what has happened to it; None if nothing. Raises: OSError."""
        if self._is(self.path):
            return None
        before = self.path
        if (there := self._moved()) is not None:
            self.path = there
            return f"{before} was moved; the run goes on in {there}"
        self.path = self._made()
        self.close()
        self._descriptor = _opened(self.path)
        return f"{before} was deleted, with what was kept in it; the run goes on in {self.path}, made again"

    def close(self) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)

    def _is(self, path: Path) -> bool:
        if self._descriptor is None:
            return path.is_dir()
        try:
            return os.path.samestat(os.stat(path), os.fstat(self._descriptor))
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _moved(self) -> Path | None:
        """Where the kernel knows it to be; None if it has no name any more, or the system does not tell."""
        try:
            path = Path(os.readlink(f"/proc/self/fd/{self._descriptor}"))
        except FileNotFoundError:
            return None
        return path if self._is(path) else None

    def _made(self) -> Path:
        """A new one in its place, or beside what has taken that."""
        number, path = 1, self._home
        while os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
            number += 1
            path = self._home.with_name(f"{self._home.name}-{number}")
        path.mkdir(parents=True, exist_ok=True)
        return path


def _opened(path: Path) -> int | None:
    """A descriptor of a folder; None where a system has none for folders."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY) if hasattr(os, "O_DIRECTORY") else None


def is_at(file: IO, path: Path) -> bool:
    """Whether this open file is the one at `path`."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def put_back(file: IO, path: Path) -> None:
    """Puts all that is in a file, which is open for reading too, at `path`, whole or not at all: while it is open it has all
    that it had."""
    file.flush()
    with replacing(path) as temporary, open(temporary, "wb") as new:
        while part := os.pread(file.fileno(), CHUNK, new.tell()):
            new.write(part)
        new.flush()
        os.fsync(new.fileno())

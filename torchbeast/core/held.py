"""A folder and files in it that a program holds open for days: found again if they are moved, put back if they are deleted."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import IO

from torchbeast.core.run_folder import replacing


class HeldFolder:
    """A folder that is followed when it is moved, and made again when it is deleted.

    Attributes:
        path: where it is, as far as is known.
    """

    def __init__(self, path: Path):
        self.path = path
        self._home = path.absolute()  # should the working directory be what is deleted
        self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)

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
        self._descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        return f"{before} was deleted, with what was kept in it; the run goes on in {self.path}, made again"

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._descriptor)

    def _is(self, path: Path) -> bool:
        try:
            return os.path.samestat(os.stat(path), os.fstat(self._descriptor))
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _moved(self) -> Path | None:
        """Where the kernel knows it to be; None if it has no name any more."""
        path = Path(os.readlink(f"/proc/self/fd/{self._descriptor}"))
        return path if self._is(path) else None

    def _made(self) -> Path:
        """A new one in its place, or beside what has taken that."""
        number, path = 1, self._home
        while os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
            number += 1
            path = self._home.with_name(f"{self._home.name}-{number}")
        path.mkdir(parents=True, exist_ok=True)
        return path


def is_at(file: IO, path: Path) -> bool:
    """Whether this open file is the one at `path`."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def put_back(file: IO, path: Path) -> None:
    """Puts all that is in an open file at `path`, whole or not at all: as long as it is open it has all that it had."""
    file.flush()
    with replacing(path) as temporary, open(f"/proc/self/fd/{file.fileno()}", "rb") as old, open(temporary, "wb") as new:
        shutil.copyfileobj(old, new)
        new.flush()
        os.fsync(new.fileno())

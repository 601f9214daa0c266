"""Files that a program is asked to write: looked at before the work, then written whole or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from torchbeast.core.run_folder import replacing
from torchbeast.core.settings import UsageError


def check(flag: str, path: str | Path) -> None:
    """Raises: UsageError if no file can lie there. `flag`: what named it."""
    path = Path(path)
    try:
        if not path.resolve().parent.is_dir():
            raise UsageError(f"{flag} {path}: its folder does not exist; make it first")
        if path.is_dir():
            raise UsageError(f"{flag} {path} is a folder; give a file")
    except OSError as error:  # a name that is too long, for instance
        raise UsageError(f"{flag} {path}: {error.strerror}; give another file") from None


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
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}; give another file") from None

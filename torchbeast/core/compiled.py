"""Compiled functions. What Numba makes of them is kept on disk wherever there is a place for it; damaged code is made again.

Numba itself looks for such a place when a function is declared, ends in an exception where there is none, and runs or chokes
on whatever it finds there. It files code by where its source lies; here it is filed by what it was made from, so that every
copy of the program finds it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import pickle
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import numba
import numpy as np
from numba.core import caching, config, serialize, sigutils

logger = logging.getLogger("amigo")

NO_PLACE = RuntimeError  # what Numba raises
FILED = "amigo-"  # begins the names of folders of code that is filed by what it was made from


def compiled(function: Callable | None = None, **options: Any) -> Callable:
    """Decorator: as numba.njit, and kept on disk. Nothing is looked for, read or compiled before the first call."""
    if function is None:
        return functools.partial(compiled, **options)
    dispatcher = numba.njit(**options)(function)
    dispatcher._cache = Kept(function)
    return dispatcher


class Damaged(Exception):
    """What was kept is not what was written, or not what was asked for."""


class _ByContent:
    """Of a locator: a folder named by what the function is made from, whichever copy of the program that lies in."""

    def __init__(self, function: Callable, file: str):
        super().__init__(function, file)
        self._cache_path = str(Path(self._cache_path).with_name(f"{FILED}{_digest(function, file)}"))


class _Named(_ByContent, caching.UserProvidedCacheLocator):
    """Below NUMBA_CACHE_DIR."""


class _OfUser(_ByContent, caching.UserWideCacheLocator):
    """In the user's cache folder."""


def _digest(function: Callable, file: str) -> str:
    """Of all that is compiled into a function: its file, the constants that it takes from others, and what compiles it."""
    digest = hashlib.sha256(Path(file).read_bytes())
    for part in (function.__module__, numba.__version__, np.__version__, *_taken(function, set())):
        digest.update(f"{part}\n".encode())
    return digest.hexdigest()[:32]


def _taken(function: Callable, seen: set[Callable]) -> Iterator[str]:
    """The values of the globals that a function reads, and the compiled functions that it calls; of these the same."""
    seen.add(function)
    for name in _names(function.__code__):
        value = function.__globals__.get(name)
        value = getattr(value, "py_func", value)
        if isinstance(value, FunctionType):
            if value not in seen:
                yield f"{name} {hashlib.sha256(Path(value.__code__.co_filename).read_bytes()).hexdigest()}"
                yield from _taken(value, seen)
        elif isinstance(value, np.ndarray):
            yield f"{name} {value.dtype} {value.tolist()}"
        elif isinstance(value, (int, float, str, bytes, tuple)):
            yield f"{name} {value!r}"


def _names(code: CodeType) -> list[str]:
    """The globals, and more, that code names, with what is nested in it."""
    nested = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return sorted({*code.co_names, *(name for one in nested for name in _names(one))})


class _Checked(caching.CompileResultCacheImpl):
    """Machine code with a digest: it must not be run with a byte changed."""

    _locator_classes = [_Named, _OfUser, *caching.CompileResultCacheImpl._locator_classes]

    def reduce(self, result) -> tuple[bytes, bytes]:
        content = serialize.dumps(super().reduce(result))
        return hashlib.sha256(content).digest(), content

    def rebuild(self, target_context, data):
        digest, content = data
        if hashlib.sha256(content).digest() != digest:
            raise Damaged("its digest is another")
        return super().rebuild(target_context, pickle.loads(content))


class _Files(caching.FunctionCache):
    _impl_class = _Checked


class Kept(caching._Cache):
    """Where a function's machine code is kept, found when it is first wanted; nothing that goes wrong there ends a run."""

    def __init__(self, function: Callable):
        self._function = function

    @functools.cached_property
    def _files(self) -> caching.Cache | None:
        try:
            files = _Files(self._function)
        except NO_PLACE:
            return _in_private(self._function)
        if config.CACHE_DIR and not Path(files.cache_path).is_relative_to(config.CACHE_DIR):
            _tell(f"NUMBA_CACHE_DIR {config.CACHE_DIR} cannot be written: compiled code is kept in {_above(files)}")
        return files

    @property
    def cache_path(self) -> str | None:
        return self._files and self._files.cache_path

    def load_overload(self, sig, target_context):
        try:
            found = self._files and self._files.load_overload(sig, target_context)
            if found is not None and tuple(found.signature.args) != tuple(sigutils.normalize_signature(sig)[0]):
                raise Damaged("it is of another signature")
        except Exception as error:  # whatever damaged bytes make their reader raise
            logger.warning(
                f"compiled code of {self._function.__qualname__} in {self.cache_path} is damaged "
                f"({type(error).__name__}: {error}): compiling it again"
            )
            self.flush()
            return None
        return found

    def save_overload(self, sig, data) -> None:
        if self._files is not None:
            try:
                self._files.save_overload(sig, data)
            except OSError as error:
                _tell(f"compiled code cannot be kept in {_above(self._files)} ({error}): every start compiles again")

    def enable(self) -> None:
        pass

    def disable(self) -> None:
        pass

    def flush(self) -> None:
        with contextlib.suppress(OSError):  # then it is read again, and found damaged again
            if self._files is not None:
                self._files.flush()


def _above(files: caching.Cache) -> Path:
    """The place that all functions share, which is said once."""
    path = Path(files.cache_path)
    return path.parent if path.name.startswith(FILED) else path


def _in_private(function: Callable) -> caching.Cache | None:
    """Files in a folder that only this user can write, where neither the program's nor the home folder can be; or None."""
    before = config.CACHE_DIR
    try:
        config.CACHE_DIR = str(private_folder())
        files = _Files(function)
    except (OSError, NO_PLACE) as error:
        _tell(f"compiled code can be kept nowhere ({error}): every start compiles again; NUMBA_CACHE_DIR names a place for it")
        return None
    finally:
        config.CACHE_DIR = before
    _tell(f"compiled code is kept in {private_folder()}: neither the program's folder nor the home folder can be written")
    return files


def private_folder() -> Path:
    """A folder of this user alone among the temporary files. Raises: OSError if there can be none."""
    user = os.getuid() if hasattr(os, "getuid") else 0  # as lstat has it there
    folder = Path(tempfile.gettempdir()) / f"amigo-compiled-{user}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != user or about.st_mode & 0o077:
        raise PermissionError(f"{folder} is not a folder of this user alone")
    return folder


@functools.cache
def _tell(text: str) -> None:
    """Once."""
    logger.warning(text)

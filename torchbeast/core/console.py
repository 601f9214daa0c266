"""The console, which may fail without harm: a terminal goes away, a pipe has no reader or none that reads, a disk fills.

While `console()` is entered, sys.stdout and sys.stderr take whatever is written to them; what cannot be shown is left out.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import stat
import sys
from collections.abc import Iterator
from typing import TextIO

PATIENCE_SECONDS = 1.0
PIPE_BUF = getattr(select, "PIPE_BUF", 512)  # the least that POSIX allows
LEFT_OUT = "\n[lines are missing here: nobody took them]\n"
LIMIT = 16_000  # characters of one message; the rest helps nobody, and may be any number of megabytes


def cut(text: str, limit: int = LIMIT) -> str:
    """The text, or the two ends of a longer one and how much is missing between them."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half:,} characters are left out here ...]\n{text[-half:]}"


class Stream(io.TextIOBase):
    """Stands in the place of a console stream, and never raises for what becomes of the text.

    Args:
        stream: that stream; None for one that was closed before the program began.
        waits: for a reader however long he takes; else text that nobody takes for PATIENCE_SECONDS is left out.

    Attributes:
        error: the first failure by which text was lost, but for a reader who has gone; None if there was none.
    """

    def __init__(self, stream: TextIO | None, *, waits: bool):
        self._stream = stream
        self._waits = waits
        self._patience = PATIENCE_SECONDS
        self._missing = False
        self.error: OSError | None = None
        self._descriptor, self._own = None, False
        with contextlib.suppress(OSError, ValueError, AttributeError):  # a stream without a descriptor, or none at all
            self._descriptor = stream.fileno()
            self._descriptor, self._own = _unblocking(self._descriptor, waits)

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "utf-8"

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()

    def isatty(self) -> bool:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            return self._stream.isatty()
        return False

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        try:
            self._write(text)
        except BrokenPipeError:
            pass
        except ValueError:  # closed meanwhile
            pass
        except OSError as error:
            if error.errno != errno.EIO:  # the terminal is gone, and who looked at it
                self.error = self.error or error
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self._stream.flush()

    def release(self) -> None:
        """Gives back what it has opened."""
        if self._own:
            os.close(self._descriptor)
            self._own, self._descriptor = False, None

    def _write(self, text: str) -> None:
        if self._descriptor is None:
            if self._stream is not None:
                self._stream.write(text)
            return
        self.flush()  # what others have written to the stream itself
        data = memoryview((LEFT_OUT * self._missing + text).encode(self.encoding, errors="backslashreplace"))
        while data:
            if not self._ready():
                self._missing, self._patience = True, 0.0
                return
            with contextlib.suppress(BlockingIOError):
                data = data[os.write(self._descriptor, data[:PIPE_BUF]) :]
        self._missing, self._patience = False, PATIENCE_SECONDS

    def _ready(self) -> bool:
        """Whether something can be written, or is going to fail, now or within its patience."""
        if not hasattr(select, "poll"):  # a write waits, then
            return True
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        return bool(poll.poll(None if self._waits else 1000 * self._patience))


def _unblocking(descriptor: int, waits: bool) -> tuple[int, bool]:
    """One for the same pipe or terminal on which a write never waits, and whether it is a new one.

    It is opened anew: not to wait is a property that others, the shell for one, share with the descriptor they gave us.
    """
    kind = os.fstat(descriptor).st_mode
    if not waits and (stat.S_ISFIFO(kind) or stat.S_ISCHR(kind)):
        with contextlib.suppress(OSError):
            return os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY), True
    return descriptor, False


@contextlib.contextmanager
def console() -> Iterator[tuple[Stream, Stream]]:
    """sys.stdout, whose readers are waited for, and sys.stderr, whose are not, as streams that do not fail."""
    if sys.stdout is None or sys.stderr is None:
        _occupy()
    before = sys.stdout, sys.stderr
    streams = Stream(sys.stdout, waits=True), Stream(sys.stderr, waits=False)
    sys.stdout, sys.stderr = streams
    try:
        yield streams
    finally:
        sys.stdout, sys.stderr = before
        for stream in streams:
            stream.release()


def _occupy() -> None:
    """Where a console stream was closed, no file may get its number: other code writes its complaints there."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)

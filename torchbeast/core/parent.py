"""A process that ends when the one that started it does. It imports nothing that takes time: that holds from the start."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading

PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """The kernel kills this process when the thread that started it ends, however either of them is stuck. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has gone before that
        os._exit(1)


def end_with_stdin() -> None:
    """This process ends as soon as nobody holds the other end of its stdin any more, on any system."""
    threading.Thread(target=_wait_for_the_end, name="stdin", daemon=True).start()


def _wait_for_the_end() -> None:
    while os.read(0, 1):  # not sys.stdin, whose lock the end of this program would wait for
        pass
    os._exit(1)

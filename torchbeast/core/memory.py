"""How this process deals with memory that has been freed, and with what it shares with processes that it forks."""

from __future__ import annotations

import ctypes
import gc
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8  # of mallopt, in glibc's malloc.h
KEPT = 2**30  # bytes that may lie free before any are given back
LARGE = 2**25  # bytes from which an array has pages of its own, which are always given back: glibc takes no more for it


def keep_freed() -> None:
    """Arrays take the place of freed ones; else an update's go back to the system each time, and their pages are made anew.

    That was a sixth of an update's time on a virtual machine. All threads share one arena: only its memory is kept.
    Processes forked later do the same. Where the C library has no such setting, nothing is changed.
    """
    if mallopt := _of_c("mallopt"):
        for name, value in ((TRIM_THRESHOLD, KEPT), (MMAP_THRESHOLD, LARGE), (ARENA_MAX, 1)):
            mallopt(name, value)


def share_with_forks() -> None:
    """To be called before processes are forked: what is there stays one copy for all of them.

    A page is copied when somebody writes to it. What lies free is given back, since whoever uses it again writes to it; and
    Python's collector, which writes to every object that it looks at, does not look at those that are there.
    """
    gc.collect()
    gc.freeze()
    if malloc_trim := _of_c("malloc_trim"):
        malloc_trim(0)


def _of_c(name: str):
    """A function of the C library; None where it has none of that name."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None

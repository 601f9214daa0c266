"""How this process' C library deals with memory that has been freed."""

from __future__ import annotations

import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8  # of mallopt, in glibc's malloc.h
KEPT = 2**30  # bytes that may lie free before any are given back
LARGE = 2**25  # bytes from which an array has pages of its own, which are always given back: glibc takes no more for it


def keep_freed() -> None:
    """Arrays take the place of freed ones; else an update's go back to the system each time, and their pages are made anew.

    That was a sixth of an update's time on a virtual machine. All threads share one arena: only its memory is kept.
    Processes forked later do the same. Where the C library has no such setting, nothing is changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for name, value in ((TRIM_THRESHOLD, KEPT), (MMAP_THRESHOLD, LARGE), (ARENA_MAX, 1)):
            mallopt(name, value)

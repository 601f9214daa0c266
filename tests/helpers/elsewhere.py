"""Other systems, as far as they can be played here: in a process that starts with this as its sitecustomize, what they lack is
gone before anything is imported. ELSEWHERE says which system."""

import builtins
import io
import os
import select
import signal
import socket
import sys

LINUX = ("pidfd_open", "sched_getaffinity", "sched_setaffinity", "memfd_create", "posix_fadvise", "copy_file_range")
UNIX = ("fork", "getuid", "geteuid", "O_NONBLOCK", "O_NOCTTY", "O_DIRECTORY", "sysconf", "pread", "getpgid", "setpgid", "nice")


def hide_proc(place, name):
    """Functions of `place` that take a path no longer see /proc, but for the processor's name, which every system tells: by it
    the library for products is chosen, and with it how sums are rounded."""
    real = getattr(place, name)

    def hidden(path, *rest, **more):
        seen = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""
        if seen.startswith("/proc") and seen != "/proc/cpuinfo":
            raise FileNotFoundError(2, "No such file or directory", path)
        return real(path, *rest, **more)

    setattr(place, name, hidden)


def hide(system):
    for place, name in ((builtins, "open"), (io, "open"), (os, "open"), (os, "readlink"), (os, "stat"), (os, "scandir")):
        hide_proc(place, name)
    lacking = [(os, name) for name in LINUX]
    if system == "windows":
        sys.modules["fcntl"] = sys.modules["resource"] = None
        lacking += [(os, name) for name in UNIX]
        lacking += [(signal, "SIGHUP"), (signal, "SIGUSR1"), (signal, "SIGUSR2"), (select, "poll"), (select, "PIPE_BUF")]
        lacking += [(socket, "send_fds"), (socket, "recv_fds")]
    for place, name in lacking:
        if hasattr(place, name):
            delattr(place, name)


if "ELSEWHERE" in os.environ:
    hide(os.environ["ELSEWHERE"])

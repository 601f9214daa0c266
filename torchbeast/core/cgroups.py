"""Control groups: which limits hold for this process. Linux counts a container's or a job's memory and processes in them.

A process is in one group of each hierarchy, and every limit on the way up from there to the root of what is mounted holds for
it too: Slurm's, Docker's and systemd's limits stand in different places on this way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

PROC = Path("/proc/self")
# Usage and limit, a file each; version 1's in the last line.
MEMORY = (
    ("memory.current", "memory.max"),
    ("memory.current", "memory.high"),
    ("memory.usage_in_bytes", "memory.limit_in_bytes"),
)
PROCESSES = (("pids.current", "pids.max"),)


def free_memory(proc: Path = PROC) -> int | None:
    """Bytes that the groups of this process leave it, files' cache not counted; None where there is no limit."""
    free = [limit - used + file_cache(folder / "memory.stat") for folder, used, limit in _limits("memory", MEMORY, proc)]
    return min(free, default=None)


def free_processes(proc: Path = PROC) -> int | None:
    """Processes and threads that they leave it; None where there is no limit."""
    return min((limit - used for _, used, limit in _limits("pids", PROCESSES, proc)), default=None)


def _limits(controller: str, names: tuple, proc: Path) -> Iterator[tuple[Path, int, int]]:
    """(folder, usage, limit) of every limit that holds."""
    for folder in folders(controller, proc):
        for used, limit in names:
            numbers = _number(folder / used), _number(folder / limit)
            if None not in numbers:
                yield folder, *numbers


def folders(controller: str, proc: Path = PROC) -> list[Path]:
    """Where limits of a controller ("memory", "pids") stand for this process: its own group's folder, and all above it."""
    found = []
    groups = [line.split(":", 2) for line in _lines(proc / "cgroup") if line.count(":") >= 2]
    for mounted, point, is_second, options in _mounts(proc):
        for number, controllers, group in groups:
            if number == "0" if is_second else controller in controllers.split(",") and controller in options:
                found += _up(PurePosixPath(group), PurePosixPath(mounted), Path(point))
    return list(dict.fromkeys(folder for folder in found if folder.is_dir()))


def _up(group: PurePosixPath, mounted: PurePosixPath, point: Path) -> list[Path]:
    """The folders from a group's up to where its hierarchy is mounted; of a group that is not below there, that place alone."""
    if ".." in group.parts or not group.is_relative_to(mounted):
        return [point]
    own = point / group.relative_to(mounted)
    return [own, *(folder for folder in own.parents if folder.is_relative_to(point))]


def _mounts(proc: Path) -> Iterator[tuple[str, str, bool, list[str]]]:
    """(root, mount point, whether it is version 2, options) of every hierarchy that is mounted. Source: man 5 proc."""
    for line in _lines(proc / "mountinfo"):
        before, separator, after = line.partition(" - ")
        words, (kind, *rest) = before.split(" "), after.split(" ")
        if separator and kind in ("cgroup", "cgroup2") and len(words) > 4:
            yield _plain(words[3]), _plain(words[4]), kind == "cgroup2", ",".join(rest).split(",")


def _plain(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def file_cache(path: Path) -> int:
    """Bytes of a group's memory that only cache files: the kernel gives them up when they are wanted."""
    values = dict(line.split(" ", 1) for line in _lines(path) if " " in line)
    names = ("inactive_file", "active_file")  # version 1 counts those of groups below it apart
    return sum(int(values.get(f"total_{name}", values.get(name, 0))) for name in names)


def _number(path: Path) -> int | None:
    """None for "max", and where there is no such file."""
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdecimal() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="surrogateescape").split("\n")
    except OSError:  # no such controller, or a group that may not be looked into: nothing is known of it
        return []

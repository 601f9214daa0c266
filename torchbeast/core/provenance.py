"""Where a run comes from: what it was called with, by which code and which versions, on which machine; no home paths."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

# Never the whole environment: it may hold tokens.
RECORDED_ENVIRONMENT = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "SLURM_JOB_ID",
    "SLURM_JOB_NAME",
    "SLURM_PROCID",
    "SLURM_NTASKS",
    "WORLD_SIZE",
    "RANK",
    "LOCAL_RANK",
)


def now() -> str:
    """The date and time in UTC, to the second, as meta.json has them."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def metadata(xpid: str, args: Mapping) -> dict:
    """What meta.json says of a run that starts now, called with `args`: JSON-like, with "~" for the user's home."""
    meta = {
        "xpid": xpid,
        "args": dict(args),
        "command": sys.argv,
        "date_start": now(),
        "date_end": None,
        "successful": None,
        "versions": _versions(),
        "host": {"processor": processor_name(), "cores": os.cpu_count()},
        "git": git_state(Path(__file__).parent),
        "env": {name: os.environ[name] for name in RECORDED_ENVIRONMENT if name in os.environ},
    }
    return _without_home(meta)


def resumption(args: Mapping, frames: int) -> dict:
    """The entry of meta.json's list "resumed" for a run that goes on now from its state at `frames`, called with `args`."""
    return _without_home({"date": now(), "frames": frames, "args": dict(args), "command": sys.argv})


def _versions() -> dict[str, str]:
    """Versions of Python and of every installed package: asking which ones matter would need to know the program."""
    packages = ((p.metadata["Name"] or "?", p.version) for p in importlib.metadata.distributions())
    return {"python": platform.python_version(), **dict(sorted((n.lower(), v) for n, v in packages))}


def processor_name() -> str:
    """The processor's model as the machine tells it; else what Python knows of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def git_state(folder: Path) -> dict:
    """Commit, branch, is_dirty of the repository around `folder`; null where there is none (no git, detached HEAD)."""

    def git(*arguments: str) -> str | None:
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    status = git("status", "--porcelain", "--untracked-files=no")
    return {
        "commit": git("rev-parse", "--verify", "--quiet", "HEAD"),
        "branch": git("symbolic-ref", "--short", "--quiet", "HEAD"),
        "is_dirty": None if status is None else status != "",
    }


def _without_home(value):
    """A copy of a JSON-like value whose texts have "~" in place of the user's home directory."""
    home = os.path.expanduser("~")
    homes = {home.rstrip("/"), os.path.realpath(home)} - {"", "/", "~"}
    pattern = "|".join(re.escape(home) + r"(?!\w)" for home in sorted(homes, key=len, reverse=True))

    def clean(value):
        if isinstance(value, Mapping):
            return {str(key): clean(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [clean(item) for item in value]
        if value is None or isinstance(value, (bool, int, float)):
            return value
        return re.sub(pattern, "~", str(value)) if pattern else str(value)

    return clean(value)

"""Runs of the program: small command lines, what they leave behind, and their processes."""

from __future__ import annotations

import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    "--env MiniGrid-Empty-5x5-v0 --num_actors 5 --batch_size 4 --unroll_length 6 --state_embedding_dim 32 --total_frames 480 "
    "--xpid run"
).split()
LEARNABLE = (  # a task that is learned in a minute
    "--env MiniGrid-Empty-Random-5x5-v0 --num_actors 16 --total_frames 120000 --unroll_length 20 --batch_size 16 --seed 3 "
    "--xpid run"
).split()


def command(tmp_path: Path, *more: str) -> list[str]:
    return [*SMALL, "--savedir", str(tmp_path), *more]


def rows(run_dir: Path) -> list[dict[str, float | None]]:
    """logs.csv, an empty value as None, without the time."""
    with open(run_dir / "logs.csv") as file:
        names = file.readline().removeprefix("# ").strip().split(",")
        table = [dict(zip(names, line, strict=True)) for line in csv.reader(file)]
    return [{k: float(v) if v else None for k, v in row.items() if k != "_time"} for row in table]


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def actor_pids(run: subprocess.Popen) -> list[int]:
    """The actor processes are children of the process that forks them."""
    (spawner,) = children(run.pid)
    return children(spawner)


def start(tmp_path: Path, *more: str, own_group: bool = False) -> subprocess.Popen:
    """A long run in a process of its own; returns when it has written its first rows."""
    args = [sys.executable, "-m", "main.main", *command(tmp_path, "--total_frames", "100000000", *more)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(args, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=env, start_new_session=own_group)
    log = tmp_path / "run" / "logs.csv"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if log.exists() and len(log.read_text().splitlines()) > 3:
            return process
        if process.poll() is not None:
            pytest.fail(f"the run ended at once: {process.stderr.read()}")
        time.sleep(0.05)
    process.kill()
    pytest.fail("the run wrote no rows within a minute")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def scripts(page: str = "main/README.md") -> list[str]:
    """The job scripts on a page."""
    return re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def as_a_stranger(*arguments: str, root: Path = ROOT, limit: str = "", **environment: str) -> subprocess.CompletedProcess:
    """`python ARGUMENTS` in `root` as a user who has no name, no home and no right to write there. Skips where none can be had.

    limit: what the shell is told first, as "ulimit -u 20".
    """
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("it takes root and setpriv to become somebody else")
    where = {"PYTHONPATH": f"{root}:{Path(torch.__file__).parents[1]}", "HOME": "/nonexistent", "OMP_NUM_THREADS": "1"}
    env = {name: value for name, value in os.environ.items() if not name.startswith(("NUMBA", "XDG"))} | where | environment

    def run(limit: str, *words: str) -> subprocess.CompletedProcess:
        shell = ["bash", "-c", f"{limit or ':'}; exec {shlex.join(words)}"]
        command = ["setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups", *shell]
        return subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=300, env=env)

    system = f"/usr/bin/python{sys.version_info[0]}.{sys.version_info[1]}"  # root's own may lie where nobody else can look
    for python in (sys.executable, system):
        if run("", python, "-c", "import numpy").returncode == 0:
            return run(limit, python, *arguments)
    pytest.skip("no Python that other users may run")


def for_strangers(folder: Path) -> Path:
    """The folder, and all above it that are pytest's, opened to other users."""
    for path in (folder, *folder.parents):
        if path == folder or any(part.startswith("pytest-") for part in path.parts):
            path.chmod(0o777)
    return folder

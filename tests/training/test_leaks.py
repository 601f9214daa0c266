"""Half an hour of training: no process grows, no file stays open, nothing gathers in /dev/shm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.program import ROOT, actor_pids, children

MINUTES = 30
WARM_UP_MINUTES = 5
COMMAND = "--env MiniGrid-KeyCorridorS3R3-v0 --num_actors 40 --total_frames 100000000 --xpid leaks --seed 2".split()


def look(pid: int) -> tuple[float, int]:
    """(resident MiB that are the process's own, open files)."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    own = sum(int(status[name].split()[0]) for name in ("RssAnon", "RssShmem"))
    return own / 1024, len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_half_an_hour_leaks_nothing(tmp_path):
    args = [sys.executable, "-m", "main.main", *COMMAND, "--savedir", str(tmp_path)]
    before = sorted(os.listdir("/dev/shm"))
    process = subprocess.Popen(args, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        time.sleep(60 * WARM_UP_MINUTES)
        family = [process.pid, *children(process.pid), *actor_pids(process)]
        warm = {pid: look(pid) for pid in family}
        deadline = time.monotonic() + 60 * (MINUTES - WARM_UP_MINUTES)
        while time.monotonic() < deadline:
            time.sleep(30)
            assert process.poll() is None
            now = {pid: look(pid) for pid in family}
            print(" | ".join(f"{mib:.1f} MiB {files} files" for mib, files in now.values()), flush=True)
        assert sorted(os.listdir("/dev/shm")) == before
        for pid in family:
            assert now[pid][0] < warm[pid][0] * 1.05 + 5, f"process {pid} grew from {warm[pid][0]:.0f} to {now[pid][0]:.0f} MiB"
            assert now[pid][1] <= warm[pid][1]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)

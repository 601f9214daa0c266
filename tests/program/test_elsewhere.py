"""Where the program runs that is not Linux: an agent plays, and learns in one process; what it lacks is said in a line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from main.training import preflight
from tests.helpers import elsewhere
from tests.helpers.marks import rarer
from tests.helpers.program import ROOT, command, rows
from torchbeast.core import cgroups, spawner

pytestmark = pytest.mark.slow

INLINE = ("--num_actor_processes", "0", "--seed", "5")


@pytest.fixture(params=["windows", *rarer(["macos"])])
def there(request, tmp_path):
    """Runs the program where /proc, and what else that system lacks, is gone."""
    place = tmp_path / "site"
    place.mkdir()
    (place / "sitecustomize.py").write_text(Path(elsewhere.__file__).read_text())
    environment = {**os.environ, "ELSEWHERE": request.param, "OMP_NUM_THREADS": "1", "LOGNAME": "somebody"}

    def run(*words: str, **more: str) -> subprocess.CompletedProcess:
        where = environment | {"PYTHONPATH": f"{place}:{ROOT}"} | more
        program = [sys.executable, "-m", "main.main", *words]
        done = subprocess.run(program, cwd=tmp_path, env=where, capture_output=True, text=True)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run


def test_an_agent_learns_in_one_process_goes_on_and_plays(there, tmp_path):
    done = there(*command(tmp_path, *INLINE, "--evaluate_minutes", "0.05", "--num_episodes", "2"))
    assert done.returncode == 0, done.stderr
    assert there(*command(tmp_path / "here", *INLINE), PYTHONPATH=str(ROOT)).returncode == 0
    assert rows(tmp_path / "run") == rows(tmp_path / "here" / "run")
    weights, out = str(tmp_path / "run" / "model.tar"), tmp_path / "figures.json"
    done = there("--resume", str(tmp_path / "run"), "--total_frames", "600")
    assert done.returncode == 0 and rows(tmp_path / "run")[-1]["frames"] == 600, done.stderr
    video = tmp_path / "episode.gif"
    words = ("--num_episodes", "3", "--record_video", "--video_path", str(video), "--json", str(out))
    done = there("--mode", "test", "--weight_path", weights, *words)
    assert done.returncode == 0 and json.loads(out.read_text())["episodes"] == 3 and video.stat().st_size > 0, done.stderr


def test_what_actor_processes_lack_is_told_in_one_line_with_what_works_instead(there, tmp_path):
    done = there(*command(tmp_path / "runs", "--xpid", "run"))
    errors = [line for line in done.stderr.splitlines() if "error" in line]
    assert done.returncode == 2 and len(errors) == 1, done.stderr
    assert "--num_actor_processes 0" in errors[0] and "WSL2" in errors[0] and "pidfd_open" in errors[0]
    assert not (tmp_path / "runs").exists()


def test_nothing_is_lacking_here():
    assert spawner.lacking() == [] and preflight.system(3).problem is None


def test_memory_is_what_the_machine_has_where_it_does_not_say_what_is_free(tmp_path, monkeypatch):
    def hidden(path, *rest, **more):
        raise FileNotFoundError(path)

    monkeypatch.setattr(preflight, "open", hidden, raising=False)
    everything = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert preflight.available_memory(tmp_path) == everything
    monkeypatch.setattr(cgroups, "free_memory", lambda proc: 1000)
    assert preflight.available_memory(tmp_path) == 1000
    monkeypatch.setattr(cgroups, "free_memory", lambda proc: None)
    monkeypatch.delattr(os, "sysconf")
    assert preflight.available_memory(tmp_path) is None and preflight.memory(1 << 60, 0).problem is None

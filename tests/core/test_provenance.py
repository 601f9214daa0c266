"""What is recorded of where a run comes from, and what must not be."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from torchbeast.core import provenance


def test_metadata_of_a_run():
    content = provenance.metadata(
        "first", {"savedir": Path("runs"), "seed": 3, "rate": 1e-3, "xpid": None, "fix_seed": False}
    )
    assert json.loads(json.dumps(content)) == content
    assert content["xpid"] == "first"
    assert content["args"] == {"savedir": "runs", "seed": 3, "rate": 0.001, "xpid": None, "fix_seed": False}
    assert content["command"] and content["host"]["processor"] and content["host"]["cores"] == os.cpu_count()
    numpy_version, torch_version = (content["versions"][name] for name in ("numpy", "torch"))
    assert numpy_version == np.__version__
    assert torch_version.split("+")[0] == torch.__version__.split("+")[0]  # PyPI's package does not say for which CUDA it is
    assert {"python", "gym", "gym-minigrid"} <= set(content["versions"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", content["date_start"])
    assert content["date_end"] is None and content["successful"] is None


def test_only_listed_environment_variables_are_recorded(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2hunter2")
    monkeypatch.setenv("SLURM_JOB_NAME", "corridor")
    content = provenance.metadata("first", {})
    assert "hunter2hunter2" not in json.dumps(content)
    recorded = content["env"]
    assert recorded["SLURM_JOB_NAME"] == "corridor" and set(recorded) <= set(provenance.RECORDED_ENVIRONMENT)


def test_no_home_path_is_recorded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/zoe.q/")
    monkeypatch.setenv("SLURM_JOB_NAME", "/home/zoe.q/job")
    monkeypatch.setattr(sys, "argv", ["/home/zoe.q/main.py", "--dir=/home/zoe.q", "/home/zoe.qu/x", "I/home/zoe.q/i"])
    content = provenance.metadata("first", {"savedir": "/home/zoe.q/runs", "nested": {"list": [Path("/home/zoe.q/a")]}})
    resumed = provenance.resumption({"weight_path": "/home/zoe.q/model.tar"}, 0)
    assert content["command"] == resumed["command"] == ["~/main.py", "--dir=~", "/home/zoe.qu/x", "I~/i"]
    assert content["args"] == {"savedir": "~/runs", "nested": {"list": ["~/a"]}}
    assert resumed["args"] == {"weight_path": "~/model.tar"}
    assert content["env"]["SLURM_JOB_NAME"] == "~/job"
    assert not re.search(r"zoe\.q\b", json.dumps([content, resumed]))


@pytest.mark.parametrize("home", ["/", ""])
def test_no_home_leaves_paths_as_they_are(monkeypatch, home):
    monkeypatch.setenv("HOME", home)
    assert provenance.metadata("first", {"savedir": "/data/runs"})["args"] == {"savedir": "/data/runs"}


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_git_state_of_a_repository(tmp_path):
    git(tmp_path, "init", "--quiet", "--initial-branch=trunk")
    assert provenance.git_state(tmp_path) == {"commit": None, "branch": "trunk", "is_dirty": False}
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "--quiet", "-m", "one")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "nested").mkdir()
    assert provenance.git_state(tmp_path / "nested") == {"commit": commit, "branch": "trunk", "is_dirty": False}
    (tmp_path / "a").write_text("2")
    git(tmp_path, "checkout", "--quiet", "--detach")
    assert provenance.git_state(tmp_path) == {"commit": commit, "branch": None, "is_dirty": True}


def test_git_state_outside_a_repository(tmp_path):
    assert provenance.git_state(tmp_path) == {"commit": None, "branch": None, "is_dirty": None}


def test_git_state_without_git(tmp_path, monkeypatch):
    git(tmp_path, "init", "--quiet")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.git_state(tmp_path) == {"commit": None, "branch": None, "is_dirty": None}

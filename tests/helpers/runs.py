"""What must hold of a whole run, whatever is learned in it; for tests in this process, of all variants or of one."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from main import main as entry
from main.training.learner import Learner
from tests.helpers.program import LEARNABLE, SMALL, command, rows
from torchbeast.core import checkpoint, run_folder

Table = list[dict[str, float | None]]


def assert_trains_and_leaves_the_run_folder(tmp_path: Path, *more: str) -> Table:
    """A small run with a row per update, of 24 frames, whose numbers are finite. Returns its log."""
    assert entry.main(command(tmp_path, *more)) == 0
    run = tmp_path / "run"
    assert run_folder.own(tmp_path / "latest") == run and (tmp_path / "latest" / "model.tar").samefile(run / "model.tar")
    for name in ("meta.json", "out.log", "fields.csv", "logs.csv", "model.tar"):
        assert (run / name).stat().st_size > 0
    assert list((run / "tensorboard").iterdir())
    table = rows(run)
    assert [row["frames"] for row in table] == list(range(24, int(table[-1]["frames"]) + 1, 24))
    for row in table:
        values = [v for k, v in row.items() if v is not None]
        assert np.isfinite(values).all()
        assert row["total_loss"] != 0 and row["entropy_loss"] < 0 < row["grad_norm"]
    meta = json.loads((run / "meta.json").read_text())
    assert table[-1]["frames"] == meta["args"]["total_frames"]
    assert meta["successful"] is True and meta["args"]["seed"] is not None
    assert str(Path.home()) not in (run / "meta.json").read_text() or str(Path.home()) == "/"
    return table


def assert_resumes_to_the_last_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> Table:
    """A run that is interrupted at 240 frames and gone on with is the one that is not. Returns its log."""
    args = ("--num_actor_processes", "0", "--seed", "9", *more)
    assert entry.main(command(tmp_path / "whole", *args)) == 0
    learn = Learner.learn

    def learn_until_interrupted(self, *given):
        stats = learn(self, *given)
        if self.frames == 240:
            os.kill(os.getpid(), signal.SIGTERM)
        return stats

    with monkeypatch.context() as patched:
        patched.setattr(Learner, "learn", learn_until_interrupted)
        entry.main(command(tmp_path / "cut", *args))
    assert rows(tmp_path / "cut" / "run")[-1]["frames"] == 240
    assert entry.main(["--resume", str(tmp_path / "cut" / "run")]) == 0
    table = rows(tmp_path / "whole" / "run")
    assert rows(tmp_path / "cut" / "run") == table
    whole, cut = (checkpoint.load(tmp_path / n / "run" / "model.tar") for n in ("whole", "cut"))
    for name, value in whole["model_state_dict"].items():
        assert torch.equal(value, cut["model_state_dict"][name])
    return table


def assert_trains_and_plays(tmp_path: Path, capsys: pytest.CaptureFixture, *more: str) -> None:
    """Flags run, are recorded, and the agent plays afterwards without their being repeated."""
    assert entry.main(command(tmp_path, "--total_frames", "96", "--num_actor_processes", "1", *more)) == 0
    assert all(np.isfinite([v for v in row.values() if v is not None]).all() for row in rows(tmp_path / "run"))
    env = more[1] if more[0] == "--env" else SMALL[1]
    weights = str(tmp_path / "run" / "model.tar")
    assert entry.main(["--mode", "test", "--weight_path", weights, "--env", env, "--num_episodes", "2"]) == 0
    assert "2 episodes" in capsys.readouterr().out


def assert_learns_a_small_task(tmp_path: Path, *more: str) -> None:
    """Nearly all episodes end well after training, in less than half the steps of an untrained agent."""
    args = [*LEARNABLE, "--savedir", str(tmp_path), *more]
    assert entry.main([*args, "--total_frames", "320", "--xpid", "untrained"]) == 0
    assert entry.main(args) == 0
    before, after = (evaluated(tmp_path / name / "model.tar", tmp_path / f"{name}.json") for name in ("untrained", "run"))
    assert after["success_rate"] > 0.9 and after["mean_return"] > 0.75
    assert after["mean_steps"] < before["mean_steps"] / 2


def evaluated(weights: Path, out: Path) -> dict[str, float]:
    """The statistics of 200 episodes of LEARNABLE's task."""
    args = ["--weight_path", str(weights), "--env", LEARNABLE[1], "--num_episodes", "200", "--seed", "1", "--json", str(out)]
    assert entry.main(["--mode", "test", *args]) == 0
    return json.loads(out.read_text())

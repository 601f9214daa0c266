"""The check before the start, the dry run, and the alarms during a run: each provoked."""

from __future__ import annotations

import argparse
import errno
import re
import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn

from main import main as entry
from main import settings as settings_module
from main.training import preflight, record
from main.training import run as runs
from main.training.learner import Learner
from tests.helpers.program import ROOT, as_a_stranger, command, for_strangers, rows
from torchbeast.core.file_writer import FileWriter
from torchbeast.core.optimizer import Diverged, Optimizer
from torchbeast.core.settings import Settings, UsageError


def parsed(*more: str) -> Settings:
    return settings_module.parse(more)[0]


def problems(monkeypatch=None, *more: str) -> str:
    with pytest.raises(UsageError) as error:
        preflight.examine(parsed(*more), rollout_bytes=1 << 20, checkpoint_bytes=1 << 20)
    return str(error.value)


# -- before the start -------------------------------------------------------------------------------------------------


def test_a_machine_that_is_enough_passes_and_is_described(caplog):
    caplog.set_level("INFO", "amigo")
    preflight.examine(parsed(), rollout_bytes=1 << 20, checkpoint_bytes=1 << 20)
    text = caplog.text
    for word in ("memory", "open files", "disk", "cores", "GPU"):
        assert f"check: {word}" in text or word in text


def test_too_little_memory(monkeypatch):
    monkeypatch.setattr(preflight, "available_memory", lambda: 100 << 20)
    assert "--num_buffers" in problems()


@pytest.mark.parametrize(("free", "enough"), [(None, True), (1 << 50, True), (330 << 20, False), (-5, False)])
def test_the_memory_of_a_container_or_a_job_counts(monkeypatch, free, enough):
    """As Slurm's --mem of 330 MiB: what the groups of this process leave it, tests/core/test_cgroups.py."""
    monkeypatch.setattr(preflight.cgroups, "free_memory", lambda proc: free)
    assert 0 <= preflight.available_memory() <= max(0, (1 << 50) if free is None else free)
    assert (preflight.memory(600 << 20, 1 << 20).problem is None) == enough


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "told"), [("-n 60", "ulimit -n"), ("-f 400", "are allowed: ulimit -f unlimited")])
def test_too_few_open_files_or_too_small_ones(tmp_path, limit, told):
    """A real limit, in a real process; nothing is written."""
    words = " ".join(command(tmp_path, "--total_frames", "100000"))
    done = subprocess.run(
        ["sh", "-c", f"ulimit {limit}; exec {sys.executable} -m main.main {words}"],
        capture_output=True, text=True, cwd=ROOT, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2 and told in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_group_that_allows_few_processes(monkeypatch):
    monkeypatch.setattr(preflight.cgroups, "free_processes", lambda: 12)
    assert preflight.processes(12).problem is None
    assert "--pids-limit" in preflight.processes(13).problem


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "code"), [(10, 2), (100, 0)])
def test_too_few_processes(tmp_path, limit, code):
    """A real limit; where it is too small nothing is written."""
    arguments = ["-m", "main.main", *command(for_strangers(tmp_path), "--num_actor_processes", "2", "--total_frames", "48")]
    done = as_a_stranger(*arguments, "--engine", "gym", limit=f"ulimit -u {limit}")
    assert done.returncode == code, done.stderr
    if code:
        assert re.search(r"error: the run starts about 1\d .* threads, and 9 more are allowed: ulimit -u 1\d", done.stderr)
        assert list(tmp_path.iterdir()) == []


def finding(monkeypatch, free: int, done: int, *more: str, there: int = 0, savedir="nowhere") -> preflight.Finding:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: argparse.Namespace(free=free << 20))
    monkeypatch.setattr(preflight.checkpoint, "kept", lambda path: there)
    settings = parsed("--total_frames", "600000000", "--batch_size", "8", "--xpid", "run", "--savedir", str(savedir), *more)
    return preflight.disk(settings, 10 << 20, 1, done)


def test_a_run_that_goes_on_needs_room_for_what_is_left(monkeypatch):
    """250 MiB of rows and three checkpoints of 10 MiB, one of them half written: 380 MiB with what must stay free."""
    assert finding(monkeypatch, 381, 0).problem is None
    assert "--savedir" in finding(monkeypatch, 379, 0).problem
    for share in (0.2, 0.5, 0.8, 1.0):
        left = 381 - share * 250 - 20
        assert finding(monkeypatch, int(left), int(share * 6e8), there=2).problem is None, "it has written the rest itself"
        assert finding(monkeypatch, int(left) - 3, int(share * 6e8), there=2).problem
    assert finding(monkeypatch, 111, 700_000_000, there=5).problem is None, "no more is left than nothing"


def test_milestones_that_are_there_need_no_room(monkeypatch):
    every = ("--milestone_frames", "100000000")
    assert finding(monkeypatch, 381 + 60, 0, *every).problem is None
    assert finding(monkeypatch, 379 + 60, 0, *every).problem
    assert finding(monkeypatch, 381 - 125 - 20 + 30, 300_000_000, *every, there=2).problem is None
    assert finding(monkeypatch, 378 - 125 - 20 + 30, 300_000_000, *every, there=2).problem


def test_without_checkpoints_none_need_room(monkeypatch):
    assert finding(monkeypatch, 352, 0, "--disable_checkpoint").problem is None


def test_too_little_disk(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: argparse.Namespace(free=1 << 20))
    assert "--savedir" in problems()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    assert "choose another folder" in problems(None, "--savedir", str(tmp_path / "file" / "runs"))


def test_a_broken_gpu(monkeypatch):
    monkeypatch.setattr(preflight, "Path", lambda p: argparse.Namespace(exists=lambda: True))
    failed = subprocess.CompletedProcess([], 1, "", "RuntimeError: CUDA error: out of memory")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: failed)
    assert "--disable_cuda" in preflight.gpu(False).problem
    assert preflight.gpu(True).problem is None


def test_a_dry_run_measures_and_leaves_nothing(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(runs, "DRY_RUN_SECONDS", 1.0)
    assert entry.main(command(tmp_path, "--dry_run", "--total_frames", "100000000")) == 0
    errors = capfd.readouterr().err
    assert "frames/s; 100,000,000 frames would take" in errors and "nothing was written" in errors
    assert list(tmp_path.iterdir()) == []


# -- during the run ---------------------------------------------------------------------------------------------------


def small_optimizer(parameter: nn.Parameter) -> Optimizer:
    about = {"learning_rate": 0.1, "frames_per_update": 1, "total_frames": 100, "alpha": 0.9, "epsilon": 0.1, "momentum": 0}
    return Optimizer([parameter], **about, max_norm=40)


def test_an_update_that_is_not_finite_is_not_applied_and_three_in_a_row_end_it():
    parameter = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = small_optimizer(parameter)
    bad = [torch.nan, torch.inf]
    for factor in (*bad, 1.0, *bad):
        before = parameter.detach().clone()
        optimizer.step((parameter * factor).sum())
        assert torch.equal(parameter, before) == (factor != 1.0)
    with pytest.raises(Diverged, match="learning rate"):
        optimizer.step((parameter * torch.nan).sum())
    assert optimizer.skipped == 5 and parameter.isfinite().all()


def test_a_diverged_run_ends_with_the_cause_and_a_good_checkpoint(tmp_path, monkeypatch, capfd):
    learn = Learner.learn

    def poisoned(self, batch, seen):
        if self.frames >= 120:
            seen["reward"][:] = torch.nan
        return learn(self, batch, seen)

    monkeypatch.setattr(Learner, "learn", poisoned)
    assert entry.main(command(tmp_path, "--num_actor_processes", "0")) == 1
    errors = capfd.readouterr().err
    assert "not finite and was not applied" in errors and "3 updates in a row" in errors
    state = torch.load(tmp_path / "run" / "model.tar", weights_only=True)
    assert all(value.isfinite().all() for value in state["model_state_dict"].values())
    assert rows(tmp_path / "run")


def test_old_rollouts_raise_an_alarm(tmp_path, monkeypatch, capfd):
    learn = Learner.learn

    def late(self, batch, seen):
        batch["policy_version"] -= 100
        return learn(self, batch, seen)

    monkeypatch.setattr(Learner, "learn", late)
    assert entry.main(command(tmp_path, "--num_actor_processes", "0")) == 0
    assert capfd.readouterr().err.count("updates old") == 1
    assert rows(tmp_path / "run")[0]["policy_lag"] >= 50


def test_policy_lag_is_small_without_a_cause(tmp_path, capfd):
    assert entry.main(command(tmp_path, "--num_actor_processes", "0", "--total_frames", "2400")) == 0
    assert "updates old" not in capfd.readouterr().err
    lags = [row["policy_lag"] for row in rows(tmp_path / "run")]
    assert min(lags) >= 0 and max(lags) <= 5  # five environments, batches of four: two generations at the most


def test_a_disk_that_is_nearly_full(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(record, "LOW_DISK_BYTES", 1 << 60)
    assert entry.main(command(tmp_path, "--num_actor_processes", "0")) == 0
    assert capfd.readouterr().err.count("of disk are left") == 1


def test_a_log_that_cannot_be_written_does_not_end_the_run(tmp_path, monkeypatch, capfd):
    log = FileWriter.log

    def full(self, row):
        if 100 < row["frames"] < 300:
            raise OSError(errno.ENOSPC, "No space left on device")
        log(self, row)

    monkeypatch.setattr(FileWriter, "log", full)
    assert entry.main(command(tmp_path, "--num_actor_processes", "0")) == 0
    assert capfd.readouterr().err.count("logging failed") == 1
    frames = [row["frames"] for row in rows(tmp_path / "run")]
    assert frames == [f for f in range(24, 481, 24) if not 100 < f < 300]


def test_a_last_checkpoint_that_cannot_be_written_is_a_failure(tmp_path, monkeypatch, capfd):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("torchbeast.core.checkpoint.save", full)
    assert entry.main(command(tmp_path, "--num_actor_processes", "0")) == 1
    assert "the last checkpoint could not be written" in capfd.readouterr().err

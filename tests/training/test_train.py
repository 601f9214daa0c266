"""The program as its users meet it: real processes, real signals, real files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from main import main as entry
from main.training import loop, sources
from main.training.actor import Actor
from main.training.learner import Learner
from tests.helpers.agents import make_motivation, make_settings
from tests.helpers.marks import rarer
from tests.helpers.program import actor_pids, command, rows, start
from tests.helpers.runs import (
    assert_resumes_to_the_last_bit,
    assert_trains_and_leaves_the_run_folder,
    assert_trains_and_plays,
)
from torchbeast.core import checkpoint
from torchbeast.core.settings import UsageError
from utils_folder.motivations import MOTIVATIONS
from utils_folder.motivations.base import Task


@pytest.fixture(scope="module", autouse=True)
def _threads():
    torch.set_num_threads(1)


@pytest.mark.parametrize("processes", ["0", "2"])
@pytest.mark.parametrize("model", list(MOTIVATIONS))
def test_every_variant_trains_and_leaves_the_run_folder(tmp_path, model, processes):
    table = assert_trains_and_leaves_the_run_folder(tmp_path, "--model", model, "--num_actor_processes", processes)
    assert table[-1]["frames"] == 480
    assert json.loads((tmp_path / "run" / "meta.json").read_text())["args"]["model"] == model


def test_without_processes_a_seed_gives_the_same_numbers_with_either_engine(tmp_path):
    tables = []
    for name, seed, engine in (("a", 5, "gym"), ("b", 5, "gym"), ("c", 5, "compiled"), ("d", 6, "gym")):
        args = ("--num_actor_processes", "0", "--seed", str(seed), "--engine", engine)
        assert entry.main(command(tmp_path / name, *args)) == 0
        tables.append(rows(tmp_path / name / "run"))
    assert tables[0] == tables[1] == tables[2]
    assert tables[0] != tables[3]


@pytest.mark.parametrize("model", list(MOTIVATIONS))
def test_an_interrupted_run_resumes_to_the_last_bit(tmp_path, monkeypatch, model):
    assert_resumes_to_the_last_bit(tmp_path, monkeypatch, "--model", model, "--use_lstm", "--num_input_frames", "2")


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["frames 0", "frames 240"])
def test_any_checkpoint_of_a_reproducible_run_is_gone_on_from_to_the_last_bit(tmp_path, monkeypatch, kept):
    """Back to the checkpoint written before anything was learned, or to one in the middle; later rows come again."""
    at = int(kept.split()[1])
    args = command(tmp_path, "--num_actor_processes", "0", "--seed", "9", "--use_lstm", "--checkpoint_minutes", "0.00001")
    save, run = checkpoint.save, tmp_path / "run"

    def save_and_keep(path, state, **more):
        save(path, state, **more)
        if state["frames"] == at and not (run / "kept.tar").exists():
            shutil.copy(path, run / "kept.tar")

    monkeypatch.setattr(checkpoint, "save", save_and_keep)
    assert entry.main(args) == 0
    whole, weights = rows(run), checkpoint.load(run / "model.tar")["model_state_dict"]
    shutil.copy(run / "kept.tar", run / "model.tar")
    assert entry.main(["--resume", str(run)]) == 0
    assert rows(run) == whole
    again = checkpoint.load(run / "model.tar")["model_state_dict"]
    assert all(torch.equal(value, again[name]) for name, value in weights.items())


def test_resuming_with_processes_goes_on_counting_and_takes_new_levels(tmp_path):
    assert entry.main(command(tmp_path, "--total_frames", "120", "--num_actor_processes", "2")) == 0
    assert entry.main(["--resume", str(tmp_path / "run"), "--total_frames", "240"]) == 0
    table = rows(tmp_path / "run")
    assert [row["frames"] for row in table] == list(range(24, 241, 24))
    assert [row["_tick"] for row in table] == list(range(10))


def test_resume_refuses_what_would_make_another_run(tmp_path, capsys):
    assert entry.main(command(tmp_path, "--total_frames", "48")) == 0
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert entry.main(["--resume", str(tmp_path / "run"), "--unroll_length", "7"]) == 2
    assert "--unroll_length 7 (the run has 6)" in capsys.readouterr().err
    assert entry.main(["--resume", str(tmp_path / "nothing")]) == 2
    assert "no such file" in capsys.readouterr().err
    assert entry.main(command(tmp_path)) == 2
    assert "--resume" in capsys.readouterr().err
    assert before == {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, *rarer([signal.SIGINT])])
def test_a_signal_ends_the_run_with_a_checkpoint(tmp_path, number):
    process = start(tmp_path, "--num_actor_processes", "2")
    actors = actor_pids(process)
    assert len(actors) == 2
    process.send_signal(number)
    assert process.wait(15) == 128 + number
    state = checkpoint.load(tmp_path / "run" / "model.tar")
    assert state["frames"] == rows(tmp_path / "run")[-1]["frames"]
    assert not any(Path(f"/proc/{pid}").exists() for pid in actors)


@pytest.mark.slow
def test_without_restarts_a_killed_actor_ends_the_run_within_seconds(tmp_path):
    process = start(tmp_path, "--num_actor_processes", "2", "--max_actor_restarts", "0")
    victim, other = actor_pids(process)
    os.kill(victim, signal.SIGKILL)
    began = time.monotonic()
    assert process.wait(10) == 1
    assert time.monotonic() - began < 8
    assert f"process {victim}" in (errors := process.stderr.read()) and "signal 9" in errors
    assert not Path(f"/proc/{other}").exists()


def test_an_actors_exception_ends_the_run_with_its_traceback(tmp_path, monkeypatch, capfd):
    def advance(self):
        raise ZeroDivisionError("the actor broke here")

    monkeypatch.setattr(Actor, "advance", advance)
    assert entry.main(command(tmp_path, "--num_actor_processes", "1", "--max_actor_restarts", "2")) == 1
    errors = capfd.readouterr().err
    assert "the actor broke here" in errors and "Traceback" in errors and "advance" in errors
    assert errors.count("starting it again") == 2 and "--max_actor_restarts" in errors


def test_what_ends_an_actor_is_told_however_busy_the_learner_is(tmp_path, monkeypatch, capfd):
    """As in a long update it reads nothing that actors send."""
    get, advance, steps = sources.ActorProcesses.get, Actor.advance, []

    def advance_or_fail(self):
        steps.append(1)
        if len(steps) > 10:
            raise UsageError("MyTask pays a reward of nan")
        return advance(self)

    def get_and_be_busy(self, batch_size):
        batch = get(self, batch_size)
        time.sleep(3)
        return batch

    monkeypatch.setattr(Actor, "advance", advance_or_fail)
    monkeypatch.setattr(sources.ActorProcesses, "get", get_and_be_busy)
    assert entry.main(command(tmp_path, "--num_actor_processes", "1")) == 2
    errors = capfd.readouterr().err
    assert "MyTask pays a reward of nan" in errors and "starting it again" not in errors


def test_a_failing_learner_ends_the_run_and_its_actors(tmp_path, monkeypatch):
    started = []
    fork = sources.ActorProcesses.start

    def start_and_note(self):
        fork(self)
        started.extend(self.pids)

    def learn(self, *given):
        raise ZeroDivisionError("the learner broke here")

    monkeypatch.setattr(sources.ActorProcesses, "start", start_and_note)
    monkeypatch.setattr(Learner, "learn", learn)
    with pytest.raises(ZeroDivisionError, match="the learner broke here"):
        entry.main(command(tmp_path, "--num_actor_processes", "2"))
    assert len(started) == 2 and not any(Path(f"/proc/{pid}").exists() for pid in started)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ["--num_input_frames", "4"],
        ["--use_lstm"],
        ["--use_lstm", "--num_lstm_layers", "2"],
        ["--fix_seed", "--env_seed", "4"],
        ["--no_extrinsic_rewards"],
        ["--disable_use_embedding"],
        ["--disable_cuda"],
        ["--num_threads", "1"],
        ["--momentum", "0.9", "--alpha", "0.9", "--epsilon", "0.1"],
        ["--env", "MiniGrid-ObstructedMaze-1Dl-v0"],
        ["--env", "MiniGrid-Dynamic-Obstacles-5x5-v0"],
        ["--goal_dim", "3"],
    ],
    ids=" ".join,
)
def test_flags_train_together_with_evaluation(tmp_path, more, capsys):
    assert_trains_and_plays(tmp_path, capsys, *more)


def test_no_extrinsic_rewards_changes_what_is_learned(tmp_path):
    for name, more in (("with", []), ("without", ["--no_extrinsic_rewards"])):
        args = ("--num_actor_processes", "0", "--seed", "1", "--env", "MiniGrid-Empty-Random-5x5-v0")
        assert entry.main(command(tmp_path / name, *args, *more)) == 0
    first = {name: rows(tmp_path / name / "run") for name in ("with", "without")}
    rewarded = next(i for i, row in enumerate(first["with"]) if row["success_rate"])
    assert first["with"][:rewarded] == first["without"][:rewarded]
    assert first["with"][rewarded]["pg_loss"] != first["without"][rewarded]["pg_loss"]


@pytest.mark.parametrize("model", list(MOTIVATIONS))
def test_save_env_stores_frames_and_goals(tmp_path, model):
    assert entry.main(command(tmp_path, "--model", model, "--save_env", "--save_every", "100")) == 0
    stored = sorted((tmp_path / "run" / "environments").iterdir())
    assert [int(path.stem) for path in stored] == [24, 120, 216, 312, 408]  # the first update at or after 0, 100, 200, ...
    has_goals = make_motivation(make_settings(model=model), Task((5, 5, 3), 7, 100)).goal_conditioned
    with np.load(stored[0]) as arrays:
        assert set(arrays) == ({"frame", "goal"} if has_goals else {"frame"})
        assert arrays["frame"].shape == (4, 5, 5, 3) and (not has_goals or arrays["goal"].shape == (4,))
        assert (arrays["frame"][..., 0] == 10).sum() == 4  # one agent in each


def test_save_env_goes_on_at_the_same_frames_after_an_interruption(tmp_path):
    args = ("--save_env", "--save_every", "100", "--total_frames", "240")
    assert entry.main(command(tmp_path, *args)) == 0
    assert entry.main(["--resume", str(tmp_path / "run"), "--total_frames", "480"]) == 0
    stored = sorted((tmp_path / "run" / "environments").iterdir())
    assert [int(path.stem) for path in stored] == [24, 120, 216, 312, 408]


def test_disable_checkpoint_writes_none(tmp_path):
    assert entry.main(command(tmp_path, "--disable_checkpoint")) == 0
    assert not (tmp_path / "run" / "model.tar").exists()


def test_checkpoints_come_by_the_clock(tmp_path, monkeypatch):
    saved = []
    save = checkpoint.save
    monkeypatch.setattr(
        checkpoint, "save", lambda path, state, **more: (saved.append(state["frames"]), save(path, state, **more))
    )
    assert entry.main(command(tmp_path, "--checkpoint_minutes", "0.0001", "--num_actor_processes", "0")) == 0
    assert len(saved) > 2 and saved[-1] == 480 and saved == sorted(saved)


@pytest.mark.slow
def test_no_checkpoint_is_ahead_of_the_log(tmp_path, monkeypatch):
    """What a checkpoint has learned is in the log on disk already: else a killed run would resume with a gap."""
    ahead, save = [], checkpoint.save

    def save_and_compare(path, state, **more):
        lines = (tmp_path / "run" / "logs.csv").read_text().splitlines()[1:]
        logged = int(lines[-1].split(",")[2]) if lines else 0
        ahead.append(state["frames"] - logged)
        save(path, state, **more)

    monkeypatch.setattr(checkpoint, "save", save_and_compare)
    args = ("--checkpoint_minutes", "0.0001", "--num_actor_processes", "2", "--total_frames", "9600")
    monkeypatch.setattr(loop, "BESIDE_SECONDS", 0.005)
    assert entry.main(command(tmp_path, *args)) == 0
    assert len(ahead) > 20 and set(ahead) == {0}


def test_cuda_is_not_touched_before_the_fork(tmp_path, monkeypatch):
    """The actors start while CUDA is uninitialised, and a run that had initialised it is refused."""
    seen = []
    fork = sources.ActorProcesses.start
    monkeypatch.setattr(sources.ActorProcesses, "start", lambda self: (seen.append(torch.cuda.is_initialized()), fork(self)))
    assert entry.main(command(tmp_path, "--total_frames", "24", "--num_actor_processes", "1")) == 0
    assert seen == [False]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(RuntimeError, match="CUDA was used before"):
        entry.main(command(tmp_path / "b", "--total_frames", "24", "--num_actor_processes", "1"))

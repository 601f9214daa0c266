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
from main.actor import Actor
from main.learner import Learner
from utils_folder.motivation import registry

from main import main as entry
from main import sources
from tests.helpers.program import actor_pids, command, rows, start
from torchbeast.core import checkpoint


@pytest.fixture(scope="module", autouse=True)
def _threads():
    torch.set_num_threads(1)


@pytest.mark.parametrize("processes", ["0", "2"])
@pytest.mark.parametrize("model", list(registry()))
def test_every_variant_trains_and_leaves_the_run_folder(tmp_path, model, processes):
    assert entry.main(command(tmp_path, "--model", model, "--num_actor_processes", processes)) == 0
    run = tmp_path / "run"
    assert (tmp_path / "latest").resolve() == run
    for name in ("meta.json", "out.log", "fields.csv", "logs.csv", "model.tar"):
        assert (run / name).stat().st_size > 0
    assert list((run / "tensorboard").iterdir())
    table = rows(run)
    assert [row["frames"] for row in table] == list(range(24, 481, 24))
    for row in table:
        values = [v for k, v in row.items() if v is not None]
        assert np.isfinite(values).all()
        assert row["total_loss"] != 0 and row["entropy_loss"] < 0 < row["grad_norm"]
    meta = json.loads((run / "meta.json").read_text())
    assert meta["successful"] is True and meta["args"]["model"] == model and meta["args"]["seed"] is not None
    assert str(Path.home()) not in (run / "meta.json").read_text() or str(Path.home()) == "/"


def test_without_processes_a_seed_gives_the_same_numbers_with_either_engine(tmp_path):
    tables = []
    for name, seed, engine in (("a", 5, "gym"), ("b", 5, "gym"), ("c", 5, "compiled"), ("d", 6, "gym")):
        args = ("--num_actor_processes", "0", "--seed", str(seed), "--engine", engine)
        assert entry.main(command(tmp_path / name, *args)) == 0
        tables.append(rows(tmp_path / name / "run"))
    assert tables[0] == tables[1] == tables[2]
    assert tables[0] != tables[3]


@pytest.mark.parametrize("model", list(registry()))
def test_an_interrupted_run_resumes_to_the_last_bit(tmp_path, monkeypatch, model):
    args = ("--num_actor_processes", "0", "--seed", "9", "--model", model, "--use_lstm", "--num_input_frames", "2")
    assert entry.main(command(tmp_path / "whole", *args)) == 0
    learn = Learner.learn

    def learn_until_interrupted(self, batch):
        stats = learn(self, batch)
        if self.frames == 240:
            os.kill(os.getpid(), signal.SIGTERM)
        return stats

    monkeypatch.setattr(Learner, "learn", learn_until_interrupted)
    entry.main(command(tmp_path / "cut", *args))
    assert rows(tmp_path / "cut" / "run")[-1]["frames"] == 240
    monkeypatch.undo()
    assert entry.main(["--resume", str(tmp_path / "cut" / "run")]) == 0
    assert rows(tmp_path / "cut" / "run") == rows(tmp_path / "whole" / "run")
    whole, cut = (checkpoint.load(tmp_path / n / "run" / "model.tar") for n in ("whole", "cut"))
    for name, value in whole["model_state_dict"].items():
        assert torch.equal(value, cut["model_state_dict"][name])


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_with_a_checkpoint(tmp_path, number):
    process = start(tmp_path, "--num_actor_processes", "2")
    actors = actor_pids(process)
    assert len(actors) == 2
    process.send_signal(number)
    assert process.wait(15) == 128 + number
    state = checkpoint.load(tmp_path / "run" / "model.tar")
    assert state["frames"] == rows(tmp_path / "run")[-1]["frames"]
    assert not any(Path(f"/proc/{pid}").exists() for pid in actors)


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


def test_a_failing_learner_ends_the_run_and_its_actors(tmp_path, monkeypatch):
    started = []
    fork = sources.ActorProcesses.start

    def start_and_note(self):
        fork(self)
        started.extend(self.pids)

    def learn(self, batch):
        raise ZeroDivisionError("the learner broke here")

    monkeypatch.setattr(sources.ActorProcesses, "start", start_and_note)
    monkeypatch.setattr(Learner, "learn", learn)
    with pytest.raises(ZeroDivisionError, match="the learner broke here"):
        entry.main(command(tmp_path, "--num_actor_processes", "2"))
    assert len(started) == 2 and not any(Path(f"/proc/{pid}").exists() for pid in started)


@pytest.mark.parametrize(
    "more",
    [
        ["--inner"],
        ["--num_input_frames", "4"],
        ["--use_lstm"],
        ["--use_lstm", "--num_lstm_layers", "2"],
        ["--restart_episode"],
        ["--fix_seed", "--env_seed", "4"],
        ["--no_boundary_awareness"],
        ["--no_extrinsic_rewards"],
        ["--disable_use_embedding"],
        ["--as_published"],
        ["--disable_cuda"],
        ["--num_threads", "1"],
        ["--generator_reward_coef", "0.7"],
        ["--intrinsic_reward_coef", "0.5"],
        ["--model", "window_adaptive", "--window", "3", "--window_rule", "tracking", "--generator_start", "9"],
        ["--model", "novelty_based", "--novelty_scale", "0.5", "--novelty_coef", "0.3", "--num_input_frames", "2"],
        ["--momentum", "0.9", "--alpha", "0.9", "--epsilon", "0.1"],
        ["--env", "MiniGrid-ObstructedMaze-1Dl-v0"],
        ["--env", "MiniGrid-Dynamic-Obstacles-5x5-v0"],
        ["--goal_dim", "3"],
    ],
    ids=" ".join,
)
def test_flags_train_together_with_evaluation(tmp_path, more, capsys):
    """Each flag runs, is recorded, and the agent plays afterwards without repeating it."""
    assert entry.main(command(tmp_path, "--total_frames", "96", "--num_actor_processes", "1", *more)) == 0
    assert all(np.isfinite([v for v in row.values() if v is not None]).all() for row in rows(tmp_path / "run"))
    env = more[1] if more[0] == "--env" else "MiniGrid-Empty-5x5-v0"
    weights = str(tmp_path / "run" / "model.tar")
    assert entry.main(["--mode", "test", "--weight_path", weights, "--env", env, "--num_episodes", "2"]) == 0
    assert "2 episodes" in capsys.readouterr().out


def test_restart_episode_ends_the_episode_of_every_goal_reached(tmp_path):
    """Each goal reached is an episode's end with the flag; without it there are more goals than episodes."""
    goals_beyond_episodes = {}
    for name, more in (("plain", []), ("restart", ["--restart_episode"])):
        args = ("--num_actor_processes", "0", "--seed", "1", "--env", "MiniGrid-Empty-Random-5x5-v0")
        assert entry.main(command(tmp_path / name, *args, "--total_frames", "2400", *more)) == 0
        table = rows(tmp_path / name / "run")
        assert sum(row["goals_reached"] for row in table) > 0
        goals_beyond_episodes[name] = max(round(24 * row["goals_reached"]) - row["episodes"] for row in table)
    assert goals_beyond_episodes["restart"] <= 0 < goals_beyond_episodes["plain"]


def test_no_extrinsic_rewards_changes_what_is_learned(tmp_path):
    for name, more in (("with", []), ("without", ["--no_extrinsic_rewards"])):
        args = ("--num_actor_processes", "0", "--seed", "1", "--env", "MiniGrid-Empty-Random-5x5-v0")
        assert entry.main(command(tmp_path / name, *args, *more)) == 0
    first = {name: rows(tmp_path / name / "run") for name in ("with", "without")}
    rewarded = next(i for i, row in enumerate(first["with"]) if row["success_rate"])
    assert first["with"][:rewarded] == first["without"][:rewarded]
    assert first["with"][rewarded]["pg_loss"] != first["without"][rewarded]["pg_loss"]


def test_save_env_stores_frames_and_goals(tmp_path):
    assert entry.main(command(tmp_path, "--save_env", "--save_every", "100")) == 0
    stored = sorted((tmp_path / "run" / "environments").iterdir())
    assert [int(path.stem) for path in stored] == [24, 120, 216, 312, 408]  # the first update at or after 0, 100, 200, ...
    with np.load(stored[0]) as arrays:
        assert arrays["frame"].shape == (4, 5, 5, 3) and arrays["goal"].shape == (4,)
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
    monkeypatch.setattr("main.train.SUPERVISE_SECONDS", 0.005)
    assert entry.main(command(tmp_path, *args)) == 0
    assert len(ahead) > 20 and set(ahead) == {0}


def test_a_degenerate_schedule_is_announced_once(tmp_path, capfd):
    assert entry.main(command(tmp_path, "--generator_threshold", "-0.5", "--generator_reward_negative", "-0.3")) == 0
    assert capfd.readouterr().err.count("moves by the clock") == 1
    assert entry.main(command(tmp_path / "b", "--generator_threshold", "-0.1", "--generator_reward_negative", "-0.3")) == 0
    assert "moves by the clock" not in capfd.readouterr().err
    args = ("--model", "window_adaptive", "--generator_start", "10", "--window", "50")
    assert entry.main(command(tmp_path / "c", *args)) == 0
    assert capfd.readouterr().err.count("earns the teacher its full reward") == 1


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

"""Whole runs with a teacher, with flags of its own: that it learns in them, and goes on exactly; and small tasks learned."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from main import main as entry
from main.training import beside
from tests.helpers.marks import rarer
from tests.helpers.program import command, rows
from tests.helpers.runs import (
    assert_learns_a_small_task,
    assert_resumes_to_the_last_bit,
    assert_trains_and_leaves_the_run_folder,
    assert_trains_and_plays,
)
from torchbeast.core import checkpoint
from utils_folder.motivations import MOTIVATIONS, curriculum
from utils_folder.motivations.amigo import UPDATE_COLUMNS, Amigo

MODELS = [name for name, motivation in MOTIVATIONS.items() if issubclass(motivation, Amigo)]
TEACHER = ("--modify", "--generator_batch_size", "3")


@pytest.fixture(scope="module", autouse=True)
def _threads():
    torch.set_num_threads(1)


def teacher_updates(table: list[dict]) -> int:
    """Rows that tell of some."""
    for row in table:
        assert len({row[column.name] is None for column in UPDATE_COLUMNS}) == 1, "all of these columns or none"
    return sum(row["gg_loss"] is not None for row in table)


@pytest.mark.parametrize("processes", ["0", "2"])
@pytest.mark.parametrize("model", MODELS)
def test_the_teacher_learns_in_a_run(tmp_path, model, processes):
    args = ("--model", model, "--num_actor_processes", processes, "--total_frames", "1920", *TEACHER)
    assert teacher_updates(assert_trains_and_leaves_the_run_folder(tmp_path, *args))


@pytest.mark.parametrize("model", MODELS)
def test_an_interrupted_run_resumes_to_the_last_bit(tmp_path, monkeypatch, model):
    args = ("--model", model, "--use_lstm", "--num_input_frames", "2", "--inner", "--generator_batch_size", "1")
    table = assert_resumes_to_the_last_bit(tmp_path, monkeypatch, *args)
    assert teacher_updates(table[:10]) and teacher_updates(table[10:])


@pytest.mark.parametrize(
    "more",
    [
        ["--inner"],
        ["--restart_episode"],
        ["--no_boundary_awareness"],
        ["--as_published"],
        ["--generator_reward_coef", "0.7"],
        ["--intrinsic_reward_coef", "0.5"],
        ["--model", "window_adaptive", "--window", "3", "--window_rule", "tracking", "--generator_start", "9"],
    ],
    ids=" ".join,
)
def test_flags_train_together_with_evaluation(tmp_path, more, capsys):
    assert_trains_and_plays(tmp_path, capsys, *more, *TEACHER)


@pytest.mark.slow
def test_restart_episode_ends_the_episode_of_every_goal_reached(tmp_path):
    """Each goal reached is an episode's end with the flag; without it there are more goals than episodes."""
    goals_beyond_episodes = {}
    for name, more in (("plain", []), ("restart", ["--restart_episode"])):
        args = ("--num_actor_processes", "0", "--seed", "1", "--env", "MiniGrid-Empty-Random-5x5-v0")
        assert entry.main(command(tmp_path / name, *args, *TEACHER, "--total_frames", "2400", *more)) == 0
        table = rows(tmp_path / name / "run")
        assert sum(row["goals_reached"] for row in table) > 0
        goals_beyond_episodes[name] = max(round(24 * row["goals_reached"]) - row["episodes"] for row in table)
    assert goals_beyond_episodes["restart"] <= 0 < goals_beyond_episodes["plain"]


def test_a_degenerate_schedule_is_announced_once(tmp_path, capfd):
    assert entry.main(command(tmp_path, "--generator_threshold", "-0.5", "--generator_reward_negative", "-0.3")) == 0
    assert capfd.readouterr().err.count("moves by the clock") == 1
    assert entry.main(command(tmp_path / "b", "--generator_threshold", "-0.1", "--generator_reward_negative", "-0.3")) == 0
    assert "moves by the clock" not in capfd.readouterr().err
    args = ("--model", "window_adaptive", "--generator_start", "10", "--window", "50")
    assert entry.main(command(tmp_path / "c", *args)) == 0
    assert capfd.readouterr().err.count("earns the teacher its full reward") == 1


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["0", *rarer(["2"])])
@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--model", "window_adaptive", "--generator_start", "7", "--window", "5", "--window_rule", "tracking"],
    ],
    ids=["default", "window_adaptive"],
)
@pytest.mark.soak
def test_a_small_task_is_learned(tmp_path, more, processes):
    document = ("--modify", "--generator_threshold", "-.1", "--generator_reward_negative", "-.3")
    assert_learns_a_small_task(tmp_path, "--num_actor_processes", processes, *document, *more)


def test_tensorboard_has_histograms_of_the_target_and_of_goals_by_kind(tmp_path):
    """What the points say together is what was counted into the checkpoint, and what the rows say."""
    args = ("--num_actor_processes", "0", "--seed", "2", "--env", "MiniGrid-Fetch-5x5-N2-v0", *TEACHER)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(beside, "SCALARS_SECONDS", 0.2)
        assert entry.main(command(tmp_path, *args, "--total_frames", "2400")) == 0
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard"), size_guidance={"tensors": 0}).Reload()

    def total(tag: str) -> dict[int, int]:
        counts: Counter[int] = Counter()
        points = [make_ndarray(event.tensor_proto) for event in found.Tensors(tag)]
        assert len(points) > 1
        for left, right, count in np.concatenate(points):
            assert right == left + 1
            counts[int(left + 0.5)] += int(count)
        return {value: count for value, count in counts.items() if count}

    state = checkpoint.load(tmp_path / "run" / "model.tar")[curriculum.KEY]
    W, H = state["size"]
    kinds = state["counts"][:, :, W * H : W * H + curriculum.KINDS].sum(0).tolist()
    for tag, expected in zip(("goals_proposed_by_kind", "goals_reached_by_kind"), kinds):
        assert total(tag) == {kind: count for kind, count in enumerate(expected) if count}, tag
    targets = Counter(int(row["generator_current_target"]) for row in rows(tmp_path / "run"))
    assert total("t_star") == {target: 24 * updates for target, updates in targets.items()} and len(targets) > 1

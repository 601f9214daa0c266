"""Several learners with a teacher: its batch, its updates, t* and the goals that wait for it, of two ranks and of one."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from main.training.recipe import Agent
from tests.helpers.agents import make_settings
from tests.helpers.motivations.amigo import random_batch
from tests.helpers.program import command, rows
from tests.helpers.ranks import (
    CPU,
    TWO,
    assert_close,
    assert_equal_trees,
    dispatch,
    flat_numbers,
    half,
    in_ranks,
    learn_all,
    learn_halves,
    run_settings,
    run_to_the_end,
    save_often,
    shared,
    two_then_one_then_two,
    whole_and_cut,
)
from torchbeast.core import checkpoint
from torchbeast.core.ranks import ALONE, Ranks
from torchbeast.core.settings import Settings
from utils_folder.motivations import MOTIVATIONS
from utils_folder.motivations.amigo import Amigo, shares
from utils_folder.motivations.base import Task

pytestmark = pytest.mark.slow

TASK = Task((6, 4, 3), 7, 50)
T, B = 4, 3  # T + 1, B and 2 B all differ
MODELS = [name for name, motivation in MOTIVATIONS.items() if issubclass(motivation, Amigo)]
TEACHER = ("--modify", "--generator_batch_size", "3")


@pytest.fixture(autouse=True)
def _threads():
    torch.set_num_threads(1)


@pytest.fixture
def store(tmp_path) -> Path:
    return tmp_path / "store"


# -- the teacher's batch -----------------------------------------------------------------------------------------------------
def test_shares_are_in_proportion_and_never_more_than_a_rank_has():
    assert shares([4], 5) == [] and shares([5], 5) == [5] and shares([12], 5) == [5]
    assert shares([0, 0], 1) == [] and shares([10, 0], 6) == [6, 0] and shares([3, 3], 6) == [3, 3]
    assert shares([90, 10], 50) == [45, 5]
    generator = random.Random(0)
    for _ in range(2000):
        waiting = [generator.choice((0, 1, generator.randrange(300))) for _ in range(generator.randint(1, 9))]
        total = generator.randint(1, 400)
        taken = shares(waiting, total)
        if sum(waiting) < total:
            assert taken == []
        else:
            assert sum(taken) == total and all(0 <= t <= w for t, w in zip(taken, waiting))
            assert all(abs(t - total * w / sum(waiting)) < 1 for t, w in zip(taken, waiting))



# -- one rank with 2B is two ranks with B ------------------------------------------------------------------------------------

ENTRIES = 16  # goals that end in each batch of 2B rollouts


def rank_settings(**overrides) -> Settings:
    common = {
        "unroll_length": T, "batch_size": B, "total_frames": T * B * 12, "learning_rate": 0.01, "state_embedding_dim": 24,
        "entropy_cost": 0.05, "generator_batch_size": ENTRIES // 2, "generator_counts": 2, "use_lstm": True,
        "generator_threshold": 0.3,
    }  # fmt: skip
    return make_settings(**{**common, **overrides})


def double_batch(settings: Settings, seed: int) -> dict[str, torch.Tensor]:
    """2B rollouts in which ENTRIES goals end, most of them in the first half."""
    torch.manual_seed(seed)
    batch = random_batch(TASK, settings.replace(batch_size=2 * B))
    ends = torch.zeros(2 * B * T, dtype=torch.bool)
    ends[torch.cat([torch.randperm(T * B)[:11], T * B + torch.randperm(T * B)[:5]])] = True
    ends = ends.view(2 * B, T).T
    reached = ends & (torch.rand(T, 2 * B) < 0.6)
    batch["reached"][1:], batch["done"][1:] = reached, ends & ~reached
    return batch


@pytest.mark.parametrize("model", MODELS)
def test_two_ranks_with_half_a_batch_each_make_the_update_of_one_with_the_whole(store, model):
    """Student and teacher, their optimisers and schedules, t* and the log; on rollouts shared out unevenly."""
    settings = rank_settings(model=model, window=8, generator_start=30 if model == "window_adaptive" else None)
    batches = [double_batch(settings, seed) for seed in range(5)]
    whole = settings.replace(batch_size=2 * B, generator_batch_size=ENTRIES)
    state, stats = learn_all(ALONE, whole, TASK, batches)
    (state_0, stats_0), (state_1, stats_1) = in_ranks(2, learn_halves, settings, TASK, batches, store=store)
    for one in (state, state_0, state_1):
        del one["recent_returns"], one["curriculum"]  # each rank's own
    assert_close(state_0, state)
    assert_close(stats_0, stats)
    assert_equal_trees(state_0, state_1)
    assert stats_0 == stats_1 or flat_numbers(stats_0).keys() == flat_numbers(stats_1).keys()
    assert stats[-1]["frames"] == 5 * T * 2 * B and sum(row["episodes"] for row in stats) > 5
    assert all("gg_loss" in row for row in stats), "the teacher did not learn from every batch"
    assert len({row["generator_current_target"] for row in stats}) > 1, "t* did not move"


def learn_teacher_unevenly(ranks: Ranks, settings: Settings, batches):
    """All goals end on rank 1; then all on rank 0."""
    ranks.connect(CPU)
    torch.manual_seed(7)
    learner = Agent.make(settings, TASK, ranks).learner(ranks)
    waiting = []
    for i, batch in enumerate(batches):
        batch = half(batch, ranks.rank, B)
        if ranks.rank == i % 2:
            batch["reached"][:], batch["done"][:] = False, False
        learner.learn(batch)
        waiting.append(len(learner.state_dict()["generator_batch"]["goal"]))
    ranks.close()
    return learner.state_dict(), waiting


def test_a_rank_without_ended_goals_takes_part_and_none_pile_up(store):
    settings = rank_settings(generator_batch_size=2)
    batches = [double_batch(settings, seed) for seed in range(12)]
    (state_0, waiting_0), (state_1, waiting_1) = in_ranks(2, learn_teacher_unevenly, settings, batches, store=store)
    for name in ("generator_model_state_dict", "generator_model_optimizer_state_dict", "difficulty"):
        a, b = flat_numbers(state_0[name]), flat_numbers(state_1[name])
        assert a and all(torch.equal(a[key], b[key]) and a[key].isfinite().all() for key in a)
    assert state_0["generator_model_optimizer_state_dict"]["state"][0]["step"] > 12
    assert state_0["generator_scheduler_state_dict"]["last_epoch"] == 12
    assert max(a + b for a, b in zip(waiting_0, waiting_1)) < 4


# -- whole runs of two ranks -------------------------------------------------------------------------------------------------


def test_after_200_updates_the_weights_are_equal(tmp_path, store):
    settings = run_settings(tmp_path, *TEACHER, "--num_actor_processes", "2", "--total_frames", str(200 * 24))
    (code_0, state_0), (code_1, state_1) = in_ranks(2, run_to_the_end, settings, store=store)
    assert code_0 == code_1 == 0 and state_0["frames"] == state_1["frames"] == 200 * 24
    assert state_0["generator_scheduler_state_dict"]["last_epoch"] > 10
    assert_equal_trees(shared(state_0, "default"), shared(state_1, "default"))


def test_checkpoints_hold_the_goals_that_wait_on_every_rank(tmp_path, store):
    settings = run_settings(tmp_path, "--modify", "--generator_batch_size", "50", "--total_frames", "2400",
                            "--num_actor_processes", "1", "--checkpoint_minutes", "0.0001")  # fmt: skip
    (_, state_0), (_, state_1) = in_ranks(2, save_often, settings, store=store)
    saved = checkpoint.load(tmp_path / "run" / "model.tar")
    assert_equal_trees(saved["generator_batch"], state_0["generator_batch"])
    assert_equal_trees(saved["other_ranks"][0]["generator_batch"], state_1["generator_batch"])
    assert len(state_0["generator_batch"]["goal"]) and len(state_1["generator_batch"]["goal"])


def test_two_ranks_interrupted_and_resumed_go_on_to_the_last_bit(tmp_path, store):
    """With many teacher updates."""
    whole, cut = whole_and_cut(tmp_path, store, "--inner", "--generator_batch_size", "1")
    table = rows(whole)
    assert rows(cut) == table and sum(row["gg_loss"] is not None for row in table) > 2
    a, b = (checkpoint.load(run / "model.tar") for run in (whole, cut))
    for name in ("model_state_dict", "generator_model_state_dict"):
        assert_equal_trees(a[name], b[name])


def test_goals_that_waited_on_two_ranks_wait_on_one_and_back(tmp_path, store):
    states = two_then_one_then_two(tmp_path, store, "--num_actor_processes", "0", "--generator_batch_size", "6", "--inner")
    two = states[0]
    waiting = [len(part["generator_batch"]["goal"]) for part in (two, *two["other_ranks"])]
    assert len(waiting) == 2 and min(waiting) > 0
    alone = checkpoint.for_rank(two, 0, 1, waiting_keys=Amigo.waiting_keys)
    assert len(alone["generator_batch"]["goal"]) == sum(waiting) and alone["source"] == {}
    schedules = [state["generator_scheduler_state_dict"] for state in states]
    frames = [schedule["last_epoch"] * schedule["frames_per_update"] for schedule in schedules]
    assert 0 < frames[0] <= frames[1] <= frames[2] <= frames[0] + 108, "the teacher's schedule does not follow the frames"


def test_only_the_first_rank_warns_of_the_flags(tmp_path, store):
    assert in_ranks(2, dispatch, command(tmp_path, *TWO, *TEACHER), store=store) == [0, 0]
    log = (tmp_path / "run" / "out.log").read_text()
    assert log.count("generator_threshold") == 1, "both ranks warn of the flags"

"""Rewards for seldom visited states: by hand, and on real rollouts by a slow twin that compares frame with frame."""

from __future__ import annotations

import math

import pytest
import torch

from main import settings as settings_module
from tests.helpers.agents import assert_same_tree, make_inline, make_motivation, random_batch
from tests.helpers.bounds import assert_bounds
from tests.helpers.learning import (
    TASK,
    assert_checkpoint_is_as_large_as_reckoned,
    assert_goes_on_bit_for_bit,
    assert_updates_stay_finite,
    learner_settings,
    make_agent,
    real_settings,
)
from tests.helpers.ranks import in_ranks
from tests.helpers.runs import assert_trains_and_plays
from torchbeast.core.environment import LAST
from torchbeast.core.forms import EntryError
from torchbeast.core.ranks import Ranks
from torchbeast.core.settings import flags_of
from utils_folder.motivations import lifelong
from utils_folder.motivations.count import LIFELONG, Count
from utils_folder.motivations.lifelong import LifelongCounts

SMALL = {"unroll_length": 3, "batch_size": 2}
VISITS = [[1, 4], [2, 1], [100, 3]]
WORTH = {
    "root": [[1, 1 / 2], [1 / math.sqrt(2), 1], [1 / 10, 1 / math.sqrt(3)]],
    "first": [[1, 0], [0, 1], [0, 0]],
    "always": [[1, 1], [1, 1], [1, 1]],
}


@pytest.mark.parametrize("view, field", [("full", "arrivals"), ("partial", "view_arrivals")])
@pytest.mark.parametrize("kind", ["root", "first"])
def test_the_reward_by_hand(kind, view, field):
    settings = learner_settings(model="count", count_reward=kind, count_coef=0.3, count_view=view)
    motivation = make_motivation(settings, TASK)
    batch = random_batch(TASK, settings) | {field: torch.tensor([[9, 9], *VISITS], dtype=torch.int32)}
    reward = motivation.intrinsic_reward(batch)
    assert reward.dtype == torch.float32
    torch.testing.assert_close(reward, 0.3 * torch.tensor(WORTH[kind], dtype=torch.float32))
    assert motivation.learn(batch) == {"first_arrivals": pytest.approx(2 / 6)} and motivation.state_dict() == {}


@pytest.mark.parametrize("view, field", [("full", "frame"), ("partial", "view")])
@pytest.mark.parametrize("kind", ["root", "first", "always"])
def test_what_was_visited_before_in_all_of_training_earns_less(kind, view, field):
    """By the root of the visits in the batches before, each of A A A, A B C, and of this one."""
    settings = learner_settings(model="count", count_reward=kind, count_coef=0.3, count_view=view, count_lifelong=True, **SMALL)
    motivation, batch = make_motivation(settings, TASK), random_batch(TASK, settings)
    arrivals = "view_arrivals" if view == "partial" else "arrivals"
    batch[arrivals] = torch.tensor([[9, 9], *VISITS], dtype=torch.int32)
    batch["done"][:] = False
    batch["done"][3, 1] = True
    a, b, c = (batch[field][t, 0].clone() for t in range(3))
    batch[field][1:] = a
    batch[field][2, 1] = b
    batch[LAST + field][3, 1], batch[field][3, 1] = c, b  # c is where the step led to; b is the next episode's
    worth = torch.tensor(WORTH[kind], dtype=torch.float32)
    for visits in ([[1, 1], [1, 1], [1, 1]], [[5, 5], [5, 2], [5, 2]], [[9, 9], [9, 3], [9, 3]]):
        mine = dict(batch)
        torch.testing.assert_close(motivation.intrinsic_reward(mine), 0.3 * worth / torch.tensor(visits).sqrt())
        torch.testing.assert_close(motivation.intrinsic_reward(dict(batch)), 0.3 * worth / torch.tensor(visits).sqrt())
        motivation.learn(mine)
    other = make_motivation(settings, TASK)
    assert motivation.state_dict() == {}  # what playing needs
    other.load_training_state_dict(motivation.training_state_dict())
    assert torch.equal(other.intrinsic_reward(dict(batch)), motivation.intrinsic_reward(dict(batch)))
    assert not list(motivation.warnings())
    notes = motivation.shown({arrivals: torch.tensor([3]).numpy()}).notes
    assert notes == ((f"visits of this {'view' if view == 'partial' else 'state'}", "3"), ("visits in training", "not stored"))


@pytest.mark.parametrize("view, field", [("full", "frame"), ("partial", "view")])
@pytest.mark.parametrize("over_training", [False, True])
def test_rewards_of_real_rollouts_are_the_twins(over_training, view, field):
    """An episode's last state is paid for as what it is; the next one's first, to which no step leads, only counts."""
    settings = real_settings(
        model="count", env="MiniGrid-LavaGapS5-v0", env_args='{"max_steps": 7}', use_lstm=False, unroll_length=20,
        count_view=view, count_lifelong=over_training, student_view=view, bootstrap_time_limit=True,  # so last states are seen
    )  # fmt: skip
    learner, source, _ = make_inline(settings, num_envs=3)
    visited, arrived_in = [[] for _ in range(3)], []
    again = known = 0
    for _ in range(3):
        batch = source.get(3)
        rewards = learner.motivation.intrinsic_reward(batch)
        before = list(arrived_in)
        for b in range(3):
            visited[b] = visited[b] or [batch[field][0, b]]
            for t in range(1, 21):
                done = batch["done"][t, b]
                arrived = batch[LAST + field if done else field][t, b]
                n = 1 + sum(torch.equal(arrived, frame) for frame in visited[b])
                N = 1 + sum(torch.equal(arrived, frame) for frame in before) if over_training else 1
                assert rewards[t - 1, b].item() == pytest.approx(0.005 / math.sqrt(n * N))
                arrived_in.append(arrived)
                visited[b] = [batch[field][t, b]] if done else [*visited[b], arrived]
                again, known = again + bool(done and n > 1), known + (N > 1)
        learner.motivation.learn(batch)
    assert again > 2 and (known > 10) == over_training


def test_rollouts_hold_what_it_reads_alone():
    def held(**flags):
        return set(make_agent(learner_settings(model="count", **flags)).motivation.rollout_fields)

    assert held() == {"arrivals"}
    assert held(count_view="partial") == {"view", "view_arrivals"}
    assert held(count_lifelong=True) == {"arrivals", "last_frame", "last_carried_obj", "last_carried_col"}


def test_of_stacked_frames_the_newest_is_counted():
    frames = torch.randint(4, (5, 2, 4, 5, 6), dtype=torch.uint8)
    frames[..., 3:] = frames[0, 0, ..., 3:]
    frames[4, 1, 0, 0, 3] += 1
    found = lifelong.digests(frames)
    assert found.dtype == torch.int64 and found.shape == (5, 2) and found.min() >= 0 and found.max() < 2**48
    assert (found.flatten()[:-1] == found[0, 0]).all() and found[4, 1] != found[0, 0]
    many = torch.cat([frames] * 20)  # of which equal ones are looked at once
    assert torch.equal(lifelong.digests(many), torch.cat([found] * 20))


def test_a_reward_that_all_states_earn_is_refused():
    def problems(*words):
        return settings_module.problems(settings_module.parse(["--model", "count", "--count_reward", *words])[0])

    assert problems("always", "--count_lifelong") == problems("first") == []
    (problem,) = problems("always")
    assert "--count_lifelong" in problem and "root" in problem


def test_of_states_visited_equally_often_the_oldest_are_forgotten_each_time(monkeypatch):
    monkeypatch.setattr(lifelong, "MOST_STATES", 4)
    counts = LifelongCounts()
    for states in [[1, 1, 1, 2, 3, 4], [5], [5, 5, 6, 6, 6, 7], [8]]:
        counts.update(torch.tensor([states]))
    assert counts.forgotten == 3 + 3
    assert counts.visits(torch.arange(9)[None]).tolist() == [[0, 0, 0, 0, 0, 3, 3, 0, 0]]


@pytest.mark.parametrize("view, field", [("full", "frame"), ("partial", "view")])
def test_of_too_many_states_those_visited_least_often_are_forgotten(view, field, monkeypatch):
    monkeypatch.setattr(lifelong, "MOST_STATES", 6)
    counts = LifelongCounts()
    counts.update(torch.tensor([[1, 2, 3], [4, 3, 5], [6, 3, 6]]))
    assert counts.visits(torch.tensor([[1, 3, 6, 7]])).tolist() == [[1, 3, 2, 0]] and not counts.forgotten
    counts.update(torch.tensor([[5, 7, 7]]))
    assert counts.visits(torch.tensor([[1, 2, 3, 4, 5, 6, 7]])).tolist() == [[0, 0, 3, 0, 0, 2, 2]]
    assert counts.forgotten == 4
    settings = learner_settings(model="count", count_lifelong=True, count_view=view, **SMALL)
    motivation, batch = make_motivation(settings, TASK), random_batch(TASK, settings)
    batch["done"][:] = False
    for first in (0, 10):  # six states a batch
        assert not list(motivation.warnings())
        batch[field][:] = torch.arange(first, first + 8).view(4, 2, 1, 1, 1)
        motivation.intrinsic_reward(batch)
        motivation.learn(batch)
    other = make_motivation(settings, TASK)
    other.load_training_state_dict(motivation.training_state_dict())
    (warning,) = motivation.warnings()
    assert list(other.warnings()) == [warning]
    assert "forgotten" in warning and ("--count_view partial" in warning) == (view == "full")


def test_counts_are_saved_and_refused_where_they_are_none():
    counts, other = LifelongCounts(), LifelongCounts()
    counts.update(torch.tensor([[9, 2, 9]]))
    other.load_state_dict(counts.state_dict(), LIFELONG)
    assert_same_tree(other.state_dict(), counts.state_dict())
    digest, visits, none = torch.tensor([2, 9]), torch.tensor([1, 2]), {"forgotten": 0}
    for wrong in (
        {"digest": digest, "visits": visits[:1], **none},
        {"digest": digest * 0, "visits": visits, **none},
        {"digest": digest, "visits": visits * 0, **none},
        {"digest": digest.double(), "visits": visits, **none},
        {"digest": digest, **none},
        {"digest": digest, "visits": visits},
        {"digest": digest, "visits": visits, "forgotten": -1},
    ):
        with pytest.raises(EntryError, match=LIFELONG):
            counts.load_state_dict(wrong, LIFELONG)
    assert_same_tree(other.state_dict(), counts.state_dict())


def count(ranks: Ranks) -> dict[int, int]:
    ranks.connect(torch.device("cpu"))
    counts = LifelongCounts(ranks)
    for update in range(2):
        counts.update(torch.tensor([[2**48 - 1, ranks.rank], [7, 7 + update]]))
    state = counts.state_dict()
    return dict(zip(state["digest"].tolist(), state["visits"].tolist()))


def test_several_ranks_count_what_all_of_them_visit(tmp_path):
    first, second = in_ranks(2, count, store=tmp_path / "store")
    assert first == second == {2**48 - 1: 4, 0: 2, 1: 2, 7: 6, 8: 2}


def test_a_run_goes_on_with_what_it_has_counted(tmp_path):
    short = {"env": "MiniGrid-LavaGapS5-v0", "unroll_length": 9, "num_input_frames": 2}
    settings = real_settings(model="count", count_lifelong=True, **short)
    assert_updates_stay_finite(settings, updates=6)
    assert LIFELONG in assert_goes_on_bit_for_bit(settings, tmp_path)


@pytest.mark.parametrize("words", ["--model count --count_view partial --count_reward always", "--model default --also count"])
def test_it_trains_and_plays(words, tmp_path, capsys):
    assert_trains_and_plays(tmp_path, capsys, *words.split(), "--count_lifelong")


def test_flags():
    assert_bounds(Count.groups, at_least_one=set(), not_negative={"count_coef"}, any_number=set())
    assert all(about.agent for about in flags_of(Count.groups).values())


@pytest.mark.parametrize(("model", "also"), [("count", None), ("default", "count")])
def test_the_reckoned_size_of_a_checkpoint_holds_the_most_states(model, also):
    settings = learner_settings(model=model, also=also, count_lifelong=True, state_embedding_dim=256)
    agent = make_agent(settings)
    learner = agent.learner()
    learner.learn(random_batch(TASK, settings))
    counting = agent.motivation if also is None else agent.motivation.parts[1]
    counting._lifelong.update(torch.arange(lifelong.MOST_STATES - 100)[None])
    assert len(counting.training_state_dict()["count_lifelong_visits"]["digest"]) > 0.9 * lifelong.MOST_STATES
    assert_checkpoint_is_as_large_as_reckoned(agent, learner)

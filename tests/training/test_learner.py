"""The learner against SPEC section 4, with every motivation: updates by a slow twin, columns, save and load, publishing.

What a motivation's own rewards and goals do to the student's update is compared in its own tests.
"""

from __future__ import annotations

import copy

import pytest
import torch

from tests.helpers.agents import assert_same_tree, random_batch
from tests.helpers.learning import (
    TASK,
    B,
    T,
    assert_behaviour_is_recomputed,
    assert_checkpoint_is_as_large_as_reckoned,
    assert_goes_on_bit_for_bit,
    assert_student_updates_are_the_twins,
    assert_updates_stay_finite,
    learner_settings,
    make_agent,
    real_settings,
)
from tests.helpers.marks import some
from tests.helpers.twins import snapshot
from torchbeast.core.weights import Reader
from utils_folder.motivations import MOTIVATIONS

MODELS = list(MOTIVATIONS)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# -- the student's update --------------------------------------------------------------------------------------------------


STUDENTS = {
    "plain": {},
    "partial view": {"student_view": "partial"},
    "two LSTM layers, no decay, momentum": {"use_lstm": True, "num_lstm_layers": 2, "total_frames": 10**9, "momentum": 0.5},
    "clipped gradient": {"baseline_cost": 300.0},
    "clipped at another norm": {"max_grad_norm": 0.3},
    "policy within a bound": {"policy_clip": 0.3, "learning_rate": 0.002},
    "policy within a wide bound, rewards apart": {"policy_clip": 1.5, "reward_mixing": "apart", "learning_rate": 0.002},
    "raw channels, no extrinsic rewards": {
        "disable_use_embedding": True, "learning_rate": 0.002, "no_extrinsic_rewards": True, "discounting": 0.9
    },
    "rewards apart": {"reward_mixing": "apart", "intrinsic_discounting": 0.8, "discounting": 0.95},
    "rewards apart, LSTM, no extrinsic rewards": {"reward_mixing": "apart", "use_lstm": True, "no_extrinsic_rewards": True},
    "plain sum": {"reward_mixing": "sum"},
    "plain sum, no extrinsic rewards": {"reward_mixing": "sum", "no_extrinsic_rewards": True, "learning_rate": 0.002},
}  # fmt: skip


@pytest.mark.parametrize("setting", STUDENTS)
@pytest.mark.parametrize("model", MODELS)
def test_student_updates_are_the_twins(model, setting):
    settings = learner_settings(model=model, **STUDENTS[setting])
    agent = make_agent(settings)
    norms = assert_student_updates_are_the_twins(
        agent,
        lambda: random_batch(TASK, settings),
        lambda batch: agent.motivation.intrinsic_reward(dict(batch)).tolist(),
        agent.motivation.student_goal,
    )
    assert (max(norms) > 40) or setting != "clipped gradient"


def test_the_learning_rate_has_fallen_to_zero_after_total_frames():
    settings = learner_settings(total_frames=2 * T * B)
    learner = make_agent(settings).learner()
    for moves in (True, True, False, False):
        before = snapshot(learner.student)
        learner.learn(random_batch(TASK, settings))
        assert any(not torch.equal(v, before[k]) for k, v in learner.student.named_parameters()) == moves


# -- columns ---------------------------------------------------------------------------------------------------------------


def test_denormal_numbers_are_zero_while_it_learns_and_only_then(monkeypatch):
    """They are what makes the updates of a nearly certain policy take twice as long."""
    settings = learner_settings()
    agent = make_agent(settings)
    learner, tiny, found = agent.learner(), torch.full((9,), 1e-40), []
    with monkeypatch.context() as patch:
        patch.setattr(agent.motivation, "intrinsic_reward", lambda batch: found.append((tiny * 0.5).sum().item()) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            learner.learn(random_batch(TASK, settings))
    learner.learn(random_batch(TASK, settings))
    assert found == [0] and (tiny * 0.5).sum() > 0


def test_columns_of_a_batch_with_and_without_ended_episodes():
    settings = learner_settings()
    learner = make_agent(settings).learner()
    batch = random_batch(TASK, settings, p_done=0.0)
    batch["done"][0] = True  # state 0: counted with the rollout before
    stats = learner.learn(dict(batch))
    assert stats.get("mean_episode_return") is None and stats.get("success_rate") is None
    assert stats["episodes"] == 0 and stats["frames"] == T * B
    batch["done"][2, 0] = batch["done"][T, 1] = True
    batch["episode_return"][2, 0], batch["episode_return"][T, 1] = 0.0, 0.75
    stats = learner.learn(dict(batch))
    assert stats["mean_episode_return"] == 0.375 and stats["success_rate"] == 0.5
    assert stats["episodes"] == 2 and stats["frames"] == 2 * T * B
    assert list(learner.recent_returns) == [0.0, 0.75]


@pytest.mark.parametrize("model", MODELS)
def test_every_reported_value_has_a_column_and_every_column_a_value(model):
    settings = learner_settings(model=model)
    learner = make_agent(settings).learner()
    columns = {column.name for column in learner.columns}
    seen = set()
    for _ in range(9):
        stats = learner.learn(random_batch(TASK, settings, p_done=0.5, p_true=0.5))
        assert stats.keys() <= columns
        seen |= stats.keys()
    assert seen == columns


# -- all variants on real environments ------------------------------------------------------------------------------------


SETTINGS = {
    "plain": {"use_lstm": False},
    "LSTM": {},
    "everything": {
        "num_input_frames": 2, "disable_use_embedding": True, "no_extrinsic_rewards": True, "num_lstm_layers": 2,
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("model", some(MODELS))
def test_a_few_updates_on_real_rollouts_stay_finite(model, setting):
    settings = real_settings(model=model, env="MiniGrid-LavaGapS5-v0", batch_size=9, **SETTINGS[setting])
    seen = assert_updates_stay_finite(settings, updates=48)
    columns = {column.name for column in MOTIVATIONS[model].columns}
    assert columns <= seen, "the motivation never learned"


@pytest.mark.parametrize("model", MODELS)
def test_behaviour_on_rollouts_is_what_the_learner_recomputes(model):
    assert_behaviour_is_recomputed(real_settings(model=model, env="MiniGrid-LavaGapS5-v0", engine="gym", unroll_length=9))


@pytest.mark.parametrize("model", MODELS)
def test_a_saved_learner_goes_on_bit_for_bit(model, tmp_path):
    assert_goes_on_bit_for_bit(real_settings(model=model), tmp_path)


@pytest.mark.parametrize("model", MODELS)
def test_a_saved_learner_that_has_learned_from_all_goes_on_bit_for_bit(model, tmp_path):
    """From rollouts that are made up, in which whatever a motivation looks for happens often."""
    settings = learner_settings(model=model, use_lstm=True)
    agent, other = make_agent(settings), make_agent(settings, seed=99)
    learner, second = agent.learner(), other.learner()
    assert not torch.equal(second.student.policy.weight, learner.student.policy.weight)
    batches = [random_batch(TASK, settings) for _ in range(12)]
    for batch in batches[:9]:
        learner.learn(dict(batch))
    torch.save(learner.state_dict(), tmp_path / "model.tar")
    second.load_state_dict(torch.load(tmp_path / "model.tar", weights_only=True))
    for batch in batches[9:]:
        assert_same_tree(second.learn(dict(batch)), learner.learn(dict(batch)))
        assert_same_tree(second.state_dict(), learner.state_dict())


def test_loading_replaces_what_a_used_learner_knew():
    """SPEC and Learner.load_state_dict: back to the moment of state_dict, wherever the learner has been meanwhile."""
    settings = learner_settings()
    learner = make_agent(settings).learner()
    learner.learn(random_batch(TASK, settings, p_done=0.5))
    state = learner.state_dict()
    returns = list(state["recent_returns"])
    assert returns
    learner.load_state_dict(state)
    assert list(learner.recent_returns) == returns


@pytest.mark.parametrize("model", MODELS)
def test_new_weights_reach_the_actors(model):
    settings = learner_settings(model=model)
    agent, other = make_agent(settings), make_agent(settings, seed=5)
    learner = agent.learner()
    reader, other_reader = (Reader(copy.deepcopy(each.student), each.shared) for each in (agent, other))
    assert not reader.refresh()
    for _ in range(2):
        learner.learn(random_batch(TASK, settings, p_done=0.5))
        assert reader.refresh() and not reader.refresh()
        for ours, theirs in zip(reader.network.parameters(), learner.student.parameters()):
            assert torch.equal(ours, theirs)
    other.learner().load_state_dict(learner.state_dict())
    assert other_reader.refresh()
    assert torch.equal(other_reader.network.policy.weight, learner.student.policy.weight)


# -- its size --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_a_checkpoint_is_no_larger_than_the_program_reckons(model):
    settings = learner_settings(model=model, state_embedding_dim=256)
    agent = make_agent(settings)
    learner = agent.learner()
    learner.learn(random_batch(TASK, settings))
    assert_checkpoint_is_as_large_as_reckoned(agent, learner)

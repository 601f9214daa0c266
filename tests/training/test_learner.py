"""The learner against SPEC section 4: student updates by a slow float64 twin, log columns, save and load, publishing."""

from __future__ import annotations

import math

import pytest
import torch

from main.learner import Learner, make_student
from tests.helpers.agents import (
    PlainRMSprop,
    assert_same_change,
    assert_same_tree,
    make_flags,
    make_inline,
    plain_random_network,
    plain_student,
    plain_vtrace,
    random_batch,
    snapshot,
)
from torchbeast.core.weights import Reader
from utils_folder.motivation import Task, make_motivation, registry

TASK = Task((6, 4, 3), 7, 50)
T, B = 5, 3


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def learner_flags(**overrides):
    common = {
        "unroll_length": T, "batch_size": B, "total_frames": T * B * 6, "learning_rate": 0.01, "state_embedding_dim": 24,
        "entropy_cost": 0.05, "generator_batch_size": 7,
    }  # fmt: skip
    return make_flags(**{**common, **overrides})


def make_learner(flags, seed=0):
    torch.manual_seed(seed)
    return Learner(flags, TASK, make_motivation(flags, TASK))


# -- the student's update --------------------------------------------------------------------------------------------------


def plain_intrinsic(learner, batch):
    """[T][B], t = 1..T."""
    flags, motivation = learner.flags, learner.motivation
    if flags.model == "novelty_based":
        target, predictor = (plain_random_network(n, TASK, "relu") for n in (motivation.target, motivation.predictor))
        with torch.no_grad():
            N = ((predictor(batch) - target(batch)) ** 2).sum(-1).sqrt()
        gain, first = flags.novelty_coef * (N[1:] - flags.novelty_scale * N[:-1]), batch["visits"][1:] == 1
        return [[max(float(gain[t, b]), 0.0) if first[t, b] else 0.0 for b in range(B)] for t in range(T)]
    bonus = flags.intrinsic_reward_coef
    return [
        [bonus * (1 - 0.9 * int(batch["goal_step"][t, b]) / TASK.max_steps) * bool(batch["reached"][t, b]) for b in range(B)]
        for t in range(1, T + 1)
    ]


def plain_reward(extrinsic, intrinsic, flags):
    total = intrinsic if flags.no_extrinsic_rewards else extrinsic + intrinsic
    clipped = min(max(total, -1.0), 1.0)
    return clipped + (1.0 if extrinsic > 0 and not flags.no_extrinsic_rewards else 0.0)


def plain_goals(batch, flags):
    """The goal in force when acting in state t; the published learner takes the one of state t-1."""
    goals = batch["goal"].clone()
    if flags.as_published:
        for t in range(T + 1):
            goals[t] = batch["late_goal"][0] if t == 0 else batch["goal"][t - 1]
    return goals


def plain_loss(plain, batch, intrinsic, flags):
    """(total, pg, baseline, entropy) of SPEC section 4, and how many importance weights were clipped."""
    inputs = {name: batch[name] for name in ("frame", "carried_obj", "carried_col", "done")}
    inputs["goal"] = plain_goals(batch, flags)
    core = tuple(batch[f"core_state_{i}"].transpose(0, 1).double() for i in range(2)) if flags.use_lstm else ()
    outputs, _ = plain(inputs, core)
    policy, values = outputs["policy_logits"].log_softmax(-1), outputs["baseline"]
    behaviour = batch["policy_logits"].double().log_softmax(-1)
    zeros = [[0.0] * B for _ in range(T)]
    log_rhos, discounts, rewards = ([row[:] for row in zeros] for _ in range(3))
    for t in range(1, T + 1):
        for b in range(B):
            a = int(batch["action"][t, b])
            log_rhos[t - 1][b] = float(policy[t - 1, b, a] - behaviour[t, b, a])
            discounts[t - 1][b] = 0.0 if batch["done"][t, b] else flags.discounting
            rewards[t - 1][b] = plain_reward(float(batch["reward"][t, b]), float(intrinsic[t - 1][b]), flags)
    targets, advantages = plain_vtrace(log_rhos, discounts, rewards, values[:-1].detach(), values[-1].detach())
    pg = baseline = entropy = 0.0
    for t in range(T):
        for b in range(B):
            pg = pg - policy[t, b, int(batch["action"][t + 1, b])] * advantages[t][b] / B
            baseline = baseline + flags.baseline_cost * 0.5 * (targets[t][b] - values[t, b]) ** 2 / B
            entropy = entropy + flags.entropy_cost * (policy[t, b].exp() * policy[t, b]).sum() / B
    return (pg + baseline + entropy, pg, baseline, entropy), sum(x > 0 for row in log_rhos for x in row)


STUDENTS = {
    "default": {},
    "default, LSTM": {"use_lstm": True},
    "default, two LSTM layers, as published": {"use_lstm": True, "num_lstm_layers": 2, "as_published": True},
    "as published": {"as_published": True},
    "coefficient 3, no decay, momentum": {"intrinsic_reward_coef": 3.0, "total_frames": 10**9, "momentum": 0.5},
    "no extrinsic rewards": {"no_extrinsic_rewards": True, "intrinsic_reward_coef": 0.5},
    "clipped gradient": {"baseline_cost": 300.0},
    "raw channels": {"disable_use_embedding": True, "learning_rate": 0.002},
    "window_adaptive": {"model": "window_adaptive", "discounting": 0.9},
    "novelty_based": {"model": "novelty_based"},
    "novelty_based, LSTM": {"model": "novelty_based", "use_lstm": True, "novelty_scale": 0.5, "novelty_coef": 0.6},
}


@pytest.mark.parametrize("variant", STUDENTS)
def test_student_updates_are_the_twins(variant):
    flags = learner_flags(**STUDENTS[variant])
    learner = make_learner(flags)
    plain = plain_student(learner, TASK)
    optimizer, before = PlainRMSprop(plain, flags.learning_rate, flags), snapshot(learner.student)
    for update in range(3):
        batch = random_batch(TASK, flags)
        batch["done"][0], batch["done"][2] = torch.tensor([True, False, False]), torch.tensor([False, False, True])
        intrinsic = plain_intrinsic(learner, batch)
        losses, clipped = plain_loss(plain, batch, intrinsic, flags)
        optimizer.step(losses[0])
        stats = learner.learn(dict(batch))
        assert 0 < clipped < T * B
        for name, expected in zip(("total_loss", "pg_loss", "baseline_loss", "entropy_loss"), losses):
            assert stats[name] == pytest.approx(float(expected), rel=3e-3, abs=1e-4), (update, name)
        assert stats["mean_intrinsic_rewards"] == pytest.approx(sum(map(sum, intrinsic)) / (T * B), rel=1e-3, abs=1e-6)
        assert stats["grad_norm"] == pytest.approx(optimizer.norms[-1], rel=3e-3)
    assert (max(optimizer.norms) > 40) or variant != "clipped gradient"
    assert_same_change(learner.student, plain, before)


def test_the_learning_rate_has_fallen_to_zero_after_total_frames():
    learner = make_learner(learner_flags(total_frames=2 * T * B))
    for moves in (True, True, False, False):
        before = snapshot(learner.student)
        learner.learn(random_batch(TASK, learner.flags))
        assert any(not torch.equal(v, before[k]) for k, v in learner.student.named_parameters()) == moves


def test_the_goal_of_every_state_reaches_the_loss_at_its_own_state():
    """Changing goal[t] alone changes the update for t = 0..T (the bootstrap's too), unless the code is to be as published."""
    for published in (False, True):
        flags = learner_flags(as_published=published)
        batch = random_batch(TASK, flags, p_done=0.0)

        def total_loss(batch, flags=flags):
            return make_learner(flags).learn(dict(batch))["total_loss"]

        base = total_loss(batch)
        for name in ("goal", "late_goal"):
            for t in range(T + 1):
                changed = {**batch, name: batch[name].clone()}
                changed[name][t] = (changed[name][t] + 1) % 24
                assert (total_loss(changed) != base) == ((name == "late_goal") == published), (published, name, t)


# -- log columns -----------------------------------------------------------------------------------------------------------


def test_columns_of_a_batch_with_and_without_ended_episodes():
    learner = make_learner(learner_flags())
    batch = random_batch(TASK, learner.flags, p_done=0.0)
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


def test_every_reported_value_has_a_column():
    from main.learner import LOG_COLUMNS

    for model in registry():
        learner = make_learner(learner_flags(model=model))
        batch = random_batch(TASK, learner.flags, p_done=0.5, p_reached=0.5)
        stats = learner.learn(batch)
        assert set(stats) == {*LOG_COLUMNS, *learner.motivation.log_columns}


# -- all variants on real environments ------------------------------------------------------------------------------------


def real_flags(model, **overrides):
    common = {
        "model": model, "env": "MiniGrid-KeyCorridorS3R2-v0", "engine": "compiled", "unroll_length": 6, "batch_size": 4,
        "generator_batch_size": 4, "modify": True, "use_lstm": True, "state_embedding_dim": 16, "total_frames": 10_000,
    }  # fmt: skip
    return make_flags(**{**common, **overrides})


MODELS = sorted(registry())
SETTINGS = {
    "plain": {"use_lstm": False},
    "LSTM": {},
    "everything": {
        "num_input_frames": 2, "inner": True, "as_published": True, "restart_episode": True, "disable_use_embedding": True,
        "no_boundary_awareness": True, "no_extrinsic_rewards": True, "num_lstm_layers": 2, "window_rule": "tracking",
    },
}  # fmt: skip


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("model", MODELS)
def test_a_few_updates_on_real_rollouts_stay_finite(model, setting):
    learner, source, rollouts = make_inline(real_flags(model, env="MiniGrid-LavaGapS5-v0", **SETTINGS[setting]), num_envs=3)
    seen = set()
    for _ in range(12):
        batch = source.get(learner.flags.batch_size)
        for name, field in rollouts.fields.items():
            values = batch[name]
            assert values.is_floating_point() is False or values.isfinite().all(), f"{name}: poison or worse"
            assert values.dtype != torch.bool or (values.view(torch.uint8) <= 1).all(), f"{name}: nobody wrote it"
            assert field.dtype not in ("int32", "int64") or (values >= 0).all(), f"{name}: nobody wrote it"
        stats = learner.learn(batch)
        seen |= stats.keys()
        assert all(math.isfinite(value) for value in stats.values()), stats
    assert "novelty_loss" in seen if model == "novelty_based" else "gg_loss" in seen, "the motivation never learned"
    assert_finite(learner.state_dict())


def assert_finite(tree):
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, (list, tuple)):
        for value in tree:
            assert_finite(value)
    elif isinstance(tree, torch.Tensor) and tree.is_floating_point():
        assert tree.isfinite().all()


@pytest.mark.parametrize("model", MODELS)
def test_behaviour_on_rollouts_is_what_the_learner_recomputes(model):
    """Before any update, states 0..T, goals, done and LSTM state of a rollout give the logits that its actor acted with."""
    learner, source, _ = make_inline(real_flags(model, env="MiniGrid-LavaGapS5-v0", engine="gym", unroll_length=9), num_envs=3)
    ended = 0
    for _ in range(6):
        batch = source.get(3)
        with torch.no_grad():
            outputs = learner._forward(batch)
        ended += int(batch["done"].sum())
        torch.testing.assert_close(outputs["policy_logits"][:-1], batch["policy_logits"][1:], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(outputs["baseline"][:-1], batch["baseline"][1:], rtol=1e-4, atol=1e-5)
    assert ended >= 6


@pytest.mark.parametrize("model", MODELS)
def test_a_saved_learner_goes_on_bit_for_bit(model, tmp_path):
    flags = real_flags(model, generator_batch_size=5, generator_counts=2)
    learner, source, _ = make_inline(flags, num_envs=3)
    batches = [source.get(flags.batch_size) for _ in range(12)]
    for i, batch in enumerate(batches):  # the teacher learns now and then from random rollouts too
        batch["reached"] = torch.rand(batch["done"].shape, generator=torch.Generator().manual_seed(i)) < 0.1
    for batch in batches[:9]:
        learner.learn(dict(batch))
    state = learner.state_dict()
    if model != "novelty_based":
        assert 0 < len(state["generator_batch"]["goal"]) < 5, "no half-filled teacher batch: the test is weaker than it says"
    torch.save(state, tmp_path / "model.tar")
    other, _, _ = make_inline(flags, num_envs=3, seed=99)
    assert not torch.equal(other.student.policy.weight, learner.student.policy.weight)
    other.load_state_dict(torch.load(tmp_path / "model.tar", weights_only=True))
    assert_same_tree(other.state_dict(), learner.state_dict())
    for batch in batches[9:]:
        assert_same_tree(other.learn(dict(batch)), learner.learn(dict(batch)))
        assert_same_tree(other.state_dict(), learner.state_dict())


def test_loading_replaces_what_a_used_learner_knew():
    """SPEC and Learner.load_state_dict: back to the moment of state_dict, wherever the learner has been meanwhile."""
    learner = make_learner(learner_flags())
    learner.learn(random_batch(TASK, learner.flags, p_done=0.5))
    state = learner.state_dict()
    returns = list(state["recent_returns"])
    assert returns
    learner.load_state_dict(state)
    assert list(learner.recent_returns) == returns


@pytest.mark.parametrize("model", MODELS)
def test_new_weights_reach_the_actors(model):
    flags = learner_flags(model=model)
    learner = make_learner(flags)
    reader = Reader(make_student(flags, TASK, learner.motivation), learner.shared)
    assert not reader.refresh()
    for _ in range(2):
        learner.learn(random_batch(TASK, flags, p_done=0.5))
        assert reader.refresh() and not reader.refresh()
        for ours, theirs in zip(reader.network.parameters(), learner.student.parameters()):
            assert torch.equal(ours, theirs)
    other = make_learner(flags, seed=5)
    other_reader = Reader(make_student(flags, TASK, other.motivation), other.shared)
    other.load_state_dict(learner.state_dict())
    assert other_reader.refresh()
    assert torch.equal(other_reader.network.policy.weight, learner.student.policy.weight)

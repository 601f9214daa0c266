"""What must hold of a learner, whatever motivates its student: its updates, real rollouts, going on from what was saved."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from main.training.learner import Learner
from main.training.recipe import Agent
from tests.helpers.agents import assert_same_tree, make_inline, make_settings
from tests.helpers.twins import PlainStudentLearner, assert_same_change, snapshot
from torchbeast.core.optimizer import LearningSettings
from torchbeast.core.settings import Settings
from utils_folder.motivations.base import Task

TASK = Task((6, 4, 3), 7, 50)
T, B = 5, 3


def learner_settings(**overrides) -> Settings:
    """For rollouts of TASK that are made up."""
    common = {
        "unroll_length": T, "batch_size": B, "total_frames": T * B * 6, "learning_rate": 0.01, "state_embedding_dim": 24,
        "entropy_cost": 0.05,
    }  # fmt: skip
    return make_settings(**{**common, **overrides})


def make_agent(settings: Settings, seed: int = 0) -> Agent:
    torch.manual_seed(seed)
    return Agent.make(settings, TASK)


def real_settings(**overrides) -> Settings:
    """For rollouts of real environments."""
    common = {
        "env": "MiniGrid-KeyCorridorS3R2-v0", "engine": "compiled", "unroll_length": 6, "batch_size": 4, "use_lstm": True,
        "state_embedding_dim": 16, "total_frames": 10_000,
    }  # fmt: skip
    return make_settings(**{**common, **overrides})


def assert_student_updates_are_the_twins(agent: Agent, random_batch, intrinsic, goals) -> list[float]:
    """Three updates, of the learner and its twin. Returns the norms of the gradients.

    random_batch(): rollouts [T+1, B, ...]; intrinsic(batch): [T][B], t = 1..T; goals(batch): [T+1, B], or None.
    """
    learner, twin, before = agent.learner(), PlainStudentLearner(agent), snapshot(agent.student)
    for update in range(3):
        batch = random_batch()
        batch["done"][0], batch["done"][2] = torch.tensor([True, False, False]), torch.tensor([False, False, True])
        for b, sign in ((0, 1), (1, -1)):  # one weight on each side of the clip, whatever chance does
            batch["policy_logits"][1, b, batch["action"][1, b]] += sign * 5
        bonus = intrinsic(batch)
        losses, clipped = twin.learn(batch, bonus, goals(batch))
        stats = learner.learn(dict(batch))
        assert 0 < clipped < T * B
        for name, expected in losses.items():
            assert stats[name] == pytest.approx(float(expected), rel=3e-3, abs=1e-4), (update, name)
        assert stats["mean_intrinsic_rewards"] == pytest.approx(sum(map(sum, bonus)) / (T * B), rel=1e-3, abs=1e-6)
        assert stats["grad_norm"] == pytest.approx(twin.optimizer.norms[-1], rel=3e-3)
    assert_same_change(agent.student, twin.student, before)
    return twin.optimizer.norms


def assert_finite(tree) -> None:
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, (list, tuple)):
        for value in tree:
            assert_finite(value)
    elif isinstance(tree, Tensor) and tree.is_floating_point():
        assert tree.isfinite().all()


def assert_updates_stay_finite(settings: Settings, *, updates: int) -> set[str]:
    """On real rollouts, in which no field is left to its poison. Returns the columns that were reported."""
    learner, source, rollouts = make_inline(settings, num_envs=3)
    seen: set[str] = set()
    for _ in range(updates):
        batch = source.get(settings[LearningSettings].batch_size)
        for name in rollouts.fields:
            values = batch[name]
            assert values.is_floating_point() is False or values.isfinite().all(), f"{name}: poison or worse"
            assert values.dtype != torch.bool or (values.view(torch.uint8) <= 1).all(), f"{name}: nobody wrote it"
            assert values.dtype not in (torch.int32, torch.int64) or (values >= 0).all(), f"{name}: nobody wrote it"
        stats = learner.learn(batch)
        seen |= stats.keys()
        assert all(math.isfinite(value) for value in stats.values()), stats
    assert_finite(learner.state_dict())
    return seen


def assert_behaviour_is_recomputed(settings: Settings) -> None:
    """Before any update, states 0..T, goals, done and LSTM state of a rollout give the logits that its actor acted with."""
    learner, source, _ = make_inline(settings, num_envs=3)
    ended = batches = 0
    while batches < 6 or ended < 6:
        batches += 1
        assert batches < 100, "hardly an episode ends: the test is weaker than it says"
        batch = source.get(3)
        with torch.no_grad():
            outputs, _ = learner.student(*learner._inputs(learner.seen(batch)))
        ended += int(batch["done"].sum())
        torch.testing.assert_close(outputs["policy_logits"][:-1], batch["policy_logits"][1:], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(outputs["baseline"][:-1], batch["baseline"][1:], rtol=1e-4, atol=1e-5)


def assert_goes_on_bit_for_bit(
    settings: Settings, folder: Path, change: Callable[[dict[str, Tensor], int], None] = lambda batch, number: None
) -> dict:
    """Twelve updates on real rollouts, saved after nine; `change(batch, its number)` is made to them. Returns the state."""
    learner, source, _ = make_inline(settings, num_envs=3)
    batches = [source.get(settings[LearningSettings].batch_size) for _ in range(12)]
    for number, batch in enumerate(batches):
        change(batch, number)
    for batch in batches[:9]:
        learner.learn(dict(batch))
    state = learner.state_dict()
    torch.save(state, folder / "model.tar")
    other, _, _ = make_inline(settings, num_envs=3, seed=99)
    assert not torch.equal(other.student.policy.weight, learner.student.policy.weight)
    saved = torch.load(folder / "model.tar", weights_only=True)
    other.load_state_dict(saved)
    assert_same_tree(other.state_dict(), learner.state_dict())
    for batch in batches[9:]:
        assert_same_tree(other.learn(dict(batch)), learner.learn(dict(batch)))
        assert_same_tree(other.state_dict(), learner.state_dict())
    return saved


def assert_checkpoint_is_as_large_as_reckoned(agent: Agent, learner: Learner) -> None:
    """At most; and the figure is not so large that it would refuse a run for nothing."""
    buffer = io.BytesIO()
    torch.save(learner.state_dict(), buffer)
    assert buffer.tell() < agent.checkpoint_bytes < 8 * buffer.tell()

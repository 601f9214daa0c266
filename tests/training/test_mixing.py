"""Ways to mix a motivation's reward with the task's: which may be asked for, and what they change of a run.

What they do to the student's update is compared with the twin's in tests/training/test_learner.py.
"""

from __future__ import annotations

import pytest
import torch

from main import settings as settings_module
from main.training.recipe import Agent, probe
from models import STUDENTS
from tests.helpers.agents import make_inline, make_settings, random_batch
from tests.helpers.learning import (
    TASK,
    B,
    T,
    assert_behaviour_is_recomputed,
    assert_goes_on_bit_for_bit,
    assert_updates_stay_finite,
    learner_settings,
    make_agent,
    real_settings,
)
from tests.helpers.playing import load, play, train, watch
from tests.helpers.program import rows
from torchbeast.core import vtrace
from utils_folder.motivations import MOTIVATIONS
from utils_folder.motivations.rewards import APART, MIXINGS

PAYING = [name for name, motivation in MOTIVATIONS.items() if motivation.pays]
SECOND = next(name for name in PAYING if not MOTIVATIONS[name].goal_conditioned)
CONTROL = next(name for name in MOTIVATIONS if name not in PAYING)
OWN = "intrinsic_baseline"


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def returns(monkeypatch) -> list[tuple[dict, vtrace.VTraceReturns]]:
    """What V-trace is given and finds, a call each."""
    seen, original = [], vtrace.from_log_probs
    names = ("behaviour", "target", "discounts", "rewards", "values", "bootstrap")

    def spy(*given):
        seen.append((dict(zip(names, given, strict=True)), original(*given)))
        return seen[-1][1]

    monkeypatch.setattr(vtrace, "from_log_probs", spy)
    return seen


def test_without_an_intrinsic_reward_or_a_value_of_it_nothing_is_kept_apart(monkeypatch):
    both = make_settings(model=CONTROL, reward_mixing=APART)
    refused = f"--reward_mixing apart: --model {CONTROL} has no intrinsic reward: leave out one of the two"
    assert settings_module.problems(both) == [refused]
    assert settings_module.problems(both.replace(reward_mixing="sum")) == []
    assert settings_module.problems(both.replace(also=SECOND)) == []
    monkeypatch.setattr(STUDENTS["convolutional"], "has_intrinsic_value", False)
    assert settings_module.problems(both.replace(also=SECOND)) == [
        "--reward_mixing apart: --student_network convolutional has no value of intrinsic rewards: leave out one of the two"
    ]
    assert settings_module.problems(both.replace(also=SECOND, reward_mixing="sum")) == []


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("model", PAYING)
def test_every_mixing_goes_without_extrinsic_rewards(model, mixing):
    settings = make_settings(model=model, reward_mixing=mixing, no_extrinsic_rewards=True)
    assert settings_module.problems(settings) == []


@pytest.mark.parametrize("mixing", MIXINGS)
def test_a_second_value_its_loss_and_its_column_are_there_only_where_rewards_are_apart(mixing):
    settings = learner_settings(model=PAYING[0], reward_mixing=mixing)
    agent = make_agent(settings)
    learner = agent.learner()
    apart = mixing == APART
    stats = learner.learn(random_batch(TASK, settings))
    columns = {column.name for column in learner.columns}
    assert stats.keys() <= columns
    for names in (stats, columns):
        assert (f"{OWN}_loss" in names) == apart
    assert any(OWN in name for name in learner.state_dict()["model_state_dict"]) == apart
    losses = [stats[name] for name in ("pg_loss", "baseline_loss", "entropy_loss", f"{OWN}_loss") if name in stats]
    assert stats["total_loss"] == pytest.approx(sum(losses), rel=1e-5)


def test_intrinsic_returns_go_on_over_ends_with_their_own_discount_and_advantages_are_added(returns, monkeypatch):
    settings = learner_settings(model=PAYING[0], reward_mixing=APART, discounting=0.9, intrinsic_discounting=0.7)
    agent = make_agent(settings)
    advantages = []
    monkeypatch.setattr(
        "torchbeast.core.losses.policy_gradient_loss",
        lambda log_probs, given: advantages.append(given) or (log_probs * given).mean(),
    )
    batch = random_batch(TASK, settings)
    batch["done"][1, 0], batch["done"][2, 1] = True, False
    agent.learner().learn(dict(batch))
    (task, of_task), (own, of_own) = returns
    assert torch.equal(task["discounts"], 0.9 * (~batch["done"][1:]).float())
    assert torch.equal(own["discounts"], torch.full((T, B), 0.7))
    assert torch.equal(task["rewards"], batch["reward"][1:])
    assert torch.equal(own["rewards"], agent.motivation.intrinsic_reward(dict(batch)))
    assert torch.equal(task["behaviour"], own["behaviour"]) and torch.equal(task["target"], own["target"])
    assert not torch.allclose(task["values"], own["values"])
    torch.testing.assert_close(advantages[0], of_task.pg_advantages + of_own.pg_advantages)


def test_a_time_limit_is_bootstrapped_in_the_tasks_returns_alone(returns):
    short = {"env": "MiniGrid-LavaGapS5-v0", "env_args": '{"max_steps": 4}', "unroll_length": 11, "batch_size": 3}
    settings = real_settings(model=PAYING[0], reward_mixing=APART, bootstrap_time_limit=True, **short)
    for one in (settings, settings.replace(bootstrap_time_limit=False)):
        learner, source, _ = make_inline(one, num_envs=3)
        learner.learn(source.get(3))
    (task, _), (own, _), (plain_task, _), (plain_own, _) = returns
    assert not torch.equal(task["rewards"], plain_task["rewards"])
    assert torch.equal(own["rewards"], plain_own["rewards"]) and torch.equal(own["discounts"], plain_own["discounts"])


@pytest.mark.parametrize("model", PAYING)
def test_with_every_motivation_rewards_apart_stay_finite_and_behaviour_is_recomputed(model):
    more = {"model": model, "reward_mixing": APART, "env": "MiniGrid-LavaGapS5-v0", "unroll_length": 9}
    assert f"{OWN}_loss" in assert_updates_stay_finite(real_settings(**more), updates=6)
    assert_behaviour_is_recomputed(real_settings(**more))


@pytest.mark.parametrize("use_lstm", [True, False])
@pytest.mark.parametrize("model", [PAYING[0], SECOND])
def test_a_learner_of_two_values_goes_on_bit_for_bit(tmp_path, model, use_lstm):
    assert_goes_on_bit_for_bit(real_settings(model=model, reward_mixing=APART, use_lstm=use_lstm), tmp_path)


def test_an_agent_of_two_values_logs_both_and_plays_with_what_its_checkpoint_says(tmp_path, capfd):
    run = train(tmp_path, "--model", SECOND, "--reward_mixing", APART)
    assert all(row[f"{OWN}_loss"] is not None for row in rows(run))
    assert play(run / "model.tar", "--num_episodes", "2", "--seed", "1") == 0
    assert play(run / "model.tar", "--num_episodes", "2", "--seed", "1", "--reward_mixing", "sum") == 0
    assert "reward_mixing" in capfd.readouterr().err
    agent = load(run / "model.tar")
    student = Agent.make(agent.settings, probe(agent.settings)).student
    student.load_state_dict(torch.load(run / "model.tar", weights_only=True)["model_state_dict"])
    _, ((first, *_),) = watch(run / "model.tar", 1)
    inputs = {
        "frame": torch.from_numpy(first.frame)[None, None], "carried_obj": torch.ones(1, 1, dtype=torch.uint8),
        "carried_col": torch.full((1, 1), 5, dtype=torch.uint8), "done": torch.zeros(1, 1, dtype=torch.bool),
    }  # fmt: skip
    with torch.no_grad():
        outputs, _ = student(inputs)
    assert abs(outputs[OWN].item() - outputs["baseline"].item()) > 1e-3
    assert float(first.lines["student's value"]) == pytest.approx(outputs["baseline"].item(), abs=6e-4)

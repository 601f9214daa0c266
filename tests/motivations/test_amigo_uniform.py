"""AMIGo's control, --teacher uniform: goals by chance, the same rewards for reaching them, no teacher that learns."""

from __future__ import annotations

import pytest
import torch

from main.training.recipe import make_environments
from tests.helpers.agents import assert_same_tree, make_inline, make_motivation, make_settings
from tests.helpers.learning import TASK, assert_goes_on_bit_for_bit, assert_updates_stay_finite, make_agent, real_settings
from tests.helpers.motivations.amigo import random_batch
from tests.helpers.playing import train, watch
from tests.helpers.twins import snapshot
from utils_folder.motivations.amigo import UPDATE_COLUMNS, Amigo
from utils_folder.motivations.base import Task
from utils_folder.motivations.curriculum import KEY

UNIFORM = {"model": "default", "teacher": "uniform", "modify": True, "generator_batch_size": 3}
TEACHING = {column.name for column in UPDATE_COLUMNS} | {"generator_current_target"}
SHORT = {"env": "MiniGrid-LavaGapS5-v0", "env_args": '{"max_steps": 5}'}


@pytest.mark.parametrize("inner", [False, True])
def test_every_cell_that_the_teacher_could_propose_comes_as_often_as_any_other(inner):
    settings = make_settings(**UNIFORM, **SHORT, inner=inner)
    environment = make_environments(settings, range(40))
    motivation = make_motivation(settings, Task.of(environment))
    actor = motivation.actor(40, torch.Generator().manual_seed(1))
    out, goals = environment.initial(), []
    for _ in range(300):
        row = actor.observe(out, environment)
        assert not row["generator_logits"].any()
        goals += row["goal"][actor._proposed].tolist()
        out = environment.step(torch.randint(7, (40,)).numpy())
    cells = [x * 5 + y for x in range(5) for y in range(5) if not inner or (1 <= x < 4 and 1 <= y < 4)]
    counts = torch.bincount(torch.tensor(goals), minlength=25)
    assert counts.sum() == counts[cells].sum() > 2500
    expected = len(goals) / len(cells)
    chi = ((counts[cells] - expected) ** 2 / expected).sum().item()
    assert chi < 3 * len(cells)  # its mean is len(cells) - 1; the teacher's own first probabilities are far above


def test_nothing_of_a_teacher_is_learned_or_logged_and_goals_are_paid_as_ever():
    settings = make_settings(**UNIFORM, unroll_length=5, batch_size=3, total_frames=900)
    uniform, learned = (make_motivation(settings.replace(teacher=who), TASK) for who in ("uniform", "learned"))
    before, seen = snapshot(uniform.teacher), set()
    for _ in range(5):
        batch = random_batch(TASK, settings)
        assert torch.equal(uniform.intrinsic_reward(batch), learned.intrinsic_reward(batch))
        stats, others = uniform.learn(dict(batch)), learned.learn(dict(batch))
        assert stats == {name: value for name, value in others.items() if name not in TEACHING}
        seen |= others.keys()
    assert seen >= TEACHING and stats.keys() == {column.name for column in Amigo.columns} - TEACHING
    for name, value in uniform.teacher.named_parameters():
        assert torch.equal(value, before[name])
    state = uniform.training_state_dict()
    assert state["generator_batch"] == {} and not state["generator_model_optimizer_state_dict"]["state"]
    assert_same_tree(uniform.state_dict()[KEY]["counts"], learned.state_dict()[KEY]["counts"])  # counted all the same
    assert not list(uniform.warnings()) and uniform.progress() == "" and "t_star" not in uniform.histograms()
    assert learned.progress() and "t_star" in learned.histograms()


def test_on_real_rollouts(tmp_path):
    settings = real_settings(**UNIFORM, **SHORT, restart_episode=True)
    seen = assert_updates_stay_finite(settings, updates=6)
    assert "goals_reached_inside" in seen and not seen & TEACHING
    assert_goes_on_bit_for_bit(settings, tmp_path)
    learner, source, _ = make_inline(settings, num_envs=3)
    assert sum(learner.learn(source.get(6))["goals_reached"] for _ in range(9)) > 0


def test_a_video_shows_equal_probabilities_and_no_target(tmp_path):
    weights = train(tmp_path, "--teacher", "uniform") / "model.tar"
    agent, ((first, *_),) = watch(weights, 1)
    assert agent.settings.flat()["teacher"] == "uniform"
    assert "target distance t*" not in first.lines and first.lines["goal's probability"] == "0.040"
    assert first.probabilities.max() == first.probabilities.min()


def test_the_learner_is_none_the_worse_for_columns_that_stay_empty():
    learner = make_agent(make_settings(**UNIFORM, unroll_length=5, batch_size=3)).learner()
    row = learner.learn(random_batch(TASK, make_settings(**UNIFORM, unroll_length=5, batch_size=3)))
    joined, _ = learner.row_of_all(row, {})
    assert all(joined[name] != joined[name] for name in TEACHING)

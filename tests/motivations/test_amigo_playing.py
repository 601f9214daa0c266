"""Playing with an agent that has a teacher: what a video shows of goals, and how a published checkpoint is read."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from main import settings as settings_module
from main.training import recipe
from models.teacher import Teacher
from tests.helpers.playing import REFERENCE, load, play, train, watch
from torchbeast.core import checkpoint
from utils_folder import video
from utils_folder.motivations.amigo import TeacherSettings
from utils_folder.motivations.base import Task
from utils_folder.motivations.goals import cell_to_inner


@pytest.fixture(scope="module", params=["default", "window_adaptive"])
def trained(request, tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs"), "--modify", "--model", request.param)


def test_a_published_checkpoint_is_read_its_own_way():
    weights = REFERENCE / "KeyCorridorS3R3.tar"
    if not weights.exists():
        pytest.skip("the published checkpoints are not here")
    assert checkpoint.is_published(checkpoint.load(weights))
    agent = load(weights, "--env", "MiniGrid-KeyCorridorS3R3-v0")
    assert agent.settings[TeacherSettings].as_published and agent.motivation.teacher.mirrored
    assert "late_goal" in agent.motivation.rollout_fields


def test_a_contradiction_is_named(trained, capfd):
    given = ["--model", "novelty_based", "--use_lstm", "--inner", "--as_published"]
    assert play(trained / "model.tar", "--num_episodes", "3", *given) == 0
    errors = capfd.readouterr().err
    model = checkpoint.load(trained / "model.tar")["flags"]["model"]
    assert f"--model novelty_based: the agent was trained with {model}" in errors
    for name in ("use_lstm", "inner", "as_published"):
        assert f"--{name} True: the agent was trained with False, which is used" in errors


def test_how_goals_are_reached_and_rewarded_is_the_checkpoints(tmp_path):
    more = ["--inner", "--modify", "--no_boundary_awareness", "--intrinsic_reward_coef", "0.5"]
    settings = load(train(tmp_path, *more) / "model.tar").settings.flat()
    for name in ("inner", "modify", "no_boundary_awareness"):
        assert settings[name] is True
    assert settings["intrinsic_reward_coef"] == 0.5


def test_each_episode_begins_with_no_goal_reached(trained):
    _, episodes = watch(trained / "model.tar", 8)
    assert all(states[0].lines["goals reached"] == "0" for states in episodes)


def test_a_badge_and_the_intrinsic_reward_say_that_a_goal_was_reached(trained):
    """Reached, by the definition: the goal's cell is not what it was when the goal was proposed."""
    _, episodes = watch(trained / "model.tar", 8)
    count = 0
    for *states, _ in episodes:
        proposed, reached_before = 0, 0
        for t in range(1, len(states)):
            goal, then, now = states[t - 1].goal, states[proposed].frame, states[t].frame
            reached = (then.reshape(-1, 3)[goal] != now.reshape(-1, 3)[goal]).any()
            steps = t - proposed
            plural = "s" if steps > 1 else ""
            assert states[t].badges == ([f"goal reached in {steps} step{plural}"] if reached else [])
            bonus = 1 - 0.9 * steps / 100 if reached else 0
            assert float(states[t].lines["intrinsic reward"]) == pytest.approx(bonus, abs=6e-4)
            assert (states[t].seconds > 0.5) == reached
            reached_before += int(reached)
            assert int(states[t].lines["goals reached"]) == reached_before
            proposed = t if reached else proposed
        count += reached_before
    assert count > 0


@pytest.mark.parametrize("inner", [False, True])
def test_the_map_tints_the_cell_that_the_teacher_prefers(inner):
    """Column 7, row 2 of an 11 x 6 grid."""
    width, height, x, y = 11, 6, 7, 2
    settings = settings_module.make({}).replace(inner=inner)
    motivation = recipe.Agent.make(settings, Task((width, height, 3), 7, 100)).motivation
    logits = np.zeros((1, motivation.teacher.num_goals), np.float32)
    preferred = x * height + y
    logits[0, cell_to_inner(preferred, height=height) if inner else preferred] = 9
    row = {"generator_logits": logits, "goal": np.array([8]), "reached": np.array([False]), "goal_step": np.array([3])}
    shown = motivation.shown(row)
    assert shown.goal == 8 and shown.probabilities.sum() == pytest.approx(1)
    assert dict(shown.notes)["goal's probability"] == f"{shown.probabilities[1, 2]:.3f}"
    assert (shown.probabilities[0] == 0).all() == inner
    frame = np.full((width, height, 3), (1, 0, 0), np.uint8)
    tint = video.render(frame, probabilities=shown.probabilities, tile_size=10)[..., 2].astype(int)
    tint = (tint - video.render(frame, tile_size=10)[..., 2]).reshape(height, 10, width, 10).mean((1, 3))
    assert np.unravel_index(tint.argmax(), tint.shape) == (y, x) and np.count_nonzero(tint > tint.max() / 2) == 1


def test_the_target_distance_is_the_checkpoints(trained, tmp_path):
    state = checkpoint.load(trained / "model.tar")
    state["difficulty"]["target"] = 23
    torch.save(state, tmp_path / "a.tar")
    _, ((first, *_),) = watch(tmp_path / "a.tar", 1)
    assert first.lines["target distance t*"] == "23"
    del state["difficulty"]  # as in a checkpoint of the published code
    torch.save(state, tmp_path / "b.tar")
    _, ((first, *_),) = watch(tmp_path / "b.tar", 1)
    assert first.lines["target distance t*"] == "not stored"


def test_the_teacher_is_the_checkpoints(trained):
    """The map shows its probabilities, from the frame in which the goal was proposed: the first, here."""
    agent, ((first, *_),) = watch(trained / "model.tar", 1)
    weights = checkpoint.load(trained / "model.tar")["generator_model_state_dict"]
    teacher = Teacher((5, 5, 3))
    teacher.load_state_dict(weights)
    with torch.no_grad():
        logits, _ = teacher(torch.from_numpy(first.frame)[None])
    np.testing.assert_allclose(first.probabilities.flatten(), logits.softmax(-1)[0].numpy(), atol=1e-5)
    assert agent.motivation.teacher is not teacher


def test_weights_of_a_teacher_that_do_not_fit_are_refused(trained, tmp_path, capsys):
    state = checkpoint.load(trained / "model.tar")
    state["flags"]["inner"] = True
    torch.save(state, tmp_path / "x.tar")
    assert play(tmp_path / "x.tar") == 2
    assert "do not fit" in capsys.readouterr().err


def test_what_is_written_names_the_variant(trained, tmp_path):
    out = tmp_path / "a.json"
    assert play(trained / "model.tar", "--num_episodes", "2", "--json", str(out)) == 0
    assert json.loads(out.read_text())["model"] == checkpoint.load(trained / "model.tar")["flags"]["model"]

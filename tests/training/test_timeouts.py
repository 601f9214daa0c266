"""Time-outs: told apart from ends in every rollout; what --bootstrap_time_limit makes of them."""

from __future__ import annotations

import copy
import io

import pytest
import torch

from main.training.timeouts import last_values
from tests.helpers.agents import assert_same_tree, make_inline
from tests.helpers.learning import assert_updates_stay_finite, make_agent, real_settings
from tests.helpers.marks import some
from tests.helpers.views import plain_cells_in_view
from torchbeast.core import vtrace
from torchbeast.core.environment import LAST
from utils_folder.motivations import MOTIVATIONS

MODELS = list(MOTIVATIONS)
SHORT = {"env": "MiniGrid-LavaGapS5-v0", "env_args": '{"max_steps": 4}', "unroll_length": 11, "batch_size": 3}
KINDS = {
    "plain": {"use_lstm": False}, "LSTM": {"num_lstm_layers": 2, "num_input_frames": 2}, "gym": {"engine": "gym"},
    "view": {"student_view": "partial"},
}  # fmt: skip


def settings_of(model, kind="plain", **more):
    return real_settings(model=model, **{**SHORT, "bootstrap_time_limit": True, **KINDS[kind], **more})


def step_by_step(learner, batch, t, b):
    """V of the state in which rollout b's episode ran out of time at step t, from the rollout's start on, a state at a time."""
    inputs, core_state = learner._inputs(learner.seen(batch))
    state = tuple(s[:, b : b + 1].contiguous() for s in core_state)
    for row in range(t):
        _, state = learner.student({name: value[row : row + 1, b : b + 1] for name, value in inputs.items()}, state)
    names = {"frame": "view" if "view" in batch else "frame", "carried_obj": "carried_obj", "carried_col": "carried_col"}
    last = {name: batch[LAST + field][t : t + 1, b : b + 1] for name, field in names.items()}
    last["done"] = torch.zeros(1, 1, dtype=torch.bool)
    if "goal" in inputs:
        last["goal"] = batch["goal"][t - 1 : t, b : b + 1]
        if "view" in batch:
            last["goal"] = plain_cells_in_view(last["goal"], batch["last_pose"][t : t + 1, b : b + 1], height=5)
    outputs, _ = learner.student(last, state)
    return outputs["baseline"].item()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", some(MODELS))
def test_the_last_state_is_worth_what_it_is_step_by_step(model, kind):
    learner, source, _ = make_inline(settings_of(model, kind), num_envs=3)
    seen = ends = 0
    for _ in range(4):
        batch = source.get(3)
        values = last_values(learner.student, batch, *learner._inputs(learner.seen(batch)), learner._sight)
        assert values.shape == (11, 3) and not values.requires_grad
        for t in range(1, 12):
            for b in range(3):
                if batch["truncated"][t, b]:
                    with torch.no_grad():
                        assert values[t - 1, b].item() == pytest.approx(step_by_step(learner, batch, t, b), rel=1e-4, abs=1e-5)
                    seen += 1
                else:
                    assert values[t - 1, b] == 0
                    ends += bool(batch["done"][t, b])
    assert seen > 10 and ends > 0


@pytest.mark.parametrize("model", some(MODELS))
def test_it_is_added_to_the_reward_there_discounted_and_to_no_other(model, monkeypatch):
    settings = settings_of(model, discounting=0.8)
    learner, source, _ = make_inline(settings, num_envs=3)
    plain, _, _ = make_inline(settings.replace(bootstrap_time_limit=False), num_envs=3)
    batch = source.get(3)
    expected = 0.8 * last_values(learner.student, batch, *learner._inputs(learner.seen(batch)), learner._sight)
    assert (expected != 0).any()
    rewards = []
    original = vtrace.from_log_probs

    def spy(*arguments):
        rewards.append(arguments[3].clone())
        return original(*arguments)

    monkeypatch.setattr(vtrace, "from_log_probs", spy)
    for one in (learner, plain):
        one._update_student(one.seen(batch), one.motivation.intrinsic_reward(dict(batch)))
    torch.testing.assert_close(rewards[0] - rewards[1], expected, rtol=1e-5, atol=1e-6)
    ended = {**batch, "truncated": torch.zeros_like(batch["truncated"])}
    other, _, _ = make_inline(settings, num_envs=3)
    fresh, _, _ = make_inline(settings.replace(bootstrap_time_limit=False), num_envs=3)
    assert_same_tree(other.learn(dict(ended)), fresh.learn(dict(batch)))
    assert_same_tree(other.student.state_dict(), fresh.student.state_dict())


@pytest.mark.parametrize("model", MODELS)
def test_rollouts_hold_last_states_only_where_they_are_wanted(model):
    assert_updates_stay_finite(settings_of(model), updates=12)
    with_them, without = (make_inline(settings_of(model, bootstrap_time_limit=on), num_envs=3)[2] for on in (True, False))
    own = make_agent(settings_of(model)).motivation.rollout_fields.keys()
    last = {"last_frame", "last_carried_obj", "last_carried_col"}
    assert last <= with_them.fields.keys() and with_them.fields.keys() - without.fields.keys() == last - own
    assert "truncated" in without.fields
    settings = settings_of(model, student_view="partial")
    with_them, without = (
        make_inline(settings.replace(bootstrap_time_limit=on), num_envs=3)[2] for on in (True, False)
    )
    last = {"last_view", "last_pose", "last_carried_obj", "last_carried_col"}
    assert last <= with_them.fields.keys() and with_them.fields.keys() - without.fields.keys() == last - own


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_actor_goes_on_identically(kind):
    settings = settings_of(MODELS[0], kind)
    _, source, _ = make_inline(settings, num_envs=4)
    source.get(3)
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    expected = [source.get(3) for _ in range(3)]
    _, other, _ = make_inline(settings, num_envs=4)
    other.get(3), other.get(3)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert any(batch["last_view" if kind == "view" else "last_frame"].any() for batch in expected)
    for batch in expected:
        assert_same_tree(other.get(3), batch)


@pytest.mark.parametrize("engine", ["compiled", "gym"])
def test_a_state_that_is_older_than_the_field_goes_on(engine):
    settings = settings_of(MODELS[0], bootstrap_time_limit=False, engine=engine)
    _, source, _ = make_inline(settings, num_envs=4)
    source.get(3)
    state = copy.deepcopy(source.state_dict())
    expected = source.get(3)
    environment = state["actor"]["environment"]
    for older in (state["rollouts"], state["actor"]["observed"], environment.get("world", environment.get("out"))):
        del older["truncated"]
    _, other, _ = make_inline(settings, num_envs=4)
    other.load_state_dict(state)
    batch = other.get(3)
    assert torch.equal(batch["frame"], expected["frame"])
    assert (batch["truncated"].view(torch.uint8) <= 1).all()
    # What the older state had told of is not known; row 0 is not learned.
    assert torch.equal(batch["truncated"][1:, 1:], expected["truncated"][1:, 1:]) and batch["truncated"][1:, 1:].any()

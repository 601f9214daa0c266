"""A learner on another device than the CPU. PyTorch's meta device stands in: it has shapes and no numbers to wait for."""

from __future__ import annotations

import pytest
import torch

from main.training import learner as learners
from tests.helpers.agents import random_batch
from tests.helpers.learning import TASK, learner_settings, make_agent
from torchbeast.core.environment import LAST
from torchbeast.core.upload import sent
from utils_folder.minigrid import CARRIED_FIELDS
from utils_folder.motivations import MOTIVATIONS

STATE = {"frame", *CARRIED_FIELDS}
SEES = {"student_frame", *("student_" + name for name in CARRIED_FIELDS)}
STUDENT = {"reward", "done", "action", "policy_logits", *SEES}
LASTS = {LAST + name for name in STATE}
STUDENTS = {
    "plain": ({}, set()),
    "LSTM": ({"use_lstm": True}, {"core_state_0", "core_state_1"}),
    "partial view": ({"student_view": "partial"}, set()),
    "rewards apart": ({"reward_mixing": "apart", "use_lstm": True}, {"core_state_0", "core_state_1"}),
}
META = torch.device("meta")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("model", MOTIVATIONS)
def test_nothing_but_what_networks_read_is_uploaded_and_nobody_waits_for_their_losses(model, student, monkeypatch):
    """Whatever asked for a number of the student's update before its gradient is there would fail: there are none."""
    options, fields = STUDENTS[student]
    settings = learner_settings(model=model, **options)
    learner = make_agent(settings).learner()
    learner.to(META)
    batch = random_batch(TASK, settings)
    seen = learner.seen(batch)
    goal = {"student_goal"} if learner.motivation.goal_conditioned else set()
    assert set(seen) == STUDENT | fields | goal | set(learner.motivation.reads)
    assert all(value.is_meta for value in seen.values())
    waited = []
    monkeypatch.setattr(learners, "numbers", lambda scalars: [waited.append(scalar.is_meta) or 0.0 for scalar in scalars])
    monkeypatch.setattr(type(learner._optimizer), "apply", lambda self, loss: torch.zeros((), device=META))
    intrinsic = learner.motivation.intrinsic_reward(batch | {name: seen[name] for name in learner.motivation.reads})
    learner._update_student(seen, sent(intrinsic, META))
    assert intrinsic.is_meta == bool(learner.motivation.reads) and waited == [True] * (8 if student == "rewards apart" else 7)
    without = {name.split(".")[0] for name, p in learner.student.named_parameters() if p.grad is None}
    assert without <= {"embed_goal", "embed_agent_loc"}  # which no forward pass uses


def test_a_time_limit_s_last_states_are_uploaded_where_they_are_worth_something():
    settings = learner_settings(bootstrap_time_limit=True)
    learner = make_agent(settings).learner()
    learner.to(META)
    assert set(learner.seen(random_batch(TASK, settings))) == STUDENT | LASTS | {"truncated", "student_goal", "goal"}

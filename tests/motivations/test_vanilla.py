"""The control: no intrinsic reward, no goal, nothing learned but the student."""

from __future__ import annotations

import numpy as np
import torch

from main import settings as settings_module
from tests.helpers.agents import make_settings, random_batch
from tests.helpers.learning import TASK, B, T, learner_settings, make_agent
from torchbeast.core.settings import Settings


def vanilla(**more) -> Settings:
    return learner_settings(model="vanilla", **more)


def test_it_pays_nothing_sees_nothing_and_keeps_nothing():
    agent = make_agent(vanilla())
    motivation = agent.motivation
    batch = random_batch(TASK, agent.settings)
    assert torch.equal(motivation.intrinsic_reward(dict(batch)), torch.zeros(T, B))
    assert motivation.learn(dict(batch)) == {} == motivation.state_dict() == motivation.training_state_dict()
    assert not motivation.goal_conditioned and not motivation.rollout_fields and not motivation.columns
    actor = motivation.actor(B, torch.Generator())
    assert actor.observe({"frame": np.zeros((B, 6, 4, 3), np.uint8)}, None) == {} == actor.state_dict()


def test_without_the_environments_rewards_there_is_nothing_to_learn_from():
    both = make_settings(model="vanilla", no_extrinsic_rewards=True)
    assert settings_module.problems(both) == [
        "--no_extrinsic_rewards leaves --model vanilla no reward at all: leave out one of the two"
    ]
    assert settings_module.problems(both.replace(no_extrinsic_rewards=False)) == []
    assert settings_module.problems(both.replace(model="default")) == []

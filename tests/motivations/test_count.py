"""The reward for seldom visited states: by hand, and on real rollouts by a slow twin that compares frame with frame."""

from __future__ import annotations

import math

import pytest
import torch

from tests.helpers.agents import make_inline, make_motivation, random_batch
from tests.helpers.bounds import assert_bounds
from tests.helpers.learning import TASK, learner_settings, make_agent, real_settings
from torchbeast.core.settings import flags_of
from utils_folder.motivations.count import Count


@pytest.mark.parametrize("kind", ["root", "first"])
def test_the_reward_by_hand(kind):
    settings = learner_settings(model="count", count_reward=kind, count_coef=0.3)
    motivation = make_motivation(settings, TASK)
    batch = random_batch(TASK, settings) | {"arrivals": torch.tensor([[9, 9], [1, 4], [2, 1], [100, 3]], dtype=torch.int32)}
    worth = [[1, 1 / 2], [1 / math.sqrt(2), 1], [1 / 10, 1 / math.sqrt(3)]] if kind == "root" else [[1, 0], [0, 1], [0, 0]]
    reward = motivation.intrinsic_reward(batch)
    assert reward.dtype == torch.float32
    torch.testing.assert_close(reward, 0.3 * torch.tensor(worth, dtype=torch.float32))
    assert motivation.learn(batch) == {"first_arrivals": pytest.approx(2 / 6)} and motivation.state_dict() == {}


def test_rewards_of_real_rollouts_are_the_twins():
    """An episode's last state is paid for as what it is; the next one's first, to which no step leads, only counts."""
    settings = real_settings(
        model="count", env="MiniGrid-LavaGapS5-v0", env_args='{"max_steps": 7}', use_lstm=False, unroll_length=20
    )
    learner, source, _ = make_inline(settings.replace(bootstrap_time_limit=True), num_envs=3)  # so last_frame can be seen
    batches = [source.get(3) for _ in range(3)]
    rewards = torch.cat([learner.motivation.intrinsic_reward(batch) for batch in batches])
    again = 0
    for b in range(3):
        visited = [batches[0]["frame"][0, b]]
        for t in range(60):
            batch, row = batches[t // 20], t % 20 + 1
            done = batch["done"][row, b]
            arrived = batch["last_frame" if done else "frame"][row, b]
            n = 1 + sum(torch.equal(arrived, frame) for frame in visited)
            assert rewards[t, b].item() == pytest.approx(0.005 / math.sqrt(n))
            visited = [batch["frame"][row, b]] if done else [*visited, arrived]
            again += bool(done and n > 1)
    assert again > 2


def test_rollouts_hold_no_last_states_for_it():
    assert set(make_agent(learner_settings(model="count")).motivation.rollout_fields) == {"arrivals"}


def test_flags():
    assert_bounds(Count.groups, at_least_one=set(), not_negative={"count_coef"}, any_number=set())
    assert all(about.agent for about in flags_of(Count.groups).values())

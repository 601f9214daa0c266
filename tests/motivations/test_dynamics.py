"""ICM and RIDE against their papers' formulas, by slow twins that go through the transitions one by one."""

from __future__ import annotations

import math

import pytest
import torch

from tests.helpers.agents import make_motivation
from tests.helpers.bounds import assert_bounds
from tests.helpers.learning import TASK, B, T, learner_settings
from tests.helpers.motivations.curiosity import assert_same_loss, plain_networks, random_batch, transition
from torchbeast.core.settings import flags_of
from utils_folder.motivations.icm import Icm
from utils_folder.motivations.ride import Ride

ICM = {"model": "icm", "icm_coef": 0.3, "icm_beta": 0.35}
RIDE = {"model": "ride", "ride_coef": 0.4, "ride_forward_coef": 3.0, "ride_inverse_coef": 0.7}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def plain_errors(plain, batch, t, b):
    """(||phi_hat(s, a) - phi(s')||^2, -log p(a | s, s'), ||phi(s') - phi(s)||) of one transition."""
    before, action, after = transition(batch, t, b)
    phi, following = plain["encoder"](before)[0], plain["encoder"](after)[0]
    told = torch.zeros(TASK.num_actions, dtype=torch.float64)
    told[action] = 1
    foretold = plain["forward"](phi, told)
    probabilities = plain["inverse"](phi, following).exp()
    inverse = -(probabilities[action] / probabilities.sum()).log()
    return ((foretold - following) ** 2).sum(), inverse, ((following - phi) ** 2).sum().sqrt().item()


def compared(overrides, reward_of, loss_of):
    """reward_of(forward, impact, n), a step's reward; loss_of(forward errors, inverse errors), lists of all steps'."""
    settings = learner_settings(**overrides)
    motivation = make_motivation(settings, TASK)
    plain, batch = plain_networks(motivation, TASK), random_batch(TASK, settings)
    mine = dict(batch)
    reward = motivation.intrinsic_reward(mine)
    assert reward.shape == (T, B) and reward.dtype == torch.float32 and not reward.requires_grad
    forwards, inverses = [], []
    for t in range(1, T + 1):
        for b in range(B):
            forward, inverse, impact = plain_errors(plain, batch, t, b)
            counted = [name for name in batch if name.endswith("arrivals")]
            n = int(batch[counted[0]][t, b]) if counted else None
            assert reward[t - 1, b].item() == pytest.approx(reward_of(forward.item(), impact, n), rel=1e-3), (t, b)
            forwards.append(forward)
            inverses.append(inverse)
    loss, stats = motivation.loss(mine)
    assert_same_loss(motivation, plain, loss, loss_of(forwards, inverses))
    return stats, [sum(map(float, values)) / (T * B) for values in (forwards, inverses)]


@pytest.mark.parametrize("view", ["full", "partial"])
def test_icm_is_the_twin(view):
    """r = eta / 2 ||phi_hat(s') - phi(s')||^2; L = (1 - beta) L_I + beta L_F, with L_F = 1/2 ||...||^2."""
    stats, (forward, inverse) = compared(
        ICM | {"icm_view": view},
        lambda forward, impact, n: 0.3 / 2 * forward,
        lambda forwards, inverses: (0.65 * sum(inverses) + 0.35 * sum(forwards) / 2) / (T * B),
    )
    assert stats == {
        "icm_forward_loss": pytest.approx(forward / 2, rel=1e-3), "icm_inverse_loss": pytest.approx(inverse, rel=1e-3)
    }  # fmt: skip


@pytest.mark.parametrize("view", ["full", "partial"])
def test_ride_is_the_twin(view):
    """r = ||phi(s') - phi(s)|| / sqrt(N_ep(s')); the loss is summed over the steps and averaged over the batch."""
    stats, (forward, inverse) = compared(
        RIDE | {"ride_view": view},
        lambda forward, impact, n: 0.4 * impact / math.sqrt(n),
        lambda forwards, inverses: (3 * sum(forwards) + 0.7 * sum(inverses)) / B,
    )
    assert stats["ride_forward_loss"] == pytest.approx(forward, rel=1e-3)
    assert stats["ride_inverse_loss"] == pytest.approx(inverse, rel=1e-3) and stats["ride_impact"] > 0


@pytest.mark.parametrize("overrides", [ICM, RIDE], ids=["icm", "ride"])
def test_both_losses_fall_on_what_is_seen_again(overrides):
    settings = learner_settings(**overrides, ride_learning_rate=0.003, icm_learning_rate=0.003, total_frames=10**7)
    motivation = make_motivation(settings, TASK)
    batch, losses = random_batch(TASK, settings), []
    for _ in range(60):
        mine = dict(batch)
        motivation.intrinsic_reward(mine)
        losses.append(motivation.learn(mine))
    names = [name for name in losses[0] if name.endswith("loss")]
    assert len(names) == 2
    for name in names:
        assert losses[-1][name] < 0.5 * losses[0][name], name


@pytest.mark.parametrize("overrides, remedy", [(ICM, "--icm_beta"), (RIDE, "--ride_inverse_coef")], ids=["icm", "ride"])
def test_phi_that_tells_nothing_of_actions_raises_an_alarm(overrides, remedy, monkeypatch):
    monkeypatch.setattr("utils_folder.motivations.dynamics.CHANCE_FRAMES", 3 * T * B)
    settings = learner_settings(**overrides, ride_learning_rate=0.0, icm_learning_rate=0.0)
    motivation = make_motivation(settings, TASK)
    last = motivation.networks[f"{motivation.learner}_inverse"].fc[2]
    last.weight.data.zero_()

    def told(updates, surer):
        last.bias.data = torch.tensor([surer] + [0.0] * (TASK.num_actions - 1))  # of action 0, whatever the states are
        for _ in range(updates):
            batch = random_batch(TASK, settings)
            batch["action"].zero_()
            motivation.intrinsic_reward(batch)
            motivation.learn(batch)
        return list(motivation.warnings())

    assert told(5, 0.1) == []  # 0.95 of the cross-entropy of a guess
    assert told(2, 0.05) == []  # 0.98
    (warning,) = told(1, 0.05)
    assert "told nothing of actions" in warning and remedy in warning
    assert told(1, 0.1) == []
    assert told(2, 0.0) == []  # three in a row


def test_flags():
    assert_bounds(
        Ride.groups, at_least_one=set(), any_number=set(),
        not_negative={"ride_coef", "ride_forward_coef", "ride_inverse_coef", "ride_learning_rate"},
    )  # fmt: skip
    assert_bounds(
        Icm.groups, at_least_one=set(), any_number=set(), not_negative={"icm_coef", "icm_beta", "icm_learning_rate"},
        at_most={"icm_beta": 1},
    )  # fmt: skip
    agent = [name for name, about in flags_of((*Ride.groups, *Icm.groups)).items() if about.agent]
    assert agent == ["ride_coef", "ride_view", "icm_coef", "icm_view"]

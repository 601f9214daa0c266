"""The three losses: values and gradients derived by hand on tiny inputs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import tensor

from torchbeast.core.losses import baseline_loss, bounded_advantages, entropy_loss, policy_divergence, policy_gradient_loss
from torchbeast.core.vtrace import action_log_probs

LOG_PROBS = [[-0.5, -1.0], [-2.0, -0.25], [-3.0, -1.5]]  # T=3, B=2
ADVANTAGES = [[1.0, -2.0], [0.5, 4.0], [0.0, -1.0]]


def test_policy_gradient_loss_and_gradient():
    log_probs = tensor(LOG_PROBS, requires_grad=True)
    advantages = tensor(ADVANTAGES, requires_grad=True)
    loss = policy_gradient_loss(log_probs, advantages)
    # rows: (0.5 - 2)/2, (1 + 1)/2, (0 - 1.5)/2
    assert loss.shape == ()
    assert loss.item() == pytest.approx(-0.75 + 1.0 - 0.75)
    loss.backward()
    assert torch.allclose(log_probs.grad, -tensor(ADVANTAGES) / 2)  # -advantage / B
    assert advantages.grad is None


def test_advantages_end_where_an_action_has_become_likelier_or_rarer_by_epsilon():
    advantages = tensor([[1.0, 1.0, -1.0, -1.0], [2.0, 2.0, -2.0, -2.0]], requires_grad=True)
    ratios = tensor([[1.19, 1.21, 0.81, 0.79], [0.01, 50.0, 50.0, 0.01]], requires_grad=True)
    bounded = bounded_advantages(advantages, ratios.log(), 0.2)
    assert bounded.tolist() == [[1.0, 0.0, -1.0, 0.0], [2.0, 0.0, -2.0, 0.0]]
    assert not bounded.requires_grad
    wide = bounded_advantages(advantages, ratios.log(), 1.0)  # nothing has become rarer by more than all
    assert wide.tolist() == [[1.0, 1.0, -1.0, -1.0], [2.0, 0.0, -2.0, -2.0]]


def test_their_gradient_is_that_of_ppos_objective():
    """Where weights are not cut by V-trace: A * r * grad log pi is the gradient of min(r A, clip(r, 1 - e, 1 + e) A)."""
    torch.manual_seed(0)
    behaviour, advantages = -torch.rand(40, 5), torch.randn(40, 5)
    target = (behaviour + torch.randn(40, 5) * 0.3).requires_grad_()
    ratios = (target - behaviour).exp()
    objective = torch.minimum(ratios * advantages, ratios.clamp(0.8, 1.2) * advantages)
    (expected,) = torch.autograd.grad(objective.sum(), target)
    found = bounded_advantages(advantages, target - behaviour, 0.2) * ratios.detach()
    assert torch.allclose(found, expected, atol=1e-6)
    assert 0.2 < (expected == 0).float().mean() < 0.8


def test_baseline_loss_and_gradient():
    targets = tensor([[1.0, 2.0], [0.0, -1.0], [3.0, 0.5]], requires_grad=True)
    values = tensor([[0.0, 4.0], [2.0, -1.0], [2.0, 1.5]], requires_grad=True)
    loss = baseline_loss(targets, values)
    # squares 1 4 / 4 0 / 1 1: row means 2.5, 2, 1
    assert loss.item() == pytest.approx(0.5 * 5.5)
    loss.backward()
    assert torch.allclose(values.grad, tensor([[-1.0, 2.0], [2.0, 0.0], [-1.0, 1.0]]) / 2)  # (V - target) / B
    assert targets.grad is None


def test_entropy_loss_and_gradient():
    # Probabilities 1/4, 3/4 and 1/2, 1/2 in the two columns of one step.
    logits = tensor([[[0.0, math.log(3.0)], [1.0, 1.0]]], requires_grad=True)
    loss = entropy_loss(logits.log_softmax(-1))
    first = 0.25 * math.log(0.25) + 0.75 * math.log(0.75)
    second = math.log(0.5)
    assert loss.item() == pytest.approx((first + second) / 2)
    loss.backward()
    # d(sum p log p)/d(logit_a) = p_a (log p_a - sum p log p)
    by_hand = [0.25 * (math.log(0.25) - first) / 2, 0.75 * (math.log(0.75) - first) / 2]
    assert torch.allclose(logits.grad[0, 0], tensor(by_hand), atol=1e-6)
    assert torch.allclose(logits.grad[0, 1], torch.zeros(2), atol=1e-6)  # the most random policy: a minimum


def test_entropy_loss_is_lowest_for_the_uniform_policy():
    uniform, peaked = torch.zeros(5, 3, 7), torch.zeros(5, 3, 7)
    peaked[..., 2] = 50.0
    assert entropy_loss(uniform.log_softmax(-1)).item() == pytest.approx(-5 * math.log(7), rel=1e-5)
    assert entropy_loss(peaked.log_softmax(-1)).item() == pytest.approx(0.0, abs=1e-5)
    assert torch.isfinite(entropy_loss((peaked * 100).log_softmax(-1)))


@pytest.mark.parametrize("T, B", [(5, 3), (3, 5), (1, 4), (4, 1)])
def test_sum_over_time_of_the_mean_over_the_batch(T, B):
    """Every step costs 1 in each loss: T in all, whatever the batch."""
    assert policy_gradient_loss(torch.full((T, B), -1.0), torch.ones(T, B)).item() == pytest.approx(T)
    assert baseline_loss(torch.zeros(T, B), torch.full((T, B), math.sqrt(2.0))).item() == pytest.approx(T)
    assert entropy_loss(torch.zeros(T, B, 2).log_softmax(-1)).item() == pytest.approx(-T * math.log(2))


def test_policy_gradient_raises_the_probability_of_a_good_action():
    """By hand: d(-advantage * log softmax)/d(logits) = advantage * (p - onehot)."""
    logits = tensor([[[0.0, math.log(3.0)]]], requires_grad=True)
    policy_gradient_loss(action_log_probs(logits, tensor([[0]])), tensor([[2.0]])).backward()
    assert torch.allclose(logits.grad, tensor([[[2.0 * (0.25 - 1), 2.0 * 0.75]]]))


def test_other_ranks_are_refused():
    with pytest.raises(ValueError):
        policy_gradient_loss(torch.zeros(6), torch.zeros(6))
    with pytest.raises(ValueError):
        baseline_loss(torch.zeros(3, 2, 1), torch.zeros(3, 2, 1))
    with pytest.raises(ValueError):
        entropy_loss(torch.zeros(3, 7))


def test_policy_divergence_is_that_from_the_policy_that_played():
    played, present = tensor([[0.5, 0.5], [0.75, 0.25]]), tensor([[0.75, 0.25], [0.75, 0.25]])  # T=2, A=2
    found = policy_divergence(*(p.log().unsqueeze(1).requires_grad_() for p in (played, present)))
    assert found.item() == pytest.approx((0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)) / 2)
    assert not found.requires_grad

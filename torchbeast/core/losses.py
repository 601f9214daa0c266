"""The three losses of an actor-critic. Each is summed over time and averaged over the batch.

Source: IMPALA (arXiv 1802.01561), section 4.2; the average over the batch is TorchBeast's successor AMIGo's.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _over_time_and_batch(losses: Tensor) -> Tensor:
    """Sum over T of the mean over B, of float32 [T, B]."""
    if losses.dim() != 2:
        raise ValueError(f"a loss per step must be [T, B], got {tuple(losses.shape)}")
    return losses.mean(dim=1).sum()


def policy_gradient_loss(log_probs: Tensor, advantages: Tensor) -> Tensor:
    """-sum_t mean_b log pi(a|x) * advantage.

    Args:
        log_probs: float32 [T, B], log pi(a_t|x_t) of the actions taken, with gradient.
        advantages: float32 [T, B], a constant.
    Returns: float32 scalar.
    """
    return _over_time_and_batch(-log_probs * advantages.detach())


def bounded_advantages(advantages: Tensor, log_ratios: Tensor, epsilon: float) -> Tensor:
    """Advantages of those actions that may be pushed further their way, and 0 of the others.

    With r = pi(a|x) / mu(a|x), PPO's objective min(r A, clip(r, 1 - epsilon, 1 + epsilon) A) has no gradient where A > 0 and
    r > 1 + epsilon, or A < 0 and r < 1 - epsilon.

    Args:
        advantages: float32 [T, B], A.
        log_ratios: float32 [T, B], log r.
        epsilon: above 0; from 1 on nothing is too rare.
    Returns: float32 [T, B], without gradient.
    Source: PPO (arXiv 1707.06347), equation 7; beside V-trace as in Sample Factory (arXiv 2006.11751).
    """
    advantages, ratios = advantages.detach(), log_ratios.detach().exp()
    too_far = torch.where(advantages > 0, ratios > 1 + epsilon, ratios < 1 - epsilon)
    return advantages.masked_fill(too_far, 0.0)


@torch.no_grad()
def policy_divergence(log_behaviour: Tensor, log_policy: Tensor) -> Tensor:
    """The mean over steps of KL(mu || pi) = sum_a mu(a|x) (log mu(a|x) - log pi(a|x)).

    Args:
        log_behaviour: float32 [T, B, A], log softmax of the logits of mu, which played.
        log_policy: float32 [T, B, A], the same of pi.
    Returns: float32 scalar, in nats, without gradient.
    """
    return (log_behaviour.exp() * (log_behaviour - log_policy)).sum(dim=-1).mean()


def baseline_loss(targets: Tensor, values: Tensor) -> Tensor:
    """0.5 sum_t mean_b (target - V(x))^2.

    Args:
        targets: float32 [T, B], a constant.
        values: float32 [T, B], with gradient.
    Returns: float32 scalar.
    """
    return 0.5 * _over_time_and_batch((targets.detach() - values) ** 2)


def entropy_loss(log_policy: Tensor) -> Tensor:
    """sum_t mean_b sum_a pi(a) log pi(a): the negative entropy of a policy.

    Args:
        log_policy: float32 [T, B, A], log softmax of its logits, with gradient.
    Returns: float32 scalar, in nats.
    """
    return _over_time_and_batch((log_policy.exp() * log_policy).sum(dim=-1))

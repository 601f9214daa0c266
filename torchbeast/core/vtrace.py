"""V-trace targets for off-policy actor-critic learning (IMPALA, arXiv 1802.01561)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from torchbeast.core.compiled import compiled

f32 = np.float32


class VTraceReturns(NamedTuple):
    """vs: float32 [T, B], value targets v_s. pg_advantages: float32 [T, B], the policy gradient's weights."""

    vs: Tensor
    pg_advantages: Tensor


def action_log_probs(policy_logits: Tensor, actions: Tensor) -> Tensor:
    """log softmax(policy_logits)[actions].

    Args:
        policy_logits: float32 [..., A].
        actions: int64 [...].
    Returns: float32 [...].
    """
    return chosen(F.log_softmax(policy_logits, dim=-1), actions)


def chosen(log_policy: Tensor, actions: Tensor) -> Tensor:
    """float32 [...], what log_policy [..., A] has for the actions int64 [...]."""
    return log_policy.gather(-1, actions.unsqueeze(-1)).squeeze(-1)


@torch.no_grad()
def from_importance_weights(
    log_rhos: Tensor,
    discounts: Tensor,
    rewards: Tensor,
    values: Tensor,
    bootstrap_value: Tensor,
    *,
    clip_rho: float = 1.0,
    clip_c: float = 1.0,
) -> VTraceReturns:
    """V-trace targets from importance weights.

    With rho_t = min(clip_rho, exp(log_rhos_t)), c_t = min(clip_c, exp(log_rhos_t)) and
    delta_t = rho_t (r_t + discount_t V_{t+1} - V_t):

        v_s = V_s + delta_s + discount_s c_s (v_{s+1} - V_{s+1})                 (Remark 1, the recursive form)
        advantage_s = rho_s (r_s + discount_s v_{s+1} - V_s)                     (Section 4.2)

    Args:
        log_rhos: float32 [T, B], log(pi(a|x) / mu(a|x)).
        discounts: float32 [T, B], gamma, 0 where the step ended an episode.
        rewards: float32 [T, B], r_t.
        values: float32 [T, B], V(x_t) of the target policy.
        bootstrap_value: float32 [B], V(x_T).
        clip_rho: rho-bar.
        clip_c: c-bar.
    Returns: VTraceReturns, without gradients.
    Raises: ValueError if the shapes disagree.
    Source: Espeholt et al. 2018, equation 1.
    """
    if not log_rhos.shape == discounts.shape == rewards.shape == values.shape or log_rhos.dim() != 2:
        raise ValueError(
            "log_rhos, discounts, rewards and values must all be [T, B], got "
            f"{[tuple(x.shape) for x in (log_rhos, discounts, rewards, values)]}"
        )
    if bootstrap_value.shape != values.shape[1:]:
        raise ValueError(f"bootstrap_value must be [B], got {tuple(bootstrap_value.shape)}")
    given = (log_rhos, discounts, rewards, values, bootstrap_value)
    if not values.is_cpu:
        return _targets_by_doubling(*given, clip_rho, clip_c)
    return VTraceReturns(*map(torch.from_numpy, _targets(*(x.contiguous().numpy() for x in given), f32(clip_rho), f32(clip_c))))


@compiled(nogil=True)
def _targets(log_rhos, discounts, rewards, values, bootstrap_value, clip_rho, clip_c):
    """(v_s, advantage_s) of `from_importance_weights`, backwards in time: one pass in place of three calls a step."""
    T, B = values.shape
    vs, advantages = np.empty_like(values), np.empty_like(values)
    for b in range(B):
        next_value = next_vs = bootstrap_value[b]
        for s in range(T - 1, -1, -1):
            ratio, value = np.exp(log_rhos[s, b]), values[s, b]
            rho, c = min(clip_rho, ratio), min(clip_c, ratio)
            delta = rho * (rewards[s, b] + discounts[s, b] * next_value - value)
            advantages[s, b] = rho * (rewards[s, b] + discounts[s, b] * next_vs - value)
            next_vs = value + (delta + discounts[s, b] * c * (next_vs - next_value))
            vs[s, b], next_value = next_vs, value
    return vs, advantages


def _targets_by_doubling(
    log_rhos: Tensor, discounts: Tensor, rewards: Tensor, values: Tensor, bootstrap_value: Tensor,
    clip_rho: float, clip_c: float,
) -> VTraceReturns:  # fmt: skip
    """The same in log2(T) steps of all times at once, which a GPU does not have to be waited for.

    After a step that looks `ahead`, x_s is the sum of what s has of the deltas of 2 * ahead steps, and a_s the weight of what
    follows. Source: Hillis and Steele 1986, data parallel sums.
    """
    ratios, following = log_rhos.exp(), torch.cat([values[1:], bootstrap_value[None]])
    rhos = ratios.clamp(max=clip_rho)
    x, a, ahead = rhos * (rewards + discounts * following - values), discounts * ratios.clamp(max=clip_c), 1
    while ahead < len(values):
        x = torch.cat([x[:-ahead] + a[:-ahead] * x[ahead:], x[-ahead:]])
        a = torch.cat([a[:-ahead] * a[ahead:], a[-ahead:]])
        ahead *= 2
    vs = values + x
    return VTraceReturns(vs, rhos * (rewards + discounts * torch.cat([vs[1:], bootstrap_value[None]]) - values))


def from_log_probs(
    behaviour_log_probs: Tensor,
    target_log_probs: Tensor,
    discounts: Tensor,
    rewards: Tensor,
    values: Tensor,
    bootstrap_value: Tensor,
) -> VTraceReturns:
    """V-trace targets from the log probabilities that behaviour (mu) and target policy (pi) give to the actions taken.

    All float32 [T, B], bootstrap_value [B]; rho-bar = c-bar = 1.
    """
    return from_importance_weights(
        target_log_probs.detach() - behaviour_log_probs, discounts, rewards, values.detach(), bootstrap_value.detach()
    )

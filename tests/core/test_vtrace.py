"""V-trace against the paper's explicit double sum (Espeholt et al. 2018, equation 1), written slowly in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from torchbeast.core import vtrace
from torchbeast.core.vtrace import action_log_probs, from_importance_weights, from_log_probs

T, B, A = 5, 3, 7


def double_sum(log_rhos, discounts, rewards, values, bootstrap, clip_rho=1.0, clip_c=1.0):
    """v_s = V_s + sum_{t=s}^{T-1} (prod_{i=s}^{t-1} discount_i c_i) delta_t, and section 4.2's advantages."""
    steps, batch = rewards.shape
    V = np.concatenate([values, bootstrap[None]])
    vs, advantages = np.zeros((steps, batch)), np.zeros((steps, batch))
    for b in range(batch):
        for s in range(steps):
            vs[s, b] = V[s, b]
            for t in range(s, steps):
                product = 1.0
                for i in range(s, t):
                    product *= discounts[i, b] * min(clip_c, math.exp(log_rhos[i, b]))
                rho = min(clip_rho, math.exp(log_rhos[t, b]))
                vs[s, b] += product * rho * (rewards[t, b] + discounts[t, b] * V[t + 1, b] - V[t, b])
        for s in range(steps):
            following = vs[s + 1, b] if s + 1 < steps else bootstrap[b]
            rho = min(clip_rho, math.exp(log_rhos[s, b]))
            advantages[s, b] = rho * (rewards[s, b] + discounts[s, b] * following - values[s, b])
    return vs, advantages


@pytest.fixture
def problem():
    rng = np.random.default_rng(3)
    discounts = np.full((T, B), 0.9)
    discounts[2, 0] = discounts[4, 1] = discounts[0, 2] = 0.0  # an episode's end inside, last and first
    arrays = {
        "log_rhos": rng.normal(0, 1.0, (T, B)),
        "discounts": discounts,
        "rewards": rng.normal(0, 1.0, (T, B)),
        "values": rng.normal(0, 2.0, (T, B)),
        "bootstrap_value": rng.normal(0, 2.0, B),
    }
    ratios = np.exp(arrays["log_rhos"])
    assert (ratios > 2.0).any() and (ratios < 0.5).any() and ((ratios > 1) & (ratios < 2)).any()
    return arrays


def as_tensors(arrays, dtype=torch.float32):
    return {name: torch.tensor(array, dtype=dtype) for name, array in arrays.items()}


@pytest.mark.parametrize("clip_rho, clip_c", [(1.0, 1.0), (2.0, 0.7), (0.6, 1.5), (100.0, 100.0)])
def test_double_sum_with_weights_on_both_sides_of_the_clips(problem, clip_rho, clip_c):
    got = from_importance_weights(**as_tensors(problem), clip_rho=clip_rho, clip_c=clip_c)
    vs, advantages = double_sum(*problem.values(), clip_rho, clip_c)
    np.testing.assert_allclose(got.vs.numpy(), vs, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got.pg_advantages.numpy(), advantages, rtol=1e-5, atol=1e-5)
    assert got.vs.dtype == got.pg_advantages.dtype == torch.float32


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_the_way_of_a_gpu_gives_the_same(problem, steps):
    tensors = {name: x if name == "bootstrap_value" else x[:steps] for name, x in as_tensors(problem, torch.float64).items()}
    got = vtrace._targets_by_doubling(*tensors.values(), 2.0, 0.7)
    for ours, theirs in zip(got, double_sum(*(x.numpy() for x in tensors.values()), 2.0, 0.7)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_the_default_clips_are_one(problem):
    assert torch.equal(
        from_importance_weights(**as_tensors(problem)).vs,
        from_importance_weights(**as_tensors(problem), clip_rho=1.0, clip_c=1.0).vs,
    )


def test_nothing_of_the_next_episode_reaches_back(problem):
    before = from_importance_weights(**as_tensors(problem))
    problem["rewards"][3:, 0] += 5.0  # discounts[2, 0] is 0: states 0..2 of column 0 know nothing of what comes after
    problem["values"][3:, 0] -= 7.0
    problem["bootstrap_value"][0] += 11.0
    after = from_importance_weights(**as_tensors(problem))
    assert torch.equal(before.vs[:3, 0], after.vs[:3, 0])
    assert torch.equal(before.pg_advantages[:3, 0], after.pg_advantages[:3, 0])
    assert not torch.equal(before.vs[3:, 0], after.vs[3:, 0])


def test_on_policy_is_the_n_step_bellman_target(problem):
    problem["log_rhos"][:] = 0
    vs = from_importance_weights(**as_tensors(problem)).vs.numpy()
    for b in range(B):
        target = problem["bootstrap_value"][b]
        for t in reversed(range(T)):
            target = problem["rewards"][t, b] + problem["discounts"][t, b] * target
            assert vs[t, b] == pytest.approx(target, abs=1e-5)


def test_from_log_probs_takes_target_over_behaviour(problem):
    behaviour = torch.full((T, B), -2.0)
    target = behaviour + torch.tensor(problem["log_rhos"], dtype=torch.float32)
    rest = [as_tensors(problem)[name] for name in ("discounts", "rewards", "values", "bootstrap_value")]
    got = from_log_probs(behaviour, target, *rest)
    vs, advantages = double_sum(*problem.values())
    np.testing.assert_allclose(got.vs.numpy(), vs, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got.pg_advantages.numpy(), advantages, rtol=1e-4, atol=1e-5)


def test_no_gradient_flows_out(problem):
    tensors = {name: tensor.requires_grad_() for name, tensor in as_tensors(problem).items()}
    for got in (
        from_importance_weights(**tensors),
        from_log_probs(torch.zeros(T, B, requires_grad=True), *tensors.values()),
    ):
        assert not got.vs.requires_grad and not got.pg_advantages.requires_grad


def test_a_single_step(problem):
    one = {name: array[:1] if name != "bootstrap_value" else array for name, array in problem.items()}
    vs, advantages = double_sum(*one.values())
    got = from_importance_weights(**as_tensors(one))
    np.testing.assert_allclose(got.vs.numpy(), vs, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got.pg_advantages.numpy(), advantages, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "name, shape",
    [
        ("log_rhos", (T, B, A)),
        ("discounts", (B,)),
        ("rewards", (T, 1)),
        ("values", (T + 1, B)),
        ("bootstrap_value", (T,)),
        ("bootstrap_value", (1, B)),
        ("bootstrap_value", (1,)),
    ],
)
def test_shapes_that_disagree_are_refused(problem, name, shape):
    tensors = as_tensors(problem)
    tensors[name] = torch.zeros(shape)
    with pytest.raises(ValueError):
        from_importance_weights(**tensors)


def test_three_dimensions_are_refused_even_where_they_agree():
    with pytest.raises(ValueError):
        from_importance_weights(*[torch.zeros(T, B, A)] * 4, torch.zeros(B, A))


def test_action_log_probs():
    logits = torch.randn(T, B, A, generator=torch.Generator().manual_seed(1)) * 3
    actions = torch.arange(T * B).view(T, B) % A
    got = action_log_probs(logits, actions)
    assert got.shape == (T, B)
    for t in range(T):
        for b in range(B):
            numbers = [math.exp(x) for x in logits[t, b].tolist()]
            assert got[t, b].item() == pytest.approx(math.log(numbers[int(actions[t, b])] / sum(numbers)), abs=1e-5)

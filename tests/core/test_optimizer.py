"""The optimiser: its rate, its clipping, RMSprop's arithmetic by hand, and going on from a saved state."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from torch import nn, tensor

from torchbeast.core.forms import EntryError
from torchbeast.core.joined import Joined
from torchbeast.core.optimizer import LearningSettings, Optimizer, optimizer_maker

SETTINGS = dict(
    learning_rate=0.5, frames_per_update=30, total_frames=100, alpha=0.9, epsilon=0.01, momentum=0.0, max_norm=40.0
)  # fmt: skip


def rate(optimizer):
    (group,) = optimizer.rule.param_groups
    return group["lr"]


def parameter(*values):
    return nn.Parameter(tensor(values))


def test_the_rate_falls_linearly_to_zero_and_stays_there():
    """lr * (1 - min(u * T * B, total) / total); 100 frames are no multiple of 30."""
    optimizer = Optimizer([p := parameter(1.0)], **SETTINGS)
    for u in range(7):
        assert rate(optimizer) == pytest.approx(0.5 * (1 - min(u * 30, 100) / 100))
        assert optimizer.updates == u
        before = p.item()
        optimizer.step(p.sum())
        assert (p.item() == before) == (u >= 4)  # frames are used up: nothing moves


def test_an_update_that_does_not_count_moves_the_parameters_and_not_the_rate():
    optimizer = Optimizer([p := parameter(1.0)], **SETTINGS)
    optimizer.step(p.sum(), counts=False)
    assert p.item() < 1.0 and rate(optimizer) == 0.5 and optimizer.updates == 0


@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_rmsprop_by_hand(momentum):
    """v = alpha v + (1 - alpha) g^2; buf = momentum buf + g / (sqrt(v) + eps), eps outside the root; p -= rate buf."""
    p = parameter(2.0, -1.0)
    weights = tensor([[0.3, -0.2], [0.1, 0.4], [-0.5, 0.05]])
    optimizer = Optimizer([p], **SETTINGS | dict(momentum=momentum))
    expected, square, buffer = [2.0, -1.0], [0.0, 0.0], [0.0, 0.0]
    for u, row in enumerate(weights):
        optimizer.step((row * p).sum())
        for i, g in enumerate(row.tolist()):
            square[i] = 0.9 * square[i] + 0.1 * g * g
            buffer[i] = momentum * buffer[i] + g / (math.sqrt(square[i]) + 0.01)
            expected[i] -= 0.5 * (1 - 30 * u / 100) * buffer[i]
        assert p.tolist() == pytest.approx(expected, rel=1e-5)


def test_adam_by_hand():
    """m = .9 m + .1 g; v = .999 v + .001 g^2; p -= rate (m / (1 - .9^u)) / (sqrt(v / (1 - .999^u)) + 1e-8)."""
    p = parameter(2.0, -1.0)
    weights = tensor([[0.3, -0.2], [0.1, 0.4], [-0.5, 0.05]])
    optimizer = Optimizer([p], **SETTINGS, method="adam")
    expected, mean, square = [2.0, -1.0], [0.0, 0.0], [0.0, 0.0]
    for u, row in enumerate(weights):
        optimizer.step((row * p).sum())
        for i, g in enumerate(row.tolist()):
            mean[i] = 0.9 * mean[i] + 0.1 * g
            square[i] = 0.999 * square[i] + 0.001 * g * g
            direction = mean[i] / (1 - 0.9 ** (u + 1)) / (math.sqrt(square[i] / (1 - 0.999 ** (u + 1))) + 1e-8)
            expected[i] -= 0.5 * (1 - 30 * u / 100) * direction
        assert p.tolist() == pytest.approx(expected, rel=1e-5)


def test_the_gradients_norm_is_clipped_at_40_over_all_parameters():
    a, b, still = parameter(0.0), parameter(0.0, 0.0), parameter(5.0)
    optimizer = Optimizer([a, b, still], **SETTINGS)
    norm = optimizer.step(60.0 * a.sum() + 80.0 * b[1])
    assert norm.item() == pytest.approx(100.0)  # before clipping
    assert a.grad.item() == pytest.approx(24.0) and b.grad.tolist() == pytest.approx([0.0, 32.0])
    step = 0.5 * 24 / (math.sqrt(0.1 * 24 * 24) + 0.01)
    assert a.item() == pytest.approx(-step, rel=1e-5)


def test_another_norm_is_kept_to():
    optimizer = Optimizer([a := parameter(0.0), b := parameter(0.0)], **SETTINGS | dict(max_norm=2.5))
    assert optimizer.step(3.0 * a.sum() + 4.0 * b.sum()).item() == pytest.approx(5.0)
    assert (a.grad.item(), b.grad.item()) == pytest.approx((1.5, 2.0))


def test_smaller_gradients_are_not_scaled():
    a, b = parameter(0.0), parameter(0.0)
    Optimizer([a, b], **SETTINGS).step(23.0 * a.sum() + 32.0 * b.sum())  # norm 39.4
    assert (a.grad.item(), b.grad.item()) == (23.0, 32.0)


def test_gradients_do_not_add_up_over_updates():
    p = parameter(0.0)
    optimizer = Optimizer([p], **SETTINGS)
    for _ in range(3):
        assert optimizer.step(2.0 * p.sum()).item() == pytest.approx(2.0)


def test_parameters_without_gradient_are_left_alone():
    used, unused = parameter(1.0), parameter(3.0)
    optimizer = Optimizer([used, unused], **SETTINGS | dict(momentum=0.9))
    for _ in range(3):
        optimizer.step(used.sum())
    assert unused.item() == 3.0 and used.item() != 1.0


def network():
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(4, 5), nn.ELU(), nn.Linear(5, 3))


def learn(net, optimizer, inputs):
    return [optimizer.step(net(x).square().sum()).item() for x in inputs]


@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_a_saved_optimizer_goes_on_identically(momentum):
    settings = SETTINGS | dict(total_frames=400, momentum=momentum)
    inputs = torch.randn(8, 2, 4, generator=torch.Generator().manual_seed(0))
    net = network()
    optimizer = Optimizer(net.parameters(), **settings)
    learn(net, optimizer, inputs[:5])
    file = io.BytesIO()
    torch.save((net.state_dict(), *optimizer.state_dict()), file)
    expected = learn(net, optimizer, inputs[5:])

    other = copy.deepcopy(network()).requires_grad_(True)
    resumed = Optimizer(other.parameters(), **settings)
    file.seek(0)
    weights, rmsprop, schedule = torch.load(file, weights_only=True)
    other.load_state_dict(weights)
    resumed.load_state_dict(rmsprop, schedule)
    assert resumed.updates == 5
    assert rate(resumed) == pytest.approx(0.5 * (1 - 150 / 400))
    assert learn(other, resumed, inputs[5:]) == expected
    assert rate(resumed) == rate(optimizer)
    for mine, theirs in zip(other.parameters(), net.parameters()):
        assert torch.equal(mine, theirs)


def test_the_maker_gives_all_of_a_run_one_schedule():
    learning = LearningSettings(unroll_length=5, batch_size=3, alpha=0.8, epsilon=0.2, momentum=0.3, max_grad_norm=7.5)
    optimizer = optimizer_maker(learning, total_frames=60)([p := parameter(1.0)], learning_rate=0.25)
    (group,) = optimizer.rule.param_groups
    assert (group["lr"], group["alpha"], group["eps"], group["momentum"]) == (0.25, 0.8, 0.2, 0.3)
    assert optimizer.max_norm == 7.5 and LearningSettings().max_grad_norm == 40
    optimizer.step(p.sum())
    assert rate(optimizer) == pytest.approx(0.25 * (1 - 15 / 60))


@pytest.mark.parametrize("frames_per_update", [15, 60])
def test_a_schedule_goes_on_at_the_same_frames_where_an_update_takes_others(frames_per_update):
    """As with more or fewer ranks: two updates of 30 frames are 60 frames, however many updates that is."""
    before = Optimizer([p := parameter(1.0)], **SETTINGS)
    for _ in range(2):
        before.step(p.sum())
    after = Optimizer([parameter(1.0)], **SETTINGS | dict(frames_per_update=frames_per_update))
    after.load_state_dict(*before.state_dict())
    assert after.updates * frames_per_update == 60
    assert rate(after) == pytest.approx(0.5 * (1 - 60 / 100)) == rate(before)


def test_a_schedule_saved_before_it_told_its_frames_goes_on_as_it_is():
    before = Optimizer([p := parameter(1.0)], **SETTINGS)
    before.step(p.sum())
    rule, schedule = before.state_dict()
    del schedule["frames_per_update"]
    after = Optimizer([parameter(1.0)], **SETTINGS)
    after.load_state_dict(rule, schedule)
    assert after.updates == 1 and rate(after) == rate(before)


@pytest.mark.parametrize("method, momentum", [("rmsprop", 0.0), ("rmsprop", 0.7), ("adam", 0.0)])
def test_parameters_together_learn_what_pytorchs_rules_make_of_each(method, momentum):
    """Also after the network was moved, which gives it other memory, and after a state of each was saved and loaded."""
    ours, theirs = network(), network()
    settings = SETTINGS | dict(total_frames=10**9, learning_rate=0.01, momentum=momentum, max_norm=1e9)
    optimizer = Optimizer(ours.parameters(), **settings, method=method)
    kind = {"rmsprop": dict(alpha=0.9, eps=0.01, momentum=momentum), "adam": {}}[method]
    rule = {"rmsprop": torch.optim.RMSprop, "adam": torch.optim.Adam}[method](theirs.parameters(), lr=0.01, **kind)
    for u, x in enumerate(torch.randn(12, 2, 4, generator=torch.Generator().manual_seed(1))):
        if u == 4:
            ours._apply(torch.clone)
        if u == 8:
            state = optimizer.state_dict()
            optimizer = Optimizer(ours.parameters(), **settings, method=method)
            optimizer.load_state_dict(*state)
        optimizer.step(ours(x).square().sum())
        rule.zero_grad()
        theirs(x).square().sum().backward()
        rule.step()
        for mine, other in zip(ours.parameters(), theirs.parameters()):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    kept = optimizer.state_dict()[0]
    for i, statistics in rule.state_dict()["state"].items():
        assert kept["state"][i].keys() == statistics.keys()
        for name, value in statistics.items():
            torch.testing.assert_close(kept["state"][i][name], value, rtol=1e-4, atol=1e-7)
    assert kept["param_groups"][0]["params"] == rule.state_dict()["param_groups"][0]["params"]


def test_a_state_that_tells_nothing_of_a_parameter_without_gradient_goes_on():
    """As older checkpoints', and the published ones', in which only those stand that have learned."""
    used, unused = parameter(1.0, 2.0), parameter(3.0)
    before = Optimizer([unused, used], **SETTINGS)
    before.step(used.sum())
    rule, schedule = before.state_dict()
    assert not rule["state"].pop(0)["square_avg"].any()
    again, still = parameter(*used.tolist()), parameter(3.0)
    after = Optimizer([still, again], **SETTINGS)
    after.load_state_dict(rule, schedule)
    before.step((used**2).sum()), after.step((again**2).sum())
    assert again.tolist() == used.tolist() and still.item() == 3.0


def test_how_a_rule_was_computed_is_no_part_of_its_settings():
    """Checkpoints of 1.0 were made with foreach."""
    before, after = Optimizer([parameter(1.0)], **SETTINGS), Optimizer([parameter(1.0)], **SETTINGS)
    rule, schedule = before.state_dict()
    after.load_state_dict(rule | {"param_groups": [rule["param_groups"][0] | {"foreach": True}]}, schedule)
    with pytest.raises(EntryError, match=r"optimizer/param_groups/0/alpha is 0.8, not 0.9"):
        after.load_state_dict(rule | {"param_groups": [rule["param_groups"][0] | {"alpha": 0.8}]}, schedule)


def test_a_state_without_some_parameters_is_gathered_where_it_is():
    """A checkpoint is read on the CPU; the learner may be on a GPU, for which "meta" stands here."""
    before = Optimizer([parameter(3.0), used := parameter(1.0, 2.0)], **SETTINGS)
    before.step(used.sum())
    state = before.state_dict()[0]["state"]
    expected = torch.cat([state[0]["square_avg"], state[1]["square_avg"]])
    moved = Joined([nn.Parameter(torch.zeros(1, device="meta")), nn.Parameter(torch.zeros(2, device="meta"))])
    assert torch.equal(moved.gather({1: state[1]})["square_avg"], expected)


def test_a_gradient_that_somebody_threw_away_is_there_again():
    optimizer = Optimizer([p := parameter(1.0)], **SETTINGS)
    optimizer.step(p.sum())
    p.grad, before = None, p.item()
    assert optimizer.step(2.0 * p.sum()).item() == 2.0 and p.item() != before


def test_what_was_computed_with_the_parameters_of_before_is_not_learned_from():
    optimizer = Optimizer([p := parameter(1.0)], **SETTINGS)
    old = (p * p).sum()
    optimizer.step(p.sum())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        optimizer.step(old)


def test_a_smoothing_of_nearly_1_is_what_pytorch_makes_of_it():
    ours, theirs = parameter(0.5), parameter(0.5)
    optimizer = Optimizer([ours], **SETTINGS | dict(alpha=1 - 1e-7, epsilon=1e-8))
    rule = torch.optim.RMSprop([theirs], lr=0.5, alpha=1 - 1e-7, eps=1e-8)
    theirs.grad = tensor([3.0])
    rule.step()
    optimizer.step(3.0 * ours.sum())
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)

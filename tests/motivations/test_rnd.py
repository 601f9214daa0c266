"""RND against its paper: the predictor's error, the sums that it is divided by the deviation of, and going on from them."""

from __future__ import annotations

import math

import pytest
import torch

from main import settings as settings_module
from tests.helpers.agents import assert_same_tree, make_inline, make_motivation
from tests.helpers.bounds import assert_bounds
from tests.helpers.learning import TASK, B, T, learner_settings, real_settings
from tests.helpers.motivations.curiosity import assert_same_loss, plain_networks, random_batch, transition
from torchbeast.core.forms import EntryError
from torchbeast.core.settings import flags_of
from utils_folder.motivations.rnd import DiscountedSums, Rnd


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("view", ["full", "partial"])
def test_the_error_and_the_loss_are_the_twins(view):
    """e(s') = mean over the features of (predictor - target)^2, s' the last state where an episode ends; L its mean."""
    settings = learner_settings(model="rnd", rnd_coef=0.3, rnd_view=view)
    motivation = make_motivation(settings, TASK)
    plain, batch = plain_networks(motivation, TASK), random_batch(TASK, settings)
    mine = dict(batch)
    reward = motivation.intrinsic_reward(mine)
    assert torch.equal(reward, torch.zeros(T, B)), "nothing is known of the errors' size yet"
    errors = []
    for t in range(1, T + 1):
        for b in range(B):
            _, _, after = transition(batch, t, b)
            errors.append(((plain["predictor"](after) - plain["target"](after)) ** 2).sum() / 128)
            assert mine["rnd_error"][t - 1, b].item() == pytest.approx(errors[-1].item(), rel=1e-3)
    loss, stats = motivation.loss(mine)
    assert_same_loss(motivation, plain, loss, sum(errors) / (T * B))
    assert stats["rnd_error"] == pytest.approx(loss.item())
    again = motivation.intrinsic_reward(dict(batch))
    torch.testing.assert_close(again, 0.3 * mine["rnd_error"].detach() / stats["rnd_deviation"])
    assert again.dtype == torch.float32 and not again.requires_grad


def test_the_target_stays_and_the_error_falls_on_what_is_seen_again():
    settings = learner_settings(model="rnd", rnd_learning_rate=0.001, total_frames=10**7)
    motivation = make_motivation(settings, TASK)
    batch, target = random_batch(TASK, settings), [p.clone() for p in motivation.networks["rnd_target"].parameters()]
    errors = []
    for _ in range(60):
        mine = dict(batch)
        motivation.intrinsic_reward(mine)
        errors.append(motivation.learn(mine)["rnd_error"])
    assert errors[-1] < 0.3 * errors[0]
    assert all(map(torch.equal, target, motivation.networks["rnd_target"].parameters()))


@pytest.mark.parametrize(
    "flags, refused",
    [
        ("--discounting 1", "--discounting 1"),
        ("--discounting .999", None),
        ("--reward_mixing apart --intrinsic_discounting 1", "--intrinsic_discounting 1"),
        ("--reward_mixing apart --discounting 1", None),
    ],
)
def test_a_discount_by_which_the_sums_would_grow_for_ever_is_refused(flags, refused):
    """With 1 the deviation is that of a sum over all steps so far: a steady error would earn less and less."""
    for chosen in ("--model rnd", "--model count --also rnd"):
        found = settings_module.problems(settings_module.parse([*chosen.split(), *flags.split()])[0])
        assert [text.split(":")[0] for text in found] == ([refused] if refused else [])
    assert not settings_module.problems(settings_module.parse(["--model", "count", "--discounting", "1"])[0])


def plain_sums(values: list[float], discount: float) -> list[float]:
    return [sum(discount ** (t - s) * values[s] for s in range(t + 1)) for t in range(len(values))]


@pytest.mark.parametrize(
    "discounts",
    [{"discounting": 0.9}, {"discounting": 0.5, "intrinsic_discounting": 0.9, "reward_mixing": "apart"}],
    ids=["one discount", "its own"],
)
def test_the_deviation_is_that_of_sums_that_run_on_over_rollouts_of_one_environment(discounts):
    """Three environments and nine rollouts in a batch: three follow on each other within it, and go on from the last one."""
    settings = real_settings(model="rnd", use_lstm=False, batch_size=9, **discounts)
    learner, source, _ = make_inline(settings, num_envs=3)
    errors: list[list[float]] = [[], [], []]
    for _ in range(3):
        batch = source.get(9)
        learner.motivation.intrinsic_reward(batch)
        for column in range(9):
            errors[column % 3] += batch["rnd_error"][:, column].tolist()
        deviation = learner.motivation.learn(batch)["rnd_deviation"]
        sums = [total for one in errors for total in plain_sums(one, 0.9)]
        mean = sum(sums) / len(sums)
        assert deviation == pytest.approx(math.sqrt(sum((s - mean) ** 2 for s in sums) / len(sums)), rel=1e-5)


def test_what_does_not_go_on_starts_from_nothing():
    sums = DiscountedSums(0.5)
    ones = torch.ones(2, 2)
    assert sums.go_on(ones, [7, 8], [0, 0]).tolist() == [[1, 1], [1.5, 1.5]]
    assert sums.go_on(ones, [8, 7], [4, 2]).tolist() == [[1, 1.75], [1.5, 1.875]]  # a rollout of 8 is lacking, 7 goes on
    both = sums.go_on(ones, [7, 7], [6, 4])  # the later one stands first
    assert both[:, 1].tolist() == [1.9375, 1.96875] and both[:, 0].tolist() == [1.984375, 1.9921875]


def test_sums_are_saved_and_refused_where_they_are_none():
    sums, other = DiscountedSums(0.5), DiscountedSums(0.5)
    assert sums.state_dict() == {}
    sums.go_on(torch.ones(2, 3), [7, 8, 9], [0, 4, 0])
    other.load_state_dict(sums.state_dict(), "sums")
    assert_same_tree(other.state_dict(), sums.state_dict())
    assert torch.equal(other.go_on(torch.ones(2, 1), [8], [6]), sums.go_on(torch.ones(2, 1), [8], [6]))
    state = sums.state_dict()
    for wrong in ({"sum": state["sum"] * math.nan}, {"sum": state["sum"][:2]}, {"clock": state["clock"].double()}):
        with pytest.raises(EntryError, match="sums"):
            other.load_state_dict({**state, **wrong}, "sums")
    other.load_state_dict({}, "sums")
    assert other.state_dict() == {}


def test_flags():
    assert_bounds(Rnd.groups, at_least_one=set(), not_negative={"rnd_coef", "rnd_learning_rate"}, any_number=set())
    assert [name for name, about in flags_of(Rnd.groups).items() if about.agent] == ["rnd_coef", "rnd_view"]

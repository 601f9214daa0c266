"""The target t*: schedules as tables, both directions, bounds, and what they warn of."""

from __future__ import annotations

import json

import pytest
import torch

from utils_folder.motivations import difficulty, rewards
from utils_folder.motivations.difficulty import Threshold, TrackingWindow, Window

GOOD, BAD, EDGE = 0.5, -0.4, 0.1  # mean rewards; the threshold is 0.1, and a mean at the threshold is good


def threshold(**changes):
    return Threshold(**dict(threshold=0.1, counts=3, maximum=100, negative=-0.3) | changes)


def window(**changes):
    return Window(**dict(threshold=0.1, counts=3, window=50, negative=-0.3) | changes)


def tracking(**changes):
    settings = dict(threshold=0.1, counts=3, maximum=100, window=5, negative=-0.3, start=7, target=7)
    return TrackingWindow(**settings | changes)


def targets(schedule, means, ex_reward=0.0):
    """t* after each update; `means` are mean rewards or (mean reward, mean ex_reward)."""
    found = []
    for mean in means:
        schedule.update(*(mean if isinstance(mean, tuple) else (mean, ex_reward)))
        found.append(schedule.target)
    return found


def test_where_t_star_starts():
    assert threshold().target == 7
    assert window().target == 100


# -- which goals count ------------------------------------------------------------------------------------------------

STEPS = [1, 6, 7, 8, 12, 13, 100]


@pytest.mark.parametrize(
    "schedule, counting",
    [
        (threshold(target=7), [7, 8, 12, 13, 100]),
        (window(target=10, window=3), [7, 8, 12, 13]),
        (tracking(target=10, window=2), [8, 12]),
        (tracking(target=7, window=0), [7]),
    ],
)
def test_success(schedule, counting):
    steps = torch.tensor(STEPS, dtype=torch.int32)
    everywhere = schedule.success(torch.ones(7, dtype=torch.bool), steps)
    assert everywhere.dtype == torch.bool
    assert [s for s, success in zip(STEPS, everywhere.tolist()) if success] == counting
    # Entries whose episode ended without reaching the goal never count, whatever their step.
    assert not schedule.success(torch.zeros(7, dtype=torch.bool), steps).any()


# -- default ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "start, means, expected",
    [
        (7, [GOOD] * 7, [7, 7, 8, 8, 8, 9, 9]),
        (7, [EDGE] * 3, [7, 7, 8]),
        (7, [GOOD, GOOD, BAD, GOOD, GOOD, GOOD], [7, 7, 7, 7, 7, 8]),  # a bad one restarts the count
        (7, [BAD] * 7, [7] * 7),  # never down
        (99, [GOOD] * 9, [99, 99, 100, 100, 100, 101, 101, 101, 101]),  # while t* <= maximum
        (7, [(BAD, 1.0)] * 5, [7] * 5),  # the environment's reward plays no part
    ],
)
def test_threshold_schedule(start, means, expected):
    assert targets(threshold(target=start), means) == expected


# -- window_adaptive, published rule ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "start, means, expected",
    [
        (100, [GOOD] * 7, [100, 100, 99, 99, 99, 98, 98]),
        (100, [EDGE] * 3, [100, 100, 99]),
        (100, [BAD] * 7, [100, 100, 101, 101, 101, 102, 102]),
        # Counts are not cleared by the other kind, and both are by a move.
        (100, [GOOD, BAD, GOOD, BAD, GOOD, BAD, BAD, BAD], [100, 100, 100, 100, 99, 99, 99, 100]),
        (100, [BAD, GOOD, BAD, GOOD, BAD, GOOD, GOOD, GOOD], [100, 100, 100, 100, 101, 101, 101, 100]),
        (21, [GOOD] * 6, [21, 21, 20, 20, 20, 20]),  # not below 20
        (269, [BAD] * 9, [269, 269, 270, 270, 270, 270, 270, 270, 270]),  # not above 270
        # Mean ex_reward >= 0.8 lowers t* at once and clears the counts.
        (100, [(BAD, 0.8), (BAD, 0.9), (BAD, 0.0)], [99, 98, 98]),
        (100, [(BAD, 0.79)] * 3, [100, 100, 101]),
        (100, [BAD, BAD, (BAD, 0.8), BAD, BAD, BAD], [100, 100, 99, 99, 99, 100]),
        # At 20, where t* cannot fall, it can still rise: `else if` looks at up whatever down is.
        (20, [GOOD, GOOD, GOOD, BAD, BAD, BAD], [20, 20, 20, 20, 20, 21]),
        (20, [(BAD, 1.0)] * 3, [20, 20, 21]),
        (7, [GOOD] * 4, [7] * 4),  # from a start at 7 (the last revision) success can never move it
    ],
)
def test_window_schedule(start, means, expected):
    assert targets(window(target=start), means) == expected


# -- window_adaptive, tracking rule -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "start, target, means, expected",
    [
        (7, 7, [GOOD] * 7, [7, 7, 8, 8, 8, 9, 9]),
        (7, 7, [EDGE] * 3, [7, 7, 8]),
        (7, 9, [BAD] * 7, [9, 9, 8, 8, 8, 7, 7]),
        (7, 7, [BAD] * 7, [7] * 7),  # never below its start
        (7, 99, [GOOD] * 7, [99, 99, 100, 100, 100, 100, 100]),  # never above the maximum
        (7, 9, [GOOD, GOOD, BAD, GOOD, GOOD, GOOD], [9, 9, 9, 9, 9, 10]),  # one kind clears the other
        (7, 9, [BAD, BAD, GOOD, BAD, BAD, BAD], [9, 9, 9, 9, 9, 8]),
        (7, 100, [GOOD] * 4 + [BAD] * 3, [100] * 6 + [99]),  # at the bound it turns as fast as elsewhere
        (7, 7, [BAD] * 4 + [GOOD] * 3, [7] * 6 + [8]),
        (7, 9, [(BAD, 1.0)] * 3, [9, 9, 8]),  # the environment's reward plays no part
    ],
)
def test_tracking_schedule(start, target, means, expected):
    assert targets(tracking(start=start, target=target), means) == expected


@pytest.mark.parametrize("make", [threshold, window, tracking])
def test_a_mean_that_equals_the_threshold_but_for_rounding_is_good(make):
    mean = rewards.teacher_reward(14 / 20, negative=-0.3, coef=1.0)
    assert mean < 0.4, "no rounding to be tested"
    moved = make(threshold=0.4, counts=1, target=60)
    moved.update(mean, 0.0)
    assert moved.target == (59 if make is window else 61)
    moved.update(0.4 - 1e-6, 0.0)
    assert moved.target != (58 if make is window else 62)


# -- warnings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [threshold, window, tracking])
@pytest.mark.parametrize("limit, negative, warned", [(-0.5, -0.3, True), (-0.3, -0.3, True), (-0.1, -0.3, False)])
def test_a_threshold_that_every_mean_passes_is_told(make, limit, negative, warned):
    schedule = make(threshold=limit, negative=negative, target=60)
    lines = [line for line in schedule.warnings() if "generator_threshold" in line]
    assert len(lines) == warned
    if warned:  # and it is true: t* moves although no goal was ever reached
        assert targets(schedule, [negative] * 3)[-1] != 60


@pytest.mark.parametrize("make", [window, tracking])
@pytest.mark.parametrize("target, size, warned", [(51, 50, True), (52, 50, False), (20, 50, True), (7, 5, False)])
def test_a_window_that_reaches_down_to_one_step_is_told(make, target, size, warned):
    lines = list(make(target=target, window=size).warnings())
    assert len(lines) == warned
    assert all("window" in line for line in lines)


def test_the_window_warning_comes_when_t_star_gets_there():
    schedule = window(target=52, counts=1)
    assert not list(schedule.warnings())
    schedule.update(GOOD, 0.0)
    assert schedule.target == 51 and list(schedule.warnings())


def test_nothing_to_warn_of():
    for schedule in (threshold(), window(), tracking()):
        assert list(schedule.warnings()) == []


# -- state ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [threshold, window, tracking])
def test_a_saved_schedule_goes_on_identically(make):
    means = [GOOD, GOOD, BAD, GOOD, BAD, BAD, BAD, GOOD, GOOD, GOOD, GOOD, BAD, GOOD, BAD]
    for cut in range(len(means)):
        schedule = make(target=60)
        targets(schedule, means[:cut])
        state = json.loads(json.dumps(difficulty.state_dict(schedule)))  # plain numbers only
        resumed = make()
        difficulty.load_state_dict(resumed, state)
        assert resumed.target == schedule.target
        assert targets(resumed, means[cut:]) == targets(schedule, means[cut:])
        assert difficulty.state_dict(resumed) == difficulty.state_dict(schedule)

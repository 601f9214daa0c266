"""What is solved, and what a fall is."""

from __future__ import annotations

import math

import numpy as np
import pytest

from torchbeast.core import success


def test_an_episode_that_was_paid_is_solved():
    assert success.success_rate([0.0, 0.01, 0.9, 0.0]) == success.success_rate(np.float32([0.0, 0.01, 0.9, 0.0])) == 0.5
    assert [success.solved(value) for value in (-1.0, 0.0, np.float32(1e-6))] == [False, False, True]


@pytest.mark.parametrize(
    ("rates", "falls", "recoveries"),
    [
        ([0.9, 0.3], 1, 0),
        ([0.9, 0.31], 0, 0),
        ([0.89, 0.3], 0, 0),
        ([0.9, math.nan, 0.3], 1, 0),
        ([0.9, 0.3, 0.1, 0.2], 1, 0),  # one fall, however long it lies
        ([0.9, 0.3, 0.9, 0.95], 1, 1),
        ([0.9, 0.3, 0.9, 0.3, 0.6], 2, 1),
        ([0.9, 0.6, 0.5, 0.3], 0, 0),  # too slow
        ([0.9, 0.6, 0.9, 0.5, 0.3], 1, 0),  # from the last time that it was high
        ([sum([0.1] * 9), 0.1 + 0.2], 1, 0),  # equal to 0.9 and 0.3 but for rounding
    ],
)
def test_a_fall_goes_from_09_to_03_within_a_million_frames(rates, falls, recoveries):
    counted = success.Falls()
    told = [counted.see(500_000 * i, rate) for i, rate in enumerate(rates)]
    assert (counted.count, counted.recoveries, sum(told)) == (falls, recoveries, falls)

"""Whether tasks are solved: the share of episodes, and how often a policy that solves them stops doing so."""

from __future__ import annotations

import math
from collections.abc import Collection

RECENT_EPISODES = 100  # what is told of the present moment is told of so many
FALL_FROM, FALL_TO, FALL_FRAMES = 0.9, 0.3, 1_000_000  # two success rates, and how many frames a fall may take
ROUNDING = 1e-9  # by which a rate, a mean of means, may miss one that it is equal to


def solved(episode_return: float) -> bool:
    """Whether an episode with this return solved its task: it is for that that tasks pay."""
    return bool(episode_return > 0)


def success_rate(returns: Collection[float]) -> float:
    """The share of solved episodes among some with these returns, of at least one."""
    return sum(map(solved, returns)) / len(returns)


class Falls:
    """Counts how often a success rate falls from FALL_FROM or more to FALL_TO or less within FALL_FRAMES, and comes back.

    Attributes:
        count: falls so far.
        recoveries: how often it was FALL_FROM or more again after one.
    """

    def __init__(self) -> None:
        self.count = self.recoveries = 0
        self._high = -math.inf  # frames of the last time at FALL_FROM or more since the last fall

    def see(self, frames: float, rate: float) -> bool:
        """The rate at this frame (NaN: there is none). Returns whether it has just fallen."""
        if rate >= FALL_FROM - ROUNDING:
            self.recoveries += self.count > self.recoveries
            self._high = frames
        elif rate <= FALL_TO + ROUNDING and frames - self._high <= FALL_FRAMES:
            self.count += 1
            self._high = -math.inf
            return True
        return False

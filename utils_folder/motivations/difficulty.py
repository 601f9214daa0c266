"""The target t*: how many steps a goal should take, and how that moves with the student's success."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar, Protocol

from torch import Tensor

from torchbeast.core import forms

ROUNDING = 1e-9
MOST_STEPS = 10**9  # of a goal, and more: goal steps are int32


class Difficulty(Protocol):
    """Decides which reached goals earn the teacher its reward, and moves t*."""

    target: int

    def success(self, reached: Tensor, goal_step: Tensor) -> Tensor:
        """bool [N] from bool [N] and int32 [N]: reached, at the distance asked for."""

    def update(self, mean_reward: float, mean_ex_reward: float) -> None:
        """Moves t* after a teacher update, by the mean of r and of the environment's reward over its entries."""

    @property
    def at_limit(self) -> bool:
        """Whether t* stands where the rule lets it go no further."""

    def can_come_to(self, target: int) -> bool:
        """Whether t* can ever be so, from where it stands."""

    def warnings(self) -> Iterator[str]:
        """What a user should know of the present state, a line each."""


@dataclasses.dataclass
class Threshold:
    """`default`: a goal must take at least t* steps; t* grows by one after `counts` good updates in a row.

    Args:
        threshold: an update is good if the mean of r is at least this.
        counts: good updates in a row before t* grows.
        maximum: t* does not grow beyond maximum + 1.
        negative: -beta, the reward of a goal that failed.
        target: t* at the start.
        count: good updates in a row so far.
    Source: AMIGo (arXiv 2006.12122), section 3, "teacher".
    """

    threshold: float
    counts: int
    maximum: int
    negative: float
    target: int = 7
    count: int = 0

    STATE: ClassVar = ("target", "count")

    def success(self, reached: Tensor, goal_step: Tensor) -> Tensor:
        return reached & (goal_step >= self.target)

    def update(self, mean_reward: float, mean_ex_reward: float) -> None:
        self.count = self.count + 1 if _is_good(mean_reward, self.threshold) else 0
        if self.count >= self.counts and self.target <= self.maximum:
            self.target += 1
            self.count = 0

    @property
    def at_limit(self) -> bool:
        return self.target > self.maximum

    def can_come_to(self, target: int) -> bool:
        return self.target <= target <= max(self.target, self.maximum + 1)

    def warnings(self) -> Iterator[str]:
        yield from _clock_warning(self.threshold, self.negative)


@dataclasses.dataclass
class Window:
    """`window_adaptive`, published rule: a goal must take t* steps, give or take `window`; success lowers t*, failure raises.

    Args as in Threshold; `up` and `down` count updates below and at the threshold since t* last moved.
    Source: the reference's window rule (utils_folder/README.md, differences).
    """

    threshold: float
    counts: int
    window: int
    negative: float
    target: int = 100
    up: int = 0
    down: int = 0

    STATE: ClassVar = ("target", "up", "down")
    LOWEST: ClassVar = 20
    HIGHEST: ClassVar = 270
    SOLVED: ClassVar = 0.8

    def success(self, reached: Tensor, goal_step: Tensor) -> Tensor:
        return reached & ((goal_step - self.target).abs() <= self.window)

    def update(self, mean_reward: float, mean_ex_reward: float) -> None:
        if _is_good(mean_reward, self.threshold):
            self.down += 1
        else:
            self.up += 1
        if (self.down >= self.counts or mean_ex_reward >= self.SOLVED) and self.target > self.LOWEST:
            self._move(-1)
        elif self.up >= self.counts and self.target < self.HIGHEST:
            self._move(1)

    def _move(self, step: int) -> None:
        self.target += step
        self.up = self.down = 0

    @property
    def at_limit(self) -> bool:
        return not self.LOWEST < self.target < self.HIGHEST

    def can_come_to(self, target: int) -> bool:
        return min(self.LOWEST, self.target) <= target <= max(self.HIGHEST, self.target)

    def warnings(self) -> Iterator[str]:
        if self.threshold <= self.negative and self.target <= self.LOWEST:
            yield (
                f"generator_threshold {self.threshold:g} is not above generator_reward_negative {self.negative:g}, so "
                f"every mean reward passes, which lowers t*; at {self.LOWEST} and below it cannot fall: t* stands still"
            )
        else:
            yield from _clock_warning(self.threshold, self.negative)
        yield from _wide_window_warning(self.target, self.window)


@dataclasses.dataclass
class TrackingWindow:
    """`--window_rule tracking`: as Window, but success raises t* and failure lowers it, between its start and maximum.

    `up` counts good updates in a row, `down` bad ones.
    """

    threshold: float
    counts: int
    maximum: int
    window: int
    negative: float
    start: int
    target: int
    up: int = 0
    down: int = 0

    STATE: ClassVar = ("target", "up", "down")

    success = Window.success
    _move = Window._move

    def update(self, mean_reward: float, mean_ex_reward: float) -> None:
        good = _is_good(mean_reward, self.threshold)
        self.up, self.down = (self.up + 1, 0) if good else (0, self.down + 1)
        if self.up >= self.counts and self.target < self.maximum:
            self._move(1)
        elif self.down >= self.counts and self.target > self.start:
            self._move(-1)

    @property
    def at_limit(self) -> bool:
        return not self.start < self.target < self.maximum

    def can_come_to(self, target: int) -> bool:
        return min(self.start, self.target) <= target <= max(self.maximum, self.target)

    def warnings(self) -> Iterator[str]:
        yield from _clock_warning(self.threshold, self.negative)
        yield from _wide_window_warning(self.target, self.window)
        if self.start >= self.maximum:
            yield (
                f"t* starts at {self.start}, not below generator_maximum {self.maximum}, so it cannot move: "
                "give a lower --generator_start or a higher --generator_maximum"
            )


def state_dict(difficulty: Difficulty) -> dict[str, int]:
    """What has moved since the start."""
    return {name: getattr(difficulty, name) for name in difficulty.STATE}


def load_state_dict(difficulty: Difficulty, state: dict[str, int]) -> None:
    """Puts a difficulty back to where `state_dict` saw it. Raises: EntryError for what is no such state."""
    forms.record(dict.fromkeys(difficulty.STATE, forms.whole(high=MOST_STEPS)))("difficulty", state)
    for name in difficulty.STATE:
        setattr(difficulty, name, state[name])


def check_reachable(start: Difficulty, state: dict[str, int]) -> None:
    """Raises: EntryError unless a run that began with `start` can have come to this state."""
    target = state["target"]
    if not start.can_come_to(target):
        raise forms.EntryError(f"difficulty/target is {target}, where t* cannot come from {start.target} by the run's flags")


def _is_good(mean_reward: float, threshold: float) -> bool:
    """Whether an update is good; a mean that equals the threshold but for rounding is (-.3 + 14 / 20 and .4)."""
    return mean_reward >= threshold - ROUNDING


def _clock_warning(threshold: float, negative: float) -> Iterator[str]:
    if threshold <= negative:
        yield (
            f"generator_threshold {threshold:g} is not above generator_reward_negative {negative:g}: every mean reward passes, "
            "so t* moves by the clock, not by the student's skill"
        )


def _wide_window_warning(target: int, window: int) -> Iterator[str]:
    if target - window <= 1:
        yield (
            f"t* - window ({window}) <= 1: any goal reached at once earns the teacher its full reward; "
            "a smaller --window avoids that"
        )

"""Alarms: what a user should know of a student that learns nothing, or not from what it does now, or that broke."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping

from torchbeast.core.optimizer import LearningSettings
from torchbeast.core.success import FALL_FROM, FALL_TO, RECENT_EPISODES, Falls, success_rate

LAG_UPDATES = 100  # over how many updates policy lag is averaged before it is judged
LAG_FACTOR = 2  # policy lag, in what is usual when every rollout waits for its turn, from which it is worth a warning
CHANCE = 0.97  # of the most entropy that a policy can have: runs that earned too little kept it, hardly any that learned
CHANCE_FRAMES = 1_000_000
VALUE_ERROR = 20.0  # of a step, root mean square, where rewards are clipped: values that do not break stay below 6
CALM_FRAMES = 100_000  # after so many without it, such an error is another one


class StudentAlarms:
    """Watches what a learner logs of each update of the student."""

    def __init__(self, settings: LearningSettings, *, num_actions: int, num_buffers: int, clipped: bool):
        """`num_buffers`: rollouts between actors and the learner; `clipped`: rewards are, so it is known what values can be."""
        self._settings = settings
        self._most_entropy = math.log(num_actions)
        self._lag_bound = LAG_FACTOR * (num_buffers / settings.batch_size + 1)
        self._usual_lag = 0.0
        self._frames = 0
        self._by_chance_since: int | None = None
        self._clipped = clipped
        self._last_error = -math.inf  # when it was last as large as that
        self._error: tuple[int, float] | None = None  # the first of the last ones: when, and what
        self._falls = Falls()
        self._fallen_at: int | None = None  # the last time

    def see(self, row: Mapping[str, float], recent_returns: Collection[float]) -> None:
        """`row`: of one update, with the columns frames, policy_lag, entropy_loss and baseline_loss; `recent_returns`: of the
        last episodes, of which RECENT_EPISODES are needed to tell a fall."""
        self._frames = int(row["frames"])
        self._usual_lag += (row["policy_lag"] - self._usual_lag) / LAG_UPDATES
        by_chance = self._entropy(row["entropy_loss"]) >= CHANCE * self._most_entropy
        if not by_chance:
            self._by_chance_since = None
        elif self._by_chance_since is None:
            self._by_chance_since = self._frames
        error = self._value_error(row["baseline_loss"])
        if self._clipped and error >= VALUE_ERROR:
            if self._frames - self._last_error >= CALM_FRAMES:
                self._error = self._frames, error
            self._last_error = self._frames
        if len(recent_returns) >= RECENT_EPISODES and self._falls.see(self._frames, success_rate(recent_returns)):
            self._fallen_at = self._frames

    def _entropy(self, loss: float) -> float:
        """Of the policy, in nats; 0 where its loss has no weight, and so nothing can be told."""
        weight = self._settings.entropy_cost * self._settings.unroll_length
        return -loss / weight if weight else 0.0

    def _value_error(self, loss: float) -> float:
        """The root of the mean square of what the value was wrong by; 0 where its loss has no weight."""
        weight = self._settings.baseline_cost * self._settings.unroll_length
        return math.sqrt(2 * loss / weight) if weight else 0.0

    def warnings(self) -> Iterator[str]:
        """A line each."""
        if self._usual_lag > self._lag_bound:
            yield (
                f"rollouts come from weights more than {self._lag_bound:.0f} updates old: actors are too slow for the learner; "
                "fewer --num_buffers or more --num_actor_processes help"
            )
        if self._by_chance_since is not None and self._frames - self._by_chance_since >= CHANCE_FRAMES:
            yield (
                f"the student has acted by chance for {CHANCE_FRAMES:,} frames (at least {CHANCE:.0%} of the most entropy): "
                "what it earns is too little beside --entropy_cost; lower that, or raise the intrinsic reward's scale, if any"
            )
        if self._error:
            frames, error = self._error
            yield (
                f"the student's value was wrong by {error:.0f} at frame {frames:,}, where a step pays 2 at most: it has "
                "exploded, and the policy may not come back from that; try a lower --learning_rate or --max_grad_norm"
            )
        if self._fallen_at is not None:
            bound = "" if self._settings.policy_clip else "--policy_clip .2 or "
            yield (
                f"the student fell at frame {self._fallen_at:,}: it solved {FALL_FROM:.0%} of {RECENT_EPISODES} episodes, "
                f"and {FALL_TO:.0%} or less of the last; it may come back; {bound}a lower --learning_rate makes that rarer"
            )

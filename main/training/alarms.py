"""Alarms: what a user should know of a student that does not learn from what it does now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torchbeast.core.optimizer import LearningSettings

LAG_UPDATES = 100  # over how many updates policy lag is averaged before it is judged
LAG_FACTOR = 2  # policy lag, in what is usual when every rollout waits for its turn, from which it is worth a warning


class StudentAlarms:
    """Watches what a learner logs of each update of the student."""

    def __init__(self, settings: LearningSettings, *, num_buffers: int):
        """`num_buffers`: rollouts between actors and the learner."""
        self._lag_bound = LAG_FACTOR * (num_buffers / settings.batch_size + 1)
        self._usual_lag = 0.0

    def see(self, row: Mapping[str, float]) -> None:
        """`row`: of one update, with the column policy_lag."""
        self._usual_lag += (row["policy_lag"] - self._usual_lag) / LAG_UPDATES

    def warnings(self) -> Iterator[str]:
        """A line each."""
        if self._usual_lag > self._lag_bound:
            yield (
                f"rollouts come from weights more than {self._lag_bound:.0f} updates old: actors are too slow for the learner; "
                "fewer --num_buffers or more --num_actor_processes help"
            )

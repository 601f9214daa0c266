"""Alarms: what a user should know of a teacher that has stopped teaching."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from utils_folder.motivations.difficulty import Difficulty


class TeacherAlarms:
    """Watches for a teacher that has stopped teaching."""

    UNREACHED_FRAMES = 1_000_000
    FROZEN_FRAMES = 10_000_000
    COLLAPSED_NATS = 0.01
    COLLAPSED_UPDATES = 100
    DEAD_LOGIT = -0.99  # the map's ELU ends at -1, and has hardly a gradient there

    def __init__(self, target: int):
        self._target = target
        self._frames_since_reached = 0
        self._frames_since_moved = 0
        self._collapsed_updates = 0
        self._dead_updates = 0

    def see(self, reached: Tensor, difficulty: Difficulty) -> None:
        """reached: bool [T, B]."""
        self._frames_since_reached = 0 if reached.any() else self._frames_since_reached + reached.numel()
        self._frames_since_moved = 0 if difficulty.target != self._target else self._frames_since_moved + reached.numel()
        self._target = difficulty.target

    def see_proposals(self, entropy: float, highest_logit: float) -> None:
        """Of one teacher update: the goals' mean entropy, in nats, and the highest of all logits."""
        self._collapsed_updates = self._collapsed_updates + 1 if entropy < self.COLLAPSED_NATS else 0
        self._dead_updates = self._dead_updates + 1 if highest_logit < self.DEAD_LOGIT else 0

    def warnings(self, difficulty: Difficulty) -> Iterator[str]:
        if self._frames_since_reached >= self.UNREACHED_FRAMES:
            yield (
                f"no goal has been reached for {self.UNREACHED_FRAMES:,} frames: the teacher cannot learn; lower t* "
                "(--generator_start), or raise --generator_entropy_cost"
            )
        if self._frames_since_moved >= self.FROZEN_FRAMES and not difficulty.at_limit:
            yield (
                f"t* has not moved for {self.FROZEN_FRAMES:,} frames: no update in a row of generator_counts is good enough; "
                "lower --generator_threshold or --generator_counts"
            )
        if self._collapsed_updates >= self.COLLAPSED_UPDATES:
            yield (
                f"the teacher has proposed one goal only for {self.COLLAPSED_UPDATES} updates (entropy below "
                f"{self.COLLAPSED_NATS} nats): raise --generator_entropy_cost"
            )
        if self._dead_updates >= self.COLLAPSED_UPDATES:
            yield (
                f"all of the teacher's logits have stood at the floor of its last ELU for {self.COLLAPSED_UPDATES} updates: it "
                "proposes goals at random and hardly learns; start again with a lower --generator_learning_rate or a higher "
                "--generator_entropy_cost"
            )

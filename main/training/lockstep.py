"""What ranks decide together after an update: whether it was the last one, and whether they make a checkpoint now."""

from __future__ import annotations

from main.training.interrupt import EXIT_CODES, Interrupt
from main.training.learner import Learner
from torchbeast.core.ranks import Alone

CHECK_UPDATES = 100  # how often ranks compare what must be equal on all of them


class Lockstep:
    """All ranks stop after the same update, by the same signal, and save after the same one. Alone, it is this rank's wish.

    Attributes:
        save_due: this rank wants a checkpoint after the next update.
        number: the signal that all end by; None if none.
        over: the last update has been made, on all ranks.
    """

    def __init__(self, learner: Learner, interrupt: Interrupt, ranks: Alone):
        self._learner = learner
        self._interrupt = interrupt
        self._ranks = ranks
        self._agreed: int | None = None
        self.save_due = False
        self.over = False

    @property
    def stopping(self) -> bool:
        """Whether no update is to be begun. Several ranks decide that together, at the end of one."""
        return self.over or (self._interrupt.asked and self._ranks.alone)

    @property
    def number(self) -> int | None:
        return self._interrupt.number if self._ranks.alone else self._agreed

    def agree(self, row: dict[str, float]) -> tuple[dict[str, float], bool]:
        """After every update: the row of all ranks together, and whether they make a checkpoint now."""
        if self._ranks.alone:
            return row, False
        wishes = {"stop": self._interrupt.asked, "save": self.save_due}
        wishes |= {str(int(number)): self._interrupt.number == number for number in EXIT_CODES}
        row, granted = self._learner.row_of_all(row, wishes)
        if granted["stop"]:
            self._agreed = next((number for number in EXIT_CODES if granted[str(int(number))]), None)
            self.over = True
        elif self._learner.updates % CHECK_UPDATES == 0:
            self._learner.check_equal()
        return row, granted["save"] > 0

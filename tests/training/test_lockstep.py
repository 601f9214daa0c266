"""What ranks decide together after an update, with a made-up learner: of one rank, and of several by what all wish."""

from __future__ import annotations

import signal

import pytest

from main.training.interrupt import EXIT_CODES, Interrupt
from main.training.lockstep import CHECK_UPDATES, Lockstep
from torchbeast.core.ranks import ALONE, Alone

ROW = {"frames": 240, "total_loss": 1.5}


class Several(Alone):
    """Stands for this process's part of several ranks."""

    size, alone = 3, False


class Joins:
    """Stands for a learner: joins this rank's wishes with those of the other two, as a mean."""

    def __init__(self, *others: dict[str, float]):
        self.others = others
        self.updates = self.compared = 0

    def row_of_all(self, row, wishes):
        self.updates += 1
        means = {name: (wish + sum(other.get(name, 0.0) for other in self.others)) / 3 for name, wish in wishes.items()}
        return {**row, "joined": True}, means

    def check_equal(self) -> None:
        self.compared += 1


def of_several(*others: dict[str, float]) -> tuple[Lockstep, Interrupt, Joins]:
    interrupt, learner = Interrupt(), Joins(*others)
    return Lockstep(learner, interrupt, Several()), interrupt, learner


def asked_by(interrupt: Interrupt, number: int) -> None:
    interrupt.ask()
    interrupt.number = number


def test_alone_it_is_this_ranks_own_wish():
    interrupt = Interrupt()
    lockstep = Lockstep(None, interrupt, ALONE)  # no learner is asked for anything
    assert lockstep.agree(ROW) == (ROW, False) and not lockstep.stopping
    asked_by(interrupt, signal.SIGTERM)
    assert lockstep.stopping and lockstep.number == signal.SIGTERM
    assert lockstep.agree(ROW) == (ROW, False) and not lockstep.over


def test_without_a_wish_all_go_on():
    lockstep, _, learner = of_several()
    assert lockstep.agree(ROW) == ({**ROW, "joined": True}, False)
    assert not (lockstep.over or lockstep.stopping) and lockstep.number is None and learner.updates == 1


def test_of_several_a_wish_to_stop_waits_for_the_end_of_an_update():
    lockstep, interrupt, _ = of_several()
    asked_by(interrupt, signal.SIGINT)
    assert not lockstep.stopping and lockstep.number is None
    lockstep.agree(ROW)
    assert lockstep.stopping and lockstep.over and lockstep.number == signal.SIGINT


@pytest.mark.parametrize("number", sorted(EXIT_CODES))
def test_another_ranks_signal_ends_this_one_too(number):
    lockstep, interrupt, _ = of_several({"stop": 1.0, str(int(number)): 1.0})
    lockstep.agree(ROW)
    assert lockstep.over and lockstep.number == number and not interrupt.asked


def test_all_end_by_the_same_of_several_signals():
    """SIGINT here and SIGTERM there: this rank and that one must name the same."""
    named = set()
    for own, other in ((signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)):
        lockstep, interrupt, _ = of_several({"stop": 1.0, str(int(other)): 1.0})
        asked_by(interrupt, own)
        lockstep.agree(ROW)
        named.add(lockstep.number)
    assert len(named) == 1


def test_a_wish_without_a_signal_ends_all_without_one():
    lockstep, _, _ = of_several({"stop": 1.0})
    lockstep.agree(ROW)
    assert lockstep.over and lockstep.number is None


def test_all_save_after_the_same_update():
    lockstep, _, _ = of_several()
    lockstep.save_due = True
    assert lockstep.agree(ROW)[1] is True
    lockstep, _, _ = of_several({"save": 1.0})
    assert lockstep.agree(ROW)[1] is True and not lockstep.over


def test_what_must_be_equal_is_compared_every_so_often_and_not_after_the_last():
    lockstep, interrupt, learner = of_several()
    for _ in range(3 * CHECK_UPDATES - 1):
        lockstep.agree(ROW)
    assert learner.compared == 2
    interrupt.ask()
    lockstep.agree(ROW)
    assert lockstep.over and learner.compared == 2

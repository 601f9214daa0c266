"""Signals to wishes: what each asks for, and that nothing of it is left afterwards."""

from __future__ import annotations

import os
import signal

import pytest

from main.training.interrupt import EXIT_CODES, PREEMPTED, Interrupt

NUMBERS = sorted(EXIT_CODES)


@pytest.fixture(autouse=True)
def _hangups_count():
    """These tests may run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def test_the_exit_codes_are_the_usual_ones():
    by_number = {number: 128 + number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    assert by_number | {signal.SIGUSR1: PREEMPTED} == EXIT_CODES and PREEMPTED == 75


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_asks_once_and_is_remembered(number):
    with Interrupt() as interrupt:
        assert not interrupt.asked and interrupt.number is None
        os.kill(os.getpid(), number)
        assert interrupt.asked and interrupt.number == number


def test_a_part_of_the_program_asks_without_a_signal():
    interrupt = Interrupt()
    interrupt.ask()
    assert interrupt.asked and interrupt.number is None


def test_the_last_signal_decides_the_exit_code():
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.number == signal.SIGTERM


def test_handlers_are_as_before_whatever_ends_it():
    heard = []
    before = {number: signal.signal(number, lambda n, _: heard.append(n)) for number in NUMBERS}
    try:
        mine = {number: signal.getsignal(number) for number in NUMBERS}
        with pytest.raises(ZeroDivisionError), Interrupt() as interrupt:
            assert all(signal.getsignal(number) != mine[number] for number in NUMBERS)
            raise ZeroDivisionError
        assert {number: signal.getsignal(number) for number in NUMBERS} == mine
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM] and not interrupt.asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("first", NUMBERS)
@pytest.mark.parametrize("second", NUMBERS)
def test_only_a_second_signal_that_is_ctrl_c_ends_the_process_at_once(first, second):
    child = os.fork()
    if child == 0:  # nothing but system calls: threads of the parent are not here
        with Interrupt():
            os.kill(os.getpid(), first)
            os.kill(os.getpid(), second)
            os._exit(7)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == (130 if second == signal.SIGINT else 7)

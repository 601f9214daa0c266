"""Slots go round between real processes: none is lost, none is given twice, and nobody who dies blocks the others."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import Counter

import numpy as np
import pytest

from torchbeast.core.exchange import ActorPort, Exchange, Stopped
from torchbeast.core.rollouts import shared_array

FORK = multiprocessing.get_context("fork")
PATIENCE = 20.0  # seconds until a wait is taken for a deadlock
FREE, WITH_LEARNER = 0, 100  # owner of a slot; 1 + i: process i as first started
LATER = 1000  # the n-th process in its place: 1 + i + n * LATER


class Ring:
    """An exchange with its processes; `owner` in shared memory says who has each slot, and everyone checks it."""

    def __init__(self, hosted, num_buffers, work=None):
        self.owner = shared_array((num_buffers,), np.int64)
        self.exchange = Exchange(num_buffers, hosted)
        self.hosted = hosted
        self.work = work or (lambda index, round_number: None)
        self.processes = [None] * len(hosted)
        self.launches = Counter()
        self.dead = shared_array((100 * LATER,), np.bool_)  # by owner: killed; what it held may be given to others
        for index in range(len(hosted)):
            self.launch(index)
        self.deadline = float("inf")
        self.closed = threading.Event()
        self.watchdog = threading.Thread(target=self._watch, daemon=True)  # one for all waits, and after the fork
        self.watchdog.start()

    def _watch(self):
        while not self.closed.wait(0.05):
            if time.monotonic() > self.deadline:
                self.exchange.stop()

    def launch(self, index):
        """Starts process `index`, perhaps in the place of one that has died."""
        ours, theirs = multiprocessing.Pipe()
        self.ours = [*getattr(self, "ours", []), ours]
        name = 1 + index + LATER * self.launches[index]
        self.launches[index] += 1
        self.processes[index] = FORK.Process(target=self._act, args=(index, name, theirs), daemon=True)
        self.processes[index].start()
        theirs.close()
        self.exchange.attach(index, ours)

    def kill(self, index):
        self.dead[1 + index + LATER * (self.launches[index] - 1)] = True
        self.processes[index].kill()
        self.processes[index].join()

    def _act(self, index, name, connection):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for end in self.ours:
            end.close()
        port = ActorPort(connection)
        round_number = 0
        try:
            while True:
                slots = port.next_slots()
                assert slots.dtype == np.int64 and slots.shape == (self.hosted[index],)
                assert len(set(slots.tolist())) == len(slots)
                owners = self.owner[slots]
                assert ((owners == FREE) | self.dead[owners]).all(), f"given twice: {slots}, owners {owners}"
                self.owner[slots] = name
                self.work(index, round_number)
                round_number += 1
                assert (self.owner[slots] == name).all(), "given to another one meanwhile"
                port.full(slots)
        except (EOFError, ConnectionError):
            os._exit(0)
        except BaseException:
            port.failed(traceback.format_exc())
            os._exit(1)

    def get(self, batch_size, patience=PATIENCE):
        """`get` that is stopped, and so raises Stopped, after `patience` seconds."""
        self.deadline = time.monotonic() + patience
        slots = self.exchange.get(batch_size)
        self.deadline = float("inf")
        assert len(set(slots)) == len(slots) == batch_size
        self.last_owners = self.owner[slots].tolist()
        assert all(owner not in (FREE, WITH_LEARNER) for owner in self.last_owners)
        self.last_owners = [owner % LATER for owner in self.last_owners]
        self.owner[slots] = WITH_LEARNER
        return slots

    def release(self, slots):
        assert (self.owner[slots] == WITH_LEARNER).all()
        self.owner[slots] = FREE
        self.exchange.release(slots)

    def close(self):
        self.closed.set()
        self.watchdog.join()
        self.exchange.close()
        for process in self.processes:
            process.join(5)
            process.kill()
            process.join()


@contextlib.contextmanager
def ring(*args, **kwargs):
    made = Ring(*args, **kwargs)
    try:
        yield made
    finally:
        made.close()


def fewest(hosted, batch_size):
    return max(hosted) + batch_size - 1


# -- slots go round ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "hosted, batch_size",
    [([1], 1), ([3], 2), ([5], 3), ([2], 7), ([2, 2], 3), ([3, 2], 4), ([2, 1], 1), ([1, 1, 1], 5), ([4, 4, 3], 2)],
)
def test_the_fewest_buffers_never_deadlock_and_none_is_lost_or_given_twice(hosted, batch_size):
    """With so few, a single lost slot would end in a deadlock; thousands of rounds do not."""
    num_buffers = fewest(hosted, batch_size)
    seen = Counter()
    with ring(hosted, num_buffers) as it:
        for _ in range(700):
            slots = it.get(batch_size)
            seen.update(slots)
            it.release(slots)
    assert set(seen) == set(range(num_buffers))


def test_with_plenty_of_buffers_too():
    seen, owners = Counter(), Counter()
    with ring([3, 2], 17, lambda i, n: time.sleep(2e-4 * (n % (i + 2)))) as it:
        held = []
        for n in range(1500):
            held.append(it.get(4))
            owners.update(it.last_owners)
            while len(held) > n % 3:  # up to two batches are kept for a while
                slots = held.pop(0)
                seen.update(slots)
                it.release(slots)
    assert set(seen) == set(range(17))
    assert owners.keys() == {1, 2}


@pytest.mark.parametrize("hosted, batch_size", [([3], 2), ([5], 3), ([2], 3)])
def test_one_buffer_fewer_can_deadlock(hosted, batch_size):
    """The bound is tight: a rest of batch_size - 1 full ones beside too few free ones for the next set."""
    with ring(hosted, fewest(hosted, batch_size) - 1) as it, pytest.raises(Stopped):
        for _ in range(1000):
            it.release(it.get(batch_size, patience=0.3))


@pytest.mark.parametrize(
    "hosted, batch_size", [([2, 1], 1), ([4, 3], 2), ([2, 2], 3), ([2, 2], 1), ([1, 1, 1], 1), ([3, 3], 4)]
)
def test_every_process_gets_its_turn(hosted, batch_size):
    owners = Counter()
    with ring(hosted, fewest(hosted, batch_size)) as it:
        for _ in range(400):
            slots = it.get(batch_size)
            owners.update(it.last_owners)
            it.release(slots)
    assert all(owners[1 + i] >= 0.1 * owners.total() for i in range(len(hosted))), owners


def test_slots_come_in_the_order_in_which_they_were_filled():
    with ring([2], 8) as it:
        assert [slot for batch_size in (1, 3, 2, 2) for slot in it.get(batch_size)] == list(range(8))


# -- the end of a wait ------------------------------------------------------------------------------------------------


def test_get_raises_stopped_after_stop():
    with ring([2], 4, lambda i, n: time.sleep(60)) as it:
        threading.Timer(0.1, it.exchange.stop).start()
        start = time.monotonic()
        with pytest.raises(Stopped):
            it.exchange.get(3)
        assert time.monotonic() - start < 2
        with pytest.raises(Stopped):  # and every later one
            it.exchange.get(3)
        it.processes[0].kill()


def test_stopping_ends_a_wait_of_another_thread():
    for _ in range(8):
        with ring([1, 1], 4, lambda i, n: time.sleep(60)) as it:
            ends = []

            def wait(ends=ends, it=it):
                try:
                    it.exchange.get(3)
                except BaseException as error:
                    ends.append(type(error))

            thread = threading.Thread(target=wait, daemon=True)
            thread.start()
            time.sleep(0.01)
            for process in it.processes:
                process.kill()
            it.exchange.stop()
            thread.join(5)
            assert ends == [Stopped]


def test_actors_see_the_end():
    with ring([2, 1], 6) as it:
        it.release(it.get(3))
        it.exchange.close()
        for process in it.processes:
            process.join(5)
            assert process.exitcode == 0


def test_a_failed_actor_is_told_with_its_traceback():
    def fail(index, round_number):
        if index == 1 and round_number == 20:
            raise ArithmeticError("out of luck")

    with ring([1, 2], 9, fail) as it:
        while it.exchange.failures.empty():
            it.release(it.get(2))
        index, trace = it.exchange.failures.get()
    assert index == 1 and "ArithmeticError: out of luck" in trace and "Traceback" in trace and "in fail" in trace


@pytest.mark.parametrize("seconds", [0.0, 0.003, 0.011, 0.02])
def test_a_killed_process_blocks_nobody_and_its_slots_come_back(seconds):
    """SIGKILL at some moment, with the fewest buffers: a single lost slot would end in a deadlock."""
    hosted, batch_size = [2, 2], 3
    with ring(hosted, fewest(hosted, batch_size)) as it:
        it.release(it.get(batch_size))
        time.sleep(seconds)
        it.kill(1)
        owners = Counter()
        for _ in range(300):
            slots = it.get(batch_size)
            owners.update(it.last_owners)
            it.release(slots)
        assert owners[1] > 800
        assert it.processes[1].exitcode == -signal.SIGKILL
        assert it.processes[0].is_alive()


@pytest.mark.slow
def test_killed_processes_are_replaced_again_and_again():
    """Forty kills at any moment; the exchange goes on with every slot it had, and with both processes."""
    hosted, batch_size = [2, 3], 2
    with ring(hosted, fewest(hosted, batch_size)) as it:
        for n in range(40):
            for _ in range(5 + n % 7):
                it.release(it.get(batch_size))
            victim = n % 2
            it.kill(victim)
            it.launch(victim)
        owners = Counter()
        for _ in range(200):
            slots = it.get(batch_size)
            owners.update(it.last_owners)
            it.release(slots)
        assert owners[1] > 40 and owners[2] > 40
        everywhere = [*it.exchange._free, *it.exchange._full, *(slot for held in it.exchange._held for s in held for slot in s)]
        assert sorted(everywhere) == list(range(fewest(hosted, batch_size)))


def test_when_all_are_killed_a_wait_can_still_be_ended():
    with ring([1, 2], 9, lambda i, n: time.sleep(0.01)) as it:
        it.release(it.get(2))
        for process in it.processes:
            process.kill()
            process.join()
        with pytest.raises(Stopped):
            while True:
                it.release(it.get(2, patience=0.5))


def test_two_that_die_at_the_same_moment_end_nothing():
    """Both ends show at once; the slots of the first are offered to the second, which is found dead by that."""
    with ring([2, 2], 8) as it:
        it.release(it.get(2))
        for index in (0, 1):
            it.kill(index)
        threading.Timer(0.5, lambda: [it.launch(index) for index in (0, 1)]).start()
        for _ in range(100):
            it.release(it.get(2))


def test_a_process_whose_rollouts_wait_to_be_read_holds_nothing():
    first, later = multiprocessing.Event(), multiprocessing.Event()  # it fills when it may, on a busy machine too
    with ring([2], 4, lambda i, n: (later if n else first).wait(20)) as it:
        deadline = time.monotonic() + 5
        it.exchange._welcome()
        assert it.exchange.holds(0)
        first.set()
        while it.exchange.holds(0) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not it.exchange.holds(0)  # its first rollouts lie in the pipe
        it.get(2)
        assert it.exchange.holds(0)
        later.set()

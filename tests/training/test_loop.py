"""The loop alone: batches of a made-up source to a made-up learner, in this thread and in several."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable

import pytest

from main.training import loop as loops
from main.training.loop import Loop
from torchbeast.core.exchange import Stopped

SIZE = 3


@pytest.fixture(autouse=True)
def _often(monkeypatch):
    monkeypatch.setattr(loops, "BESIDE_SECONDS", 0.005)


class Batches:
    """Gives 0, 1, 2, ... in place of batches; from `dry` on it lets its taker wait until it is stopped."""

    def __init__(self, dry: int | None = None):
        self._numbers = itertools.count()
        self._dry = dry
        self._stopped = threading.Event()
        self.supervised = self.taken = 0
        self.waiting = threading.Event()

    def get(self, batch_size: int) -> int:
        assert batch_size == SIZE
        if self.taken == self._dry:
            self.waiting.set()
            self._stopped.wait(10)
        if self._stopped.is_set():
            raise Stopped
        self.taken += 1
        return next(self._numbers)

    def supervise(self) -> None:
        self.supervised += 1

    def stop(self) -> None:
        self._stopped.set()


class Learned:
    """Notes what it is given until it has `total`; one at a time."""

    def __init__(self, total: int):
        self._total = total
        self._one = threading.Lock()
        self.batches: list[int] = []

    def __call__(self, batch: int) -> None:
        if not self.wanted():
            return
        assert self._one.acquire(blocking=False), "two updates at once"
        time.sleep(0.0005)
        self.batches.append(batch)
        self._one.release()

    def wanted(self) -> bool:
        return len(self.batches) < self._total


def nothing() -> None:
    pass


def make_loop(source: Batches, learn: Callable[[int], None], wanted: Callable[[], bool], threads: int) -> Loop:
    """Of what is prepared from each batch, `learn` is given its own, made where batches are taken."""
    makers = {}

    def prepare(batch: int) -> int:
        makers[batch] = threading.current_thread().name
        return -batch

    def learn_prepared(batch: int, prepared: int) -> None:
        assert prepared == -batch
        assert makers[batch] == {0: threading.current_thread().name, 1: "learner"}.get(threads, "batches")
        learn(batch)

    return Loop(source, learn_prepared, wanted, prepare=prepare, batch_size=SIZE, threads=threads)


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name in ("learner", "batches")]


@pytest.mark.parametrize("threads", [0, 1, 5])
def test_every_batch_is_learned_once(threads):
    """In order, in one thread; as many less one as there are threads may be ready beside, and are left at the end."""
    source, learned, looks, ahead, learners = Batches(), Learned(100), [], [], set()

    def learn(batch: int) -> None:
        learned(batch)
        ahead.append(source.taken - len(learned.batches))
        learners.add(threading.current_thread())

    loop = make_loop(source, learn, learned.wanted, threads)
    loop.run(lambda: looks.append(threading.current_thread()))
    assert learned.batches == list(range(100)) and len(learners) == 1
    assert max(ahead) == max(threads - 1, 0)
    assert looks and set(looks) == {threading.current_thread()}
    assert (source.supervised > 0) == (threads > 0) and not workers()
    if not threads:
        assert source.taken == len(looks) == 100, "alone, every update is looked at, and no batch taken in vain"
    loop.stop()


@pytest.mark.parametrize("threads", [0, 1, 5])
def test_a_failure_ends_all_and_nothing_is_learned_after_it(threads):
    source, learned = Batches(), Learned(10**9)

    def learn(batch: int) -> None:
        learned(batch)
        if batch == 20:
            time.sleep(0.02)  # time for others to stand ready with theirs
            raise ZeroDivisionError("the learner broke here")

    loop = make_loop(source, learn, learned.wanted, threads)
    with pytest.raises(ZeroDivisionError, match="the learner broke here"):
        loop.run(nothing)
    loop.stop()
    assert learned.batches[-1] == 20 and len(set(learned.batches)) == len(learned.batches) and not workers()
    assert learned.batches == list(range(21))


@pytest.mark.parametrize("threads", [1, 5])
def test_a_last_update_that_fails_is_a_failure_too(threads):
    """All that is wanted has been learned, as far as this thread can see, when the rest of the update goes wrong."""
    source, learned = Batches(), Learned(3)

    def learn(batch: int) -> None:
        learned(batch)
        if not learned.wanted():
            time.sleep(0.1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        make_loop(source, learn, learned.wanted, threads).run(nothing)


@pytest.mark.parametrize("threads", [1, 5])
def test_a_source_that_fails_in_a_thread_ends_all(threads):
    source, learned = Batches(), Learned(10**9)
    source.get = lambda size: {}["no such slot"]
    with pytest.raises(KeyError, match="no such slot"):
        make_loop(source, learned, learned.wanted, threads).run(nothing)
    assert not learned.batches and not workers()


def test_what_supervision_finds_ends_the_loop():
    source, learned = Batches(dry=4), Learned(10**9)

    def supervise() -> None:
        if source.waiting.is_set():
            raise ChildProcessError("all gone home")

    source.supervise = supervise
    loop = make_loop(source, learned, learned.wanted, 3)
    with pytest.raises(ChildProcessError, match="all gone home"):
        loop.run(nothing)
    loop.stop()
    assert sorted(learned.batches) == [0, 1, 2, 3] and not workers()


def test_nothing_is_learned_while_it_is_paused():
    source, learned = Batches(), Learned(10**9)
    loop = make_loop(source, learned, learned.wanted, 3)
    seen = []

    def beside() -> None:
        with loop.paused():
            before = len(learned.batches)
            time.sleep(0.02)
            seen.append((before, len(learned.batches)))
        if len(seen) == 5:
            learned._total = 0

    loop.run(beside)
    assert all(before == after for before, after in seen) and seen[-1][0] > 0
    assert len(set(learned.batches)) == len(learned.batches)


def test_stop_ends_every_wait_for_a_batch():
    source, learned = Batches(dry=7), Learned(10**9)
    loop = make_loop(source, learned, learned.wanted, 4)

    def beside() -> None:
        if source.waiting.is_set():
            loop.stop()

    began = time.monotonic()
    loop.run(beside)
    assert time.monotonic() - began < 5 and sorted(learned.batches) == list(range(7)) and not workers()

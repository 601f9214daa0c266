"""Batches to updates, until no more are wanted: in this thread, or in others with this one watching."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from main.training.sources import Batch, Source
from torchbeast.core.exchange import Stopped

logger = logging.getLogger("amigo")

BESIDE_SECONDS = 0.25
SILENCE_SECONDS = 60.0  # without an update; the user is told each time
LOOKS = 20  # in that time


class Loop:
    """Takes batches from `source` and gives each to `learn`, one at a time, in the order in which they come.

    All updates are made in one thread: made by several in turn they take longer, as each thread has memory and caches
    of its own, and they get in each other's way.

    Args:
        learn: one update of a batch and what `prepare` made of it, or none if no more must be made; it is not called any more
            when it has raised.
        prepare: called with each batch where nothing waits for it, if there is such a thread.
        wanted: whether another batch is to be taken.
        batch_size: rollouts in a batch.
        threads: 1: one takes batches and learns; more: beside it, another has as many less one ready; 0: this one does both.
    """

    def __init__(
        self, source: Source, learn: Callable[[Batch, Any], None], wanted: Callable[[], bool], *,
        prepare: Callable[[Batch], Any], batch_size: int, threads: int,
    ):  # fmt: skip
        self._source = source
        self._learn = learn
        self._prepare = prepare
        self._more = wanted
        self._batch_size = batch_size
        self._number = threads
        self._threads: list[threading.Thread] = []
        self._ready: deque[tuple[Batch, Any]] = deque()
        self._change = threading.Condition()  # of what is ready, and whether more will be
        self._taking = threads > 1
        self._learning = threading.Lock()
        self._failure: BaseException | None = None
        self._learned = 0

    def run(self, beside: Callable[[], None]) -> None:
        """Learns until no update is wanted; calls `beside` all the while, in this thread. Raises what ended it."""
        with self._watched():
            if self._number:
                return self._run_threads(beside)
            while self._wanted():
                self._learn_once()
                beside()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """While nothing is learned."""
        with self._learning:
            yield

    def stop(self) -> None:
        """Ends every wait for a batch, and the threads; returns when they have ended."""
        self._source.stop()
        with self._change:
            self._change.notify_all()
        for thread in self._threads:
            thread.join()

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Whatever any other thread hangs in, the user hears of it."""
        over = threading.Event()
        thread = threading.Thread(target=self._watch, args=(over,), name="watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _watch(self, over: threading.Event) -> None:
        learned, silence, before = self._learned, 0.0, time.monotonic()
        while not over.wait(SILENCE_SECONDS / LOOKS):
            now = time.monotonic()
            passed, before = now - before, now
            if self._learned != learned or passed > SILENCE_SECONDS / 2:  # (or this process stood still itself)
                learned, silence = self._learned, 0.0
                continue
            told = silence // SILENCE_SECONDS
            silence += passed
            if silence // SILENCE_SECONDS > told:
                busy = "an update or a checkpoint takes longer than that"
                why = busy if self._learning.locked() else self._source.standing()
                logger.warning(f"no batch has been learned for {silence:.0f} s: {why}")

    def _wanted(self) -> bool:
        return self._failure is None and self._more()

    def _run_threads(self, beside: Callable[[], None]) -> None:
        works = {"learner": self._learn_all} | ({"batches": self._take_ahead} if self._taking else {})
        self._threads = [threading.Thread(target=self._ended_by, args=(work,), name=name) for name, work in works.items()]
        for thread in self._threads:
            thread.start()
        while (alive := [thread for thread in self._threads if thread.is_alive()]) and self._wanted():
            alive[0].join(BESIDE_SECONDS)
            beside()
            if self._wanted():
                self._source.supervise()
        self.stop()  # the last update may be under way, and fail
        if self._failure is not None:
            raise self._failure

    def _ended_by(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Stopped:
            return
        except BaseException as error:
            self._failure = self._failure or error
            self._source.stop()
        finally:
            with self._change:
                self._change.notify_all()

    def _learn_all(self) -> None:
        while self._wanted():
            self._learn_once()

    def _take_ahead(self) -> None:
        try:
            while self._wanted():
                with self._change:  # before it is taken: else one more would wait, and grow old
                    self._change.wait_for(lambda: len(self._ready) < self._number - 1 or not self._wanted())
                taken = self._take()
                with self._change:
                    self._ready.append(taken)
                    self._change.notify_all()
        finally:
            self._taking = False

    def _take(self) -> tuple[Batch, Any]:
        batch = self._source.get(self._batch_size)
        return batch, self._prepare(batch)

    def _next(self) -> tuple[Batch, Any]:
        """Raises: Stopped if there will be none."""
        if self._number <= 1:
            return self._take()
        with self._change:
            self._change.wait_for(lambda: self._ready or not self._taking)
            if not self._ready:
                raise Stopped
            self._change.notify_all()
            return self._ready.popleft()

    def _learn_once(self) -> None:
        taken = self._next()
        with self._learning:
            if self._failure is not None:
                return
            try:
                self._learn(*taken)
                self._learned += 1
            except BaseException as error:  # in here still: nothing may be learned after half an update
                self._failure = error
                raise

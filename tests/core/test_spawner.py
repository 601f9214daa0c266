"""Workers are forked at any time by a small process that has neither threads nor CUDA."""

from __future__ import annotations

import errno
import os
import resource
import signal
import threading
import time

import numpy as np
import pytest
import torch

from main.training import preflight
from torchbeast.core import spawner as spawners
from torchbeast.core.rollouts import shared_array
from torchbeast.core.spawner import BEAT_SECONDS, Refused, Spawner


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(condition, seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def work(index, incarnation, connection):
    """Answers until told to end."""
    connection.send((index, incarnation, os.getpid(), threading.active_count(), torch.cuda.is_initialized()))
    if connection.recv() == "fail":
        raise ZeroDivisionError("on purpose")


@pytest.fixture
def spawner():
    made = Spawner(work)
    made.start()
    yield made
    made.close(0.2)


def events(spawner: Spawner, count: int) -> list:
    gathered = []
    until(lambda: gathered.extend(spawner.ended()) or len(gathered) >= count)
    return gathered


def test_workers_know_who_they_are_and_their_ends_are_told(spawner):
    pipes = [spawner.spawn(index, 7) for index in range(3)]
    answers = [pipe.recv() for pipe in pipes]
    assert [answer[:2] for answer in answers] == [(0, 7), (1, 7), (2, 7)]
    assert [answer[2] for answer in answers] == [spawner.pids[index] for index in range(3)]
    pipes[0].send("end")
    pipes[1].send("fail")
    os.kill(spawner.pids[2], signal.SIGKILL)
    assert sorted((e.index, e.pid, e.exit_code) for e in events(spawner, 3)) == [
        (0, answers[0][2], 0),
        (1, answers[1][2], 1),
        (2, answers[2][2], -9),
    ]
    assert spawner.ended() == []


def test_forking_is_safe_when_threads_run_and_cuda_is_in_use(spawner, monkeypatch):
    """A worker started late still comes from a process without threads and without CUDA."""
    stop = threading.Event()
    threads = [threading.Thread(target=stop.wait) for _ in range(5)]
    for thread in threads:
        thread.start()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert spawner.spawn(0, 0).recv()[3:] == (1, False)
    stop.set()
    for thread in threads:
        thread.join()


def test_a_stopped_worker_can_be_killed_and_replaced(spawner):
    first = spawner.spawn(0, 0)
    pid = first.recv()[2]
    os.kill(pid, signal.SIGSTOP)
    spawner.kill(0)
    assert [(e.index, e.exit_code) for e in events(spawner, 1)] == [(0, -9)]
    assert spawner.spawn(0, 1).recv()[1] == 1
    with pytest.raises(EOFError):
        first.recv()


@pytest.mark.slow
def test_a_spawner_that_is_stopped_before_it_is_asked_is_woken(spawner, caplog):
    """It has told of a worker's end, and is stopped before the worker can be started again."""
    first = spawner.spawn(0, 0)
    os.kill(first.recv()[2], signal.SIGKILL)
    assert events(spawner, 1)
    os.kill(spawner.pid, signal.SIGSTOP)
    assert spawner.spawn(0, 1).recv()[1] == 1
    assert "was stopped by a signal; waking it" in caplog.text


def test_closing_waits_then_kills_and_leaves_nobody(spawner):
    pipes = [spawner.spawn(index, 0) for index in range(2)]
    pids = [pipe.recv()[2] for pipe in pipes]
    pipes[0].send("end")
    began = time.monotonic()
    spawner.close(0.5)
    assert 0.3 < time.monotonic() - began < 3
    assert not any(alive(pid) for pid in pids)


def test_when_the_main_process_is_gone_so_are_its_workers():
    """A process of its own starts workers and is killed."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            made = Spawner(work)
            made.start()
            pipes = [made.spawn(index, 0) for index in range(2)]
            pids = [pipe.recv()[2] for pipe in pipes]
            os.write(writer, " ".join(map(str, [*pids, made.pid])).encode())
            time.sleep(60)
        finally:
            os._exit(0)
    pids = [int(pid) for pid in os.read(reader, 100).split()]
    assert len(pids) == 3 and all(alive(pid) for pid in pids)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert until(lambda: not any(alive(pid) for pid in pids))


def test_a_dead_spawner_is_noticed(spawner):
    pid = spawner.spawn(0, 0).recv()[2]
    os.kill(spawner.pid, signal.SIGKILL)

    def gone():
        try:
            spawner.ended()
        except (EOFError, OSError):
            return True
        return False

    assert until(gone)
    assert until(lambda: not alive(pid))


def test_more_processes_than_cores_are_named(monkeypatch):
    monkeypatch.setattr("main.training.processes.cores", lambda: 2)
    assert "take turns" in preflight.cores(range(3, 4)).text and "take turns" not in preflight.cores(range(1, 2)).text


def test_a_refused_fork_is_told_and_ends_nothing(monkeypatch):
    """Too many processes; then too many open files, here and in the spawner."""
    refuse = shared_array((1,), np.bool_)
    fork = os.fork

    def fork_or_not():
        if refuse[0]:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return fork()

    monkeypatch.setattr(os, "fork", fork_or_not)
    made, pipes = Spawner(work), []  # workers end with their pipes

    def spawned(index):
        pipes.append(made.spawn(index, 0))
        return pipes[-1].recv()[:2]

    made.start()
    try:
        assert spawned(0) == (0, 0)
        refuse[0] = True
        with pytest.raises(Refused, match="temporarily unavailable"):
            made.spawn(1, 0)
        refuse[0] = False
        assert spawned(1) == (1, 0)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        for pid in (made.pid, os.getpid()):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, hard))
            with pytest.raises(Refused, match="Too many open files"):
                made.spawn(2, 0)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
        assert spawned(2) == (2, 0)
        assert made.ended() == []
    finally:
        made.close(0.2)


@pytest.mark.slow
def test_a_spawner_beats_while_it_is_at_work_and_not_while_it_is_stopped(spawner):
    first = spawner.beats
    assert until(lambda: spawner.beats > first + 1)
    os.kill(spawner.pid, signal.SIGSTOP)
    time.sleep(0.1)
    first = spawner.beats
    time.sleep(2 * BEAT_SECONDS)
    assert spawner.beats == first


@pytest.mark.slow
def test_a_spawner_that_does_not_answer_is_not_waited_for_for_ever(spawner, monkeypatch):
    monkeypatch.setattr(spawners, "ANSWER_SECONDS", 0.3)
    os.kill(spawner.pid, signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        spawner.spawn(0, 0)


@pytest.mark.parametrize("stopped", [False, True])
def test_workers_end_with_a_spawner_that_is_killed(spawner, stopped):
    pid = spawner.spawn(0, 0).recv()[2]
    if stopped:
        os.kill(pid, signal.SIGSTOP)
    os.kill(spawner.pid, signal.SIGKILL)
    assert until(lambda: not alive(pid))

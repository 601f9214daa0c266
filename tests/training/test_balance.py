"""How many actor processes: by what acting and learning cost, and nothing of the run is touched while that is measured."""

from __future__ import annotations

import copy
import logging
import math
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from main import main as entry
from main.training import balance, preflight, recipe
from main.training.actor import Actor
from main.training.balance import Cost
from tests.helpers.agents import assert_same_tree, make_inline, make_settings
from tests.helpers.program import ROOT, alive, children, command, rows
from torchbeast.core.ranks import Alone
from torchbeast.core.weights import SharedWeights
from utils_folder.motivations import MOTIVATIONS

SMALL = {"env": "MiniGrid-Empty-5x5-v0", "num_actors": 6, "batch_size": 4, "unroll_length": 5}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(balance, "SECONDS", 0.05)


def with_cores(monkeypatch, number: int) -> None:
    monkeypatch.setattr("main.training.processes.cores", lambda: number)


def make_agent(**overrides):
    settings = make_settings(**SMALL | overrides)
    agent = recipe.Agent.make(settings, recipe.probe(settings))
    return agent, agent.learner()


# The choice


class Machine:
    """Costs in microseconds: of a step `fixed`, and `each` for an environment; of a frame learned, `learned`. Where two threads
    share one of the `cores` each has 0.65 of its speed."""

    def __init__(self, num_actors, fixed, each, learned, cores=math.inf):
        self.num_actors, self.fixed, self.each, self.learned, self.cores = num_actors, fixed, each, learned, cores

    def cost(self, count: int) -> Cost:
        busy = count + 1
        alone = max(0, min(busy, 2 * self.cores - busy)) if busy > self.cores else busy  # those that have a core for themselves
        slow = busy / (alone + 0.65 * (busy - alone))
        step = self.fixed + self.each * math.ceil(self.num_actors / count)
        return Cost(count, step * slow, self.learned * slow)

    def seconds(self, count: int) -> float:
        """What a frame takes: acting, or learning."""
        cost = self.cost(count)
        return max(balance.MARGIN * cost.step / self.num_actors, cost.learned)


@pytest.mark.parametrize(
    ("most", "machine", "expected"),
    [
        (15, Machine(40, 60, 4, 8), 1),  # one process keeps up with the learner
        (15, Machine(40, 60, 4, 6.7), 1),  # and nearly here: 220 / 40 * 1.25 = 6.9
        (15, Machine(40, 60, 4, 5), 2),
        (15, Machine(40, 60, 4, 3), 4),
        (3, Machine(40, 60, 4, 3), 3),
        (15, Machine(40, 60, 4, 0.01), 14),  # a learner that is never the limit: as many as bring something
        (15, Machine(40, 10, 130, 8), 14),  # slow environments; of 15 the slowest host as many as of 14
        (63, Machine(320, 10, 130, 8), 20),
        (63, Machine(320, 10, 130, 0.01), 54),
        (31, Machine(320, 60, 4, 3), 2),
        (7, Machine(40, 60, 4, 8, cores=4), 1),  # hyperthreads: more would slow the learner
        (7, Machine(40, 60, 4, 5, cores=4), 2),
        (7, Machine(40, 60, 40, 20, cores=4), 3),
        (7, Machine(40, 10, 130, 8, cores=4), 7),  # all of them, since the learner waits for acting
        (3, Machine(40, 60, 4, 3, cores=2), 3),
        (3, Machine(40, 60, 4, 5, cores=2), 2),  # a third would slow the learner more than it brings
        (3, Machine(4, 60, 4, 40, cores=2), 1),
    ],
)
def test_the_fewest_processes_with_which_acting_keeps_up(most, machine, expected):
    chosen = balance.fewest(machine.num_actors, machine.cost(1), machine.cost(most))
    every = {count: machine.seconds(count) for count in range(1, most + 1)}
    best = min(every.values())
    assert chosen == expected
    assert every[chosen] <= 1.15 * best, "near the best that there is"
    if machine.cores == math.inf:  # then nothing has been guessed
        assert chosen == min(count for count, each in every.items() if each <= balance.NEARLY * best)


def test_a_choice_between_counts_of_which_the_slowest_host_as_many():
    """Of five environments three processes and four host two at most."""
    assert balance.fewest(5, Cost(3, 1e-4, 1e-6), Cost(4, 1e-4, 1e-6)) == 3


# When it is made


@pytest.mark.parametrize(
    ("cores", "flags", "expected"),
    [
        (16, {"num_actor_processes": 3}, 3), (16, {"num_actor_processes": 0}, 0), (2, {}, 1), (1, {}, 1),
        (16, {"num_actors": 3}, 1), (4, {"num_actors": 6, "num_buffers": 5}, 3),
    ],
)  # fmt: skip
def test_where_there_is_no_choice_nothing_is_measured(monkeypatch, caplog, cores, flags, expected):
    with_cores(monkeypatch, cores)
    monkeypatch.setattr(balance, "measure", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("forked"))
    with caplog.at_level(logging.INFO, "amigo"):
        assert balance.choose(*make_agent(**flags)) == expected
    assert not [record for record in caplog.records if "actor processes" in record.message]


def measured(monkeypatch, costs: dict[int, Cost]) -> list[int]:
    """Of which counts the cost is asked from now on."""
    asked: list[int] = []
    monkeypatch.setattr(balance, "measure", lambda agent, learner, count: asked.append(count) or costs[count])
    return asked


def test_two_measurements_at_most_and_one_where_a_process_suffices(monkeypatch, caplog):
    with_cores(monkeypatch, 4)
    agent, learner = make_agent()
    asked = measured(monkeypatch, {1: Cost(1, 6e-4, 1.3e-4)})
    assert balance.choose(agent, learner) == 1 and asked == [1]
    asked = measured(monkeypatch, {1: Cost(1, 6e-4, 1e-4), 3: Cost(3, 2e-4, 1e-4)})
    with caplog.at_level(logging.INFO, "amigo"):
        assert balance.choose(agent, learner) == 2 and asked == [1, 3]
    assert caplog.messages[-1] == (
        "actor processes: 2 of at most 3 (1 act for 10,000 frames/s beside 10,000 learned; 3 act for 30,000 frames/s beside "
        "10,000 learned); --num_actor_processes N has it otherwise"
    )


def test_no_more_than_there_is_memory_for_and_no_fewer_than_rollouts_suffice_for(monkeypatch):
    with_cores(monkeypatch, 16)
    agent, learner = make_agent(num_actors=24, num_buffers=24)  # eight and an incomplete batch of three: three processes
    asked = measured(monkeypatch, {n: Cost(n, 1.0 / n, 1e-6) for n in range(1, 13)})
    monkeypatch.setattr(preflight, "available_memory", lambda: 1 << 40)
    assert balance.choose(agent, learner) == 12 and asked == [2, 12]
    room = preflight.MAIN_BYTES + 5 * (preflight.PROCESS_BYTES + agent.checkpoint_bytes)
    for memory, most in ((room, 5), (room - 1, 4), (0, 2)):
        monkeypatch.setattr(preflight, "available_memory", lambda memory=memory: memory)
        assert balance.choose(agent, learner) == most
    monkeypatch.setattr(preflight, "available_memory", lambda: None)
    assert balance.choose(agent, learner) == 12


# The measurement


def everything(learner) -> list:
    """What a measurement could disturb: random streams, what has been learned, and weights in shared memory."""
    shared = [x for owner in (learner, learner.motivation) for x in vars(owner).values() if type(x) is SharedWeights]
    state = np.random.get_state()
    return [
        torch.get_rng_state().clone(), torch.from_numpy(state[1].copy()), state[2], list(random.getstate()[1]),
        copy.deepcopy(learner.state_dict()), [w.version for w in shared], [w._values.clone() for w in shared],
        torch.get_num_threads(), children(os.getpid()),
    ]  # fmt: skip


@pytest.mark.parametrize("model", MOTIVATIONS)
def test_a_measurement_changes_nothing_and_is_of_what_has_been_learned(monkeypatch, model):
    settings = make_settings(**SMALL, model=model)
    learner, source, _ = make_inline(settings, num_envs=6)
    for _ in range(3):
        learner.learn(source.get(4))
    agent = recipe.Agent(settings, recipe.probe(settings), learner.motivation, learner.student, learner.shared)
    before = everything(learner)
    cost = balance.measure(agent, learner, 2)
    assert_same_tree(everything(learner), before)
    assert cost.processes == 2 and 1e-6 < cost.step < 0.1 and 1e-6 < cost.learned < 0.1
    _, twin = balance._twin(agent, learner)
    assert_same_tree(twin.state_dict(), learner.state_dict())


class Two(Alone):
    """Stands for one of two ranks, which agree in everything."""

    size, alone = 2, False


def test_a_learner_among_several_is_measured_alone():
    settings = make_settings(**SMALL)
    _, source, _ = make_inline(settings, num_envs=6)
    agent = recipe.Agent.make(settings, recipe.probe(settings), Two())
    learner = agent.learner(Two())
    for _ in range(3):
        learner.learn(source.get(4))
    _, twin = balance._twin(agent, learner)
    assert twin.ranks.alone and twin.frames == learner.frames == 120
    assert_same_tree(twin.student.state_dict(), learner.student.state_dict())
    assert balance.measure(agent, learner, 1).learned > 0


def test_costs_are_of_all_environments_and_of_a_frame(monkeypatch):
    """Known costs: an environment's step sleeps, an update does."""
    agent, learner = make_agent(num_actors=6)
    monkeypatch.setattr(balance, "SECONDS", 0.3)
    make, learn = recipe.make_environments, type(learner).learn

    def slow(settings, seeds, **more):
        environment = make(settings, seeds, **more)
        step = environment.step
        environment.step = lambda actions: (time.sleep(0.004 * len(seeds)), step(actions))[1]
        return environment

    monkeypatch.setattr(recipe, "make_environments", slow)
    monkeypatch.setattr(type(learner), "learn", lambda self, *read: (time.sleep(0.04), learn(self, *read))[1])
    one, three = (balance.measure(agent, learner, count) for count in (1, 3))
    assert 0.024 < one.step < 0.05 and 0.008 < three.step < 0.024
    assert 0.002 < one.learned < 0.006, "twenty frames an update"


def test_weights_come_as_often_as_from_a_learner_that_keeps_up(monkeypatch):
    """Of twenty frames an update; six environments play three steps meanwhile, wherever they are."""
    agent, learner = make_agent(num_actors=6)
    steps, published = [], []
    advance, publish = Actor.advance, SharedWeights.publish
    monkeypatch.setattr(Actor, "advance", lambda self: steps.append(0) or advance(self))
    monkeypatch.setattr(SharedWeights, "publish", lambda self, *more: published.append(len(steps)) or publish(self, *more))
    threads = torch.get_num_threads()
    work = balance._acting(agent, learner, 2)
    torch.set_num_threads(threads)
    steps.clear()
    published.clear()
    work(0.5)
    assert len(published) > 3 and published == [3 * i for i in range(len(published))]


def fails(*_):
    raise ValueError("no good\nat all")


@pytest.mark.parametrize(
    ("broken", "seconds", "expected", "cause"),
    [
        (fails, 20, 4, "ValueError: no good"),
        (lambda *_: os._exit(3), 20, 4, "a process has ended"),
        (lambda *_: time.sleep(60), 0.5, 5, "it takes longer than 0.5 s"),
    ],
)
def test_what_cannot_be_measured_is_told_and_ends_no_run(monkeypatch, caplog, broken, seconds, expected, cause):
    with_cores(monkeypatch, 6)
    monkeypatch.setattr(balance, "READY_SECONDS", seconds)
    monkeypatch.setattr(balance, "_acting", broken)
    agent, learner = make_agent(num_actors=12)
    before, began = children(os.getpid()), time.monotonic()
    assert balance.choose(agent, learner) == expected
    assert f"could not be measured ({cause})" in caplog.text and time.monotonic() - began < 15
    assert children(os.getpid()) == before


def test_a_refused_process_is_no_failure(monkeypatch, caplog):
    with_cores(monkeypatch, 4)
    agent, learner = make_agent()

    def refused():
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refused)
    assert balance.choose(agent, learner) == 3
    assert "could not be measured (Resource temporarily unavailable)" in caplog.text


# A run

FOUR_CORES = """
import sys
import torch
from main import main
from main.training import balance, processes
processes.cores = lambda: 4
torch.set_num_threads(2)
torch.ones(1_000_000) + 1  # OpenMP has threads now
{}
sys.exit(main.main())
"""


def test_a_run_says_what_it_has_chosen_and_keeps_to_it(tmp_path, monkeypatch):
    arguments = [*command(tmp_path, "--total_frames", "480"), "--num_actors", "8"]
    done = subprocess.run([sys.executable, "-c", FOUR_CORES.format(""), *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("actor processes: ")]
    chosen = int(line.split()[2])
    assert " of at most 3 (1 act for " in line and 1 <= chosen <= 3
    assert f"8 environments in {chosen} actor processes" in done.stderr
    assert "4 cores for 1 to 3 actor processes" in done.stderr
    assert [row["frames"] for row in rows(tmp_path / "run")][-1] == 480
    with_cores(monkeypatch, 4)  # gone on with, it measures anew
    monkeypatch.setattr(balance, "measure", lambda *_: Cost(1, 1e-9, 1.0))
    assert entry.main(["--resume", str(tmp_path / "run"), "--total_frames", "960"]) == 0
    assert "8 environments in 1 actor processes" in (tmp_path / "run" / "out.log").read_text()


@pytest.mark.slow
def test_a_signal_while_costs_are_measured_ends_all_that_was_started(tmp_path):
    code = FOUR_CORES.format("balance.SECONDS = 60")
    process = subprocess.Popen([sys.executable, "-c", code, *command(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline, started = time.monotonic() + 60, []
    while len(started) < 2 and time.monotonic() < deadline:
        started = [pid for spawner in children(process.pid) for pid in children(spawner)]
        time.sleep(0.02)
    assert len(started) == 2
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130, process.stderr.read()
    assert not any(alive(pid) for pid in started) and not (tmp_path / "run").exists()

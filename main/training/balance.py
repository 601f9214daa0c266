"""How many actor processes a run has where that is not said: by what acting and learning cost, measured as it starts."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import NamedTuple

import numpy as np
import torch

from main.settings import spread
from main.training import preflight, recipe
from main.training.learner import Learner
from main.training.processes import ProcessSettings
from main.training.recipe import Agent
from torchbeast.core.optimizer import LearningSettings
from torchbeast.core.rollouts import Rollouts
from torchbeast.core.sampling import torch_generator
from torchbeast.core.spawner import Spawner

logger = logging.getLogger("amigo")

SECONDS = 0.7  # of a measurement
WARM_UP_SECONDS = 0.1
READY_SECONDS = 20.0  # to make environments, and what is learned from
MARGIN = 1.25  # acting is to be so much faster than learning: the two get dearer together, but not to the same degree
NEARLY = 1.05  # a process more must bring more than this
FEW = 4  # where it cannot be measured


ELSE = "--num_actor_processes N has it otherwise"


class Cost(NamedTuple):
    """What was measured with so many actor processes at once beside a learner.

    Attributes:
        processes: how many.
        step: seconds that one of them takes for a step of all its environments.
        learned: seconds of a frame learned.
    """

    processes: int
    step: float
    learned: float


class Unmeasured(Exception):
    """A measurement has failed; the message is the cause."""


class Slow(Unmeasured):
    """It would take too long: acting is the limit, as far as that goes."""


def choose(agent: Agent, learner: Learner) -> int:
    """How many actor processes: as asked, the only number there can be, or by measurement, which a line in the log then tells.

    Measured is in forked processes, with an agent of their own in the present one's state: nothing of this process changes.
    Nothing may have touched CUDA, and no thread may run, before that.
    """
    counts, num_actors = spread(agent.settings).counts, agent.settings[ProcessSettings].num_actors
    if len(counts) == 1:
        return counts[0]
    room = preflight.processes_in_memory(agent.checkpoint_bytes)
    counts = counts if room is None else counts[: max(1, room + 1 - counts[0])]
    try:
        costs = [measure(agent, learner, counts[0])]
        if len(counts) > 1 and MARGIN * costs[0].step / num_actors > costs[0].learned:  # else one more can only slow learning
            costs.append(measure(agent, learner, counts[-1]))
    except Unmeasured as error:
        count = counts[-1] if isinstance(error, Slow) else min(max(FEW, counts[0]), counts[-1])
        logger.warning(f"actor processes: {count}; what acting and learning cost could not be measured ({error}); {ELSE}")
        return count
    count = fewest(num_actors, costs[0], costs[-1])
    rates = [(each.processes, num_actors / each.step, 1 / each.learned) for each in costs]
    found = [f"{processes} act for {acted:,.0f} frames/s beside {learned:,.0f} learned" for processes, acted, learned in rates]
    logger.info(f"actor processes: {count} of at most {counts[-1]} ({'; '.join(found)}); {ELSE}")
    return count


def fewest(num_actors: int, few: Cost, many: Cost) -> int:
    """The fewest processes with which a run is nearly as fast as with any number from few.processes to many.processes.

    A frame takes as long as the slower of acting for it, step / num_actors with MARGIN, and learning from it. Between the two
    measurements a step's cost is linear in the environments that a process hosts, and learning's in the processes beside it:
    both take in that cores which are hyperthreads of one slow each other.
    """

    def seconds(count: int) -> float:
        hosted, least, most = (math.ceil(num_actors / n) for n in (count, many.processes, few.processes))
        step = np.interp(hosted, [least, most], [many.step, few.step])
        learned = np.interp(count, [few.processes, many.processes], [few.learned, many.learned])
        return max(MARGIN * step / num_actors, learned)

    taken = {count: seconds(count) for count in range(few.processes, many.processes + 1)}
    return min(count for count, each in taken.items() if each <= NEARLY * min(taken.values()))


def measure(agent: Agent, learner: Learner, count: int) -> Cost:
    """What `count` actor processes and a learner cost that work at once, as in a run, in processes that end with this call.

    Raises: Unmeasured.
    """
    works = [lambda: _learning(agent, learner)]
    works += [lambda hosted=hosted: _acting(agent, learner, hosted) for hosted in spread(agent.settings).hosted(count)]
    spawner = Spawner(lambda index, _, connection: _serve(works[index], connection))
    ends: list[Connection] = []
    try:
        spawner.start()
        ends += [spawner.spawn(index, 0) for index in range(len(works))]
        _answers(ends)
        for end in ends:
            end.send("go")
        learned, *steps = _answers(ends)
    except EOFError:
        raise Unmeasured("a process has ended") from None
    except OSError as error:  # no more processes are allowed
        raise Unmeasured(error.strerror or str(error)) from None
    finally:
        spawner.close(0.0)
        for end in ends:
            end.close()
    return Cost(count, float(np.mean(steps)), learned)


def _answers(ends: Sequence[Connection]) -> list[float]:
    """One from each. Raises: Unmeasured; EOFError, OSError."""
    deadline, found = time.monotonic() + READY_SECONDS, []
    for end in ends:
        if not end.poll(max(0.0, deadline - time.monotonic())):
            raise Slow(f"it takes longer than {READY_SECONDS:g} s")
        found.append(end.recv())
        if isinstance(found[-1], str):
            raise Unmeasured(found[-1])
    return found


# In the processes


def _serve(prepare: Callable[[], Callable[[], float]], connection: Connection) -> None:
    """Says that it is ready, waits for the others, works, and tells the cost; or what went wrong, as text."""

    def life() -> None:
        try:
            work = prepare()
            connection.send(0.0)
            connection.recv()
            connection.send(work())
        except (EOFError, ConnectionError):
            return  # nobody waits any more
        except Exception as error:
            connection.send(f"{type(error).__name__}: {error}".splitlines()[0])

    with ThreadPoolExecutor(1) as pool:  # the parent's OpenMP threads, for which its own would wait, are not there any more
        pool.submit(life).result()


def _twin(agent: Agent, learner: Learner) -> tuple[Agent, Learner]:
    """Both once more in the same state, without shared memory: what these publish reaches nobody."""
    own = Agent.make(agent.settings, agent.task)
    again = own.learner()
    again.load_state_dict(learner.state_dict())
    return own, again


def _acting(agent: Agent, learner: Learner, hosted: int) -> Callable[[], float]:
    """Measures seconds of a step, environments included. Weights come as often as from a learner that keeps up."""
    torch.set_num_threads(1)
    own, _ = _twin(agent, learner)
    learning, num_actors = agent.settings[LearningSettings], agent.settings[ProcessSettings].num_actors
    every = max(1, learning.unroll_length * learning.batch_size // num_actors)
    rollouts = Rollouts(own.rollout_fields(), unroll_length=learning.unroll_length, num_buffers=hosted)
    actor, slots = own.actor(range(hosted), torch_generator(0, "balance")), np.arange(hosted)

    def work(seconds: float = SECONDS) -> float:
        began, steps, publishing = time.perf_counter(), 0, 0.0

        def stopped() -> bool:
            nonlocal steps, publishing
            now = time.perf_counter()
            if steps and now - began - publishing > seconds:
                return True
            if steps % every == 0:
                own.shared.publish(own.student)
                publishing += time.perf_counter() - now
            steps += 1
            return False

        while actor.fill(rollouts, slots, stopped):
            pass
        return (time.perf_counter() - began - publishing) / steps

    work(WARM_UP_SECONDS)
    return work


def _learning(agent: Agent, learner: Learner) -> Callable[[], float]:
    """Measures seconds of a frame learned, on the run's device, from rollouts of batch_size environments; what of it is made
    ready meanwhile, by another thread, does not count."""
    own, again = _twin(agent, learner)
    learning = agent.settings[LearningSettings]
    rollouts = Rollouts(own.rollout_fields(), unroll_length=learning.unroll_length, num_buffers=learning.batch_size)
    slots = np.arange(learning.batch_size)
    own.actor(slots.tolist(), torch_generator(0, "balance")).fill(rollouts, slots)
    again.to(recipe.device(agent.settings, learner.ranks))
    again.load_state_dict(learner.state_dict())  # once more: what optimisers keep goes where their parameters are then

    def work(seconds: float = SECONDS) -> float:
        updates, learning_for = 0, 0.0
        while learning_for < seconds:
            batch = rollouts.batch(slots)
            seen, began = again.seen(batch), time.perf_counter()
            again.learn(batch, seen)
            updates, learning_for = updates + 1, learning_for + time.perf_counter() - began
        return learning_for / (updates * learning.unroll_length * learning.batch_size)

    work(WARM_UP_SECONDS)
    return work

"""What a variant of the agent is: where its intrinsic reward comes from. Two interfaces and the registry of `--model` names.

A new intrinsic reward is one file with a Motivation and one line in `registry`.
"""

from __future__ import annotations

import abc
import argparse
import difflib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchbeast.core.environment import Environment, Output
from torchbeast.core.ranks import ALONE, Alone
from torchbeast.core.rollouts import Field

Batch = dict[str, Tensor]


class Shown(NamedTuple):
    """What a motivation has to show of a state, to somebody who watches the agent.

    goal: the cell that the student is to reach, x*H + y; None where there are no goals.
    probabilities: those with which its teacher drew the goal, float32 [W, H]; None where there is no teacher.
    event: says that a goal was reached on arrival in the state; "" if none was.
    notes: (label, value), as many in every state.
    """

    goal: int | None = None
    probabilities: np.ndarray | None = None
    event: str = ""
    notes: tuple[tuple[str, str], ...] = ()


class Task(NamedTuple):
    """What a motivation and the networks need to know of the environment: (W, H, 3k), A, and an episode's step limit."""

    frame_shape: tuple[int, int, int]
    num_actions: int
    max_steps: int

    @classmethod
    def of(cls, environment: Environment) -> Task:
        return cls(environment.frame_shape, environment.num_actions, environment.max_steps)


class MotivationActor(abc.ABC):
    """A motivation's part in an actor process: it watches E environments."""

    @abc.abstractmethod
    def observe(self, out: Output, environment: Environment) -> dict[str, np.ndarray]:
        """Called on arrival in each state; returns the motivation's rollout fields for it, [E, ...] each.

        `out` is the environment's output; a motivation may end episodes by `environment.restart`, which updates `out`. The
        arrays may be overwritten by the next call. A goal-conditioned student reads `goal` (int64 [E]) among them.
        """

    def refresh(self) -> None:
        """Takes over newly published weights."""

    def state_dict(self) -> dict:
        """All that is needed to go on exactly from here (numbers, lists, dicts, tensors)."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Goes back to the moment of `state_dict`."""


class Motivation(abc.ABC):
    """A motivation's part in the learner. Built on the CPU, before actors are forked.

    Attributes:
        goal_conditioned: the student sees a goal.
        rollout_fields: what its actors add to a rollout.
        log_columns: what `learn` and `intrinsic_reward` may report.
        waiting_keys: the keys of `state_dict` that hold what waits to be learned from on this rank: tensors [N, ...] by
            name.
        own_keys: those that hold what else each rank has for itself; rank 0's is saved. All else is the same on every rank.
    """

    goal_conditioned: bool
    rollout_fields: dict[str, Field]
    log_columns: tuple[str, ...]
    waiting_keys: tuple[str, ...] = ()
    own_keys: tuple[str, ...] = ()

    @abc.abstractmethod
    def actor(self, num_envs: int, generator: torch.Generator) -> MotivationActor:
        """Its part in an actor that hosts E environments; all randomness comes from `generator`."""

    @abc.abstractmethod
    def to(self, device: torch.device) -> None:
        """Moves what is learned to the learner's device; called once, after the fork."""

    def student_goal(self, batch: Batch) -> Tensor | None:
        """The goals that the student is conditioned on in states 0..T, int64 [T+1, B]; None if it has none."""
        return batch.get("goal")

    @abc.abstractmethod
    def intrinsic_reward(self, batch: Batch) -> Tensor:
        """float32 [T, B], for arriving in states 1..T, without gradient. May add to the batch what `learn` needs again."""

    @abc.abstractmethod
    def learn(self, batch: Batch) -> dict[str, float]:
        """Learns from a batch that `intrinsic_reward` has seen, publishes weights to the actors, returns log values.

        Called on all ranks at once: each must make the same updates, however much it has to learn from.
        """

    @abc.abstractmethod
    def state_dict(self) -> dict:
        """Its part of a checkpoint."""

    @abc.abstractmethod
    def load_state_dict(self, state: dict) -> None:
        """Restores and publishes everything; a checkpoint of the published code may lack what only we save."""

    def shown(self, row: dict[str, np.ndarray]) -> Shown:
        """What a video shows of the first environment's state, given what every rollout field is in it, [E, ...] each."""
        return Shown()

    def progress(self) -> str:
        """A few words for the progress line."""
        return ""

    def warnings(self) -> Iterator[str]:
        """What a user should know of the flags or the present state, a line each."""
        return iter(())


def registry() -> dict[str, Callable[[argparse.Namespace, Task, Alone], Motivation]]:
    """The `--model` names. Imported here, since the variants' modules import this one."""
    from utils_folder.amigo import Amigo, threshold_difficulty, window_difficulty
    from utils_folder.bebold import BeBold

    return {
        "default": lambda flags, task, ranks: Amigo(flags, task, threshold_difficulty(flags), ranks),
        "window_adaptive": lambda flags, task, ranks: Amigo(flags, task, window_difficulty(flags), ranks),
        "novelty_based": BeBold,
    }


ALIASES = {"window_addaptive": "window_adaptive"}  # so spelled in the document's own command


def canonical_name(name: str) -> str:
    """The registered name meant by `name`; ValueError with close matches if there is none."""
    name = ALIASES.get(name, name)
    known = registry()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]}?" if close else ""
        raise ValueError(f"unknown model {name!r}: choose from {', '.join(known)}. {hint}".strip())
    return name


def make_motivation(flags: argparse.Namespace, task: Task, ranks: Alone = ALONE) -> Motivation:
    """The motivation that `flags.model` names."""
    return registry()[canonical_name(flags.model)](flags, task, ranks)

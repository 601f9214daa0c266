"""What a variant of the agent is: where its intrinsic reward comes from. Interfaces for actors' side and learner's."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchbeast.core.columns import Column
from torchbeast.core.environment import Environment, Output
from torchbeast.core.events import Histogram
from torchbeast.core.optimizer import OptimizerMaker
from torchbeast.core.ranks import ALONE, Alone
from torchbeast.core.rollouts import Field
from torchbeast.core.settings import Settings

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


class MotivationActor:
    """A motivation's part in an actor process: it watches E environments. As it stands, it notes nothing.

    Attributes:
        last_fields: of which fields of the output it wants to see what they were in an episode's last state (`keep_last`).
    """

    last_fields: tuple[str, ...] = ()

    def observe(self, out: Output, environment: Environment) -> dict[str, np.ndarray]:
        """Called on arrival in each state; returns the motivation's rollout fields for it, [E, ...] each.

        `out` is the environment's output; a motivation may end episodes by `environment.restart`, which updates `out`. The
        arrays may be overwritten by the next call. A goal-conditioned student reads `goal` (int64 [E]) among them.
        """
        return {}

    def refresh(self) -> None:
        """Takes over newly published weights."""

    def state_dict(self) -> dict:
        """All that is needed to go on exactly from here (numbers, lists, dicts, tensors)."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Goes back to the moment of `state_dict`."""


class Motivation(abc.ABC):
    """A motivation's part in the learner. Built on the CPU, before actors are forked. As it stands, it learns nothing.

    Attributes:
        groups: its settings: frozen dataclasses of flags.
        example: flags that it is worth trying with.
        columns: what `learn` may report.
        pays: it has an intrinsic reward.
        goal_conditioned: the student sees a goal.
        reads: the fields of a batch that its networks are given: it finds them on the learner's device, all others on the CPU.
        rollout_fields: what its actors add to a rollout; of utils_folder/minigrid/view.py's VIEW_FIELDS those that it reads:
            the environments give them.
        waiting_keys: the keys of `training_state_dict` that hold what waits to be learned from on this rank, or is carried on
            there: tensors [N, ...] by name. It is saved for each rank, and shared out where there are fewer or more later.
        table_bytes: what a table in `training_state_dict`, which grows while it learns, comes to at most.
        own_keys: the keys of `state_dict` that hold what else each rank has for itself; rank 0's is saved. All else is the
            same on every rank.

    Args of the constructor:
        settings: of the run; a motivation reads its own groups, and those of the rooms below that it has to do with.
        task: what is played.
        make_optimizer: makes an optimiser that follows the student's schedule.
        ranks: those that learn together.
    """

    groups: ClassVar[tuple[type, ...]] = ()
    example: ClassVar[str] = ""
    columns: ClassVar[tuple[Column, ...]] = ()
    pays: ClassVar[bool] = True
    waiting_keys: ClassVar[tuple[str, ...]] = ()
    own_keys: ClassVar[tuple[str, ...]] = ()
    goal_conditioned: bool = False
    table_bytes: int = 0
    reads: tuple[str, ...] = ()

    def __init__(self, settings: Settings, task: Task, make_optimizer: OptimizerMaker, ranks: Alone = ALONE):
        self.rollout_fields: dict[str, Field] = {}

    @classmethod
    def problems(cls, settings: Settings, width: int, height: int) -> list[str]:
        """Why these settings cannot work on a grid of this size, a line each with the remedy."""
        return []

    def actor(self, num_envs: int, generator: torch.Generator) -> MotivationActor:
        """Its part in an actor that hosts E environments; all randomness comes from `generator`."""
        return MotivationActor()

    def to(self, device: torch.device) -> None:
        """Moves what is learned to the learner's device; called once, after the fork."""

    def student_goal(self, batch: Batch) -> Tensor | None:
        """The goals that the student is conditioned on in states 0..T, int64 [T+1, B]; None if it has none."""
        return batch.get("goal")

    @abc.abstractmethod
    def intrinsic_reward(self, batch: Batch) -> Tensor:
        """float32 [T, B], for arriving in states 1..T, without gradient. May add to the batch what `learn` needs again."""

    def learn(self, batch: Batch) -> dict[str, float]:
        """Learns from a batch that `intrinsic_reward` has seen, publishes weights to the actors, returns log values.

        Called on all ranks at once: each must make the same updates, however much it has to learn from.
        """
        return {}

    def state_dict(self) -> dict:
        """Its part of a checkpoint: what playing with the agent needs. Its keys are known to nobody else."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Restores and publishes that; a checkpoint of the published code may lack what only we save."""

    def training_state_dict(self) -> dict:
        """The rest of it: what going on with the run needs besides, as optimisers. Not kept of a finished run."""
        return {}

    def load_training_state_dict(self, state: dict) -> None:
        """Restores that; called after `load_state_dict` when a run goes on, not when its agent plays."""

    def shown(self, row: dict[str, np.ndarray]) -> Shown:
        """What a video shows of the first environment's state, given what every rollout field is in it, [E, ...] each."""
        return Shown()

    def progress(self) -> str:
        """A few words for the progress line."""
        return ""

    def histograms(self) -> dict[str, Histogram]:
        """What it has counted since the last call, for TensorBoard. Another thread than the learner's may call it."""
        return {}

    def warnings(self) -> Iterator[str]:
        """What a user should know of the flags or the present state, a line each."""
        return iter(())

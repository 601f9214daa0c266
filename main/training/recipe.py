"""The one recipe: from settings to task, motivation, student, learner, actors; for training, playing, benchmark, tests."""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from main.settings import RunSettings, spread
from main.training.actor import Actor
from main.training.learner import APART_COLUMNS, COLUMNS, Learner
from main.training.processes import ProcessSettings
from main.training.sight import Sight
from models import STUDENTS
from models.grid import are_cells
from torchbeast.core.columns import Column, by_name
from torchbeast.core.environment import LAST, Environment
from torchbeast.core.optimizer import LearningSettings, optimizer_maker
from torchbeast.core.ranks import ALONE, Alone
from torchbeast.core.rollouts import CORE_STATE, Field, Rollouts, agent_fields, rollout_bytes
from torchbeast.core.sampling import sample
from torchbeast.core.settings import Settings
from torchbeast.core.weights import Reader, SharedWeights
from utils_folder import minigrid
from utils_folder.minigrid import EnvironmentSettings
from utils_folder.minigrid.view import VIEW_FIELDS, look_once
from utils_folder.motivations import MOTIVATIONS
from utils_folder.motivations.base import Motivation, Task
from utils_folder.motivations.rewards import RewardSettings
from utils_folder.motivations.together import Together

CHECKPOINT_COPIES = 4  # of the weights: themselves, their optimisers' two means, and room for what waits to be learned from


def task_name(settings: Settings) -> str:
    """The run's task: its environment with what that is made with."""
    return settings[EnvironmentSettings].task(settings[RunSettings].env)


def make_environments(settings: Settings, seeds: Sequence[int], *, views: bool = False) -> Environment:
    """Environments of the run's kind; environment e's levels come from seeds[e]. `views`: their output has VIEW_FIELDS."""
    own = settings[EnvironmentSettings]
    return minigrid.make_environments(
        task_name(settings),
        seeds,
        engine=own.engine,
        num_input_frames=own.num_input_frames,
        fixed_seed=own.fixed_seed,
        views=views,
    )


def device(settings: Settings, ranks: Alone = ALONE) -> torch.device:
    """Where the run learns. Asking touches CUDA."""
    if not settings[ProcessSettings].disable_cuda and torch.cuda.is_available():
        return torch.device("cuda", ranks.local_rank)
    return torch.device("cpu")


def probe(settings: Settings) -> Task:
    """What is played. Has the compiled engine ready before a fork."""
    own = settings[EnvironmentSettings]
    return Task.of(minigrid.probe(task_name(settings), engine=own.engine, num_input_frames=own.num_input_frames))


class Agent(NamedTuple):
    """Who acts and learns: the student and what motivates it.

    Attributes:
        shared: the student's weights, as its actors see them.
    """

    settings: Settings
    task: Task
    motivation: Motivation
    student: torch.nn.Module
    shared: SharedWeights

    @classmethod
    def make(cls, settings: Settings, task: Task, ranks: Alone = ALONE) -> Agent:
        """Fresh networks, drawn from torch's global generator: the motivation's, then the student's."""
        run = settings[RunSettings]
        make_optimizer = optimizer_maker(settings[LearningSettings], total_frames=run.total_frames, ranks=ranks)
        parts = [motivation(settings, task, make_optimizer, ranks) for motivation in run.motivations]
        motivation = parts[0] if len(parts) == 1 else Together(parts)
        shape = settings[EnvironmentSettings].student_shape(task.frame_shape)
        more = {"intrinsic_value": True} if settings[RewardSettings].apart else {}
        student = STUDENTS[run.student_network].make(
            settings, shape, task.num_actions, goal_conditioned=motivation.goal_conditioned, **more
        )
        agent = cls(settings, task, motivation, student, SharedWeights(student))
        agent._act_once()
        return agent

    @torch.no_grad()
    def _act_once(self) -> None:
        """So that what acting compiles is there before a fork: else each actor process would compile it."""
        fields = agent_fields(self.task.frame_shape, self.task.num_actions) | minigrid.CARRIED_FIELDS | VIEW_FIELDS
        zeros = {name: np.zeros((1, *field.shape), field.dtype) for name, field in fields.items()}
        if self._views:
            look_once()
        seen = self.sight.inputs(zeros, np.zeros(1, np.int64)) | {"done": zeros["done"]}
        inputs = {name: torch.from_numpy(value).unsqueeze(0) for name, value in seen.items()}
        outputs, _ = self.student(inputs, self.student.initial_state(1), self.student.compose())
        sample(outputs["policy_logits"][0].numpy(), torch.Generator())

    @property
    def sight(self) -> Sight:
        return Sight.of(self.settings, self.task)

    @property
    def _views(self) -> bool:
        """Whether anybody reads what the environments say of the partial view."""
        return not VIEW_FIELDS.keys().isdisjoint(self.rollout_fields())

    def learner(self, ranks: Alone = ALONE) -> Learner:
        """Learns this agent."""
        learning = self.settings[LearningSettings]
        return Learner(
            learning,
            self.settings[RewardSettings],
            self.motivation,
            self.student,
            self.shared,
            optimizer_maker(learning, total_frames=self.settings[RunSettings].total_frames, ranks=ranks),
            num_actions=self.task.num_actions,
            num_buffers=spread(self.settings).buffers,
            sight=self.sight,
            ranks=ranks,
        )

    def actor(
        self, seeds: Sequence[int], generator: torch.Generator, *, greedy: bool = False, weights: str | None = None
    ) -> Actor:
        """Plays environments of its own with this agent's newest weights. `weights`: as `Actor` has it."""
        student = Reader(copy.deepcopy(self.student), self.shared)
        motivation = self.motivation.actor(len(seeds), generator)
        environment = make_environments(self.settings, seeds, views=self._views)
        held = [name.removeprefix(LAST) for name in self.rollout_fields() if name.startswith(LAST)]
        if last := dict.fromkeys((*held, *motivation.last_fields)):
            environment.keep_last(tuple(last))
        return Actor(environment, student, motivation, generator, greedy=greedy, weights=weights, sight=self.sight)

    def rollout_fields(self) -> dict[str, Field]:
        """All that a rollout holds: the agent's, MiniGrid's and the motivation's fields, and the LSTM's state at state 0."""
        core_state = {
            f"{CORE_STATE}{i}": Field((state.shape[0], state.shape[2]), "float32", per_row=False)
            for i, state in enumerate(self.student.initial_state(1))
        }
        fields = agent_fields(self.task.frame_shape, self.task.num_actions) | minigrid.CARRIED_FIELDS
        fields["frame"] = fields["frame"]._replace(fits=are_cells)
        fields |= {name: field for name, field in VIEW_FIELDS.items() if name in self.sight.fields}
        timed_out = self.sight.fields if self.settings[LearningSettings].bootstrap_time_limit else ()
        last = {LAST + name: fields[name] for name in timed_out}
        return fields | last | core_state | self.motivation.rollout_fields

    @property
    def _rollouts_size(self) -> dict[str, int]:
        return {
            "unroll_length": self.settings[LearningSettings].unroll_length,
            "num_buffers": spread(self.settings).buffers,
        }

    def rollouts(self) -> Rollouts:
        """As many as the run has, in shared memory."""
        return Rollouts(self.rollout_fields(), **self._rollouts_size)

    @property
    def rollout_bytes(self) -> int:
        """How much memory `rollouts` takes."""
        return rollout_bytes(self.rollout_fields(), **self._rollouts_size)

    @property
    def checkpoint_bytes(self) -> int:
        """About what a checkpoint takes at most."""
        weights = io.BytesIO()
        torch.save([self.student.state_dict(), self.motivation.state_dict()], weights)
        return CHECKPOINT_COPIES * weights.tell() + self.motivation.table_bytes


def columns() -> dict[str, Column]:
    """Every column that some run's log has, by name."""
    return by_name(COLUMNS, APART_COLUMNS, *(motivation.columns for motivation in MOTIVATIONS.values()))

"""The learner: one batch of rollouts to one student update."""

from __future__ import annotations

import argparse
import hashlib
import math
from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor

from main import flags as flags_module
from models.student import Student
from torchbeast.core import losses, optimizer, vtrace
from torchbeast.core.ranks import ALONE, Alone
from torchbeast.core.rollouts import Field, agent_fields
from torchbeast.core.weights import SharedWeights
from utils_folder import minigrid, rewards
from utils_folder.motivation import Motivation, Task

LOG_COLUMNS = (
    "frames",
    "total_loss",
    "mean_episode_return",
    "pg_loss",
    "baseline_loss",
    "entropy_loss",
    "mean_intrinsic_rewards",
    "success_rate",
    "episodes",
    "grad_norm",
    "policy_lag",
)
EPISODE_MEANS = ("mean_episode_return", "success_rate")  # columns that are means over a row's episodes
RECENT_EPISODES = 100
CHECK_UPDATES = 100  # how often ranks compare what must be equal on all of them
LAG_UPDATES = 100  # over how many updates policy lag is averaged before it is judged
LAG_FACTOR = 2  # policy lag, in what is usual when every rollout waits for its turn, from which it is worth a warning


def make_student(flags: argparse.Namespace, task: Task, motivation: Motivation) -> Student:
    """The student that a run's flags describe."""
    return Student(
        task.frame_shape,
        task.num_actions,
        goal_conditioned=motivation.goal_conditioned,
        goal_dim=flags.goal_dim,
        hidden_dim=flags.state_embedding_dim,
        use_lstm=flags.use_lstm,
        num_lstm_layers=flags.num_lstm_layers,
        use_embedding=not flags.disable_use_embedding,
    )


def rollout_fields(task: Task, learner: Learner) -> dict[str, Field]:
    """All that a rollout holds: the agent's, MiniGrid's and the motivation's fields, and the LSTM's state at state 0."""
    core_state = {
        f"core_state_{i}": Field((state.shape[0], state.shape[2]), "float32", per_row=False)
        for i, state in enumerate(learner.student.initial_state(1))
    }
    fields = agent_fields(task.frame_shape, task.num_actions)
    return fields | minigrid.CARRIED_FIELDS | core_state | learner.motivation.rollout_fields


class Learner:
    """Owns the student, its optimiser and the motivation; learns, publishes weights, saves and loads itself.

    Built on the CPU before actors are forked; `to` moves it to its device.

    Attributes:
        frames: environment frames learned from, on all ranks.
        recent_returns: of the last episodes that ended here.
    """

    def __init__(self, flags: argparse.Namespace, task: Task, motivation: Motivation, ranks: Alone = ALONE):
        self.flags = flags
        self.ranks = ranks
        self._max_lag = flags_module.num_buffers(flags) / flags.batch_size + 1
        self.motivation = motivation
        self.student = make_student(flags, task, motivation)
        self.shared = SharedWeights(self.student)
        self.frames = 0
        self.recent_returns: deque[float] = deque(maxlen=RECENT_EPISODES)
        self._optimizer = optimizer.from_flags(self.student.parameters(), flags, learning_rate=flags.learning_rate, ranks=ranks)
        self._device = torch.device("cpu")
        self._usual_lag = 0.0

    def to(self, device: torch.device) -> None:
        self._device = device
        self.student.to(device)
        self.motivation.to(device)

    def learn(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """One student update and the motivation's own, from rollouts [T+1, B, ...]. Returns values of the log's columns.

        Of several ranks all must be in here at once; the values are this rank's own (`row_of_all` joins them).
        """
        lag = (self.shared.version - batch["policy_version"].double().mean().item()) / 2
        self._usual_lag += (lag - self._usual_lag) / LAG_UPDATES
        batch = {name: value.to(self._device, non_blocking=True) for name, value in batch.items()}
        intrinsic = self.motivation.intrinsic_reward(batch)
        stats = self._update_student(batch, intrinsic)
        self.shared.publish(self.student)
        self.frames += self.flags.unroll_length * self.flags.batch_size * self.ranks.size
        return {"frames": self.frames, "policy_lag": lag} | stats | self._episodes(batch) | self.motivation.learn(batch)

    def _update_student(self, batch: dict[str, Tensor], intrinsic: Tensor) -> dict[str, float]:
        outputs = self._forward(batch)
        reward = rewards.student_reward(batch["reward"][1:], intrinsic, extrinsic=not self.flags.no_extrinsic_rewards)
        policy_logits, values = outputs["policy_logits"][:-1], outputs["baseline"][:-1]
        actions = batch["action"][1:]
        log_probs = vtrace.action_log_probs(policy_logits, actions)
        returns = vtrace.from_log_probs(
            vtrace.action_log_probs(batch["policy_logits"][1:], actions),
            log_probs,
            self.flags.discounting * (~batch["done"][1:]).float(),
            reward,
            values,
            outputs["baseline"][-1],
        )
        pg_loss = losses.policy_gradient_loss(log_probs, returns.pg_advantages)
        baseline_loss = self.flags.baseline_cost * losses.baseline_loss(returns.vs, values)
        entropy_loss = self.flags.entropy_cost * losses.entropy_loss(policy_logits)
        total_loss = pg_loss + baseline_loss + entropy_loss
        norm = self._optimizer.step(total_loss)
        return {
            "total_loss": total_loss.item(),
            "pg_loss": pg_loss.item(),
            "baseline_loss": baseline_loss.item(),
            "entropy_loss": entropy_loss.item(),
            "mean_intrinsic_rewards": intrinsic.mean().item(),
            "grad_norm": norm.item(),
        }

    def _forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The student's outputs in states 0..T."""
        inputs = {name: batch[name] for name in ("frame", "carried_obj", "carried_col", "done")}
        goal = self.motivation.student_goal(batch)
        if goal is not None:
            inputs["goal"] = goal
        core_state = tuple(
            batch[f"core_state_{i}"].transpose(0, 1).contiguous() for i in range(2) if f"core_state_{i}" in batch
        )
        outputs, _ = self.student(inputs, core_state)
        return outputs

    def _episodes(self, batch: dict[str, Tensor]) -> dict[str, float]:
        returns = batch["episode_return"][1:][batch["done"][1:]].tolist()
        self.recent_returns.extend(returns)
        if not returns:
            return {"episodes": 0}
        return {
            "episodes": len(returns),
            "mean_episode_return": sum(returns) / len(returns),
            "success_rate": sum(r > 0 for r in returns) / len(returns),
        }

    def warnings(self) -> Iterator[str]:
        """What a user should know of the present state, a line each."""
        yield from self.motivation.warnings()
        if self._optimizer.skipped:
            yield (
                "a student update had a loss or gradient that is not finite and was not applied; "
                "if it happens often, lower --learning_rate"
            )
        bound = LAG_FACTOR * self._max_lag
        if self._usual_lag > bound:
            yield (
                f"rollouts come from weights more than {bound:.0f} updates old: actors are too slow for the learner; "
                "fewer --num_buffers or more --num_actor_processes help"
            )

    @property
    def updates(self) -> int:
        """Student updates in frames learned from, each of the present size."""
        return self.frames // (self.flags.unroll_length * self.flags.batch_size * self.ranks.size)

    def row_of_all(self, row: dict[str, float], wishes: dict[str, float]) -> tuple[dict[str, float], dict[str, float]]:
        """The row of all ranks together, and the mean of their `wishes`, from what each has for the same update."""
        columns = (*LOG_COLUMNS, *self.motivation.log_columns)
        own = {name: row.get(name, math.nan) for name in columns}
        means = self.ranks.mean(own | wishes, dict.fromkeys(EPISODE_MEANS, row["episodes"]))
        episodes = round(means["episodes"] * self.ranks.size)
        # Where all agree the value stays what it is: counts are integers.
        joined = {name: row[name] if row.get(name) == means[name] else means[name] for name in columns}
        return joined | {"episodes": episodes}, {name: means[name] for name in wishes}

    def check_equal(self) -> None:
        """Raises: RanksFailed, naming the rank, if anything is not equal that must be: weights, optimisers, t*, schedules."""
        state = self.state_dict()
        for name in ("recent_returns", *self.motivation.waiting_keys, *self.motivation.own_keys):
            del state[name]
        digest = hashlib.blake2b()
        for leaf in _leaves(state):
            digest.update(leaf)
        self.ranks.check_equal(digest.digest(), f"what has been learned by frame {self.frames:,} (weights, optimisers, t*)")

    def state_dict(self) -> dict:
        rule, schedule = self._optimizer.state_dict()
        return {
            "model_state_dict": self.student.state_dict(),
            "optimizer_state_dict": rule,
            "scheduler_state_dict": schedule,
            "frames": self.frames,
            "weights_version": self.shared.version,
            "recent_returns": list(self.recent_returns),
            **self.motivation.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Goes back to the moment of `state_dict`; call after `to`."""
        self.student.load_state_dict(state["model_state_dict"])
        self._optimizer.load_state_dict(state["optimizer_state_dict"], state["scheduler_state_dict"])
        self.frames = state["frames"]
        self.recent_returns = deque(state["recent_returns"], maxlen=RECENT_EPISODES)
        self.motivation.load_state_dict(state)
        self.shared.publish(self.student, state["weights_version"])


def _leaves(tree) -> Iterator[bytes]:
    """Every tensor and number in nested dicts and lists, with its name, in their order."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield str(name).encode()
            yield from _leaves(value)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from _leaves(value)
    elif isinstance(tree, Tensor):
        yield tree.cpu().contiguous().numpy().tobytes()
    else:
        yield repr(tree).encode()

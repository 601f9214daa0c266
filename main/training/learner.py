"""The learner: one batch of rollouts to one student update."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from main.training import timeouts
from main.training.alarms import StudentAlarms
from main.training.sight import FULL, Sight
from torchbeast.core import forms, losses, vtrace
from torchbeast.core.columns import Column
from torchbeast.core.optimizer import LearningSettings, OptimizerMaker
from torchbeast.core.ranks import ALONE, Alone
from torchbeast.core.rollouts import CORE_STATE
from torchbeast.core.success import RECENT_EPISODES, success_rate
from torchbeast.core.upload import Captured, numbers, sent, to_device
from torchbeast.core.weights import SharedWeights
from utils_folder.motivations import rewards
from utils_folder.motivations.base import Motivation
from utils_folder.motivations.rewards import RewardSettings

COLUMNS = (
    Column("frames", "environment frames learned from, on all ranks", "last"),
    Column("total_loss", "pg_loss + baseline_loss + entropy_loss, each summed over the T steps of a rollout and averaged over "
           "the batch"),
    Column("mean_episode_return", "mean return of the episodes that ended in this batch (the environment's reward only)",
           "episodes", panel="return", label="mean episode return\n(environment's reward)"),
    Column("pg_loss", "the student's policy gradient loss"),
    Column("baseline_loss", "the student's value loss, times baseline_cost"),
    Column("entropy_loss", "the student's negative entropy, times entropy_cost"),
    Column("mean_intrinsic_rewards", "mean intrinsic reward of a step of this batch", panel="intrinsic",
           label="intrinsic reward\n(per step)"),
    Column("success_rate", "the share of those episodes with a return above 0", "episodes", panel="success",
           label="success rate\n(share of episodes)"),
    Column("episodes", "episodes that ended in this batch", "sum"),
    Column("grad_norm", "norm of the student's gradient before it is clipped at max_grad_norm"),
    Column("policy_lag", "how many updates old the weights were that this batch's rollouts began with (mean)"),
    Column("policy_kl", "the divergence KL(played || present), in nats, of the policy before this update from the one that "
           "played the batch: how far the updates between moved it (mean over steps)"),
)  # fmt: skip
APART_COLUMNS = (
    Column("intrinsic_baseline_loss", "the loss of the student's value of intrinsic rewards, times baseline_cost; part of "
           "total_loss (--reward_mixing apart)"),
)  # fmt: skip
LOSSES = ("total_loss", "pg_loss", "baseline_loss", "entropy_loss")
APART_LOSSES = (*LOSSES, "intrinsic_baseline_loss")
STUDENT = "student_"  # before the name of what the student sees
READS = ("reward", "done", "action", "policy_logits")
PLAIN = {  # numbers in a learner's part of a checkpoint, and what they can be
    "frames": forms.whole(),
    "weights_version": forms.whole(multiple_of=2),  # odd: somebody writes them, which readers wait for
    "recent_returns": forms.each(forms.number(), at_most=RECENT_EPISODES),
    "training_keys": forms.each(forms.text),
}
YOUNGER = ("training_keys",)  # than some checkpoints


@contextlib.contextmanager
def _tiny_is_zero() -> Iterator[None]:
    """In this thread numbers below 1.2e-38 (denormal ones) are taken for zero.

    Processors compute with them a hundred times slower, and what a policy that is nearly certain learns from is full of them.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)  # nobody else in this thread expects it


class Learner:
    """Owns the student, its optimiser and the motivation; learns, publishes weights, saves and loads itself.

    Built on the CPU before actors are forked; `to` moves it to its device.

    Attributes:
        frames: environment frames learned from, on all ranks.
        recent_returns: of the last episodes that ended here.
    """

    def __init__(
        self,
        settings: LearningSettings,
        reward_settings: RewardSettings,
        motivation: Motivation,
        student: nn.Module,
        shared: SharedWeights,
        make_optimizer: OptimizerMaker,
        *,
        num_actions: int,
        num_buffers: int,
        sight: Sight = FULL,
        ranks: Alone = ALONE,
    ):
        """`shared`: where the student's weights are published; `num_actions`: A, of the task; `num_buffers`: rollouts between
        actors and this; `sight`: what the student sees of states."""
        self._settings = settings
        self._reward_settings = reward_settings
        self.ranks = ranks
        self.motivation = motivation
        self.student = student
        self.shared = shared
        self._sight = sight
        self.frames = 0
        self.recent_returns: deque[float] = deque(maxlen=RECENT_EPISODES)
        self._optimizer = make_optimizer(student.parameters(), learning_rate=settings.learning_rate)
        self._device = torch.device("cpu")
        self._differentiate = Captured(self._differentiate_loss)
        self._alarms = StudentAlarms(
            settings, num_actions=num_actions, num_buffers=num_buffers, clipped=reward_settings.clipped
        )

    @property
    def columns(self) -> tuple[Column, ...]:
        """What a row holds."""
        return (*COLUMNS, *(APART_COLUMNS if self._reward_settings.apart else ()), *self.motivation.columns)

    @property
    def _frames_per_update(self) -> int:
        return self._settings.unroll_length * self._settings.batch_size * self.ranks.size

    def to(self, device: torch.device) -> None:
        self._device = device
        self.student.to(device)
        self.motivation.to(device)

    def seen(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What of a batch is computed with on the learner's device, there; to be called before `learn`, by any thread."""
        inputs = self._sight.inputs(batch, self.motivation.student_goal(batch))
        names = {*READS, *self.motivation.reads, *(name for name in batch if name.startswith(CORE_STATE))}
        names |= timeouts.reads(self._sight) if self._settings.bootstrap_time_limit else set()
        told = {name: value for name, value in batch.items() if name in names}
        return to_device(told | {STUDENT + name: value for name, value in inputs.items()}, self._device)

    @_tiny_is_zero()
    def learn(self, batch: dict[str, Tensor], seen: dict[str, Tensor] | None = None) -> dict[str, float]:
        """One student update and the motivation's own, from rollouts [T+1, B, ...]. Returns values of the log's columns.

        What is counted is on the CPU; what networks read is on the learner's device, in `seen` (None: it is made here).
        Of several ranks all must be in here at once; the values are this rank's own (`row_of_all` joins them).
        """
        lag = (self.shared.version - batch["policy_version"].double().mean().item()) / 2
        seen = self.seen(batch) if seen is None else seen
        told = batch | {name: seen[name] for name in self.motivation.reads}
        intrinsic = self.motivation.intrinsic_reward(told)
        stats = self._update_student(seen, sent(intrinsic, self._device))
        self.shared.publish(self.student)
        self.frames += self._frames_per_update
        returns = batch["episode_return"][1:][batch["done"][1:]].tolist()
        self.recent_returns.extend(returns)
        row = {"frames": self.frames, "policy_lag": lag} | stats | _episodes(returns)
        self._alarms.see(row, self.recent_returns)
        return row | self.motivation.learn(told)

    def _update_student(self, seen: dict[str, Tensor], intrinsic: Tensor) -> dict[str, float]:
        inputs, core_state = self._inputs(seen)
        own = self._reward_settings
        mixed = {"mixing": own.reward_mixing, "extrinsic": not own.no_extrinsic_rewards}
        reward = rewards.student_reward(seen["reward"][1:], intrinsic, **mixed)
        if self._settings.bootstrap_time_limit:
            values = timeouts.last_values(self.student, seen, inputs, core_state, self._sight)
            reward = reward + self._settings.discounting * values
        state = {f"{CORE_STATE}{i}": part for i, part in enumerate(core_state)}
        about = {name: seen[name] for name in ("action", "policy_logits")}
        parts = self._differentiate({**inputs, **state, **about, "reward": reward, "intrinsic": intrinsic})
        norm = self._optimizer.apply(parts[0])
        found = numbers((*parts, intrinsic.mean(), norm))
        names = (*(APART_LOSSES if own.apart else LOSSES), "policy_kl", "mean_intrinsic_rewards", "grad_norm")
        return dict(zip(names, found, strict=True))

    def _differentiate_loss(self, told: dict[str, Tensor]) -> Tensor:
        """LOSSES (or APART_LOSSES) of what the student did, and `policy_kl`; parameters then have the first one's gradient."""
        outputs, _ = self.student(told, _core_state(told))
        parts, divergence = _losses(self._settings, outputs, told, _streams(self._settings, self._reward_settings, told))
        total_loss = sum(parts.values())
        self._optimizer.differentiate(total_loss)
        return torch.stack([total_loss, *parts.values(), divergence]).detach()

    def _inputs(self, seen: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        """What the student sees in states 0..T, and the state of its memory before them."""
        inputs = {name.removeprefix(STUDENT): value for name, value in seen.items() if name.startswith(STUDENT)}
        return inputs | {"done": seen["done"]}, tuple(part.transpose(0, 1).contiguous() for part in _core_state(seen))

    def warnings(self) -> Iterator[str]:
        """What a user should know of the present state, a line each."""
        yield from self.motivation.warnings()
        yield from self._optimizer.warnings("student", "learning_rate")
        yield from self._alarms.warnings()

    @property
    def updates(self) -> int:
        """Student updates in frames learned from, each of the present size."""
        return self.frames // self._frames_per_update

    def row_of_all(self, row: dict[str, float], wishes: dict[str, float]) -> tuple[dict[str, float], dict[str, float]]:
        """The row of all ranks together, and the mean of their `wishes`, from what each has for the same update."""
        own = {column.name: row.get(column.name, math.nan) for column in self.columns}
        means = self.ranks.mean(own | wishes, {column.name: row.get(column.join, 1) for column in self.columns})
        # Where all agree the value stays what it is: counts are integers.
        joined = {name: row[name] if row.get(name) == means[name] else means[name] for name in own}
        for column in self.columns:
            if column.join == "sum" and column.name in row:
                total = means[column.name] * self.ranks.size
                joined[column.name] = round(total) if isinstance(row[column.name], int) else total
        return joined, {name: means[name] for name in wishes}

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
        """Its part of a checkpoint, the motivation's included; `training_keys` names those that playing does not need."""
        rule, schedule = self._optimizer.state_dict()
        training = {
            "optimizer_state_dict": rule,
            "scheduler_state_dict": schedule,
            "recent_returns": list(self.recent_returns),
            **self.motivation.training_state_dict(),
        }
        return {
            "model_state_dict": self.student.state_dict(),
            "frames": self.frames,
            "weights_version": self.shared.version,
            **self.motivation.state_dict(),
            **training,
            "training_keys": list(training),
        }

    def load_state_dict(self, state: dict) -> None:
        """Goes back to the moment of `state_dict`; call after `to`. Raises: ValueError, one line, for what is no such state."""
        if missing := [key for key in self.state_dict() if key not in state and key not in YOUNGER]:
            raise forms.EntryError(f"it lacks {', '.join(missing)}")
        forms.record(PLAIN, exact=False, optional=YOUNGER)("", state)
        forms.load_weights(self.student, state, "model_state_dict")
        self._optimizer.load_state_dict(state["optimizer_state_dict"], state["scheduler_state_dict"])
        self.frames = state["frames"]
        learned = self._optimizer.updates * self._frames_per_update
        if abs(learned - self.frames) >= self._frames_per_update:
            raise forms.EntryError(f"frames is {self.frames}, and the student's updates learned from {learned:.0f}")
        self.recent_returns = deque(state["recent_returns"], maxlen=RECENT_EPISODES)
        self.motivation.load_state_dict(state)
        self.motivation.load_training_state_dict(state)
        self.shared.publish(self.student, state["weights_version"])


def _core_state(told: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """The parts of the student's memory in there, in their order; () where it has none."""
    return tuple(told[name] for name in sorted(told) if name.startswith(CORE_STATE))


class Stream(NamedTuple):
    """Rewards that the student has a value of, with its own discount.

    value: the name of that value among the student's outputs.
    reward, discounts: float32 [T, B], of the steps; a discount is 0 where returns end.
    """

    value: str
    reward: Tensor
    discounts: Tensor


def _streams(settings: LearningSettings, reward_settings: RewardSettings, told: dict[str, Tensor]) -> list[Stream]:
    streams = [Stream("baseline", told["reward"], settings.discounting * (~told["done"][1:]).float())]
    if reward_settings.apart:
        # Never cut: after an episode's end comes the next one's first state, as in RND.
        discounts = torch.full_like(told["intrinsic"], reward_settings.intrinsic_discounting)
        streams.append(Stream("intrinsic_baseline", told["intrinsic"], discounts))
    return streams


def _losses(
    settings: LearningSettings, outputs: dict[str, Tensor], batch: dict[str, Tensor], streams: Sequence[Stream]
) -> tuple[dict[str, Tensor], Tensor]:
    """The parts of the student's loss in the order of APART_LOSSES, from its outputs in states 0..T, and `policy_kl`: scalars.

    Each value learns its own returns; the policy's advantage is the sum of theirs, within `policy_clip`.
    Source: IMPALA (arXiv 1802.01561), section 4; of two streams RND (arXiv 1810.12894), section 2.3.
    """
    policy_logits, actions = outputs["policy_logits"][:-1], batch["action"][1:]
    log_policy = policy_logits.log_softmax(dim=-1)
    log_probs = vtrace.chosen(log_policy, actions)
    log_behaviour = batch["policy_logits"][1:].log_softmax(dim=-1)
    behaviour = vtrace.chosen(log_behaviour, actions)
    advantages, value_losses = [], []
    for stream in streams:
        values, bootstrap = outputs[stream.value][:-1], outputs[stream.value][-1]
        returns = vtrace.from_log_probs(behaviour, log_probs, stream.discounts, stream.reward, values, bootstrap)
        advantages.append(returns.pg_advantages)
        value_losses.append(settings.baseline_cost * losses.baseline_loss(returns.vs, values))
    advantage = sum(advantages)
    if settings.policy_clip is not None:
        advantage = losses.bounded_advantages(advantage, log_probs - behaviour, settings.policy_clip)
    parts = {
        "pg_loss": losses.policy_gradient_loss(log_probs, advantage),
        "baseline_loss": value_losses[0],
        "entropy_loss": settings.entropy_cost * losses.entropy_loss(log_policy),
        **{f"{stream.value}_loss": loss for stream, loss in zip(streams[1:], value_losses[1:])},
    }
    return parts, losses.policy_divergence(log_behaviour, log_policy)


def _episodes(returns: Sequence[float]) -> dict[str, float]:
    """What the log says of episodes with these returns."""
    if not returns:
        return {"episodes": 0}
    return {
        "episodes": len(returns),
        "mean_episode_return": sum(returns) / len(returns),
        "success_rate": success_rate(returns),
    }


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

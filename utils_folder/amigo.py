"""AMIGo's motivation: a teacher proposes goals, and learns to propose the ones that are hard but not too hard."""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from models.teacher import Teacher
from torchbeast.core import losses, optimizer, vtrace
from torchbeast.core.environment import Environment, Output
from torchbeast.core.ranks import ALONE, Alone
from torchbeast.core.rollouts import Field
from torchbeast.core.sampling import sample
from torchbeast.core.weights import Reader, SharedWeights
from utils_folder import difficulty as difficulties
from utils_folder import goals, rewards
from utils_folder.curriculum import Curriculum
from utils_folder.difficulty import Difficulty
from utils_folder.motivation import Batch, Motivation, MotivationActor, Shown, Task

DEFAULT_START = 7
WINDOW_START = 100
UPDATE_COLUMNS = (
    "gen_rewards",
    "gg_loss",
    "generator_entropy_loss",
    "generator_baseline_loss",
    "mean_episode_steps",
    "ex_reward",
)


def threshold_difficulty(flags: argparse.Namespace) -> difficulties.Threshold:
    """t* of `default`."""
    return difficulties.Threshold(
        threshold=flags.generator_threshold,
        counts=flags.generator_counts,
        maximum=flags.generator_maximum,
        negative=flags.generator_reward_negative,
        target=DEFAULT_START if flags.generator_start is None else flags.generator_start,
    )


def window_difficulty(flags: argparse.Namespace) -> difficulties.Window | difficulties.TrackingWindow:
    """t* of `window_adaptive`, by `--window_rule`."""
    start = WINDOW_START if flags.generator_start is None else flags.generator_start
    common = {
        "threshold": flags.generator_threshold,
        "counts": flags.generator_counts,
        "window": flags.window,
        "negative": flags.generator_reward_negative,
        "target": start,
    }
    if flags.window_rule == "tracking":
        return difficulties.TrackingWindow(maximum=flags.generator_maximum, start=start, **common)
    return difficulties.Window(**common)


class Watch:
    """Watches for a teacher that has stopped teaching."""

    UNREACHED_FRAMES = 1_000_000
    FROZEN_FRAMES = 10_000_000
    COLLAPSED_NATS = 0.01
    COLLAPSED_UPDATES = 100
    DEAD_LOGIT = -0.99  # the map's ELU ends at -1, and has hardly a gradient there

    def __init__(self, target: int):
        self._target = target
        self._frames_since_reached = 0
        self._frames_since_moved = 0
        self._collapsed_updates = 0
        self._dead_updates = 0

    def see(self, reached: Tensor, difficulty: Difficulty) -> None:
        """reached: bool [T, B]."""
        self._frames_since_reached = 0 if reached.any() else self._frames_since_reached + reached.numel()
        self._frames_since_moved = 0 if difficulty.target != self._target else self._frames_since_moved + reached.numel()
        self._target = difficulty.target

    def see_proposals(self, entropy: float, highest_logit: float) -> None:
        """Of one teacher update: the goals' mean entropy, in nats, and the highest of all logits."""
        self._collapsed_updates = self._collapsed_updates + 1 if entropy < self.COLLAPSED_NATS else 0
        self._dead_updates = self._dead_updates + 1 if highest_logit < self.DEAD_LOGIT else 0

    def warnings(self, difficulty: Difficulty) -> Iterator[str]:
        if self._frames_since_reached >= self.UNREACHED_FRAMES:
            yield (
                f"no goal has been reached for {self.UNREACHED_FRAMES:,} frames: the teacher cannot learn; lower t* "
                "(--generator_start), or raise --generator_entropy_cost"
            )
        if self._frames_since_moved >= self.FROZEN_FRAMES and not difficulty.at_limit:
            yield (
                f"t* has not moved for {self.FROZEN_FRAMES:,} frames: no update in a row of generator_counts is good enough; "
                "lower --generator_threshold or --generator_counts"
            )
        if self._collapsed_updates >= self.COLLAPSED_UPDATES:
            yield (
                f"the teacher has proposed one goal only for {self.COLLAPSED_UPDATES} updates (entropy below "
                f"{self.COLLAPSED_NATS} nats): raise --generator_entropy_cost"
            )
        if self._dead_updates >= self.COLLAPSED_UPDATES:
            yield (
                f"all of the teacher's logits have stood at the floor of its last ELU for {self.COLLAPSED_UPDATES} updates: it "
                "proposes goals at random and hardly learns; start again with a lower --generator_learning_rate or a higher "
                "--generator_entropy_cost"
            )


class AmigoActor(MotivationActor):
    """Proposes a goal whenever the last one has been reached or its episode is over.

    The fields of state t (SPEC: with g = goal[t-1], proposed in goal_frame[t-1]):
        reached[t]           g has been reached on arrival in state t
        goal_step[t]         steps since g was proposed
        goal[t], goal_frame[t], generator_logits[t]   in force when acting in state t, and what it was drawn from
        late_goal[t]         goal[t-1], for --as_published
    """

    def __init__(self, teacher: Reader, num_envs: int, task: Task, flags: argparse.Namespace, generator: torch.Generator):
        self._teacher = teacher
        self._generator = generator
        self._modify = flags.modify
        self._boundary_awareness = not flags.no_boundary_awareness
        self._restart_episode = flags.restart_episode
        self._inner_height = task.frame_shape[1] if flags.inner else None
        num_goals = teacher.network.num_goals
        self._row = {
            "goal": np.zeros(num_envs, np.int64),
            "late_goal": np.zeros(num_envs, np.int64),
            "goal_frame": np.zeros((num_envs, *task.frame_shape), np.uint8),
            "generator_logits": np.zeros((num_envs, num_goals), np.float32),
            "goal_step": np.zeros(num_envs, np.int32),
            "reached": np.zeros(num_envs, np.bool_),
        }
        self._started = False

    def observe(self, out: Output, environment: Environment) -> dict[str, np.ndarray]:
        row = self._row
        if self._started:
            row["goal_step"] += 1
            self._judge(out, environment)
        row["late_goal"][:] = row["goal"]
        self._propose(out, row["reached"] | out["done"] if self._started else np.ones_like(row["reached"]))
        self._started = True
        return row

    def _judge(self, out: Output, environment: Environment) -> None:
        row = self._row
        # The step count restarts with a goal, but goal_step[t] still tells of the goal before: restart it here, one step late.
        row["goal_step"][self._proposed] = 1
        if self._modify:
            reached = goals.reached_by_change(out["frame"], row["goal_frame"], row["goal"])
        else:
            reached = goals.reached_by_standing(out["frame"], row["goal"])
        if not self._boundary_awareness:
            reached &= ~out["done"]
        row["reached"][:] = reached
        if self._restart_episode:
            environment.restart(reached)

    def _propose(self, out: Output, where: np.ndarray) -> None:
        self._proposed = np.flatnonzero(where)
        if not len(self._proposed):
            return
        frames = out["frame"][self._proposed]
        logits, _ = self._teacher.network(torch.from_numpy(frames), self._teacher.composed)
        goal = sample(logits, self._generator).numpy()
        if self._inner_height is not None:
            goal = goals.inner_to_cell(goal, height=self._inner_height)
        self._row["goal"][self._proposed] = goal
        self._row["goal_frame"][self._proposed] = frames
        self._row["generator_logits"][self._proposed] = logits.numpy()

    def refresh(self) -> None:
        self._teacher.refresh()

    def state_dict(self) -> dict:
        return {
            "row": {name: torch.from_numpy(value.copy()) for name, value in self._row.items()},
            "proposed": self._proposed.tolist(),
        }

    def load_state_dict(self, state: dict) -> None:
        for name, value in state["row"].items():
            self._row[name][...] = value.numpy()
        self._proposed = np.array(state["proposed"], np.int64)
        self._started = True


class Amigo(Motivation):
    """The teacher in the learner. Updated when `generator_batch_size` goals have ended, by REINFORCE with a baseline.

    Of several ranks, when that many times their number have ended on all of them together (see `shares`).
    Source: AMIGo (arXiv 2006.12122), algorithm 1.
    """

    goal_conditioned = True
    log_columns = (*UPDATE_COLUMNS, "generator_current_target", "goals_reached")

    waiting_keys = ("generator_batch",)
    own_keys = ("curriculum",)

    def __init__(self, flags: argparse.Namespace, task: Task, difficulty: Difficulty, ranks: Alone = ALONE):
        self._ranks = ranks
        self._flags = flags
        self._task = task
        self.difficulty = difficulty
        self._difficulty_known = True
        self.teacher = Teacher(
            task.frame_shape,
            inner=flags.inner,
            mirrored=flags.as_published,
            use_embedding=not flags.disable_use_embedding,
        )
        self._shared = SharedWeights(self.teacher)
        self._optimizer = optimizer.from_flags(
            self.teacher.parameters(), flags, learning_rate=flags.generator_learning_rate, ranks=ranks
        )
        self._reward_scale = {"negative": flags.generator_reward_negative, "coef": flags.generator_reward_coef}
        self._waiting: Batch = {}
        self._watch = Watch(difficulty.target)
        self._curriculum = Curriculum(task.frame_shape)
        self.rollout_fields = {
            "goal": Field((), np.int64),
            "goal_frame": Field(task.frame_shape, np.uint8),
            "generator_logits": Field((self.teacher.num_goals,), np.float32),
            "goal_step": Field((), np.int32),
            "reached": Field((), np.bool_),
        }
        if flags.as_published:
            self.rollout_fields["late_goal"] = Field((), np.int64)

    def actor(self, num_envs: int, generator: torch.Generator) -> AmigoActor:
        reader = Reader(copy.deepcopy(self.teacher), self._shared)
        return AmigoActor(reader, num_envs, self._task, self._flags, generator)

    def to(self, device: torch.device) -> None:
        self.teacher.to(device)

    def student_goal(self, batch: Batch) -> Tensor:
        return batch["late_goal" if self._flags.as_published else "goal"]

    def intrinsic_reward(self, batch: Batch) -> Tensor:
        return rewards.student_bonus(
            batch["reached"][1:],
            batch["goal_step"][1:],
            max_steps=self._task.max_steps,
            coef=self._flags.intrinsic_reward_coef,
        )

    def learn(self, batch: Batch) -> dict[str, float]:
        entries = ended_goals(batch)
        self._waiting = {k: torch.cat([self._waiting[k], v]) for k, v in entries.items()} if self._waiting else entries
        stats = {"goals_reached": batch["reached"][1:].float().mean().item()}
        waiting = [int(count) for (count,) in self._ranks.gather([len(self._waiting["goal"])])]
        updates = []
        while taken := shares(waiting, self._flags.generator_batch_size * len(waiting)):
            size = taken[self._ranks.rank]
            updates.append(self._update({k: v[:size] for k, v in self._waiting.items()}, counts=not updates))
            self._waiting = {k: v[size:] for k, v in self._waiting.items()}
            waiting = [count - share for count, share in zip(waiting, taken)]
        if updates:
            self._shared.publish(self.teacher)
            stats |= {name: sum(update[name] for update in updates) / len(updates) for name in updates[0]}
        self._watch.see(batch["reached"][1:], self.difficulty)
        self._curriculum.see(batch, self.difficulty.target, ranks=self._ranks.size)
        return stats | {"generator_current_target": self.difficulty.target}

    def _update(self, entries: Batch, *, counts: bool) -> dict[str, float]:
        """One update, to which this rank gives `entries` ([N, ...] each, N may be 0). Returns the log values of all ranks.

        Only the first one after a batch `counts` for the learning rate: where goals end fast there are several, and the
        teacher's rate would be zero long before the student's.
        """
        flags = self._flags
        weight = len(entries["goal"]) / flags.generator_batch_size  # of this rank's mean loss in that of all
        loss, successes, stats = self._loss(entries)
        self._optimizer.step(loss, weight, counts=counts)
        stats = self._ranks.mean(stats, dict.fromkeys(stats, weight))
        # From the share of successes, not from rounded rewards: a mean of exactly -beta must pass a threshold of -beta.
        counts = [count for (count,) in self._ranks.gather([successes])]
        share = sum(counts) / (flags.generator_batch_size * len(counts))
        self.difficulty.update(rewards.teacher_reward(share, **self._reward_scale), stats["ex_reward"])
        return stats

    def _loss(self, entries: Batch) -> tuple[Tensor | None, int, dict[str, float]]:
        """The loss of `entries`, how many of them were successes, and log values; None, 0 and NaN where there are none."""
        flags = self._flags
        if not len(entries["goal"]):
            return None, 0, dict.fromkeys(UPDATE_COLUMNS, math.nan)
        logits, values = (x.unsqueeze(0) for x in self.teacher(entries["goal_frame"]))
        index = entries["goal"]
        if flags.inner:
            index = goals.cell_to_inner(index, height=self._task.frame_shape[1])
        success = self.difficulty.success(entries["reached"], entries["goal_step"])
        learned = rewards.teacher_reward_learned(
            rewards.teacher_reward(success, **self._reward_scale),
            entries["ex_reward"],
            extrinsic=not flags.no_extrinsic_rewards,
        ).unsqueeze(0)
        log_probs = vtrace.action_log_probs(logits, index.unsqueeze(0))
        returns = vtrace.from_log_probs(
            vtrace.action_log_probs(entries["generator_logits"], index).unsqueeze(0),
            log_probs,
            torch.zeros_like(learned),
            learned,
            values,
            torch.zeros_like(learned[0]),
        )
        pg_loss = losses.policy_gradient_loss(log_probs, returns.pg_advantages)
        baseline_loss = flags.baseline_cost * losses.baseline_loss(returns.vs, values)
        negative_entropy = losses.entropy_loss(logits)
        self._watch.see_proposals(-negative_entropy.item(), logits.max().item())
        entropy_loss = flags.generator_entropy_cost * negative_entropy
        stats = (
            learned.mean(),
            pg_loss,
            entropy_loss,
            baseline_loss,
            entries["goal_step"].float().mean(),
            entries["ex_reward"].mean(),
        )
        loss = pg_loss + baseline_loss + entropy_loss
        return loss, int(success.sum()), {name: value.item() for name, value in zip(UPDATE_COLUMNS, stats)}

    def state_dict(self) -> dict:
        rule, schedule = self._optimizer.state_dict()
        return {
            "generator_model_state_dict": self.teacher.state_dict(),
            "generator_model_optimizer_state_dict": rule,
            "generator_scheduler_state_dict": schedule,
            "difficulty": difficulties.state_dict(self.difficulty),
            "generator_batch": dict(self._waiting),
            "curriculum": self._curriculum.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        self.teacher.load_state_dict(state["generator_model_state_dict"])
        self._shared.publish(self.teacher)
        self._difficulty_known = "difficulty" in state  # in ours, not in the published code's
        if self._difficulty_known:
            difficulties.load_state_dict(self.difficulty, state["difficulty"])
        if "generator_batch" in state:  # not left out of what is kept of a finished run
            self._optimizer.load_state_dict(
                state["generator_model_optimizer_state_dict"], state["generator_scheduler_state_dict"]
            )
            device = next(self.teacher.parameters()).device
            self._waiting = {k: v.to(device) for k, v in state["generator_batch"].items()}
            self._curriculum.load_state_dict(state["curriculum"])

    def shown(self, row: dict[str, np.ndarray]) -> Shown:
        width, height, _ = self._task.frame_shape
        goal, logits = int(row["goal"][0]), torch.from_numpy(row["generator_logits"][0])
        cells = np.arange(len(logits))
        probabilities = np.zeros(width * height, np.float32)
        probabilities[goals.inner_to_cell(cells, height=height) if self._flags.inner else cells] = logits.softmax(-1).numpy()
        steps = int(row["goal_step"][0])
        event = f"goal reached in {steps} step{'s' * (steps != 1)}" if row["reached"][0] else ""
        target = str(self.difficulty.target) if self._difficulty_known else "not stored"
        notes = (("goal's probability", f"{probabilities[goal]:.3f}"), ("target distance t*", target))
        return Shown(goal, probabilities.reshape(width, height), event, notes)

    def progress(self) -> str:
        return f"t* {self.difficulty.target}"

    def warnings(self) -> Iterator[str]:
        yield from self.difficulty.warnings()
        yield from self._watch.warnings(self.difficulty)
        if self._optimizer.skipped:
            yield (
                "a teacher update had a loss or gradient that is not finite and was not applied; "
                "if it happens often, lower --generator_learning_rate"
            )


def shares(waiting: Sequence[int], total: int) -> list[int]:
    """How many entries each rank gives to an update on `total`: in proportion to what it has waiting; none if all are too few.

    So the ranks' batches fill together, none waits for the slowest, and fewer than `total` entries stay behind on all ranks.
    """
    available = sum(waiting)
    if available < total:
        return []
    bounds = [total * count // available for count in accumulate(waiting, initial=0)]
    return [end - begin for begin, end in pairwise(bounds)]


def ended_goals(batch: Batch) -> Batch:
    """The teacher's entries in a batch: one with reached False per done[t], one with reached True per reached[t].

    They are in the order of t: were failures and successes apart, an update on part of them would not see the student's skill.

    Args:
        batch: rollouts, [T+1, B, ...].
    Returns: goal_frame, goal, generator_logits of state t-1; goal_step, reached, ex_reward (float32) of t; [N, ...] each.
    """
    done, reached = batch["done"][1:], batch["reached"][1:]
    order = torch.cat([done.nonzero()[:, 0], reached.nonzero()[:, 0]]).argsort(stable=True)

    def both(values: Tensor) -> Tensor:
        return torch.cat([values[done], values[reached]])[order]

    return {
        "goal_frame": both(batch["goal_frame"][:-1]),
        "goal": both(batch["goal"][:-1]),
        "generator_logits": both(batch["generator_logits"][:-1]),
        "goal_step": both(batch["goal_step"][1:]),
        "ex_reward": both(batch["reward"][1:]),
        "reached": torch.cat([torch.zeros_like(done[done]), torch.ones_like(reached[reached])])[order],
    }

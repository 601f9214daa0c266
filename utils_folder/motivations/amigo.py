"""AMIGo's motivation: a teacher proposes goals, and learns to propose the ones that are hard but not too hard."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.grid import CellSettings, are_cells
from models.teacher import Teacher
from torchbeast.core import forms, losses, vtrace
from torchbeast.core.columns import Column
from torchbeast.core.environment import Environment, Output
from torchbeast.core.events import Histogram
from torchbeast.core.optimizer import LearningSettings, OptimizerMaker
from torchbeast.core.ranks import ALONE, Alone
from torchbeast.core.rollouts import Field, younger
from torchbeast.core.sampling import sample
from torchbeast.core.settings import TRAINING, Settings, flag
from torchbeast.core.upload import numbers, to_device
from torchbeast.core.weights import Reader, SharedWeights
from utils_folder.motivations import curriculum, goals, rewards
from utils_folder.motivations import difficulty as difficulties
from utils_folder.motivations.alarms import TeacherAlarms
from utils_folder.motivations.base import Batch, Motivation, MotivationActor, Shown, Task
from utils_folder.motivations.curriculum import Curriculum
from utils_folder.motivations.difficulty import Difficulty
from utils_folder.motivations.rewards import GoalRewardSettings, RewardSettings

DEFAULT_START = 7
UNIFORM = ("teacher=uniform",)  # where nothing of the teacher is learned
WINDOW_START = 100
UPDATE_COLUMNS = (  # of a teacher update, in the order in which `Amigo._loss` gives them
    Column("gen_rewards", "mean of what the teacher learned from (in rows with a teacher update; the next five too)",
           panel="teacher", label="teacher reward\n(per goal)"),
    Column("gg_loss", "the teacher's policy gradient loss"),
    Column("generator_entropy_loss", "the teacher's negative entropy, times generator_entropy_cost"),
    Column("generator_baseline_loss", "the teacher's value loss, times baseline_cost"),
    Column("mean_episode_steps", "mean goal_step, the steps that the goals of its batch took"),
    Column("ex_reward", "mean reward of the environment at the end of those goals"),
)  # fmt: skip


def is_taught(flags: Mapping[str, Any]) -> bool:
    """Whether a teacher proposed the goals of a run with these flags, and not chance."""
    return flags.get("teacher") != "uniform"


@dataclass(frozen=True)
class TeacherSettings:
    """The teacher, its goals, and when it moves t*."""

    title = "Teacher"
    example = "--modify --generator_batch_size 150 --generator_threshold -.1 --generator_reward_negative -.3"
    needs = TRAINING
    teacher: str = flag(
        "learned",
        "who proposes goals: the teacher, which learns to (learned), or chance, each of its cells as likely as any other "
        "(uniform; there is no t* then)",
        choices=("learned", "uniform"),
        agent=True,
    )
    generator_batch_size: int = flag(32, "ended goals in a teacher update (for each rank)", at_least=1, not_with=UNIFORM)
    generator_learning_rate: float = flag(0.002, "teacher's learning rate", at_least=0, not_with=UNIFORM)
    generator_entropy_cost: float = flag(0.05, "weight of its entropy loss", at_least=0, not_with=UNIFORM)
    generator_reward_negative: float = flag(
        -0.1, "its reward (-beta) for a goal that failed or was too easy", not_with=UNIFORM
    )
    generator_reward_coef: float = flag(1.0, "scale of the positive part of its reward", at_least=0, not_with=UNIFORM)
    generator_threshold: float = flag(-0.5, "mean reward from which a teacher update counts as good", not_with=UNIFORM)
    generator_counts: int = flag(10, "good updates before t* moves", at_least=1, not_with=UNIFORM)
    generator_maximum: int = flag(
        100,
        "t* grows while it is not above this",
        at_least=0,
        at_most=difficulties.MOST_STEPS,
        needs=("model=default", "window_rule=tracking"),
        not_with=UNIFORM,
    )
    generator_start: int | None = flag(
        None,
        "t* at the start (default: 7; window_adaptive: 100)",
        at_least=1,
        at_most=difficulties.MOST_STEPS,
        not_with=UNIFORM,
    )
    window: int = flag(
        50,
        "window_adaptive: goals must take t* steps, give or take this",
        at_least=0,
        at_most=difficulties.MOST_STEPS,
        needs=("model=window_adaptive",),
        not_with=UNIFORM,
    )
    window_rule: str = flag(
        "published",
        "window_adaptive: how t* moves",
        choices=("published", "tracking"),
        needs=("model=window_adaptive",),
        not_with=UNIFORM,
    )
    inner: bool = flag(False, "propose no goals on the outer wall", agent=True)
    modify: bool = flag(
        False, "a goal is reached when its cell changes (else: when the agent stands on it)", agent=True, first=True
    )
    restart_episode: bool = flag(False, "reaching a goal ends the episode", needs=())
    no_boundary_awareness: bool = flag(False, "an episode's end does not count as reaching a goal", agent=True)
    as_published: bool = flag(
        False, "reproduce the two indexing slips of the published code", agent=True, published=True
    )
    published_slips: str = flag(
        "both",
        "which of these slips: the student is told each goal a step late (late_goal), or the teacher looks at the mirrored "
        "cell (mirrored_map)",
        choices=("both", "late_goal", "mirrored_map"),
        needs=("as_published",),
        agent=True,
    )

    @property
    def goal_is_late(self) -> bool:
        return self.as_published and self.published_slips != "mirrored_map"

    @property
    def map_is_mirrored(self) -> bool:
        return self.as_published and self.published_slips != "late_goal"


def threshold_difficulty(settings: TeacherSettings) -> difficulties.Threshold:
    """t* of `default`."""
    return difficulties.Threshold(
        threshold=settings.generator_threshold,
        counts=settings.generator_counts,
        maximum=settings.generator_maximum,
        negative=settings.generator_reward_negative,
        target=DEFAULT_START if settings.generator_start is None else settings.generator_start,
    )


def window_difficulty(settings: TeacherSettings) -> difficulties.Window | difficulties.TrackingWindow:
    """t* of `window_adaptive`, by `--window_rule`."""
    start = WINDOW_START if settings.generator_start is None else settings.generator_start
    common = {
        "threshold": settings.generator_threshold,
        "counts": settings.generator_counts,
        "window": settings.window,
        "negative": settings.generator_reward_negative,
        "target": start,
    }
    if settings.window_rule == "tracking":
        return difficulties.TrackingWindow(maximum=settings.generator_maximum, start=start, **common)
    return difficulties.Window(**common)


def row_fields(task: Task, settings: TeacherSettings, num_goals: int) -> dict[str, Field]:
    """What an actor says of a state: see AmigoActor."""
    width, height, _ = task.frame_shape

    def are_goals(cells: Tensor) -> Tensor:
        x, y = cells // height, cells % height
        wall = 1 if settings.inner else 0
        return (x >= wall) & (x < width - wall) & (y >= wall) & (y < height - wall)

    return {
        "goal": Field((), np.int64, fits=are_goals),
        "late_goal": Field((), np.int64, fits=lambda cells: are_goals(cells) | (cells == 0)),  # before the first: 0
        "goal_frame": Field(task.frame_shape, np.uint8, fits=are_cells),
        "generator_logits": Field((num_goals,), np.float32),
        "goal_step": Field((), np.int32, fits=forms.within(0, difficulties.MOST_STEPS)),
        "reached": Field((), np.bool_),
        "restarted": Field((), np.bool_, younger=True),
    }


def rollout_fields(task: Task, settings: TeacherSettings, num_goals: int) -> dict[str, Field]:
    """Of what an actor says of a state, what this run's rollouts hold."""
    unused = {"late_goal"} if not settings.goal_is_late else set()
    unused |= {"restarted"} if not settings.restart_episode else set()
    return {name: field for name, field in row_fields(task, settings, num_goals).items() if name not in unused}


class AmigoActor(MotivationActor):
    """Proposes a goal whenever the last one has been reached or its episode is over.

    The fields of state t (SPEC: with g = goal[t-1], proposed in goal_frame[t-1]):
        reached[t]           g has been reached on arrival in state t
        goal_step[t]         steps since g was proposed
        goal[t], goal_frame[t], generator_logits[t]   in force when acting in state t, and what it was drawn from
        late_goal[t]         goal[t-1], where the student is told goals late
        restarted[t]         that ended the episode, for --restart_episode
    """

    def __init__(self, teacher: Reader, num_envs: int, task: Task, settings: TeacherSettings, generator: torch.Generator):
        self._teacher = teacher
        self._generator = generator
        self._uniform = settings.teacher == "uniform"
        self._modify = settings.modify
        self._boundary_awareness = not settings.no_boundary_awareness
        self._restart_episode = settings.restart_episode
        self._inner_height = task.frame_shape[1] if settings.inner else None
        self._fields = row_fields(task, settings, teacher.network.num_goals)
        self._row = {name: np.zeros((num_envs, *field.shape), field.dtype) for name, field in self._fields.items()}
        self._started, self._proposed = False, np.empty(0, np.int64)

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
            row["restarted"][:] = reached & ~out["done"]
            environment.restart(reached)

    def _propose(self, out: Output, where: np.ndarray) -> None:
        self._proposed = np.flatnonzero(where)
        if not len(self._proposed):
            return
        frames = out["frame"][self._proposed]
        logits = self._logits(frames)
        goal = sample(logits, self._generator)
        if self._inner_height is not None:
            goal = goals.inner_to_cell(goal, height=self._inner_height)
        self._row["goal"][self._proposed] = goal
        self._row["goal_frame"][self._proposed] = frames
        self._row["generator_logits"][self._proposed] = logits

    def _logits(self, frames: np.ndarray) -> np.ndarray:
        """Of each cell as a goal, float32 [N, G], for frames [N, W, H, 3k]."""
        if self._uniform:
            return np.zeros((len(frames), self._teacher.network.num_goals), np.float32)
        logits, _ = self._teacher.network(torch.from_numpy(frames), self._teacher.composed)
        return logits.numpy()

    def refresh(self) -> None:
        self._teacher.refresh()

    def state_dict(self) -> dict:
        return {
            "row": {name: torch.from_numpy(value.copy()) for name, value in self._row.items()},
            "proposed": self._proposed.tolist(),
        }

    def load_state_dict(self, state: dict) -> None:
        num_envs = len(self._row["goal"])
        row = forms.record({n: field.form(num_envs) for n, field in self._fields.items()}, optional=younger(self._fields))
        proposed = forms.each(forms.whole(high=num_envs - 1), at_most=num_envs)
        forms.record({"row": row, "proposed": proposed})("source/actor/motivation", state)
        for name, value in state["row"].items():
            self._row[name][...] = value.numpy()
        self._proposed = np.array(state["proposed"], np.int64)
        self._started = True


class Amigo(Motivation):
    """The teacher in the learner. Updated when `generator_batch_size` goals have ended, by REINFORCE with a baseline.

    Of several ranks, when that many times their number have ended on all of them together (see `shares`).
    Source: AMIGo (arXiv 2006.12122), algorithm 1.
    """

    groups = (GoalRewardSettings, TeacherSettings)
    example = (
        "--modify --generator_batch_size 150 --generator_entropy_cost .05 --generator_threshold -.1 "
        "--generator_reward_negative -.3"
    )
    columns = (
        *UPDATE_COLUMNS,
        Column("generator_current_target", "target distance of goals, in steps", "last", panel="t_star", label="t* (steps)"),
        Column("goals_reached", "share of steps on which the goal was reached: the sum of the next two"),
        Column("goals_reached_inside", "by what the student did"),
        Column("goals_reached_at_end", "by the exchange of levels as the episode ended"),
    )
    goal_conditioned = True
    waiting_keys = ("generator_batch",)
    own_keys = (curriculum.KEY,)
    make_difficulty = staticmethod(threshold_difficulty)

    def __init__(self, settings: Settings, task: Task, make_optimizer: OptimizerMaker, ranks: Alone = ALONE):
        own = self._settings = settings[TeacherSettings]
        self._rewards, self._goal_rewards = settings[RewardSettings], settings[GoalRewardSettings]
        self._baseline_cost = settings[LearningSettings].baseline_cost
        self._task = task
        self._ranks = ranks
        self.difficulty: Difficulty = self.make_difficulty(own)
        self._difficulty_known = True
        embedded = not settings[CellSettings].disable_use_embedding
        self.teacher = Teacher(task.frame_shape, inner=own.inner, mirrored=own.map_is_mirrored, use_embedding=embedded)
        self._shared = SharedWeights(self.teacher)
        self._optimizer = make_optimizer(self.teacher.parameters(), learning_rate=own.generator_learning_rate)
        self._reward_scale = {"negative": own.generator_reward_negative, "coef": own.generator_reward_coef}
        self._device = torch.device("cpu")
        self._uniform = own.teacher == "uniform"
        self._waiting: Batch = {}
        self._alarms = TeacherAlarms(self.difficulty.target)
        self._curriculum = Curriculum(task.frame_shape)
        self.rollout_fields = rollout_fields(task, own, self.teacher.num_goals)

    @classmethod
    def problems(cls, settings: Settings, width: int, height: int) -> list[str]:
        if settings[TeacherSettings].inner and min(width, height) < 3:
            return [f"--inner: a {width}x{height} grid has no cells inside its outer wall"]
        return []

    def actor(self, num_envs: int, generator: torch.Generator) -> AmigoActor:
        reader = Reader(copy.deepcopy(self.teacher), self._shared)
        return AmigoActor(reader, num_envs, self._task, self._settings, generator)

    def to(self, device: torch.device) -> None:
        self._device = device
        self.teacher.to(device)

    def student_goal(self, batch: Batch) -> Tensor:
        return batch["late_goal" if self._settings.goal_is_late else "goal"]

    def intrinsic_reward(self, batch: Batch) -> Tensor:
        scale = {"max_steps": self._task.max_steps, "coef": self._goal_rewards.intrinsic_reward_coef}
        return rewards.student_bonus(batch["reached"][1:], batch["goal_step"][1:], **scale)

    def learn(self, batch: Batch) -> dict[str, float]:
        stats = {} if self._uniform else self._teach(batch)
        self._curriculum.see(batch, self.difficulty.target, ranks=self._ranks.size)
        return _reached(batch) | stats

    def _teach(self, batch: Batch) -> dict[str, float]:
        """The teacher's updates, as many as the goals that have ended are enough for."""
        entries = ended_goals(batch)
        self._waiting = {k: torch.cat([self._waiting[k], v]) for k, v in entries.items()} if self._waiting else entries
        waiting = [int(count) for (count,) in self._ranks.gather([len(self._waiting["goal"])])]
        updates, stats = [], {}
        while taken := shares(waiting, self._settings.generator_batch_size * len(waiting)):
            size = taken[self._ranks.rank]
            updates.append(self._update({k: v[:size] for k, v in self._waiting.items()}, counts=not updates))
            self._waiting = {k: v[size:] for k, v in self._waiting.items()}
            waiting = [count - share for count, share in zip(waiting, taken)]
        if updates:
            self._shared.publish(self.teacher)
            stats = {name: sum(update[name] for update in updates) / len(updates) for name in updates[0]}
        self._alarms.see(batch["reached"][1:], self.difficulty)
        return stats | {"generator_current_target": self.difficulty.target}

    def _update(self, entries: Batch, *, counts: bool) -> dict[str, float]:
        """One update, to which this rank gives `entries` ([N, ...] each, N may be 0). Returns the log values of all ranks.

        Only the first one after a batch `counts` for the learning rate: where goals end fast there are several, and the
        teacher's rate would be zero long before the student's.
        """
        settings = self._settings
        weight = len(entries["goal"]) / settings.generator_batch_size  # of this rank's mean loss in that of all
        loss, successes, stats = self._loss(entries)
        self._optimizer.step(loss, weight, counts=counts)
        stats = self._ranks.mean(stats, dict.fromkeys(stats, weight))
        # From the share of successes, not from rounded rewards: a mean of exactly -beta must pass a threshold of -beta.
        counts = [count for (count,) in self._ranks.gather([successes])]
        share = sum(counts) / (settings.generator_batch_size * len(counts))
        self.difficulty.update(rewards.teacher_reward(share, **self._reward_scale), stats["ex_reward"])
        return stats

    def _loss(self, entries: Batch) -> tuple[Tensor | None, int, dict[str, float]]:
        """The loss of `entries`, how many of them were successes, and log values; None, 0 and NaN where there are none."""
        if not len(entries["goal"]):
            return None, 0, {column.name: math.nan for column in UPDATE_COLUMNS}
        inner, index = self._settings.inner, entries["goal"]
        index = goals.cell_to_inner(index, height=self._task.frame_shape[1]) if inner else index
        success = self.difficulty.success(entries["reached"], entries["goal_step"])
        learned = rewards.teacher_reward_learned(
            rewards.teacher_reward(success, **self._reward_scale),
            entries["ex_reward"],
            extrinsic=not self._rewards.no_extrinsic_rewards,
        )
        told = {"frame": entries["goal_frame"], "index": index, "logits": entries["generator_logits"], "reward": learned}
        told = to_device(told, self._device)
        logits, values = self.teacher(told["frame"])
        pg_loss, baseline_loss, entropy = reinforce(logits, values, told["index"], told["logits"], told["reward"])
        baseline_loss, entropy_loss = self._baseline_cost * baseline_loss, self._settings.generator_entropy_cost * entropy
        found = (told["reward"].mean(), pg_loss, entropy_loss, baseline_loss, entropy, logits.max())
        *stats, entropy, highest = numbers(found)
        self._alarms.see_proposals(-entropy, highest)
        stats += numbers((entries["goal_step"].float().mean(), entries["ex_reward"].mean()))
        names = [column.name for column in UPDATE_COLUMNS]
        return pg_loss + baseline_loss + entropy_loss, int(success.sum()), dict(zip(names, stats))

    def state_dict(self) -> dict:
        return {
            "generator_model_state_dict": self.teacher.state_dict(),
            "difficulty": difficulties.state_dict(self.difficulty),
            curriculum.KEY: self._curriculum.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        forms.load_weights(self.teacher, state, "generator_model_state_dict")
        self._shared.publish(self.teacher)
        self._difficulty_known = "difficulty" in state  # in ours, not in the published code's
        if self._difficulty_known:
            difficulties.load_state_dict(self.difficulty, state["difficulty"])

    def training_state_dict(self) -> dict:
        rule, schedule = self._optimizer.state_dict()
        return {
            "generator_model_optimizer_state_dict": rule,
            "generator_scheduler_state_dict": schedule,
            "generator_batch": dict(self._waiting),
        }

    def load_training_state_dict(self, state: dict) -> None:
        self._optimizer.load_state_dict(state["generator_model_optimizer_state_dict"], state["generator_scheduler_state_dict"])
        difficulties.check_reachable(self.make_difficulty(self._settings), state["difficulty"])
        self._waiting = dict(_checked(state["generator_batch"], row_fields(self._task, self._settings, self.teacher.num_goals)))
        self._curriculum.load_state_dict(state[curriculum.KEY])

    def shown(self, row: dict[str, np.ndarray]) -> Shown:
        goal, steps = int(row["goal"][0]), int(row["goal_step"][0])
        width, height, _ = self._task.frame_shape
        probabilities = goals.probability_map(row["generator_logits"][0], (width, height), inner=self._settings.inner)
        event = f"goal reached in {steps} step{'s' * (steps != 1)}" if row["reached"][0] else ""
        notes = [("goal's probability", f"{probabilities.flat[goal]:.3f}")]
        if not self._uniform:
            notes.append(("target distance t*", str(self.difficulty.target) if self._difficulty_known else "not stored"))
        return Shown(goal, probabilities, event, tuple(notes))

    def histograms(self) -> dict[str, Histogram]:
        without = curriculum.T_STAR if self._uniform else None
        return {name: counted for name, counted in self._curriculum.recent.take().items() if name != without}

    def progress(self) -> str:
        return "" if self._uniform else f"t* {self.difficulty.target}"

    def warnings(self) -> Iterator[str]:
        if self._uniform:
            return
        yield from self.difficulty.warnings()
        yield from self._alarms.warnings(self.difficulty)
        yield from self._optimizer.warnings("teacher", "generator_learning_rate")


class WindowAmigo(Amigo):
    """AMIGo whose goals must take t* steps, give or take a window."""

    example = (
        "--modify --generator_batch_size 150 --generator_entropy_cost .05 --generator_threshold -.5 "
        "--generator_reward_negative -.3 --window 50"
    )
    make_difficulty = staticmethod(window_difficulty)


def _checked(waiting: Batch, fields: dict[str, Field]) -> Batch:
    """Ended goals, as `ended_goals` gives them, of these fields; {} before the first. Raises: EntryError for anything else."""
    if not waiting:
        return waiting
    about = {name: field for name, field in fields.items() if name not in ("late_goal", "restarted")}
    about["ex_reward"] = Field((), np.float32)
    forms.record({"goal": fields["goal"].form(None)}, exact=False)("generator_batch", waiting)
    count = len(waiting["goal"])
    forms.record({name: field.form(count) for name, field in about.items()})("generator_batch", waiting)
    return waiting


def reinforce(
    logits: Tensor, values: Tensor, index: Tensor, behaviour_logits: Tensor, reward: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The teacher's policy gradient, baseline and (negative) entropy losses: V-trace of N proposals with discount 0.

    Args:
        logits, values: float32 [N, G], [N], the teacher's now, with gradient.
        index: int64 [N], the goals proposed.
        behaviour_logits: float32 [N, G], what they were drawn from.
        reward: float32 [N].
    Source: AMIGo (arXiv 2006.12122), section 3; REINFORCE with a baseline and clipped importance weights.
    """
    log_policy = logits.log_softmax(dim=-1).unsqueeze(0)
    log_probs = vtrace.chosen(log_policy, index.unsqueeze(0))
    learned, values = reward.unsqueeze(0), values.unsqueeze(0)
    returns = vtrace.from_log_probs(
        vtrace.action_log_probs(behaviour_logits, index).unsqueeze(0),
        log_probs,
        torch.zeros_like(learned),
        learned,
        values,
        torch.zeros_like(reward),
    )
    pg_loss = losses.policy_gradient_loss(log_probs, returns.pg_advantages)
    return pg_loss, losses.baseline_loss(returns.vs, values), losses.entropy_loss(log_policy)


def _reached(batch: Batch) -> dict[str, float]:
    """What the log says of goals reached in rollouts [T+1, B, ...]."""
    reached, at_end = batch["reached"][1:], curriculum.reached_at_end(batch)
    kinds = {"goals_reached": reached, "goals_reached_inside": reached & ~at_end, "goals_reached_at_end": at_end}
    return {name: steps.float().mean().item() for name, steps in kinds.items()}


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
    t, reached, b = torch.stack([batch["done"][1:], batch["reached"][1:]], dim=1).nonzero().unbind(1)
    return {
        **{name: batch[name][t, b] for name in ("goal_frame", "goal", "generator_logits")},
        "goal_step": batch["goal_step"][t + 1, b],
        "ex_reward": batch["reward"][t + 1, b],
        "reached": reached.bool(),
    }

"""Every reward, once. Pure functions on float tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchbeast.core.settings import TRAINING, flag

PUBLISHED, SUM, APART = MIXINGS = ("published", "sum", "apart")


@dataclass(frozen=True)
class GoalRewardSettings:
    """What reaching a goal earns; of the motivations that have goals."""

    title = "Student"
    intrinsic_reward_coef: float = flag(1.0, "scale of the reward for reaching a goal", at_least=0, agent=True)


@dataclass(frozen=True)
class RewardSettings:
    """What student and motivation learn from."""

    title = "Student"
    needs = TRAINING
    no_extrinsic_rewards: bool = flag(False, "learn from intrinsic rewards alone")
    reward_mixing: str = flag(
        PUBLISHED,
        f"how intrinsic rewards i join the environment's r: {PUBLISHED} (clip(r + i, -1, 1), and 1 more where r is above 0), "
        f"{SUM} (r + i), {APART} (a value and a discount for each, as in RND)",
        choices=MIXINGS,
        agent=True,
    )
    intrinsic_discounting: float = flag(
        0.99, "discount factor of intrinsic rewards, whose returns go on over the ends of episodes", at_least=0, at_most=1,
        needs=(f"reward_mixing={APART}",), not_with=("mode=test", "mode=test_render"),
    )  # fmt: skip

    @property
    def apart(self) -> bool:
        """Intrinsic rewards have a value of their own."""
        return self.reward_mixing == APART

    @property
    def clipped(self) -> bool:
        """What a step pays is clipped: it is at most 2."""
        return self.reward_mixing == PUBLISHED

    def intrinsic_discount(self, discounting: float) -> float:
        """That of intrinsic rewards, given that of the environment's."""
        return self.intrinsic_discounting if self.apart else discounting


def student_bonus(reached: Tensor, goal_step: Tensor, *, max_steps: int, coef: float) -> Tensor:
    """Bonus for reaching the teacher's goal: coef * (1 - 0.9 * goal_step / max_steps) where reached, else 0.

    Args:
        reached: bool [T, B], the goal was reached on arrival in state t.
        goal_step: int32 [T, B], steps since that goal was proposed, 0..max_steps.
        max_steps: step limit of an episode.
        coef: reward units.
    Returns: float32 [T, B].
    Raises: ValueError if shapes differ or max_steps < 1.
    Source: AMIGo (arXiv 2006.12122), student reward; the step discount is MiniGrid's own.
    """
    if reached.shape != goal_step.shape:
        raise ValueError(f"reached {tuple(reached.shape)} and goal_step {tuple(goal_step.shape)} differ in shape")
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")
    return reached * (coef * (1 - 0.9 * goal_step / max_steps))


def novelty_bonus(novelty: Tensor, visits: Tensor, *, coef: float, scale: float) -> Tensor:
    """Bonus for crossing into novel states: coef * max(N(s_t) - scale * N(s_{t-1}), 0) where s_t is visited first.

    Args:
        novelty: float32 [T+1, B], N(s_t) for t = 0..T.
        visits: int32 [T+1, B], how often s_t has been visited in its episode, this visit included.
        coef: reward units.
        scale: weight of the state that is left (BeBold: 1, NovelD: 0.5).
    Returns: float32 [T, B], for t = 1..T.
    Source: BeBold (arXiv 2012.08621), equations 1 and 2.
    """
    gain = (novelty[1:] - scale * novelty[:-1]).clamp(min=0)
    return coef * gain * (visits[1:] == 1)


def rarity(visits: Tensor) -> Tensor:
    """1 / sqrt(n): float32, for int32 or int64 n of any shape, each at least 1.

    Source: Bellemare et al. 2016 (arXiv 1606.01868), section 5, whose n is an estimate: 1 / sqrt(n + 0.01).
    """
    return visits.float().rsqrt()


def first_visit(visits: Tensor) -> Tensor:
    """1 where n is 1, else 0: float32, for int32 n of any shape.

    Source: NovelD (arXiv 2012.08621), section 3.
    """
    return (visits == 1).float()


def student_reward(reward: Tensor, intrinsic: Tensor, *, mixing: str = PUBLISHED, extrinsic: bool = True) -> Tensor:
    """What the student's value is of, given the environment's reward r and the intrinsic one i.

    PUBLISHED: clip(r + i, -1, 1) + [r > 0]. SUM: r + i. APART: r, since i has a value of its own.

    Args:
        reward, intrinsic: float32 [T, B], r and i.
        mixing: one of MIXINGS.
        extrinsic: False (`--no_extrinsic_rewards`): as if r were 0.
    Returns: float32 [T, B].
    """
    reward = reward if extrinsic else torch.zeros_like(reward)
    if mixing == APART:
        return reward
    total = reward + intrinsic
    return total if mixing == SUM else total.clamp(-1, 1) + (reward > 0).float()


def teacher_reward(success: Tensor | float, *, negative: float, coef: float) -> Tensor | float:
    """r = negative + coef * success: `negative` is -beta, `success` says where the goal was reached at the right distance.

    Args:
        success: bool [N]; or the share of successes, which gives the mean of r, since r is linear.
    Returns: float32 [N]; or a float.
    Source: AMIGo (arXiv 2006.12122), teacher reward (alpha = coef + negative, beta = -negative).
    """
    return negative + coef * success


def teacher_reward_learned(reward: Tensor, ex_reward: Tensor, *, extrinsic: bool = True) -> Tensor:
    """What the teacher learns from: 1 where the environment rewarded the step (if that counts), else clip(r, -1, 1).

    Args:
        reward: float32 [N], `teacher_reward`.
        ex_reward: float32 [N], the environment's.
    Returns: float32 [N].
    """
    clipped = reward.clamp(-1, 1)
    return torch.where(ex_reward > 0, torch.ones_like(clipped), clipped) if extrinsic else clipped

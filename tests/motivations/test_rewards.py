"""Every reward against a slow scalar twin, edges included. T=3, B=2."""

from __future__ import annotations

import pytest
import torch
from torch import tensor

from utils_folder.motivations.rewards import (
    novelty_bonus,
    student_bonus,
    student_reward,
    teacher_reward,
    teacher_reward_learned,
)


def clip(x):
    return max(-1.0, min(1.0, x))


def elementwise(function, *tensors):
    """The scalar function of each entry of tensors of one shape."""
    numbers = [function(*entries) for entries in zip(*(t.flatten().tolist() for t in tensors), strict=True)]
    return tensor(numbers, dtype=torch.float32).view(tensors[0].shape)


def check(got, expected):
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("coef", [1.0, 0.3, 0.0])  # 0.3: the published code would give 0.09
def test_student_bonus(coef):
    reached = tensor([[True, False], [True, True], [False, True]])
    goal_step = tensor([[1, 5], [270, 10], [0, 135]], dtype=torch.int32)
    twin = elementwise(lambda r, s: coef * (1 - 0.9 * s / 270) if r else 0.0, reached, goal_step)
    got = student_bonus(reached, goal_step, max_steps=270, coef=coef)
    check(got, twin)
    assert got[1, 0].item() == pytest.approx(0.1 * coef)  # at the step limit, a tenth is left


def test_student_bonus_refuses_what_makes_no_sense():
    with pytest.raises(ValueError):
        student_bonus(torch.ones(3, 2, dtype=torch.bool), torch.ones(2, 3, dtype=torch.int32), max_steps=9, coef=1.0)
    with pytest.raises(ValueError):
        student_bonus(torch.ones(3, 2, dtype=torch.bool), torch.ones(3, 2, dtype=torch.int32), max_steps=0, coef=1.0)


@pytest.mark.parametrize("coef, scale", [(0.1, 1.0), (0.1, 0.5), (2.0, 0.0)])
def test_novelty_bonus(coef, scale):
    novelty = tensor([[1.0, 2.0], [3.0, 1.5], [2.0, 1.5], [2.5, 4.0]])  # T+1 = 4 states
    visits = tensor([[1, 1], [1, 2], [1, 1], [3, 1]], dtype=torch.int32)
    twin = torch.zeros(3, 2)
    for t in range(1, 4):
        for b in range(2):
            gain = max(novelty[t, b].item() - scale * novelty[t - 1, b].item(), 0.0)
            twin[t - 1, b] = coef * gain if visits[t, b] == 1 else 0.0
    got = novelty_bonus(novelty, visits, coef=coef, scale=scale)
    check(got, twin)
    assert (got >= 0).all() and got[2, 0] == 0 and got[0, 1] == 0 and got[2, 1] > 0


REWARDS = tensor([[0.0, 0.9], [1.0, -0.4], [0.5, -3.0], [1e-6, 0.0]])
INTRINSIC = tensor([[0.7, 0.0], [0.9, -0.9], [2.0, 0.5], [0.0, 1.0]])


def test_student_reward_adds_clips_and_pays_the_bonus_after_the_clip():
    twin = elementwise(lambda r, i: clip(r + i) + (1.0 if r > 0 else 0.0), REWARDS, INTRINSIC)
    got = student_reward(REWARDS, INTRINSIC)
    check(got, twin)
    assert got[1, 0] == 2.0 and got[1, 1] == -1.0 and got[0, 0] == pytest.approx(0.7)


def test_student_reward_without_extrinsic_has_neither_reward_nor_bonus():
    got = student_reward(REWARDS, INTRINSIC, extrinsic=False)
    check(got, elementwise(lambda r, i: clip(i), REWARDS, INTRINSIC))
    assert got[2, 0] == 1.0


def test_a_plain_sum_of_rewards_is_not_clipped_and_has_no_bonus():
    got = student_reward(REWARDS, INTRINSIC, mixing="sum")
    check(got, elementwise(lambda r, i: r + i, REWARDS, INTRINSIC))
    assert got[2, 0] == 2.5 and got[2, 1] == -2.5
    assert torch.equal(student_reward(REWARDS, INTRINSIC, mixing="sum", extrinsic=False), INTRINSIC)


def test_rewards_that_are_kept_apart_leave_the_environments_as_it_is():
    assert torch.equal(student_reward(REWARDS, INTRINSIC, mixing="apart"), REWARDS)
    assert torch.equal(student_reward(REWARDS, INTRINSIC, mixing="apart", extrinsic=False), torch.zeros(4, 2))


@pytest.mark.parametrize("negative, coef", [(-0.1, 1.0), (-0.3, 1.0), (-0.5, 2.5), (0.0, 0.0)])
def test_teacher_reward(negative, coef):
    success = tensor([True, False, True, False, False])
    check(
        teacher_reward(success, negative=negative, coef=coef),
        elementwise(lambda s: negative + coef * (1 if s else 0), success),
    )


def test_teacher_learns_one_where_the_environment_rewarded():
    reward = tensor([-0.1, 0.9, 1.5, -2.0, -0.1, 1.5])
    ex_reward = tensor([0.0, 0.0, 0.0, 0.0, 0.3, 0.9])
    twin = elementwise(lambda r, ex: 1.0 if ex > 0 else clip(r), reward, ex_reward)
    check(teacher_reward_learned(reward, ex_reward), twin)
    check(teacher_reward_learned(reward, ex_reward, extrinsic=False), elementwise(clip, reward))
    assert reward.tolist() == pytest.approx([-0.1, 0.9, 1.5, -2.0, -0.1, 1.5])  # t* moves by this mean: left as it was


def test_a_negative_reward_of_the_environment_is_no_success():
    assert teacher_reward_learned(tensor([-0.1]), tensor([-1.0])).item() == pytest.approx(-0.1)
    assert student_reward(tensor([[-0.5]]), tensor([[0.2]])).item() == pytest.approx(-0.3)

"""Rollouts whose goals are counted."""

from __future__ import annotations

import torch

from tests.helpers.agents import make_flags, random_batch
from utils_folder.curriculum import Curriculum
from utils_folder.motivation import Task

TASK = Task((4, 5, 3), 7, 50)
T, B = 3, 2


def batches(count: int, frame_shape=TASK.frame_shape) -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    flags = make_flags(unroll_length=T, batch_size=B)
    return [random_batch(TASK._replace(frame_shape=frame_shape), flags) for _ in range(count)]


def seen(rollouts, width: int | None = None) -> Curriculum:
    counts = Curriculum(TASK.frame_shape)
    if width is not None:
        counts._width = width
    for number, batch in enumerate(rollouts):
        counts.see(batch, target=number + 7)
    return counts

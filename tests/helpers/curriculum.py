"""Rollouts whose goals are counted."""

from __future__ import annotations

import torch

from tests.helpers.agents import make_settings
from tests.helpers.motivations.amigo import random_batch
from utils_folder.motivations.base import Task
from utils_folder.motivations.curriculum import Curriculum

TASK = Task((4, 5, 3), 7, 50)
T, B = 3, 2


def batches(count: int, frame_shape=TASK.frame_shape) -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    settings = make_settings(unroll_length=T, batch_size=B)
    return [random_batch(TASK._replace(frame_shape=frame_shape), settings) for _ in range(count)]


def seen(rollouts, width: int | None = None) -> Curriculum:
    counts = Curriculum(tuple(rollouts[0]["frame"].shape[2:]) if rollouts else TASK.frame_shape)
    if width is not None:
        counts._width = width
    for number, batch in enumerate(rollouts):
        counts.see(batch, target=number + 7)
    return counts

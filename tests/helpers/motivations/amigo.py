"""AMIGo's own: rollouts in which goals end, and the teacher's slow twin."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.grid import CellSettings
from tests.helpers import agents
from tests.helpers.plain_networks import PlainTeacher
from tests.helpers.twins import plain_twin
from torchbeast.core.optimizer import LearningSettings
from torchbeast.core.settings import Settings
from utils_folder.motivations.amigo import TeacherSettings
from utils_folder.motivations.base import Task


def random_batch(task: Task, settings: Settings, *, p_done=0.25, p_reached=0.3, steps=(1, 40)) -> dict[str, Tensor]:
    """Rollouts whose goals lie inside the wall and took `steps` steps: [T+1, B, ...]. Holds `late_goal` in any case."""
    own = settings[LearningSettings]
    rows, B = own.unroll_length + 1, own.batch_size
    width, height, _ = task.frame_shape
    x, y = torch.randint(1, width - 1, (rows + 1, B)), torch.randint(1, height - 1, (rows + 1, B))
    goal = x * height + y
    return agents.random_batch(task, settings, p_done=p_done, p_true=p_reached) | {
        "goal": goal[1:],
        "late_goal": goal[:-1],
        "goal_step": torch.randint(*steps, (rows, B), dtype=torch.int32),
    }


def plain_teacher(teacher: nn.Module, task: Task, settings: Settings) -> PlainTeacher:
    own = settings[TeacherSettings]
    plain = PlainTeacher(
        task.frame_shape,
        inner=own.inner,
        mirrored=own.as_published and own.published_slips in ("both", "mirrored_map"),
        use_embedding=not settings[CellSettings].disable_use_embedding,
    )
    return plain_twin(teacher, plain)

"""BeBold's own: rollouts with first visits, and the slow twin of its networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.helpers import agents
from tests.helpers.plain_networks import PlainRandomNetwork
from tests.helpers.twins import plain_twin
from torchbeast.core.settings import Settings
from utils_folder.minigrid.view import VIEW_SHAPE
from utils_folder.motivations.base import Task


def random_batch(task: Task, settings: Settings, *, p_done=0.25) -> dict[str, Tensor]:
    """Rollouts in which every other state is visited first: [T+1, B, ...]. Holds `view` in any case."""
    batch = agents.random_batch(task, settings, p_done=p_done)
    rows, B = batch["done"].shape
    return batch | {
        "visits": torch.randint(1, 3, (rows, B), dtype=torch.int32),
        "view": torch.randint(4, (rows, B, *VIEW_SHAPE), dtype=torch.uint8),  # no agent in it
    }


def plain_random_network(network: nn.Module, task: Task, output: str) -> PlainRandomNetwork:
    return plain_twin(network, PlainRandomNetwork(task.frame_shape, output=output))

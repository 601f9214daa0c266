"""No motivation of its own: the student learns from the environment's rewards alone. What all others are compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from utils_folder.motivations.base import Batch, Motivation


class Vanilla(Motivation):
    """An intrinsic reward of 0; rewards of the environment count as they do beside any other (`rewards.student_reward`).

    Source: IMPALA (arXiv 1802.01561).
    """

    pays = False

    def intrinsic_reward(self, batch: Batch) -> Tensor:
        return torch.zeros_like(batch["reward"][1:])

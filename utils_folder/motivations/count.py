"""Episodic counts: a reward for arriving in states that have been visited seldom, or not yet, in the present episode."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from torchbeast.core.columns import Column
from torchbeast.core.optimizer import OptimizerMaker
from torchbeast.core.ranks import ALONE, Alone
from torchbeast.core.settings import TRAINING, Settings, flag
from utils_folder.motivations import rewards
from utils_folder.motivations.base import Batch, Motivation, Shown, Task
from utils_folder.motivations.watchers import EpisodicCounts


@dataclass(frozen=True)
class CountSettings:
    """What a visit earns."""

    title = "Counts"
    example = "--model count --count_reward first"
    needs = TRAINING
    count_coef: float = flag(0.005, "scale of the reward for states that are seldom visited", at_least=0, agent=True)
    count_reward: str = flag(
        "root",
        "what arriving in a state for the n-th time in an episode earns: 1 / sqrt(n) (root), or 1 the first time only (first)",
        choices=("root", "first"),
        agent=True,
    )


class Count(Motivation):
    """Pays for arriving in a full grid, by how often it has been seen in its episode. Nothing is learned or kept.

    Where an episode ends, what counts is its last state.
    Source: the bonus 1 / sqrt(n), Bellemare et al. 2016 (arXiv 1606.01868), section 5, and Strehl and Littman 2008 before; of
    counts in the episode, RIDE (arXiv 2002.12292), section 3; 1[n = 1], NovelD (arXiv 2012.08621), section 3. Andres et al.
    2022 compare both on MiniGrid.
    """

    groups = (CountSettings,)
    example = "--count_reward first"
    columns = (Column("first_arrivals", "share of steps that led to a state that was new in its episode"),)

    def __init__(self, settings: Settings, task: Task, make_optimizer: OptimizerMaker, ranks: Alone = ALONE):
        super().__init__(settings, task, make_optimizer, ranks)
        self._settings = settings[CountSettings]
        self._frame_shape = task.frame_shape
        self.rollout_fields = EpisodicCounts.ARRIVALS

    def actor(self, num_envs: int, generator: torch.Generator) -> EpisodicCounts:
        return EpisodicCounts(num_envs, self._frame_shape, arrivals=True)

    def intrinsic_reward(self, batch: Batch) -> Tensor:
        arrivals = batch["arrivals"][1:]
        worth = rewards.first_visit(arrivals) if self._settings.count_reward == "first" else rewards.rarity(arrivals)
        return self._settings.count_coef * worth

    def learn(self, batch: Batch) -> dict[str, float]:
        return {"first_arrivals": (batch["arrivals"][1:] == 1).float().mean().item()}

    def shown(self, row: dict[str, np.ndarray]) -> Shown:
        return Shown(notes=(("visits of this state", str(row["arrivals"][0])),))

"""RIDE, rewarding impact-driven exploration: a reward for actions that change much, in states seldom visited in the episode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchbeast.core.columns import Column
from torchbeast.core.optimizer import OptimizerMaker
from torchbeast.core.ranks import ALONE, Alone
from torchbeast.core.settings import TRAINING, Settings, flag
from torchbeast.core.upload import numbers
from utils_folder.motivations import rewards
from utils_folder.motivations.base import Batch, Shown, Task
from utils_folder.motivations.dynamics import Dynamics
from utils_folder.motivations.transitions import view_flag
from utils_folder.motivations.watchers import EpisodicCounts

COLUMNS = (
    Column("ride_impact", "mean distance of phi(s') from phi(s)"),
    Column("ride_forward_loss", "mean squared distance of phi(s') from what was foretold of it"),
    Column("ride_inverse_loss", "cross-entropy of the action, told from phi(s) and phi(s')"),
)


@dataclass(frozen=True)
class RideSettings:
    """What impact earns, and how it is learned what it is."""

    title = "RIDE"
    example = "--model ride --ride_coef 0.02"
    needs = TRAINING
    ride_coef: float = flag(0.01, "scale of the reward for impact", at_least=0, agent=True)
    ride_view: str = view_flag("impact is judged and visits are counted")
    ride_forward_coef: float = flag(1.0, "weight of the forward model's loss", at_least=0)
    ride_inverse_coef: float = flag(10.0, "weight of the inverse model's loss", at_least=0)
    ride_learning_rate: float = flag(0.0001, "learning rate of RIDE's networks (RMSprop)", at_least=0)


class Ride(Dynamics):
    """Reward ||phi(s') - phi(s)||_2 / sqrt(N_ep(s')), where N_ep(s') says how often s' has been visited in the episode.

    Loss: forward_coef ||phi_hat(s, a) - phi(s')||^2 - inverse_coef log p(a | phi(s), phi(s')), each summed over the T steps
    and averaged over the batch.
    Source: RIDE (arXiv 2002.12292), section 3; the learning rate is its published code's. Weights as there, 10 and 0.1, let phi
    shrink to a point; these are about ICM's (arXiv 1705.05363, equation 7), whose models they are: 0.2 / 2 to 0.8.
    """

    groups = (RideSettings,)
    columns = COLUMNS
    learner, rate_flag = "ride", "ride_learning_rate"
    more_of_actions = "raise --ride_inverse_coef, or lower --ride_forward_coef"

    def __init__(self, settings: Settings, task: Task, make_optimizer: OptimizerMaker, ranks: Alone = ALONE):
        super().__init__(settings, task, make_optimizer, ranks)
        self._settings = settings[RideSettings]
        (self._arrivals,) = counted = EpisodicCounts.arrivals(self.states.frame)
        self.rollout_fields |= counted
        self.reads += tuple(counted)

    def view(self, settings: Settings) -> str:
        return settings[RideSettings].ride_view

    def optimizing(self, settings: Settings) -> dict[str, Any]:
        return {"learning_rate": settings[RideSettings].ride_learning_rate}

    def actor(self, num_envs: int, generator: torch.Generator) -> EpisodicCounts:
        return EpisodicCounts(num_envs, self.states.shape, arrivals=self.states.frame)

    def intrinsic_reward(self, batch: Batch) -> Tensor:
        phi, following = (values.detach() for values in self.encode(batch))
        batch["ride_impacts"] = torch.linalg.vector_norm(following - phi, dim=-1)
        return self._settings.ride_coef * batch["ride_impacts"] * rewards.rarity(batch[self._arrivals][1:])

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        own, steps = self._settings, len(batch["ride_impacts"])
        forward, inverse = self.forward_errors(batch).mean(), self.inverse_errors(batch).mean()
        means = numbers((batch["ride_impacts"].mean(), forward, inverse))
        loss = steps * (own.ride_forward_coef * forward + own.ride_inverse_coef * inverse)
        return loss, dict(zip([column.name for column in COLUMNS], means))

    def shown(self, row: dict[str, np.ndarray]) -> Shown:
        return Shown(notes=(EpisodicCounts.note(row, self.states.frame),))

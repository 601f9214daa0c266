"""The intrinsic curiosity module: a reward for what a model of the consequences of actions does not foretell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from torchbeast.core.columns import Column
from torchbeast.core.optimizer import OptimizerMaker
from torchbeast.core.ranks import ALONE, Alone
from torchbeast.core.settings import TRAINING, Settings, flag
from torchbeast.core.upload import numbers
from utils_folder.motivations.base import Batch, Task
from utils_folder.motivations.dynamics import Dynamics
from utils_folder.motivations.transitions import view_flag


@dataclass(frozen=True)
class IcmSettings:
    """What surprise earns, and how it is learned what surprises."""

    title = "ICM"
    example = "--model icm --icm_coef 0.01"
    needs = TRAINING
    icm_coef: float = flag(0.001, "eta, the scale of the reward for what was not foretold", at_least=0, agent=True)
    icm_view: str = view_flag("surprise is judged")
    icm_beta: float = flag(0.2, "weight of the forward model's loss; the inverse model's has 1 less it", at_least=0, at_most=1)
    icm_learning_rate: float = flag(0.001, "learning rate of ICM's networks (Adam)", at_least=0)


class Icm(Dynamics):
    """Reward eta / 2 ||phi_hat(s, a) - phi(s')||^2; loss (1 - beta) L_inverse + beta L_forward, means over the batch.

    L_forward = 1/2 ||phi_hat(s, a) - phi(s')||^2, L_inverse = -log p(a | phi(s), phi(s')).
    Source: ICM (arXiv 1705.05363), equations 2 to 7.
    """

    groups = (IcmSettings,)
    columns = (
        Column("icm_forward_loss", "half the squared distance of phi(s') from what was foretold of it"),
        Column("icm_inverse_loss", "cross-entropy of the action, told from phi(s) and phi(s')"),
    )
    learner, rate_flag = "icm", "icm_learning_rate"
    more_of_actions = "lower --icm_beta"

    def __init__(self, settings: Settings, task: Task, make_optimizer: OptimizerMaker, ranks: Alone = ALONE):
        super().__init__(settings, task, make_optimizer, ranks)
        self._settings = settings[IcmSettings]

    def view(self, settings: Settings) -> str:
        return settings[IcmSettings].icm_view

    def optimizing(self, settings: Settings) -> dict[str, Any]:
        return {"learning_rate": settings[IcmSettings].icm_learning_rate, "method": "adam"}

    def intrinsic_reward(self, batch: Batch) -> Tensor:
        self.encode(batch)
        batch["icm_errors"] = self.forward_errors(batch) / 2
        return self._settings.icm_coef * batch["icm_errors"].detach()

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        forward, inverse, beta = batch["icm_errors"].mean(), self.inverse_errors(batch).mean(), self._settings.icm_beta
        means = dict(zip(("icm_forward_loss", "icm_inverse_loss"), numbers((forward, inverse))))
        return (1 - beta) * inverse + beta * forward, means

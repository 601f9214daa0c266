"""What ICM and RIDE share: a representation phi of states that is learned from what actions do."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.dynamics import ForwardModel, InverseModel
from models.grid import CellSettings
from models.novelty import SIZE, RandomNetwork
from torchbeast.core.optimizer import OptimizerMaker
from torchbeast.core.ranks import ALONE, Alone
from torchbeast.core.settings import Settings
from utils_folder.motivations import transitions
from utils_folder.motivations.base import Batch, Task
from utils_folder.motivations.learned import Learned


class Dynamics(Learned):
    """Learns phi, a forward model of phi(s') and an inverse model of the action, on whole transitions (s, a, s').

    A subclass' `intrinsic_reward` puts phi(s) and phi(s') of `encode` into the batch, where `forward_errors` and
    `inverse_errors` find them.
    Source: ICM (arXiv 1705.05363), section 2.2; RIDE (arXiv 2002.12292), section 3.
    """

    def __init__(self, settings: Settings, task: Task, make_optimizer: OptimizerMaker, ranks: Alone = ALONE):
        super().__init__(settings, task, make_optimizer, ranks)
        self.rollout_fields = transitions.fields(task)
        self.reads = (*transitions.READS, "action")
        self._phi, self._following = f"{self.learner}_phi", f"{self.learner}_following"

    def make_networks(self, settings: Settings, task: Task) -> dict[str, nn.Module]:
        embedded = not settings[CellSettings].disable_use_embedding
        return {
            f"{self.learner}_encoder": RandomNetwork(task.frame_shape, use_embedding=embedded, output="linear"),
            f"{self.learner}_forward": ForwardModel(SIZE, task.num_actions),
            f"{self.learner}_inverse": InverseModel(SIZE, task.num_actions),
        }

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """phi(s) and phi(s') of the steps 1..T, float32 [T, B, D] each, with gradient; puts them into the batch."""
        before, after = transitions.before(batch), transitions.after(batch)
        states = {name: torch.cat([before[name], after[name]], dim=1) for name in transitions.STATE}
        phi = transitions.of_states(self.networks[f"{self.learner}_encoder"], states)
        batch[self._phi], batch[self._following] = phi.chunk(2, dim=1)
        return batch[self._phi], batch[self._following]

    def forward_errors(self, batch: Batch) -> Tensor:
        """||phi_hat(s, a) - phi(s')||^2, float32 [T, B], of an encoded batch."""
        phi, following, action = batch[self._phi], batch[self._following], batch["action"][1:]
        foretold = self.networks[f"{self.learner}_forward"](phi.flatten(0, 1), action.flatten())
        return (foretold - following.flatten(0, 1)).square().sum(-1).view_as(action)

    def inverse_errors(self, batch: Batch) -> Tensor:
        """-log p(a | s, s'), float32 [T, B], of an encoded batch."""
        phi, following, action = batch[self._phi], batch[self._following], batch["action"][1:]
        logits = self.networks[f"{self.learner}_inverse"](phi.flatten(0, 1), following.flatten(0, 1))
        return F.cross_entropy(logits, action.flatten(), reduction="none").view_as(action)

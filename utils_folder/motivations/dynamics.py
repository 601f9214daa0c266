"""What ICM and RIDE share: a representation phi of states that is learned from what actions do."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.dynamics import ForwardModel, InverseModel
from models.grid import CellSettings
from models.novelty import SIZE, RandomNetwork
from torchbeast.core.optimizer import OptimizerMaker
from torchbeast.core.ranks import ALONE, Alone
from torchbeast.core.settings import Settings
from utils_folder.motivations.base import Batch, Task
from utils_folder.motivations.learned import Learned
from utils_folder.motivations.transitions import STATE, States, of_states

CHANCE = 0.97  # of the cross-entropy of an action that is guessed
CHANCE_FRAMES = 1_000_000


class Dynamics(Learned):
    """Learns phi, a forward model of phi(s') and an inverse model of the action, on whole transitions (s, a, s').

    A subclass' `intrinsic_reward` puts phi(s) and phi(s') of `encode` into the batch, where `forward_errors` and
    `inverse_errors` find them, and reports the mean of the latter as LEARNER_inverse_loss.

    Attributes:
        more_of_actions: what makes phi tell more of actions, in a warning.
        states: as phi is made of them.
    Source: ICM (arXiv 1705.05363), section 2.2; RIDE (arXiv 2002.12292), section 3.
    """

    more_of_actions: ClassVar[str]

    def __init__(self, settings: Settings, task: Task, make_optimizer: OptimizerMaker, ranks: Alone = ALONE):
        self.states = States(task, self.view(settings))
        super().__init__(settings, task, make_optimizer, ranks)
        self._guess_loss, self._guessed_frames = math.log(task.num_actions), 0
        self.rollout_fields = self.states.transition_fields
        self.reads = (*self.states.transition_reads, "action")
        self._phi, self._following = f"{self.learner}_phi", f"{self.learner}_following"

    @abc.abstractmethod
    def view(self, settings: Settings) -> str:
        """By which phi is made: its own view_flag."""

    def make_networks(self, settings: Settings, task: Task) -> dict[str, nn.Module]:
        embedded = not settings[CellSettings].disable_use_embedding
        return {
            f"{self.learner}_encoder": RandomNetwork(self.states.shape, use_embedding=embedded, output="linear"),
            f"{self.learner}_forward": ForwardModel(SIZE, task.num_actions),
            f"{self.learner}_inverse": InverseModel(SIZE, task.num_actions),
        }

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """phi(s) and phi(s') of the steps 1..T, float32 [T, B, D] each, with gradient; puts them into the batch."""
        before, after = self.states.before(batch), self.states.after(batch)
        states = {name: torch.cat([before[name], after[name]], dim=1) for name in STATE}
        phi = of_states(self.networks[f"{self.learner}_encoder"], states)
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

    def learn(self, batch: Batch) -> dict[str, float]:
        stats = super().learn(batch)
        guessed = stats[f"{self.learner}_inverse_loss"] >= CHANCE * self._guess_loss
        self._guessed_frames = self._guessed_frames + batch["action"][1:].numel() if guessed else 0
        return stats

    def warnings(self) -> Iterator[str]:
        yield from super().warnings()
        if self._guessed_frames >= CHANCE_FRAMES:
            yield (
                f"for {CHANCE_FRAMES:,} frames what {self.learner} learns of states has told nothing of actions: it may have "
                f"shrunk to a point, and what it pays means nothing; {self.more_of_actions}"
            )

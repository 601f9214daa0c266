"""A motivation that learns by a loss: it has networks and the loss; optimiser, ranks and checkpoints are seen to here."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from torchbeast.core import forms
from torchbeast.core.moments import Moments
from torchbeast.core.optimizer import OptimizerMaker
from torchbeast.core.ranks import ALONE, Alone
from torchbeast.core.settings import Settings
from utils_folder.motivations.base import Batch, Motivation, Task


class Learned(Motivation):
    """Learns from each batch once, after the student, by one step of one optimiser, which follows the student's schedule.

    Attributes:
        learner: what learns, in warnings; its optimiser has the keys LEARNER_optimizer_state_dict and
            LEARNER_scheduler_state_dict of a checkpoint.
        rate_flag: the flag that sets its learning rate.
        networks: by name, as `make_networks` gives them; each has the key NAME_state_dict.
        statistics: running means and deviations by name, which a subclass may put here; each has the key NAME.
    """

    learner: ClassVar[str]
    rate_flag: ClassVar[str]

    def __init__(self, settings: Settings, task: Task, make_optimizer: OptimizerMaker, ranks: Alone = ALONE):
        super().__init__(settings, task, make_optimizer, ranks)
        self.networks = self.make_networks(settings, task)
        self.statistics: dict[str, Moments] = {}
        learned = [p for network in self.networks.values() for p in network.parameters() if p.requires_grad]
        self._optimizer = make_optimizer(learned, **self.optimizing(settings))

    @abc.abstractmethod
    def make_networks(self, settings: Settings, task: Task) -> dict[str, nn.Module]:
        """Fresh networks, drawn from torch's global generator. Those that require no gradient stay what they are."""

    @abc.abstractmethod
    def optimizing(self, settings: Settings) -> Mapping[str, Any]:
        """learning_rate, and method if it is not RMSprop."""

    @abc.abstractmethod
    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """The loss (scalar) of a batch that `intrinsic_reward` has seen, and values of the columns."""

    def to(self, device: torch.device) -> None:
        for network in self.networks.values():
            network.to(device)

    def learn(self, batch: Batch) -> dict[str, float]:
        loss, stats = self.loss(batch)
        self._optimizer.step(loss)
        return stats

    def warnings(self) -> Iterator[str]:
        yield from self._optimizer.warnings(self.learner, self.rate_flag)

    def state_dict(self) -> dict:
        networks = {f"{name}_state_dict": network.state_dict() for name, network in self.networks.items()}
        return networks | {name: moments.state_dict() for name, moments in self.statistics.items()}

    def load_state_dict(self, state: dict) -> None:
        for name, network in self.networks.items():
            forms.load_weights(network, state, f"{name}_state_dict")
        for name, moments in self.statistics.items():
            moments.load_state_dict(state[name], name)

    def training_state_dict(self) -> dict:
        rule, schedule = self._optimizer.state_dict()
        return {f"{self.learner}_optimizer_state_dict": rule, f"{self.learner}_scheduler_state_dict": schedule}

    def load_training_state_dict(self, state: dict) -> None:
        own = (state[f"{self.learner}_{part}_state_dict"] for part in ("optimizer", "scheduler"))
        self._optimizer.load_state_dict(*own)

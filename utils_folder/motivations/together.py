"""Several motivations of one student: their intrinsic rewards are added."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from torchbeast.core.events import Histogram
from torchbeast.core.upload import sent
from utils_folder.motivations.base import Batch, Motivation, MotivationActor, Shown
from utils_folder.motivations.watchers import Watchers


class Together(Motivation):
    """Each pays and learns as it does alone. Their fields, columns and keys must have names of their own.

    Args:
        parts: at most the first of them sees to a goal, and may end episodes before the others look at a state.
    """

    def __init__(self, parts: Sequence[Motivation]):
        self.parts = tuple(parts)
        self._device = torch.device("cpu")
        self.columns = tuple(column for part in self.parts for column in part.columns)
        self.waiting_keys = tuple(key for part in self.parts for key in part.waiting_keys)
        self.own_keys = tuple(key for part in self.parts for key in part.own_keys)
        self.table_bytes = sum(part.table_bytes for part in self.parts)
        self.goal_conditioned = self.parts[0].goal_conditioned
        self.reads = tuple(name for part in self.parts for name in part.reads)
        self._told: list[Batch] = []  # each part's own batch, in which it keeps what it will learn from
        self.rollout_fields = {name: field for part in self.parts for name, field in part.rollout_fields.items()}

    def actor(self, num_envs: int, generator: torch.Generator) -> MotivationActor:
        return Watchers(*(part.actor(num_envs, generator) for part in self.parts))

    def to(self, device: torch.device) -> None:
        self._device = device
        for part in self.parts:
            part.to(device)

    def student_goal(self, batch: Batch) -> Tensor | None:
        return self.parts[0].student_goal(batch)

    def intrinsic_reward(self, batch: Batch) -> Tensor:
        self._told = [self._own(part, batch) for part in self.parts]
        each = (part.intrinsic_reward(told) for part, told in zip(self.parts, self._told))
        return torch.stack([sent(reward, self._device) for reward in each]).sum(0)

    def _own(self, part: Motivation, batch: Batch) -> Batch:
        """The batch as a part has it when it is alone: what only others read on the device is on the CPU."""
        others = set(self.reads) - set(part.reads)
        return {name: value.cpu() if name in others else value for name, value in batch.items()}

    def learn(self, batch: Batch) -> dict[str, float]:
        told, self._told = self._told, []  # what a part kept in there may be a graph
        return {name: value for part, own in zip(self.parts, told, strict=True) for name, value in part.learn(own).items()}

    def state_dict(self) -> dict:
        return {name: value for part in self.parts for name, value in part.state_dict().items()}

    def load_state_dict(self, state: dict) -> None:
        for part in self.parts:
            part.load_state_dict(state)

    def training_state_dict(self) -> dict:
        return {name: value for part in self.parts for name, value in part.training_state_dict().items()}

    def load_training_state_dict(self, state: dict) -> None:
        for part in self.parts:
            part.load_training_state_dict(state)

    def shown(self, row: dict[str, np.ndarray]) -> Shown:
        first, *others = (part.shown(row) for part in self.parts)
        return first._replace(notes=(*first.notes, *(note for other in others for note in other.notes)))

    def progress(self) -> str:
        return " ".join(filter(None, (part.progress() for part in self.parts)))

    def histograms(self) -> dict[str, Histogram]:
        return {name: histogram for part in self.parts for name, histogram in part.histograms().items()}

    def warnings(self) -> Iterator[str]:
        for part in self.parts:
            yield from part.warnings()

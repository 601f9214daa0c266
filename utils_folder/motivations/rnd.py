"""Random network distillation: a reward for states on which a predictor does not yet match a fixed random network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.grid import CellSettings
from models.novelty import RandomNetwork
from torchbeast.core import forms
from torchbeast.core.columns import Column
from torchbeast.core.moments import Moments
from torchbeast.core.optimizer import LearningSettings, OptimizerMaker
from torchbeast.core.ranks import ALONE, Alone
from torchbeast.core.settings import TRAINING, Settings, flag
from utils_folder.motivations.base import Batch, Task
from utils_folder.motivations.learned import Learned
from utils_folder.motivations.rewards import RewardSettings
from utils_folder.motivations.transitions import States, of_states, view_flag
from utils_folder.motivations.watchers import Streams

MOST_STREAMS = 100_000  # environments of which sums are carried on; of older ones they are forgotten
RETURNS = "rnd_returns"
COUNTED = forms.tensor((None,), torch.int64, forms.within(0, forms.MOST))
SUMS = forms.record({"stream": COUNTED, "clock": COUNTED, "sum": forms.tensor((None,), torch.float64)})


@dataclass(frozen=True)
class RndSettings:
    """What novelty earns, and how fast it wears off."""

    title = "RND"
    example = "--model rnd --rnd_coef 0.2"
    needs = TRAINING
    rnd_coef: float = flag(0.1, "scale of the reward for novel states", at_least=0, agent=True)
    rnd_view: str = view_flag("RND's novelty is judged")
    rnd_learning_rate: float = flag(0.0001, "the predictor's learning rate (Adam)", at_least=0)


class Rnd(Learned):
    """Reward e(s') / sigma, where e(s') is the predictor's mean squared error, and sigma the deviation of its discounted sums.

    The sums R = e + gamma * R, gamma being the discount of intrinsic rewards, run along each environment's steps, over the ends
    of episodes; sigma is the standard deviation of all of them so far, on all ranks. Loss: the mean of e(s') over the batch.
    Source: RND (arXiv 1810.12894), section 2.2 and, for sigma, 2.4.
    """

    groups = (RndSettings,)
    columns = (
        Column("rnd_error", "the predictor's mean squared error, its loss"),
        Column("rnd_deviation", "standard deviation of the discounted sums of errors so far, by which they are divided"),
    )
    learner, rate_flag = "rnd", "rnd_learning_rate"
    waiting_keys = (RETURNS,)

    def __init__(self, settings: Settings, task: Task, make_optimizer: OptimizerMaker, ranks: Alone = ALONE):
        self._states = States(task, settings[RndSettings].rnd_view)
        super().__init__(settings, task, make_optimizer, ranks)
        self._coef = settings[RndSettings].rnd_coef
        self.statistics["rnd_moments"] = self._moments = Moments(ranks)
        self._returns = DiscountedSums(_discount(settings))
        self.rollout_fields = self._states.transition_fields | Streams.FIELDS
        self.reads = self._states.transition_reads

    @classmethod
    def problems(cls, settings: Settings, width: int, height: int) -> list[str]:
        if _discount(settings) != 1:
            return []
        name = "intrinsic_discounting" if settings[RewardSettings].apart else "discounting"
        return [f"--{name} 1: rnd divides by a deviation of sums that would grow for ever; give less than 1"]

    def make_networks(self, settings: Settings, task: Task) -> dict[str, nn.Module]:
        options = {"use_embedding": not settings[CellSettings].disable_use_embedding, "output": "linear"}
        target, predictor = (RandomNetwork(self._states.shape, **options) for _ in range(2))
        return {"rnd_target": target.requires_grad_(False), "rnd_predictor": predictor}

    def optimizing(self, settings: Settings) -> dict[str, Any]:
        return {"learning_rate": settings[RndSettings].rnd_learning_rate, "method": "adam"}

    def actor(self, num_envs: int, generator: torch.Generator) -> Streams:
        return Streams(num_envs, generator)

    def _error(self, states: Batch) -> Tensor:
        return (self.networks["rnd_predictor"](states) - self.networks["rnd_target"](states)).square().mean(-1)

    def intrinsic_reward(self, batch: Batch) -> Tensor:
        batch["rnd_error"] = of_states(self._error, self._states.after(batch))
        deviation = self._moments.std  # unknown before the first update: nothing is paid then
        return self._coef * batch["rnd_error"].detach() / deviation if deviation else torch.zeros_like(batch["rnd_error"])

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        error = batch["rnd_error"]
        streams, clocks = (batch[name][0].tolist() for name in Streams.FIELDS)
        self._moments.update(self._returns.go_on(error.detach(), streams, clocks))
        loss = error.mean()
        return loss, {"rnd_error": loss.item(), "rnd_deviation": self._moments.std}

    def training_state_dict(self) -> dict:
        return super().training_state_dict() | {RETURNS: self._returns.state_dict()}

    def load_training_state_dict(self, state: dict) -> None:
        super().load_training_state_dict(state)
        self._returns.load_state_dict(state[RETURNS], RETURNS)


def _discount(settings: Settings) -> float:
    return settings[RewardSettings].intrinsic_discount(settings[LearningSettings].discounting)


class DiscountedSums:
    """R_t = e_t + discount * R_{t-1} along each environment's steps, which come in rollouts."""

    def __init__(self, discount: float):
        self._discount = discount
        self._carried: dict[int, tuple[int, float]] = {}  # by stream: its clock, and R there

    def go_on(self, values: Tensor, streams: Iterable[int], clocks: Iterable[int]) -> Tensor:
        """R of each step, float64 [T, B], of `values` e, float32 [T, B].

        `streams` and `clocks` are those of the rollouts' first states (`Streams`). One that does not go on from the last of its
        stream starts from 0.
        """
        sums = np.empty(tuple(values.shape))
        columns = values.double().t().tolist()
        for clock, stream, column in sorted((clock, stream, b) for b, (stream, clock) in enumerate(zip(streams, clocks))):
            reached, total = self._carried.pop(stream, (clock, 0.0))
            start = total if reached == clock else 0.0
            _, *found = accumulate(columns[column], lambda total, value: value + self._discount * total, initial=start)
            sums[:, column] = found
            self._carried[stream] = clock + len(found), found[-1]
        while len(self._carried) > MOST_STREAMS:
            del self._carried[next(iter(self._carried))]
        return torch.from_numpy(sums)

    def state_dict(self) -> dict:
        """Tensors [N] by name, a number for each stream; {} before the first."""
        if not self._carried:
            return {}
        clocks, sums = zip(*self._carried.values())
        return {
            "stream": torch.tensor(list(self._carried)),
            "clock": torch.tensor(clocks),
            "sum": torch.tensor(sums, dtype=torch.float64),
        }

    def load_state_dict(self, state: dict, name: str) -> None:
        """Raises: EntryError, with the entry's `name`, for what is no such state."""
        if not state:
            self._carried = {}
            return
        SUMS(name, state)
        streams, clocks, sums = (state[key].tolist() for key in ("stream", "clock", "sum"))
        if not len(streams) == len(clocks) == len(sums):
            raise forms.EntryError(f"{name} has {len(streams)} streams, {len(clocks)} clocks and {len(sums)} sums")
        self._carried = dict(zip(streams, zip(clocks, sums)))

"""Counts: a reward for arriving in states that have been visited seldom, or not yet, in the episode or in all of training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from torchbeast.core.columns import Column
from torchbeast.core.optimizer import OptimizerMaker
from torchbeast.core.ranks import ALONE, Alone
from torchbeast.core.settings import TRAINING, Settings, flag
from utils_folder.minigrid.view import FULL, PARTIAL
from utils_folder.motivations import rewards
from utils_folder.motivations.base import Batch, Motivation, Shown, Task
from utils_folder.motivations.lifelong import MOST_BYTES, MOST_STATES, LifelongCounts, digests
from utils_folder.motivations.transitions import States, view_flag
from utils_folder.motivations.watchers import EpisodicCounts

ROOT, FIRST, ALWAYS = "root", "first", "always"
WORTH = {ROOT: rewards.rarity, FIRST: rewards.first_visit, ALWAYS: lambda visits: torch.ones_like(visits, dtype=torch.float32)}
LIFELONG = "count_lifelong_visits"  # of a checkpoint


@dataclass(frozen=True)
class CountSettings:
    """What a visit earns."""

    title = "Counts"
    example = "--model count --count_lifelong --count_view partial --count_reward first --count_coef 0.02"
    needs = TRAINING
    count_coef: float = flag(0.005, "scale of the reward for states that are seldom visited", at_least=0, agent=True)
    count_reward: str = flag(
        ROOT,
        "what arriving in a state for the n-th time in an episode earns: 1 / sqrt(n) (root), 1 the first time only (first), or "
        "1 whatever n is (always)",
        choices=tuple(WORTH),
        agent=True,
    )
    count_lifelong: bool = flag(
        False, "divide that by the square root of how often the state has been visited in all of training", agent=True
    )
    count_view: str = view_flag("states are told apart")


class Count(Motivation):
    """Pays for arriving in states by how often they have been visited: coef * w(n) / sqrt(N).

    n counts the visits in the episode, this one included: w is 1 / sqrt(n), or 1[n = 1], or 1. N counts those in all training
    before the batch, and this one; without `--count_lifelong` it is 1. Where an episode ends, what counts is its last state.
    Source: the bonus 1 / sqrt(N), Bellemare et al. 2016 (arXiv 1606.01868), section 5, and Strehl and Littman 2008 before; of
    counts in the episode, RIDE (arXiv 2002.12292), section 3; 1[n = 1], NovelD (arXiv 2012.08621), section 3. Andres et al.
    2022 (arXiv 2205.11184) compare N alone and with either n on MiniGrid.
    """

    groups = (CountSettings,)
    example = "--count_lifelong --count_view partial --count_reward first"
    columns = (Column("first_arrivals", "share of steps that led to a state that was new in its episode"),)

    def __init__(self, settings: Settings, task: Task, make_optimizer: OptimizerMaker, ranks: Alone = ALONE):
        super().__init__(settings, task, make_optimizer, ranks)
        own = self._settings = settings[CountSettings]
        self._states = States(task, own.count_view)
        self._lifelong = LifelongCounts(ranks) if own.count_lifelong else None
        self.table_bytes = MOST_BYTES if own.count_lifelong else 0
        (self._arrivals,) = counted = EpisodicCounts.arrivals(self._states.frame)
        self.rollout_fields = counted | (self._states.transition_fields if own.count_lifelong else self._states.fields)

    @classmethod
    def problems(cls, settings: Settings, width: int, height: int) -> list[str]:
        own = settings[CountSettings]
        if own.count_reward != ALWAYS or own.count_lifelong:
            return []
        return [f"--count_reward {ALWAYS} pays for every state the same; add --count_lifelong, or choose {ROOT} or {FIRST}"]

    def actor(self, num_envs: int, generator: torch.Generator) -> EpisodicCounts:
        return EpisodicCounts(num_envs, self._states.shape, arrivals=self._states.frame)

    def intrinsic_reward(self, batch: Batch) -> Tensor:
        arrivals = batch[self._arrivals][1:]
        worth = WORTH[self._settings.count_reward](arrivals)
        if self._lifelong is not None:
            batch[LIFELONG] = digests(self._states.after(batch)["frame"])
            worth = worth * rewards.rarity(self._lifelong.visits(batch[LIFELONG]) + 1)
        return self._settings.count_coef * worth

    def learn(self, batch: Batch) -> dict[str, float]:
        if self._lifelong is not None:
            self._lifelong.update(batch[LIFELONG])
        return {"first_arrivals": (batch[self._arrivals][1:] == 1).float().mean().item()}

    def warnings(self) -> Iterator[str]:
        if self._lifelong is not None and self._lifelong.forgotten:
            remedy = f"; --count_view {PARTIAL} tells fewer apart" if self._settings.count_view == FULL else ""
            yield (
                f"there are more than {MOST_STATES:,} states to count: those visited least often are forgotten and "
                f"counted anew{remedy}"
            )

    def training_state_dict(self) -> dict:  # a million states take 16 MB: too much to keep with an agent
        return {} if self._lifelong is None else {LIFELONG: self._lifelong.state_dict()}

    def load_training_state_dict(self, state: dict) -> None:
        if self._lifelong is not None:
            self._lifelong.load_state_dict(state[LIFELONG], LIFELONG)

    def shown(self, row: dict[str, np.ndarray]) -> Shown:
        notes = [EpisodicCounts.note(row, self._states.frame)]
        if self._lifelong is not None:  # what is paid in training may be far less
            notes.append(("visits in training", "not stored"))
        return Shown(notes=tuple(notes))

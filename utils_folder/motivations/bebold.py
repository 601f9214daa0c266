"""BeBold's motivation: reward for stepping from familiar into novel states, novelty measured by random network distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.grid import CellSettings
from models.novelty import RandomNetwork
from torchbeast.core.columns import Column
from torchbeast.core.optimizer import METHODS, LearningSettings, OptimizerMaker
from torchbeast.core.ranks import ALONE, Alone
from torchbeast.core.settings import TRAINING, Settings, flag
from torchbeast.core.upload import numbers
from utils_folder.motivations import rewards
from utils_folder.motivations.base import Batch, Shown, Task
from utils_folder.motivations.learned import Learned
from utils_folder.motivations.transitions import States, of_states, view_flag
from utils_folder.motivations.watchers import EpisodicCounts

COLUMNS = (
    Column("novelty", "mean novelty N(s) of the states visited"),
    Column("first_visits", "share of states seen for the first time in their episode"),
    Column("novelty_loss", "the predictor's loss"),
)


@dataclass(frozen=True)
class NoveltySettings:
    """What counts as novel, and what that earns."""

    title = "Novelty"
    example = "--model novelty_based --novelty_optimizer adam --novelty_output linear"
    needs = TRAINING
    novelty_coef: float = flag(0.1, "scale of the novelty reward", at_least=0, agent=True)
    novelty_scale: float = flag(
        1.0, "weight of the novelty of the state that is left (NovelD: 0.5)", at_least=0, agent=True
    )
    novelty_view: str = view_flag("novelty is judged", "; so NovelD")
    novelty_output: str = flag(
        "relu",
        "how target and predictor end: relu, as published, which keeps known states novel, or linear (so RND)",
        choices=("relu", "linear"),
        agent=True,
    )
    novelty_optimizer: str = flag("rmsprop", "the predictor's: rmsprop or adam", choices=METHODS, agent=True)
    novelty_learning_rate: float | None = flag(None, "the predictor's learning rate (default: learning_rate)", at_least=0)


class BeBold(Learned):
    """The predictor in the learner: it learns to match a fixed random network on the states that are visited.

    N(s) = ||predictor(s) - target(s)||_2.
    Source: RND (arXiv 1810.12894), section 2.2; BeBold (arXiv 2012.08621), section 3.
    """

    groups = (NoveltySettings,)
    columns = COLUMNS

    learner, rate_flag = "predictor", "novelty_learning_rate"

    def __init__(self, settings: Settings, task: Task, make_optimizer: OptimizerMaker, ranks: Alone = ALONE):
        own = self._settings = settings[NoveltySettings]
        self._states = States(task, own.novelty_view)
        self._frame_shape = task.frame_shape
        super().__init__(settings, task, make_optimizer, ranks)
        self.rollout_fields = EpisodicCounts.VISITS | self._states.fields
        self.reads = (*EpisodicCounts.VISITS, *self._states.reads)
        self._networks_known = True

    def make_networks(self, settings: Settings, task: Task) -> dict[str, nn.Module]:
        embedded = not settings[CellSettings].disable_use_embedding
        target, predictor = (
            RandomNetwork(self._states.shape, use_embedding=embedded, output=self._settings.novelty_output) for _ in range(2)
        )
        return {"target": target.requires_grad_(False), "predictor": predictor}

    def optimizing(self, settings: Settings) -> dict[str, Any]:
        rate = self._settings.novelty_learning_rate
        rate = settings[LearningSettings].learning_rate if rate is None else rate
        return {"learning_rate": rate, "method": self._settings.novelty_optimizer}

    def actor(self, num_envs: int, generator: torch.Generator) -> EpisodicCounts:
        return EpisodicCounts(num_envs, self._frame_shape)

    def novelty(self, batch: Batch) -> Tensor:
        """N(s_t), float32 [T+1, B], with gradient for the predictor."""
        return of_states(self._distance, self._states.visited(batch))

    def _distance(self, states: Batch) -> Tensor:
        """N(s) of states [N, ...], float32 [N]."""
        return torch.linalg.vector_norm(self.networks["predictor"](states) - self.networks["target"](states), dim=-1)

    def intrinsic_reward(self, batch: Batch) -> Tensor:
        batch["novelty"] = self.novelty(batch)
        return rewards.novelty_bonus(
            batch["novelty"].detach(),
            batch["visits"],
            coef=self._settings.novelty_coef,
            scale=self._settings.novelty_scale,
        )

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        novelty = batch["novelty"][1:]  # state 0 was the last one of the rollout before, and is learned from there
        loss = novelty.mean(dim=1).sum()
        means = (novelty.mean(), (batch["visits"][1:] == 1).float().mean(), loss)
        return loss, dict(zip([column.name for column in COLUMNS], numbers(means)))

    def shown(self, row: dict[str, np.ndarray]) -> Shown:
        notes = [("visits of this state", str(row["visits"][0]))]
        if not self._networks_known:  # the intrinsic rewards say nothing then
            notes.append(("novelty networks", "not stored"))
        return Shown(notes=tuple(notes))

    def load_state_dict(self, state: dict) -> None:
        # The published code does not save them; playing needs the student alone.
        self._networks_known = "target_state_dict" in state
        if self._networks_known:
            super().load_state_dict(state)

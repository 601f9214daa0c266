"""BeBold's motivation: reward for stepping from familiar into novel states, novelty measured by random network distillation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.distinct import over_distinct
from models.grid import COLOURS, CellSettings, are_cells
from models.novelty import RandomNetwork
from torchbeast.core import forms
from torchbeast.core.columns import Column
from torchbeast.core.environment import Environment, Output
from torchbeast.core.optimizer import METHODS, LearningSettings, OptimizerMaker
from torchbeast.core.ranks import ALONE, Alone
from torchbeast.core.rollouts import Field
from torchbeast.core.settings import TRAINING, Settings, flag
from utils_folder.minigrid.view import VIEW_SHAPE, partial_view
from utils_folder.motivations import rewards
from utils_folder.motivations.base import Batch, Motivation, MotivationActor, Shown, Task

MOST_VISITS = 2**31 - 1
VISITS = forms.whole(1, MOST_VISITS)


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
    novelty_view: str = flag(
        "full",
        "what novelty is judged by: the full grid, or the 7x7 cells before the agent (partial; so NovelD)",
        choices=("full", "partial"),
        agent=True,
    )
    novelty_output: str = flag(
        "relu",
        "how target and predictor end: relu, as published, which keeps known states novel, or linear (so RND)",
        choices=("relu", "linear"),
        agent=True,
    )
    novelty_optimizer: str = flag("rmsprop", "the predictor's: rmsprop or adam", choices=METHODS, agent=True)
    novelty_learning_rate: float | None = flag(None, "the predictor's learning rate (default: learning_rate)", at_least=0)


class BeBoldActor(MotivationActor):
    """Counts how often each full frame has been seen in the current episode of each environment.

    `partial`: also gives what novelty is judged by, the partial view.
    """

    def __init__(self, num_envs: int, *, partial: bool):
        self._counts = [Counter() for _ in range(num_envs)]
        self._row = {"visits": np.zeros(num_envs, np.int32)}
        self._partial = partial

    def observe(self, out: Output, environment: Environment) -> dict[str, np.ndarray]:
        frames = out["frame"][..., -3:]
        for e, counts in enumerate(self._counts):
            if out["done"][e]:
                counts.clear()
            key = frames[e].tobytes()
            counts[key] += 1
            self._row["visits"][e] = counts[key]
        if self._partial:
            self._row["view"] = partial_view(frames, out["carried_obj"], out["carried_col"])
        return self._row

    def state_dict(self) -> dict:
        return {"counts": [[(k.hex(), n) for k, n in counts.items()] for counts in self._counts]}

    def load_state_dict(self, state: dict) -> None:
        counts = forms.each(forms.each(forms.pair(forms.hexadecimal, VISITS)), count=len(self._counts))
        forms.record({"counts": counts})("source/actor/motivation", state)
        self._counts = [Counter({bytes.fromhex(k): n for k, n in counts}) for counts in state["counts"]]


class BeBold(Motivation):
    """The predictor in the learner: it learns to match a fixed random network on the states that are visited.

    N(s) = ||predictor(s) - target(s)||_2.
    Source: RND (arXiv 1810.12894), section 2.2; BeBold (arXiv 2012.08621), section 3.
    """

    groups = (NoveltySettings,)
    columns = (
        Column("novelty", "mean novelty N(s) of the states visited"),
        Column("first_visits", "share of states seen for the first time in their episode"),
        Column("novelty_loss", "the predictor's loss"),
    )

    def __init__(self, settings: Settings, task: Task, make_optimizer: OptimizerMaker, ranks: Alone = ALONE):
        own = self._settings = settings[NoveltySettings]
        self._partial = own.novelty_view == "partial"
        self.rollout_fields = {"visits": Field((), np.int32, fits=forms.within(1, MOST_VISITS))}
        if self._partial:
            self.rollout_fields["view"] = Field(VIEW_SHAPE, np.uint8, fits=are_cells)
        shape = VIEW_SHAPE if self._partial else task.frame_shape
        options = {"use_embedding": not settings[CellSettings].disable_use_embedding, "output": own.novelty_output}
        self.target = RandomNetwork(shape, **options).requires_grad_(False)
        self.predictor = RandomNetwork(shape, **options)
        self._networks_known = True
        rate = own.novelty_learning_rate
        self._optimizer = make_optimizer(
            self.predictor.parameters(),
            learning_rate=settings[LearningSettings].learning_rate if rate is None else rate,
            method=own.novelty_optimizer,
        )

    def actor(self, num_envs: int, generator: torch.Generator) -> BeBoldActor:
        return BeBoldActor(num_envs, partial=self._partial)

    def to(self, device: torch.device) -> None:
        self.target.to(device)
        self.predictor.to(device)

    def novelty(self, batch: Batch) -> Tensor:
        """N(s_t), float32 [T+1, B], with gradient for the predictor."""
        seen = [batch["view" if self._partial else "frame"], batch["carried_obj"], batch["carried_col"]]
        frame, *pair = seen = [column.flatten(0, 1) for column in seen]
        return over_distinct(self._distance, seen, frame, pair[0].long() * COLOURS + pair[1]).view_as(batch["carried_obj"])

    def _distance(self, frame: Tensor, carried_obj: Tensor, carried_col: Tensor) -> Tensor:
        """N(s) of states [N, ...], float32 [N]."""
        seen = {"frame": frame, "carried_obj": carried_obj, "carried_col": carried_col}
        return torch.linalg.vector_norm(self.predictor(seen) - self.target(seen), dim=-1)

    def intrinsic_reward(self, batch: Batch) -> Tensor:
        batch["novelty"] = self.novelty(batch)
        return rewards.novelty_bonus(
            batch["novelty"].detach(),
            batch["visits"],
            coef=self._settings.novelty_coef,
            scale=self._settings.novelty_scale,
        )

    def learn(self, batch: Batch) -> dict[str, float]:
        novelty = batch["novelty"][1:]  # state 0 was the last one of the rollout before, and is learned from there
        loss = novelty.mean(dim=1).sum()
        self._optimizer.step(loss)
        return {
            "novelty": novelty.mean().item(),
            "first_visits": (batch["visits"][1:] == 1).float().mean().item(),
            "novelty_loss": loss.item(),
        }

    def shown(self, row: dict[str, np.ndarray]) -> Shown:
        notes = [("visits of this state", str(row["visits"][0]))]
        if not self._networks_known:  # the intrinsic rewards say nothing then
            notes.append(("novelty networks", "not stored"))
        return Shown(notes=tuple(notes))

    def warnings(self) -> Iterator[str]:
        yield from self._optimizer.warnings("predictor", "novelty_learning_rate")

    def state_dict(self) -> dict:
        return {"target_state_dict": self.target.state_dict(), "predictor_state_dict": self.predictor.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        # The published code does not save them; playing needs the student alone.
        self._networks_known = "target_state_dict" in state
        if self._networks_known:
            forms.load_weights(self.target, state, "target_state_dict")
            forms.load_weights(self.predictor, state, "predictor_state_dict")

    def training_state_dict(self) -> dict:
        rule, schedule = self._optimizer.state_dict()
        return {"predictor_optimizer_state_dict": rule, "predictor_scheduler_state_dict": schedule}

    def load_training_state_dict(self, state: dict) -> None:
        self._optimizer.load_state_dict(state["predictor_optimizer_state_dict"], state["predictor_scheduler_state_dict"])

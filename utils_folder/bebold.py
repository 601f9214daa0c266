"""BeBold's motivation: reward for stepping from familiar into novel states, novelty measured by random network distillation."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from models.novelty import RandomNetwork
from torchbeast.core import optimizer
from torchbeast.core.environment import Environment, Output
from torchbeast.core.ranks import ALONE, Alone
from torchbeast.core.rollouts import Field
from utils_folder import rewards
from utils_folder.minigrid.view import VIEW_SHAPE, partial_view
from utils_folder.motivation import Batch, Motivation, MotivationActor, Shown, Task


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
        self._counts = [Counter({bytes.fromhex(k): n for k, n in counts}) for counts in state["counts"]]


class BeBold(Motivation):
    """The predictor in the learner: it learns to match a fixed random network on the states that are visited.

    N(s) = ||predictor(s) - target(s)||_2.
    Source: RND (arXiv 1810.12894), section 2.2; BeBold (arXiv 2012.08621), section 3.
    """

    goal_conditioned = False
    log_columns = ("novelty", "first_visits", "novelty_loss")

    def __init__(self, flags: argparse.Namespace, task: Task, ranks: Alone = ALONE):
        self._flags = flags
        self._partial = flags.novelty_view == "partial"
        self.rollout_fields = {"visits": Field((), np.int32)}
        if self._partial:
            self.rollout_fields["view"] = Field(VIEW_SHAPE, np.uint8)
        shape = VIEW_SHAPE if self._partial else task.frame_shape
        options = {"use_embedding": not flags.disable_use_embedding, "output": flags.novelty_output}
        self.target = RandomNetwork(shape, **options).requires_grad_(False)
        self.predictor = RandomNetwork(shape, **options)
        self._networks_known = True
        self._optimizer = optimizer.from_flags(
            self.predictor.parameters(),
            flags,
            learning_rate=flags.learning_rate if flags.novelty_learning_rate is None else flags.novelty_learning_rate,
            method=flags.novelty_optimizer,
            ranks=ranks,
        )

    def actor(self, num_envs: int, generator: torch.Generator) -> BeBoldActor:
        return BeBoldActor(num_envs, partial=self._partial)

    def to(self, device: torch.device) -> None:
        self.target.to(device)
        self.predictor.to(device)

    def novelty(self, batch: Batch) -> Tensor:
        """N(s_t), float32 [T+1, B], with gradient for the predictor."""
        seen = batch | {"frame": batch["view"]} if self._partial else batch
        return torch.linalg.vector_norm(self.predictor(seen) - self.target(seen), dim=-1)

    def intrinsic_reward(self, batch: Batch) -> Tensor:
        batch["novelty"] = self.novelty(batch)
        return rewards.novelty_bonus(
            batch["novelty"].detach(),
            batch["visits"],
            coef=self._flags.novelty_coef,
            scale=self._flags.novelty_scale,
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
        if self._optimizer.skipped:
            yield (
                "a predictor update had a loss or gradient that is not finite and was not applied; "
                "if it happens often, lower --novelty_learning_rate"
            )

    def state_dict(self) -> dict:
        rule, schedule = self._optimizer.state_dict()
        return {
            "target_state_dict": self.target.state_dict(),
            "predictor_state_dict": self.predictor.state_dict(),
            "predictor_optimizer_state_dict": rule,
            "predictor_scheduler_state_dict": schedule,
        }

    def load_state_dict(self, state: dict) -> None:
        # The published code does not save them; playing needs the student alone.
        self._networks_known = "target_state_dict" in state
        if not self._networks_known:
            return
        self.target.load_state_dict(state["target_state_dict"])
        self.predictor.load_state_dict(state["predictor_state_dict"])
        if "predictor_optimizer_state_dict" in state:  # not left out of what is kept of a finished run
            self._optimizer.load_state_dict(state["predictor_optimizer_state_dict"], state["predictor_scheduler_state_dict"])

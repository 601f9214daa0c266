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
from utils_folder.motivation import Batch, Motivation, MotivationActor, Task


class BeBoldActor(MotivationActor):
    """Counts how often each full frame has been seen in the current episode of each environment."""

    def __init__(self, num_envs: int):
        self._counts = [Counter() for _ in range(num_envs)]
        self._row = {"visits": np.zeros(num_envs, np.int32)}

    def observe(self, out: Output, environment: Environment) -> dict[str, np.ndarray]:
        frames = out["frame"][..., -3:]
        for e, counts in enumerate(self._counts):
            if out["done"][e]:
                counts.clear()
            key = frames[e].tobytes()
            counts[key] += 1
            self._row["visits"][e] = counts[key]
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
    rollout_fields = {"visits": Field((), np.int32)}

    def __init__(self, flags: argparse.Namespace, task: Task, ranks: Alone = ALONE):
        self._flags = flags
        embedding = {"goal_dim": flags.goal_dim, "use_embedding": not flags.disable_use_embedding}
        self.target = RandomNetwork(task.frame_shape, **embedding).requires_grad_(False)
        self.predictor = RandomNetwork(task.frame_shape, **embedding)
        self._optimizer = optimizer.from_flags(
            self.predictor.parameters(), flags, learning_rate=flags.learning_rate, ranks=ranks
        )

    def actor(self, num_envs: int, generator: torch.Generator) -> BeBoldActor:
        return BeBoldActor(num_envs)

    def to(self, device: torch.device) -> None:
        self.target.to(device)
        self.predictor.to(device)

    def novelty(self, batch: Batch) -> Tensor:
        """N(s_t), float32 [T+1, B], with gradient for the predictor."""
        return torch.linalg.vector_norm(self.predictor(batch) - self.target(batch), dim=-1)

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

    def warnings(self) -> Iterator[str]:
        if self._optimizer.skipped:
            yield (
                "a predictor update had a loss or gradient that is not finite and was not applied; "
                "if it happens often, lower --learning_rate"
            )

    def state_dict(self) -> dict:
        rmsprop, schedule = self._optimizer.state_dict()
        return {
            "target_state_dict": self.target.state_dict(),
            "predictor_state_dict": self.predictor.state_dict(),
            "predictor_optimizer_state_dict": rmsprop,
            "predictor_scheduler_state_dict": schedule,
        }

    def load_state_dict(self, state: dict) -> None:
        if "target_state_dict" not in state:  # the published code does not save it; playing needs the student alone
            return
        self.target.load_state_dict(state["target_state_dict"])
        self.predictor.load_state_dict(state["predictor_state_dict"])
        self._optimizer.load_state_dict(state["predictor_optimizer_state_dict"], state["predictor_scheduler_state_dict"])

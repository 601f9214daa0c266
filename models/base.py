"""What a student's network is, to those who act with it and learn it."""

from __future__ import annotations

import abc
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from torchbeast.core.settings import Settings


class StudentNetwork(abc.ABC):
    """The part of a student that is not torch.nn.Module: derive from both.

    Attributes:
        groups: its settings: frozen dataclasses of flags.
        has_intrinsic_value: `make` takes `intrinsic_value=True`, for a second value (`--reward_mixing apart`).
    """

    groups: ClassVar[tuple[type, ...]] = ()
    has_intrinsic_value: ClassVar[bool] = False

    @classmethod
    @abc.abstractmethod
    def make(
        cls, settings: Settings, frame_shape: tuple[int, int, int], num_actions: int, *, goal_conditioned: bool
    ) -> StudentNetwork:
        """The student that a run's settings describe."""

    @abc.abstractmethod
    def forward(
        self, inputs: dict[str, Tensor], core_state: tuple[Tensor, ...] = (), weights: Any = None
    ) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        """Policy logits and values of T steps.

        Args:
            inputs: frame uint8 [T, B, W, H, 3k], the full grid or the 7x7 view; carried_obj and carried_col uint8 [T, B];
                done bool [T, B]; goal int64 [T, B], if goal_conditioned: cells x * H + y of the frame, W * H where the goal
                is in none of them.
            core_state: a recurrent network's state before step 0, as `initial_state` has it; it is zeroed where done.
            weights: `compose()` of the present parameters; None composes them here.
        Returns: ({policy_logits float32 [T, B, A], baseline float32 [T, B]}, the state after step T - 1); made with
            `intrinsic_value`, also intrinsic_baseline float32 [T, B], the value of intrinsic rewards.
        """

    def act(
        self, seen: dict[str, np.ndarray], core_state: tuple[Tensor, ...], weights: Any
    ) -> tuple[np.ndarray, np.ndarray, tuple[Tensor, ...]]:
        """`forward` of one step, without its axis: (policy_logits [E, A], baseline [E], the state after it)."""
        outputs, core_state = self({name: torch.from_numpy(value)[None] for name, value in seen.items()}, core_state, weights)
        return outputs["policy_logits"][0].numpy(), outputs["baseline"][0].numpy(), core_state

    def initial_state(self, batch_size: int) -> tuple[Tensor, ...]:
        """A recurrent network's first state, float32 [layers, B, hidden] each; () if it is none."""
        return ()

    def compose(self) -> Any:
        """The weights in the form that `forward` uses; for a network that has no such form, None."""
        return None

    @staticmethod
    def least_size(settings: Settings, frame_shape: tuple[int, int, int], num_actions: int) -> int:
        """How many numbers the network that `make` makes has at least, told without making it: flags may ask for any size."""
        return 0

    @staticmethod
    def trained_on(weights: dict[str, Any]) -> tuple[int | None, int | None]:
        """(Cells of the grid, actions) that these weights are for; None where they do not tell.

        Raises: ValueError if they are none of such a network.
        """
        return None, None

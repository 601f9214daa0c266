"""The student: the goal-conditioned policy and its value (SPEC section 2)."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from models.acting import NONE, RELU, Forward, Layer
from models.base import StudentNetwork
from models.distinct import Known, over_distinct
from models.grid import CARRIED, COLOURS, RELU_GAIN, CellEmbedding, CellSettings, ConvWeights, GridConvolutions, initialise
from models.linear import linear
from models.lstm import recur
from torchbeast.core.settings import Settings, flag

SEEN = ("frame", "carried_obj", "carried_col", "goal")


@dataclass(frozen=True)
class StudentSettings:
    """The student's network."""

    title = "Student"
    state_embedding_dim: int = flag(256, "width of the student's hidden layers", at_least=1, agent=True)
    use_lstm: bool = flag(False, "put an LSTM before the student's heads", agent=True)
    num_lstm_layers: int = flag(1, "its layers", at_least=1, agent=True, needs=("use_lstm",))
    goal_dim: int = flag(10, "width of the unused goal embedding of published checkpoints", at_least=1, agent=True)


class StudentWeights(NamedTuple):
    """The student's weights in the form its forward uses."""

    convs: ConvWeights
    carried: Tensor  # [66, 8]
    fc: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]  # (weight, bias) of the two fully connected layers
    heads: tuple[Tensor, Tensor]  # [A + V, hidden], [A + V]: policy and V values as one layer
    act: Known | None  # without gradients on the CPU: `_features`, and without an LSTM the heads


class Student(CellEmbedding, StudentNetwork):
    """Policy and baseline from a view of the grid, the carried object and, if goal_conditioned, a goal.

    Args:
        frame_shape: (W, H, 3k), sides up to 32 cells: of the full grid, or of the view (7, 7, 3).
        num_actions: A.
        goal_conditioned: whether the goal's one-hot map is the last input channel.
        goal_dim: width of embed_goal and embed_agent_loc, which published checkpoints hold and no forward pass uses.
        hidden_dim: width of the fully connected layers and of the LSTM.
        use_lstm, num_lstm_layers: a recurrent `core` before the heads.
        use_embedding: False feeds raw channel values instead of embeddings, whose modules do not exist then.
        intrinsic_value: a second value, of intrinsic rewards (RND, arXiv 1810.12894, section 2.3).
    Raises: ValueError for a frame shape the convolutions cannot take.
    """

    def __init__(
        self,
        frame_shape: tuple[int, int, int],
        num_actions: int,
        *,
        goal_conditioned: bool,
        goal_dim: int = 10,
        hidden_dim: int = 256,
        use_lstm: bool = False,
        num_lstm_layers: int = 1,
        use_embedding: bool = True,
        intrinsic_value: bool = False,
    ):
        super().__init__(frame_shape, use_embedding)
        self.num_actions, self.hidden_dim, self.goal_conditioned = num_actions, hidden_dim, goal_conditioned
        if goal_conditioned:
            self.embed_goal = nn.Embedding(self.num_cells + 1, goal_dim)
        self.embed_agent_loc = nn.Embedding(self.num_cells + 1, goal_dim)
        self.feat_extract = GridConvolutions(frame_shape, sum(self.cell_dims), (32,) * 5, 2, goal_conditioned)
        self.fc = nn.Sequential(
            nn.Linear(32 + self.carried_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, hidden_dim), nn.ReLU()
        )
        self.core = nn.LSTM(hidden_dim, hidden_dim, num_lstm_layers) if use_lstm else None
        self.policy = initialise(nn.Linear(hidden_dim, num_actions), 1.0)
        self.baseline = initialise(nn.Linear(hidden_dim, 1), 1.0)
        self.intrinsic_baseline = initialise(nn.Linear(hidden_dim, 1), 1.0) if intrinsic_value else None
        for layer in (*self.feat_extract.convolutions(), self.fc[0], self.fc[2]):
            initialise(layer, RELU_GAIN)

    groups = (StudentSettings, CellSettings)
    has_intrinsic_value = True

    @classmethod
    def make(
        cls, settings: Settings, frame_shape: tuple[int, int, int], num_actions: int, *, goal_conditioned: bool,
        intrinsic_value: bool = False,
    ) -> Student:  # fmt: skip
        own = settings[StudentSettings]
        return cls(
            frame_shape,
            num_actions,
            goal_conditioned=goal_conditioned,
            goal_dim=own.goal_dim,
            hidden_dim=own.state_embedding_dim,
            use_lstm=own.use_lstm,
            num_lstm_layers=own.num_lstm_layers,
            use_embedding=not settings[CellSettings].disable_use_embedding,
            intrinsic_value=intrinsic_value,
        )

    @staticmethod
    def least_size(settings: Settings, frame_shape: tuple[int, int, int], num_actions: int) -> int:
        own, cells = settings[StudentSettings], math.prod(frame_shape[:2]) + 1
        width = own.state_embedding_dim
        layers = 1 + 8 * own.num_lstm_layers * own.use_lstm  # of width x width: fc's second one, an LSTM's eight
        return cells * own.goal_dim + layers * (width + 1) * width + (33 + num_actions) * width

    @staticmethod
    def trained_on(weights: dict[str, Any]) -> tuple[int, int]:
        cells, policy = weights.get("embed_agent_loc.weight"), weights.get("policy.weight")
        for name, matrix in (("embed_agent_loc", cells), ("policy", policy)):
            if not isinstance(matrix, Tensor) or matrix.dim() != 2:
                raise ValueError(f"holds no student of this program (no {name})")
        return len(cells) - 1, len(policy)

    def initial_state(self, batch_size: int) -> tuple[Tensor, ...]:
        """Zeros (h, c), each [layers, B, hidden]; () without LSTM."""
        if self.core is None:
            return ()
        zeros = self.policy.weight.new_zeros(self.core.num_layers, batch_size, self.hidden_dim, requires_grad=False)
        return zeros, zeros.clone()

    def compose(self) -> StudentWeights:
        """The weights in the form the forward uses, a differentiable function of the parameters.

        Compose anew after every change of the parameters: some of the weights are the parameters themselves.
        """
        fc = tuple((layer.weight, layer.bias) for layer in (self.fc[0], self.fc[2]))
        layers = [head for head in (self.policy, self.baseline, self.intrinsic_baseline) if head is not None]
        heads = torch.cat([head.weight for head in layers]), torch.cat([head.bias for head in layers])
        convs, carried, act = self.feat_extract.compose(self.tables()), self.compose_carried(), None
        if heads[0].is_cpu and not torch.is_grad_enabled():
            layers = [Layer(*layer, RELU) for layer in fc] + [Layer(*heads, NONE)] * (self.core is None)
            act = Known(Forward(self.feat_extract, convs, carried, layers))
        return StudentWeights(convs, carried, fc, heads, act)

    def forward(
        self, inputs: dict[str, Tensor], core_state: tuple[Tensor, ...] = (), weights: StudentWeights | None = None
    ) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        """Policy logits and values of T steps.

        Args:
            inputs: frame uint8 [T, B, W, H, 3k]; carried_obj and carried_col uint8 [T, B]; goal int64 [T, B], cells
                x * H + y, or W * H where it is none of them, if goal_conditioned; done bool [T, B] with LSTM, whose state is
                zeroed before such a step.
            core_state: the LSTM's state before step 0.
            weights: `compose()` of the present parameters; None composes them here.
        Returns: ({policy_logits float32 [T, B, A], baseline and, if there is one, intrinsic_baseline float32 [T, B]}, the
            state after step T - 1).
        """
        weights = self.compose() if weights is None else weights
        T, B = inputs["carried_obj"].shape
        if weights.act is None:
            scores = self._learn(weights, inputs)
        else:
            seen = {name: inputs[name].flatten(0, 1).numpy() for name in SEEN if name in inputs}
            scores = torch.from_numpy(self._act(weights.act, seen))
        if self.core is not None:
            keep = (~inputs["done"]).to(scores.dtype)[..., None]
            hidden, core_state = recur(self.core, scores.view(T, B, -1), keep, core_state)
            scores = linear(hidden.flatten(0, 1), *weights.heads)
        scores, A = scores.view(T, B, -1), self.num_actions
        outputs = {"policy_logits": scores[..., :A], "baseline": scores[..., A]}
        if self.intrinsic_baseline is not None:
            outputs["intrinsic_baseline"] = scores[..., A + 1]
        return outputs, core_state

    def _learn(self, weights: StudentWeights, inputs: dict[str, Tensor]) -> Tensor:
        """`_features` of every row, computed once of equal ones."""
        frame, carried = inputs["frame"].flatten(0, 1), inputs["carried_obj"] * COLOURS + inputs["carried_col"]
        carried = carried.flatten().int()  # at most 65: fits uint8
        goal = inputs["goal"].flatten() if self.goal_conditioned else None
        others = carried.long() if goal is None else goal * CARRIED + carried
        return over_distinct(functools.partial(self._features, weights), (frame, goal, carried), frame, others)

    def act(
        self, seen: dict[str, np.ndarray], core_state: tuple[Tensor, ...], weights: StudentWeights
    ) -> tuple[np.ndarray, np.ndarray, tuple[Tensor, ...]]:
        if weights.act is None or self.core is not None:
            return super().act(seen, core_state, weights)
        scores = self._act(weights.act, seen)
        return scores[:, : self.num_actions], scores[:, self.num_actions], ()

    def _act(self, act: Known, seen: dict[str, np.ndarray]) -> np.ndarray:
        """The same without gradients, of rows [N, ...]."""
        carried = seen["carried_obj"] * np.int64(COLOURS) + seen["carried_col"]
        goal = seen["goal"] if self.goal_conditioned else None
        others = carried if goal is None else goal * CARRIED + carried
        return act(seen["frame"], others, goal, carried)

    def _features(self, weights: StudentWeights, frame: Tensor, goal: Tensor | None, carried: Tensor) -> Tensor:
        """What the LSTM gets, float32 [N, hidden], or policy and values, [N, A + V]; `models.acting.Forward` does the same.

        Of frame [N, W, H, 3k], goal [N], carried int32 [N] (numbers of pairs).
        """
        hidden = self.with_carried(self.feat_extract(frame, goal, weights.convs), carried, weights.carried)
        for weight, bias in weights.fc:
            hidden = linear(hidden, weight, bias, "relu")
        return hidden if self.core is not None else linear(hidden, *weights.heads)

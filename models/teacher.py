"""The teacher: the goal generator (SPEC section 2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.acting import Forward
from models.distinct import over_distinct
from models.grid import CellEmbedding, ConvWeights, GridConvolutions, initialise

MOST_POSITIONS = 500  # of more, PyTorch's own convolutions are faster


class TeacherWeights(NamedTuple):
    """The teacher's weights in the form its forward uses."""

    convs: ConvWeights
    act: Forward | None  # without gradients on the CPU: the convolutions


class Teacher(CellEmbedding):
    """A logit for every cell as a goal, and the value of the frame.

    Args:
        frame_shape: (W, H, 3k), sides up to 32 cells.
        inner: leave out the outer wall: (W - 2)(H - 2) logits, index (x - 1)(H - 2) + (y - 1).
        mirrored: flatten the map as y * W + x, as the published code does, which then reads the index as x * H + y.
        use_embedding: False feeds raw channel values instead of embeddings.
    Raises: ValueError for a frame shape the convolutions cannot take, or with inner for a grid without inner cells.
    """

    def __init__(
        self,
        frame_shape: tuple[int, int, int],
        *,
        inner: bool = False,
        mirrored: bool = False,
        use_embedding: bool = True,
    ):
        super().__init__(frame_shape, use_embedding)
        self.inner, self.mirrored = inner, mirrored
        if inner and min(self.width, self.height) < 3:
            raise ValueError(f"grid of {self.width} x {self.height} cells has no inner cells")
        self.num_goals = (self.width - 2) * (self.height - 2) if inner else self.num_cells
        self.extract_representation = GridConvolutions(frame_shape, sum(self.cell_dims), (16, 16, 16, 1), 1)
        self.baseline_teacher = initialise(nn.Linear(self.num_goals, 1), 1.0)

    def compose(self) -> TeacherWeights:
        """The weights in the form the forward uses, a differentiable function of the parameters.

        Some of them are the parameters themselves: compose anew after every change of the parameters.
        """
        convs = self.extract_representation.compose(self.tables())
        acts = convs.table.is_cpu and not torch.is_grad_enabled()
        return TeacherWeights(convs, Forward(self.extract_representation, convs) if acts else None)

    def forward(self, frame: Tensor, weights: TeacherWeights | None = None) -> tuple[Tensor, Tensor]:
        """Goal logits float32 [N, G_out] and baseline float32 [N] of frames uint8 [N, W, H, 3k].

        weights: `compose()` of the present parameters; None composes them here.
        """
        weights = self.compose() if weights is None else weights
        if weights.act is not None and len(frame) * self.num_cells <= MOST_POSITIONS:
            maps = torch.from_numpy(weights.act(frame.numpy()))
        else:
            maps = over_distinct(lambda frame: self.extract_representation(frame, None, weights.convs), [frame], frame)
        maps = maps.view(-1, self.width, self.height)
        if self.inner:
            maps = maps[:, 1:-1, 1:-1]
        logits = (maps.transpose(1, 2) if self.mirrored else maps).flatten(1)
        return logits, self.baseline_teacher(logits).squeeze(1)

"""Cells, their embedding, and the 3x3 convolutions over grids of them, once for all networks.

A cell is (object, colour, state): one of 11 * 6 * 4 = 264 codes. The first convolution over embedded cells is therefore a sum of
looked-up rows: with table[tap, code] = embedding(code) @ kernel[tap], composed once per weight update,

    output[n, p] = bias + sum over the taps of position p of table[tap, code[n, cell(p, tap)]]

which does no multiplication at all. A goal is one more bit of its cell's code. Activations are position major, [N, positions, channels],
positions counted as goals are: p = x * height + y.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from gym_minigrid.minigrid import COLOR_TO_IDX, DIR_TO_VEC, OBJECT_TO_IDX
from torch import Tensor, nn

MAX_SIDE = 32  # five convolutions of stride 2 bring 32 cells down to 1
OBJECTS, COLOURS, STATES = len(OBJECT_TO_IDX), len(COLOR_TO_IDX), len(DIR_TO_VEC)
CODES = OBJECTS * COLOURS * STATES
CELL_CHANNELS = 3  # object, colour, state
TAPS = 9  # of a 3x3 kernel, counted dx * 3 + dy
RELU_GAIN = math.sqrt(2.0)


def check_frame_shape(frame_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """(W, H, k) of frames [W, H, 3k].

    Raises: ValueError if a side is not in 1..32 or the channels are no multiple of 3.
    """
    width, height, channels = (int(size) for size in frame_shape)
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise ValueError(f"grid of {width} x {height} cells: the networks take sides of 1 to {MAX_SIDE} cells")
    if channels < CELL_CHANNELS or channels % CELL_CHANNELS:
        raise ValueError(f"frame with {channels} channels: expected a multiple of 3 (object, colour, state)")
    return width, height, channels // CELL_CHANNELS


def initialise(layer: nn.Linear | nn.Conv2d, gain: float) -> nn.Module:
    """The layer, with orthogonal weights of this gain and zero bias, drawn from torch's global generator."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def tap_cells(width: int, height: int, stride: int) -> Tensor:
    """Which cell each tap of a 3x3 convolution with padding 1 reads.

    Returns: int64 [P_out, 9], the cell x * height + y, or -1 where the tap falls outside the grid.
    """
    offset = torch.arange(3) - 1
    x = (torch.arange(0, width, stride)[:, None] + offset)[:, None, :, None]
    y = (torch.arange(0, height, stride)[:, None] + offset)[None, :, None, :]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return torch.where(inside, x * height + y, -1).reshape(-1, TAPS)


def kernel_taps(weight: Tensor) -> Tensor:
    """A convolution's weight [F, C, 3 (dy), 3 (dx)] as [9 (tap), C, F]."""
    return weight.permute(3, 2, 1, 0).flatten(0, 1)


class CellEmbedding(nn.Module):
    """Base of the networks: the tables that turn cells and the carried object into numbers.

    Without embedding, a cell is its three raw channel values and the carried object its two; the tables embed_* do not exist then.
    """

    def __init__(self, frame_shape: tuple[int, int, int], use_embedding: bool = True):
        super().__init__()
        self.width, self.height, self.num_frames = check_frame_shape(frame_shape)
        self.num_cells = self.width * self.height
        self.use_embedding = use_embedding
        if use_embedding:
            self.embed_object = nn.Embedding(OBJECTS, 5)
            self.embed_color = nn.Embedding(COLOURS, 3)
            self.embed_contains = nn.Embedding(STATES, 2)
        self.cell_dim = 10 if use_embedding else 3
        self.carried_dim = 8 if use_embedding else 2
        triples = torch.cartesian_prod(torch.arange(OBJECTS), torch.arange(COLOURS), torch.arange(STATES))
        self.register_buffer("code_triples", triples, persistent=False)

    def cell_features(self) -> Tensor:
        """float32 [264, 10]: the embedding of each cell code (raw values without embedding: [264, 3])."""
        if not self.use_embedding:
            return self.code_triples.float()
        obj, colour, state = self.code_triples.unbind(1)
        return torch.cat([self.embed_object(obj), self.embed_color(colour), self.embed_contains(state)], dim=1)

    def carried_features(self) -> Tensor:
        """float32 [66, 8]: the embedding of each carried (object, colour) pair (raw values without embedding: [66, 2])."""
        obj, colour = self.code_triples[::STATES, :2].unbind(1)
        if not self.use_embedding:
            return torch.stack([obj, colour], dim=1).float()
        return torch.cat([self.embed_object(obj), self.embed_color(colour)], dim=1)


class ConvWeights(NamedTuple):
    """The weights of `GridConvolutions` in the form its forward uses."""

    table: Tensor  # [rows, F]: what a (tap, code) adds to an output of the first convolution
    layers: tuple[tuple[Tensor, Tensor], ...]  # (kernel, bias) of the others


class GridConvolutions(nn.Sequential):
    """3x3 convolutions with padding 1, each followed by ELU, over a grid of cell codes.

    The parameters are those of the Conv2d modules at indices 0, 2, 4, ...; only the way of computing differs.
    """

    def __init__(self, frame_shape, cell_dim: int, channels: tuple[int, ...], stride: int, goal_conditioned: bool = False):
        width, height, self_frames = check_frame_shape(frame_shape)
        sizes = [cell_dim * self_frames + goal_conditioned, *channels]
        layers: list[nn.Module] = []
        for size_in, size_out in zip(sizes, sizes[1:]):
            layers += [nn.Conv2d(size_in, size_out, 3, stride, padding=1), nn.ELU()]
        super().__init__(*layers)
        self.num_frames, self.cell_dim, self.stride, self.goal_conditioned = self_frames, cell_dim, stride, goal_conditioned
        self.side_lengths = [(width, height)]
        for _ in channels:
            width, height = (width - 1) // stride + 1, (height - 1) // stride + 1
            self.side_lengths.append((width, height))
        self.codes_per_slot = CODES * (1 + goal_conditioned)
        self._register_first_layer()

    def _register_first_layer(self) -> None:
        """Index buffers of the lookup: for each (position, frame, tap), which code to take and where its rows begin."""
        cells = tap_cells(*self.side_lengths[0], self.stride)[:, None, :]
        frame = torch.arange(self.num_frames)[:, None]
        slot = frame * TAPS + torch.arange(TAPS)
        nothing = self.num_frames * TAPS  # a block of zero rows, for taps outside the grid
        start = torch.where(cells >= 0, slot, nothing) * self.codes_per_slot
        column = cells.clamp(min=0) * self.num_frames + frame
        self.register_buffer("code_column", column.flatten(), persistent=False)
        self.register_buffer("row_start", start.flatten().int(), persistent=False)
        self.register_buffer("code_factors", torch.tensor([COLOURS * STATES, STATES, 1.0]), persistent=False)

    def convolutions(self) -> list[nn.Conv2d]:
        return list(self)[::2]

    def compose(self, cell_features: Tensor) -> ConvWeights:
        """The weights as the forward uses them; a differentiable function of the parameters and of cell_features [264, D]."""
        first, *others = self.convolutions()
        return ConvWeights(self._compose_table(first, cell_features), tuple(self._compose_layer(i + 1, c) for i, c in enumerate(others)))

    def _compose_table(self, conv: nn.Conv2d, cell_features: Tensor) -> Tensor:
        kernel = kernel_taps(conv.weight)
        per_frame = kernel[:, : self.num_frames * self.cell_dim].unflatten(1, (self.num_frames, self.cell_dim)).transpose(0, 1)
        table = cell_features @ per_frame  # [k, 9, 264, F]
        centre = F.one_hot(torch.tensor(TAPS // 2), TAPS).to(table)[:, None, None]
        # Every position's centre tap lies inside the grid, so the bias can ride on the first frame's.
        table = torch.cat([table[:1] + centre * conv.bias, table[1:]])
        if self.goal_conditioned:
            goal = kernel[:, -1, None, :]
            with_goal = torch.cat([table[:1] + goal, table[1:]])
            table = torch.cat([table, with_goal], dim=2)
        return F.pad(table.flatten(0, 2), (0, 0, 0, self.codes_per_slot))

    def _compose_layer(self, index: int, conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
        if self.side_lengths[index + 1] == (1, 1):
            inside = tap_cells(*self.side_lengths[index], self.stride)[0] >= 0
            return kernel_taps(conv.weight)[inside.to(conv.weight.device)].flatten(0, 1), conv.bias
        return conv.weight.transpose(2, 3).contiguous(memory_format=torch.channels_last), conv.bias

    def rows(self, frame: Tensor, goal: Tensor | None) -> Tensor:
        """int32 [N * P_out, 9k]: the table's rows to add up at each position."""
        codes = (frame.reshape(-1, CELL_CHANNELS).float() @ self.code_factors).int().view(len(frame), -1)
        if goal is not None:
            codes.scatter_add_(1, goal[:, None] * self.num_frames, torch.full_like(codes[:, :1], CODES))
        rows = torch.gather(codes, 1, self.code_column.expand(len(codes), -1)).add_(self.row_start)
        return rows.view(-1, TAPS * self.num_frames)

    def forward(self, frame: Tensor, goal: Tensor | None, weights: ConvWeights) -> Tensor:
        """uint8 frames [N, W, H, 3k] and int64 goals [N] (cell x * H + y) to float32 [N, P_out, F]."""
        hidden = F.elu_(F.embedding_bag(self.rows(frame, goal), weights.table, mode="sum")).view(len(frame), -1, weights.table.shape[1])
        for index, (kernel, bias) in enumerate(weights.layers, start=1):
            hidden = F.elu_(self._convolve(hidden, index, kernel, bias))
        return hidden

    def _convolve(self, hidden: Tensor, index: int, kernel: Tensor, bias: Tensor) -> Tensor:
        if self.side_lengths[index + 1] == (1, 1):
            cells = kernel.shape[0] // hidden.shape[2]
            return torch.addmm(bias, hidden[:, :cells].flatten(1), kernel)[:, None, :]
        grid = hidden.unflatten(1, self.side_lengths[index]).permute(0, 3, 1, 2)
        return F.conv2d(grid, kernel, bias, self.stride, padding=1).permute(0, 2, 3, 1).flatten(1, 2)

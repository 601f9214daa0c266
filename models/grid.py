"""Cells, their embedding, and the 3x3 convolutions over grids of them, once for all networks.

A cell is (object, colour, state), one of 11 * 6 * 4 = 264 codes, and a goal is one more bit of its cell's code. The first convolution
over embedded cells is therefore a sum of looked-up rows: with table[code, tap] = embedding(code) @ kernel[tap], composed once per update,

    output[n, p] = bias + sum over the taps of position p of table[code[n, cell(p, tap)], tap]

which needs no multiplication at all. Activations are position major, [N, positions, channels], and positions are counted as goals are,
p = x * height + y. The strided convolutions after the first are matrix products over patches gathered from there.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import numba
import torch
import torch.nn.functional as F
from gym_minigrid.minigrid import COLOR_TO_IDX, DIR_TO_VEC, OBJECT_TO_IDX
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.linear import linear

MAX_SIDE = 32  # five convolutions of stride 2 bring 32 cells down to 1
OBJECTS, COLOURS, STATES = len(OBJECT_TO_IDX), len(COLOR_TO_IDX), len(DIR_TO_VEC)
CODES = OBJECTS * COLOURS * STATES
CELL_CHANNELS = 3  # object, colour, state
TAPS = 9  # of a 3x3 kernel, counted as its weight is stored: dy * 3 + dx
CENTRE = 4  # the tap that reads the position's own cell
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
    x = (torch.arange(0, width, stride)[:, None] + offset)[:, None, None, :]
    y = (torch.arange(0, height, stride)[:, None] + offset)[None, :, :, None]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return torch.where(inside, x * height + y, -1).reshape(-1, TAPS)


class CellEmbedding(nn.Module):
    """Base of the networks: the tables that turn cells and the carried object into numbers.

    Without embedding, a cell is its three raw channel values and the carried object its two numbers; the modules embed_object,
    embed_color and embed_contains do not exist then.
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
        self.register_buffer("raw_values", torch.arange(float(max(OBJECTS, COLOURS, STATES)))[:, None], persistent=False)

    @property
    def cell_dims(self) -> tuple[int, int, int]:
        """Channels that object, colour and state become."""
        return (5, 3, 2) if self.use_embedding else (1, 1, 1)

    @property
    def carried_dim(self) -> int:
        return sum(self.cell_dims[:2])

    def tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """What each object, colour and state becomes: float32 [11, 5], [6, 3], [4, 2], or the raw values, [n, 1] each."""
        if not self.use_embedding:
            return tuple(self.raw_values[:count] for count in (OBJECTS, COLOURS, STATES))
        return self.embed_object.weight, self.embed_color.weight, self.embed_contains.weight

    def compose_carried(self) -> Tensor:
        """float32 [66, 8]: what each pair object * 6 + colour becomes (raw: [66, 2])."""
        objects, colours, _ = self.tables()
        pairs = objects[:, None, :].expand(-1, COLOURS, -1), colours[None].expand(OBJECTS, -1, -1)
        return torch.cat(pairs, dim=2).flatten(0, 1)


@numba.njit(cache=True, nogil=True)
def _add_to_rows(table, rows, values):
    """table[rows[i, j]] += values[i]: what index_add_ does for one j at a time, in a quarter of its time."""
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            row = rows[i, j]
            for channel in range(values.shape[1]):
                table[row, channel] += values[i, channel]


class _SumOfRows(torch.autograd.Function):
    """embedding_bag(rows, table, mode="sum"), whose own backward sorts all indices and takes four (index_add_) to 17 times as long."""

    @staticmethod
    def forward(ctx, rows, table):
        ctx.save_for_backward(rows)
        ctx.table_shape = table.shape
        return F.embedding_bag(rows, table, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (rows,) = ctx.saved_tensors
        grad_table = grad.new_zeros(ctx.table_shape)
        if grad.device.type == "cpu":
            _add_to_rows(grad_table.numpy(), rows.numpy(), grad.contiguous().numpy())
        else:
            for column in rows.long().unbind(1):
                grad_table.index_add_(0, column, grad)
        return None, grad_table


class PatchIndex(nn.Module):
    """Index buffers of a stride-2 convolution's patches: which position each tap reads, and which taps each position is read by."""

    def __init__(self, width: int, height: int):
        super().__init__()
        cells, nowhere = tap_cells(width, height, 2).flatten(), width * height
        readers = torch.argsort(cells, stable=True)[(cells < 0).sum() :]
        counts = torch.bincount(cells[cells >= 0], minlength=nowhere + 1)
        self.register_buffer("reads", torch.where(cells >= 0, cells, nowhere), persistent=False)
        self.register_buffer("readers", readers, persistent=False)
        self.register_buffer("first_reader", counts.cumsum(0) - counts, persistent=False)


class _Patches(torch.autograd.Function):
    """[N, P + 1, C], the last position zero, to the patches [N, P_out * 9, C] of a stride-2 convolution."""

    @staticmethod
    def forward(ctx, hidden, reads, readers, first_reader):
        ctx.save_for_backward(readers, first_reader)
        return hidden.index_select(1, reads)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        readers, first_reader = ctx.saved_tensors
        N, taps, channels = grad.shape
        sample = torch.arange(N, device=grad.device)[:, None]
        rows, bags = (sample * taps + readers).flatten(), (sample * len(readers) + first_reader).flatten()
        summed = F.embedding_bag(rows, grad.reshape(-1, channels), bags, mode="sum")
        return summed.view(N, -1, channels), None, None, None


class ConvWeights(NamedTuple):
    """The weights of `GridConvolutions` in the form its forward uses."""

    table: Tensor  # [rows, F]: what a (frame, code, tap) adds to an output of the first convolution
    layers: tuple[tuple[Tensor, Tensor], ...]  # (kernel, bias) of the others


class GridConvolutions(nn.Sequential):
    """3x3 convolutions with padding 1, each followed by ELU, over a grid of cell codes.

    The parameters are those of the Conv2d modules at indices 0, 2, 4, ...; only the way of computing differs.

    Args:
        frame_shape: (W, H, 3k).
        cell_dim: channels of an embedded cell.
        channels: filters of each convolution.
        stride: of all of them; 1, or 2 until one position is left.
        goal_conditioned: whether the goal's one-hot map is the last input channel.
    """

    def __init__(
        self,
        frame_shape: tuple[int, int, int],
        cell_dim: int,
        channels: tuple[int, ...],
        stride: int,
        goal_conditioned: bool = False,
    ):
        width, height, num_frames = check_frame_shape(frame_shape)
        layers: list[nn.Module] = []
        for size_in, size_out in pairwise((cell_dim * num_frames + goal_conditioned, *channels)):
            layers += [nn.Conv2d(size_in, size_out, 3, stride, padding=1), nn.ELU()]
        super().__init__(*layers)
        self.num_frames, self.stride, self.goal_conditioned = num_frames, stride, goal_conditioned
        self.sides = [(-(-width // stride**i), -(-height // stride**i)) for i in range(len(channels) + 1)]
        self._register_code_features()
        self._register_lookup()
        # In a tuple, not as a submodule: the indices of this Sequential are those of its checkpoints.
        for i, sides in enumerate(self.sides[1:-1], start=1):
            if self._by_patches(i):
                self.register_buffer

    def convolutions(self) -> list[nn.Conv2d]:
        return list(self)[::2]

"""Cells, their embedding, and the 3x3 convolutions over grids of them, once for all networks.

A cell is (object, colour, state), one of 11 * 6 * 4 = 264 codes, and a goal is one more bit of its cell's code. The
first convolution over embedded cells is therefore a sum of looked-up rows: with table[code, tap] = embedding(code) @
kernel[tap], composed once per update of the weights,

    output[n, p] = bias + sum over the taps of position p of table[code[n, cell(p, tap)], tap]

which needs no multiplication at all. Activations are position major, [N, positions, channels], and positions are
counted as goals are, p = x * height + y. The strided convolutions after the first are matrix products over patches
gathered from there. Nothing is approximated: outputs and gradients are those of the plain layers up to rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.linear import elu_, linear
from torchbeast.core.compiled import compiled
from torchbeast.core.settings import flag

MAX_SIDE = 32  # five convolutions of stride 2 bring 32 cells down to 1
# gym-minigrid's numbers of objects and colours, and the directions of an agent (doors have three states), written out: who
# adds to gym-minigrid's tables does not change the networks, whether before or after this is imported.
OBJECTS, COLOURS, STATES = 11, 6, 4
AGENT = 10  # the agent's number among the objects
CODES = OBJECTS * COLOURS * STATES
CARRIED = OBJECTS * COLOURS  # pairs of what is carried, object * 6 + colour
CELL_CHANNELS = 3  # object, colour, state
FEW_POSITIONS = 1000
TAPS = 9  # of a 3x3 kernel, counted as its weight is stored: dy * 3 + dx
CENTRE = 4  # the tap that reads the position's own cell
RELU_GAIN = math.sqrt(2.0)
FACTORS = np.array([COLOURS * STATES * TAPS, STATES * TAPS, TAPS], np.int32)  # of a cell's code, times the taps
NO_NUMBERS = np.empty(0, np.int64)


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


def are_cells(frames: Tensor) -> Tensor:
    """Which values of frames [..., 3k] are an object, colour or state that the networks know."""
    return frames < torch.tensor([OBJECTS, COLOURS, STATES]).repeat(frames.shape[-1] // CELL_CHANNELS)


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


@dataclass(frozen=True)
class CellSettings:
    """How every network reads cells."""

    title = "Student"
    disable_use_embedding: bool = flag(False, "feed raw channel values to the networks, not embeddings", agent=True)


class CellEmbedding(nn.Module):
    """Base of the networks: the tables that turn cells and the carried object into numbers.

    Without embedding, a cell is its three raw channel values and the carried object its two numbers; the modules
    embed_object, embed_color and embed_contains do not exist then.
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
        """What each object, colour and state becomes: float32 [11, 5], [6, 3], [4, 2]; raw values: [n, 1] each."""
        if not self.use_embedding:
            return tuple(self.raw_values[:count] for count in (OBJECTS, COLOURS, STATES))
        return self.embed_object.weight, self.embed_color.weight, self.embed_contains.weight

    @staticmethod
    def with_carried(features: Tensor, carried: Tensor, table: Tensor) -> Tensor:
        """features [N, F] and beside them what each pair `carried`, int32 [N], becomes by `compose_carried`."""
        return torch.cat([features, F.embedding(carried, table)], dim=1)

    def compose_carried(self) -> Tensor:
        """float32 [66, 8]: what each pair object * 6 + colour becomes (raw: [66, 2])."""
        objects, colours, _ = self.tables()
        pairs = objects[:, None, :].expand(-1, COLOURS, -1), colours[None].expand(OBJECTS, -1, -1)
        return torch.cat(pairs, dim=2).flatten(0, 1)


@compiled(nogil=True)
def _add_to_rows(table, rows, grad, outputs):
    """table[rows[i, j]] += grad[i] * ELU's slope at outputs[i], in a quarter of the time of one index_add_ for each j."""
    for i in range(rows.shape[0]):
        for channel in range(grad.shape[1]):
            if outputs[i, channel] < 0:
                grad[i, channel] *= outputs[i, channel] + np.float32(1)
        for j in range(rows.shape[1]):
            row = rows[i, j]
            for channel in range(grad.shape[1]):
                table[row, channel] += grad[i, channel]


@compiled(nogil=True)
def sum_rows(rows, table, sums):
    """sums[i] = sum over j of table[rows[i, j]], of 9k rows each: of few in less time than embedding_bag's call takes."""
    for i in range(rows.shape[0]):
        for j in range(0, rows.shape[1], TAPS):
            r = rows[i, j : j + TAPS]
            r0, r1, r2 = table[r[0]], table[r[1]], table[r[2]]
            r3, r4, r5 = table[r[3]], table[r[4]], table[r[5]]
            r6, r7, r8 = table[r[6]], table[r[7]], table[r[8]]
            for c in range(sums.shape[1]):
                nine = r0[c] + r1[c] + r2[c] + r3[c] + r4[c] + r5[c] + r6[c] + r7[c] + r8[c]
                sums[i, c] = nine if j == 0 else sums[i, c] + nine


def _sum_of_rows(rows: Tensor, table: Tensor) -> Tensor:
    if not rows.is_cpu or rows.shape[0] > FEW_POSITIONS:
        return F.embedding_bag(rows, table, mode="sum")
    sums = torch.empty(rows.shape[0], table.shape[1])
    sum_rows(rows.numpy(), table.numpy(), sums.numpy())
    return sums


def _gradient_of_rows(grad: Tensor, rows: Tensor, outputs: Tensor, table_shape: torch.Size) -> Tensor:
    """Gradient of the table in `elu_of_rows`, from that of its outputs, which it may write over."""
    grad_table = grad.new_zeros(table_shape)
    if grad.is_cpu:
        _add_to_rows(grad_table.numpy(), rows.numpy(), grad.contiguous().numpy(), outputs.numpy())
    else:
        grad = torch.ops.aten.elu_backward(grad, 1.0, 1.0, 1.0, True, outputs)
        for column in rows.long().unbind(1):
            grad_table.index_add_(0, column, grad)
    return grad_table


class _EluOfRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, table):
        outputs = elu_(_sum_of_rows(rows, table))
        ctx.save_for_backward(rows, outputs)
        ctx.table_shape = table.shape
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return None, _gradient_of_rows(grad, *ctx.saved_tensors, ctx.table_shape)


def elu_of_rows(rows: Tensor, table: Tensor) -> Tensor:
    """out[i] = ELU(sum over j of table[rows[i, j]]), differentiable once.

    embedding_bag's own gradient sorts all the indices first and takes 15 times as long.

    Args:
        rows: int32 [M, 9k], all of them rows of the table; table: float32 [R, F].
    Returns: float32 [M, F].
    Raises: ValueError for another number of rows to add up.
    """
    if rows.shape[1] % TAPS:
        raise ValueError(f"sums of {rows.shape[1]} rows: expected a multiple of {TAPS}")
    if torch.is_grad_enabled():
        return _EluOfRows.apply(rows, table)
    return elu_(_sum_of_rows(rows, table))


# Compiled apart, these take eight numbers at a time: a quarter of the time that the same loops take inside of others.
# With `row` as its first argument `_copy` took twice as long.
@compiled(nogil=True)
def _copy(to, row):
    for channel in range(len(row)):
        to[channel] = row[channel]


@compiled(nogil=True)
def _add(to, row):
    for channel in range(len(row)):
        to[channel] += row[channel]


@compiled(nogil=True)
def gather_patches(hidden, reads, patches):
    """patches[n, i] = hidden[n, reads[i]], and zero where that is outside: padding and selection in one."""
    for n in range(len(hidden)):
        for i in range(len(reads)):
            if reads[i] < hidden.shape[1]:
                _copy(patches[n, i], hidden[n, reads[i]])
            else:
                patches[n, i].fill(0)


@compiled(nogil=True)
def _scatter(patches, reads, hidden):
    """hidden[n, reads[i]] += patches[n, i]: the gradient of `gather_patches`."""
    for n in range(len(hidden)):
        for i in range(len(reads)):
            if reads[i] < hidden.shape[1]:
                _add(hidden[n, reads[i]], patches[n, i])


class _Patches(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, reads):
        ctx.save_for_backward(reads)
        ctx.positions = hidden.shape[1]
        return _patches(hidden, reads)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (reads,) = ctx.saved_tensors
        N, _, channels = grad.shape
        if grad.is_cpu:
            summed = grad.new_zeros(N, ctx.positions, channels)
            _scatter(grad.contiguous().numpy(), reads.numpy(), summed.numpy())
            return summed, None
        return grad.new_zeros(N, ctx.positions + 1, channels).index_add_(1, reads, grad)[:, :-1], None


def _patches(hidden: Tensor, reads: Tensor) -> Tensor:
    if hidden.is_cpu:
        patches = torch.empty(hidden.shape[0], reads.shape[0], hidden.shape[2])
        gather_patches(hidden.numpy(), reads.numpy(), patches.numpy())
        return patches
    return F.pad(hidden, (0, 0, 0, 1)).index_select(1, reads)


class Patches(nn.Module):
    """The patches of a 3x3 convolution with stride 2 and padding 1 over a grid of width x height positions.

    From float32 [N, P, C] to [N, P_out * 9, C], zero outside the grid.
    """

    def __init__(self, width: int, height: int):
        super().__init__()
        cells = tap_cells(width, height, 2).flatten()
        self.register_buffer("reads", torch.where(cells >= 0, cells, width * height), persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return _Patches.apply(hidden, self.reads) if torch.is_grad_enabled() else _patches(hidden, self.reads)


@compiled(nogil=True)
def find_rows(frame, goal, columns, starts, factors, goal_bit, outside, rows):
    """`GridConvolutions.rows` in one pass over frame [N, cells * k, 3], goal [N or 0]. Nothing else bounds what it reads."""
    codes = np.empty(frame.shape[1] + 1, np.int32)
    for n in range(frame.shape[0]):
        for i in range(frame.shape[1]):
            if frame[n, i, 0] >= OBJECTS or frame[n, i, 1] >= COLOURS or frame[n, i, 2] >= STATES:
                raise IndexError("a frame has numbers that are none of an object, colour and state")
            codes[i] = frame[n, i, 0] * factors[0] + frame[n, i, 1] * factors[1] + frame[n, i, 2] * factors[2]
        if len(goal):
            if not 0 <= goal[n] <= frame.shape[1]:  # the last is none of the cells: no mark
                raise IndexError("a goal is no cell of the grid")
            codes[goal[n]] += goal_bit
        codes[-1] = outside
        for i in range(columns.shape[0]):
            rows[n, i] = codes[columns[i]] + starts[i]


class ConvWeights(NamedTuple):
    """The weights of `GridConvolutions` in the form its forward uses."""

    table: Tensor  # [rows, F]: what a (frame, code, tap) adds to an output of the first convolution
    layers: tuple[tuple[Tensor, Tensor], ...]  # (kernel, bias) of the others


class GridConvolutions(nn.Module):
    """3x3 convolutions with padding 1, each followed by ELU, over a grid of cell codes.

    The parameters are those of Conv2d modules named 0, 2, 4, ..., as in a Sequential with ELUs between; only the way
    of computing differs.

    Args:
        frame_shape: (W, H, 3k).
        cell_dim: channels of an embedded cell.
        channels: filters of each convolution.
        stride: of all of them, 1 or 2; with 2 there must be enough of them to end at one position.
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
        super().__init__()
        width, height, self.num_frames = check_frame_shape(frame_shape)
        self.stride, self.goal_conditioned = stride, goal_conditioned
        self.sides = [(-(-width // stride**i), -(-height // stride**i)) for i in range(len(channels) + 1)]
        for i, sizes in enumerate(pairwise((cell_dim * self.num_frames + goal_conditioned, *channels))):
            self.add_module(str(2 * i), nn.Conv2d(*sizes, 3, stride, padding=1))
        self.patches = nn.ModuleList(Patches(*sides) for sides in self.sides[1:-1] if stride == 2 and max(sides) > 2)
        self.reads = [patches.reads.numpy() for patches in self.patches]  # of a network on the CPU, as `lookup`
        if stride == 1:  # in the order in which its kernels lie in memory
            cells = tap_cells(width, height, 1).view(-1, 3, 3).transpose(1, 2).flatten()
            self.reads = [torch.where(cells >= 0, cells, width * height).numpy()] * (len(channels) - 1)
        self._register_lookup()

    def _register_lookup(self) -> None:
        """Constants of the first convolution: which table row each tap of each frame reads."""
        k, codes = self.num_frames, (1 + self.goal_conditioned) * CODES + 1  # one more with no mark: outside the grid
        cells = tap_cells(*self.sides[0], self.stride)
        frame = torch.arange(k)[:, None]
        columns = torch.where(cells[:, None] >= 0, cells[:, None] * k + frame, self.sides[0][0] * self.sides[0][1] * k)
        starts = (frame * codes * TAPS + torch.arange(TAPS)).expand(len(cells), -1, -1)
        self.outside_code = (codes - 1) * TAPS
        self.register_buffer("columns", columns.flatten(), persistent=False)
        self.register_buffer("starts", starts.flatten().int(), persistent=False)
        self.register_buffer("goal_bit", torch.tensor([[CODES * TAPS]], dtype=torch.int32), persistent=False)
        self.register_buffer("code_factors", torch.from_numpy(FACTORS).float(), persistent=False)
        self.lookup = (self.columns.numpy(), self.starts.numpy(), FACTORS, CODES * TAPS, self.outside_code)

    def convolutions(self) -> list[nn.Conv2d]:
        return [module for module in self.children() if isinstance(module, nn.Conv2d)]

    def compose(self, tables: tuple[Tensor, Tensor, Tensor]) -> ConvWeights:
        """The weights as the forward uses them, differentiable in the parameters and in `CellEmbedding.tables()`."""
        first, *others = self.convolutions()
        layers = (self._compose_kernel(conv, sides) for conv, sides in zip(others, self.sides[1:]))
        return ConvWeights(self._compose_table(first, tables), tuple(layers))

    def _compose_table(self, conv: nn.Conv2d, tables: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """[k * codes * 9, F]: what each code adds at each tap, the sum of what its marks add, per frame; outside nothing."""
        filters = conv.out_channels
        kernel = conv.weight.flatten(2).permute(1, 2, 0).flatten(1)  # [channels, 9 * F]
        sizes = [table.shape[1] for table in tables] * self.num_frames
        *parts, goal = kernel.split([*sizes, int(self.goal_conditioned)])
        # The bias rides on the centre tap, the one that lies inside the grid at every position.
        once = F.pad(conv.bias, (CENTRE * filters, CENTRE * filters))
        blocks = []
        for i in range(self.num_frames):
            objects, colours, states = (table @ part for table, part in zip(tables, parts[3 * i : 3 * i + 3]))
            pairs = (objects[:, None] + colours).view(CARRIED, 1, -1)
            codes = (pairs + (states + once if i == 0 else states)).flatten(0, 1)
            blocks.append(codes)
            if self.goal_conditioned:  # it marks the first frame; of the others no row with its bit is read
                blocks.append(codes + goal if i == 0 else codes)
            blocks.append(torch.zeros_like(codes[:1]))
        return torch.cat(blocks).view(-1, filters)

    def _compose_kernel(self, conv: nn.Conv2d, sides: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Kernel and bias of a later convolution over a grid of these sides."""
        if self.stride == 1:  # our grids are [x, y] where Conv2d's are [y, x]
            return conv.weight.transpose(2, 3).contiguous(memory_format=torch.channels_last), conv.bias
        kernel = conv.weight
        if max(sides) <= 2:  # one position is left, and its taps 0 fall outside
            kernel = kernel[:, :, 1 : 1 + sides[1], 1 : 1 + sides[0]].transpose(2, 3)
        return kernel.flatten(2).permute(2, 1, 0).flatten(0, 1).contiguous().t(), conv.bias

    def rows(self, frame: Tensor, goal: Tensor | None) -> Tensor:
        """int32 [N * positions, 9k]: the table's rows to add up at each position."""
        N = frame.shape[0]
        if frame.is_cpu:
            rows = torch.empty(N, self.lookup[0].shape[0], dtype=torch.int32)
            goals = NO_NUMBERS if goal is None else goal.numpy() * self.num_frames
            find_rows(frame.reshape(N, -1, CELL_CHANNELS).numpy(), goals, *self.lookup, rows.numpy())
            return rows.view(-1, TAPS * self.num_frames)
        codes = torch.mv(frame.reshape(-1, CELL_CHANNELS).float(), self.code_factors).int().view(N, -1)
        codes = F.pad(codes, (0, 1))
        if goal is not None:
            codes.scatter_add_(1, goal[:, None] * self.num_frames, self.goal_bit.expand(N, 1))
        codes[:, -1] = self.outside_code
        return codes.gather(1, self.columns.expand(N, -1)).add_(self.starts).view(-1, TAPS * self.num_frames)

    def forward(self, frame: Tensor, goal: Tensor | None, weights: ConvWeights) -> Tensor:
        """ELU features of the last convolution.

        Args:
            frame: uint8 [N, W, H, 3k]; goal: int64 [N], the cell x * H + y, W * H for none, or None; weights: from `compose`.
        Returns: float32 [N, P_out * F], positions in the order x * height + y.
        """
        rows = self.rows(frame, goal)
        hidden = elu_of_rows(rows, weights.table).view(frame.shape[0], -1)
        for i, (kernel, bias) in enumerate(weights.layers):
            hidden = self._convolve(hidden, i, kernel, bias)
        return hidden

    def as_products(self, weights: ConvWeights) -> list[tuple[Tensor, Tensor]]:
        """(weight [F, 9C], bias [F]) of the convolutions after the first, as products with the patches that `reads` tells."""
        if self.stride == 2:
            return list(weights.layers)
        return [(kernel.permute(0, 2, 3, 1).flatten(1), bias) for kernel, bias in weights.layers]

    def _convolve(self, hidden: Tensor, i: int, kernel: Tensor, bias: Tensor) -> Tensor:
        """[N, P * C] to [N, P_out * F]."""
        N = hidden.shape[0]
        if self.stride == 1:
            grid = hidden.view(N, *self.sides[i + 1], -1).permute(0, 3, 1, 2)
            return F.elu_(F.conv2d(grid, kernel, bias, padding=1)).permute(0, 2, 3, 1).flatten(1)
        if i >= len(self.patches):
            return linear(hidden, kernel, bias, "elu")
        patches = self.patches[i](hidden.view(N, -1, kernel.shape[1] // TAPS))
        return linear(patches.view(-1, kernel.shape[1]), kernel, bias, "elu").view(N, -1)

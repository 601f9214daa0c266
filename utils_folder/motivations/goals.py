"""Goals are cells: g = x*H + y on a W x H grid. Pure functions on arrays; whether a goal has been reached."""

from __future__ import annotations

import numpy as np
import torch

from models.grid import AGENT
from torchbeast.core.compiled import compiled


def cell_to_inner(cell, *, height: int):
    """Index among the (W-2)(H-2) cells inside the outer wall of the full grid's cell (integers of any shape, or tensors)."""
    return (cell // height - 1) * (height - 2) + (cell % height - 1)


def inner_to_cell(index, *, height: int):
    """The full grid's cell of an index among the cells inside the outer wall; inverse of `cell_to_inner`."""
    return (index // (height - 2) + 1) * height + (index % (height - 2) + 1)


def probability_map(logits: np.ndarray, size: tuple[int, int], *, inner: bool) -> np.ndarray:
    """With which probability each cell is the goal, float32 [W, H], where these are the logits, float32 [G], of all cells or,
    if `inner`, of those inside the outer wall."""
    width, height = size
    cells = np.arange(len(logits))
    probabilities = np.zeros(width * height, np.float32)
    probabilities[inner_to_cell(cells, height=height) if inner else cells] = torch.from_numpy(logits).softmax(-1).numpy()
    return probabilities.reshape(width, height)


@compiled(nogil=True)
def cell_contents(frame: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """(object, colour, state) of one cell per frame, in the newest frame if several are stacked.

    Args:
        frame: uint8 [E, W, H, 3k].
        cell: int64 [E].
    Returns: uint8 [E, 3].
    Raises: IndexError for what is no cell of the grid.
    """
    found, (width, height, channels) = np.empty((len(cell), 3), np.uint8), frame.shape[1:]
    for e in range(len(cell)):
        if not 0 <= cell[e] < width * height:
            raise IndexError("a goal is no cell of the grid")
        for i in range(3):
            found[e, i] = frame[e, cell[e] // height, cell[e] % height, channels - 3 + i]
    return found


@compiled(nogil=True)
def reached_by_change(frame: np.ndarray, goal_frame: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Whether any channel of the goal's cell differs from what it was when the goal was proposed (`--modify`).

    Args:
        frame, goal_frame: uint8 [E, W, H, 3k], now and when the goal was proposed.
        goal: int64 [E].
    Returns: bool [E].
    Source: AMIGo (arXiv 2006.12122), section 3: reaching a goal is changing its cell.
    """
    changed, now, then = np.zeros(len(goal), np.bool_), cell_contents(frame, goal), cell_contents(goal_frame, goal)
    for e in range(len(goal)):
        for i in range(3):
            changed[e] |= now[e, i] != then[e, i]
    return changed


def reached_by_standing(frame: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Whether the agent stands on the goal's cell: bool [E], from frame uint8 [E, W, H, 3k] and goal int64 [E]."""
    return cell_contents(frame, goal)[:, 0] == AGENT

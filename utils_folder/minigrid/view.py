"""gym-minigrid's egocentric partial view, computed from the full observation: nothing that it shows is missing there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numba import njit
from torch import Tensor

from models.grid import MAX_SIDE, are_cells
from torchbeast.core.compiled import compiled
from torchbeast.core.environment import LAST, Environment, Output, Wrapper
from torchbeast.core.rollouts import Field
from utils_folder.minigrid.base import CARRIED_FIELDS
from utils_folder.minigrid.levels import AGENT, DOOR, EMPTY, GREY, OPEN, STEP_X, STEP_Y, WALL
from utils_folder.minigrid.names import PARTIAL_VIEW

FULL, PARTIAL = VIEWS = ("full", "partial")  # of a state: the whole grid, or what is before the agent
VIEW_SIZE, _ = PARTIAL_VIEW
VIEW_SHAPE = (VIEW_SIZE, VIEW_SIZE, 3)
OUT_OF_VIEW = VIEW_SIZE * VIEW_SIZE  # in place of a cell of the view
LOOKED_AT = ("frame", *CARRIED_FIELDS)
VIEW_FIELDS = {  # of `Views`
    "view": Field(VIEW_SHAPE, np.uint8, fits=are_cells),
    "pose": Field((3,), np.int64, fits=lambda poses: (poses >= 0) & (poses < torch.tensor([MAX_SIDE, MAX_SIDE, 4]))),
}


class Views(Wrapper):
    """Environments, not stacked ones, whose output also has what their agents see and where they stand, for each state once:

        view   uint8   [E, 7, 7, 3]  `partial_view`
        pose   int64   [E, 3]        column, row and direction of the agent in the full grid (0: right, 1: down, 2, 3)
    """

    def __init__(self, environment: Environment):
        super().__init__(environment)
        self._own = {name: np.zeros((self.num_envs, *field.shape), field.dtype) for name, field in VIEW_FIELDS.items()}

    def keep_last(self, names: Sequence[str]) -> None:
        others = [name for name in names if name not in VIEW_FIELDS]
        own = VIEW_FIELDS if len(others) < len(names) else {}
        super().keep_last(tuple(dict.fromkeys([*others, *(LOOKED_AT if own else ())])))
        self._own.update({LAST + name: np.zeros_like(self._own[name]) for name in own})

    def _looked(self, out: Output) -> Output:
        self._own["view"][...], self._own["pose"][...] = looks(*(out[name] for name in LOOKED_AT))
        if LAST + "view" in self._own:
            self._keep(out)
        return out | self._own

    def _keep(self, out: Output) -> None:
        ended = out[LAST + "frame"].any(axis=(1, 2, 3))  # where none was kept it is 0
        view, pose = (self._own[LAST + name] for name in VIEW_FIELDS)
        view[...], pose[...] = 0, 0
        if ended.any():
            view[ended], pose[ended] = looks(*(out[LAST + name][ended] for name in LOOKED_AT))

    def initial(self) -> Output:
        return self._looked(self._env.initial())

    def step(self, actions: np.ndarray) -> Output:
        return self._looked(self._env.step(actions))

    def restart(self, where: np.ndarray) -> Output:
        out = self._env.restart(where)
        return self._looked(out) if where.any() else out | self._own

    def load_state_dict(self, state: dict) -> Output:
        return self._looked(self._env.load_state_dict(state))


def looks(frame: np.ndarray, carried_obj: np.ndarray, carried_col: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`Views`' view and pose of full observations; arguments as `partial_view` has them."""
    return partial_view(frame, carried_obj, carried_col), poses(frame)


def look_once() -> None:
    """So that what it compiles is there before a fork."""
    nothing = np.zeros(1, np.uint8)
    _, pose = looks(np.zeros((1, 1, 1, 3), np.uint8), nothing, nothing)
    cell_in_view(pose[:, 0].copy(), pose, height=1)


def cell_in_view(cell: np.ndarray | Tensor, pose: np.ndarray | Tensor, *, height: int) -> np.ndarray | Tensor:
    """Which cell of the agent's view a cell of the full grid is, hidden there or not: i * 7 + j, or OUT_OF_VIEW.

    Args:
        cell: int64 [...], x * height + y, and pose: int64 [..., 3], as `Views` gives it; arrays, or tensors on any device.
    """
    if isinstance(cell, np.ndarray):
        return _cells_in_view(cell.ravel(), pose.reshape(-1, 3), height).reshape(cell.shape)
    return torch.from_numpy(cell_in_view(cell.cpu().numpy(), pose.cpu().numpy(), height=height)).to(cell.device)


def seen_cells(view: np.ndarray, pose: np.ndarray, *, width: int, height: int) -> np.ndarray:
    """Which cells of the full grid an agent sees, bool [W, H]: those that its view shows, and does not hide.

    Args:
        view: uint8 [7, 7, 3], and pose: int64 [3], of one state, as `Views` gives them.
    """
    place = cell_in_view(np.arange(width * height), np.tile(pose, width * height), height=height)
    return np.append(view.any(axis=-1), False)[place].reshape(width, height)


@compiled
def _cells_in_view(cell, pose, height):
    """`cell_in_view` of cell [N] and pose [N, 3]: where `_look` puts that cell."""
    found = np.full(len(cell), OUT_OF_VIEW, np.int64)
    for n in range(len(cell)):
        east, south = cell[n] // height - pose[n, 0], cell[n] % height - pose[n, 1]
        ahead, right = pose[n, 2], (pose[n, 2] + 1) % 4
        i = VIEW_SIZE // 2 + east * STEP_X[right] + south * STEP_Y[right]
        j = VIEW_SIZE - 1 - east * STEP_X[ahead] - south * STEP_Y[ahead]
        if 0 <= i < VIEW_SIZE and 0 <= j < VIEW_SIZE:
            found[n] = i * VIEW_SIZE + j
    return found


@compiled
def partial_view(frame: np.ndarray, carried_obj: np.ndarray, carried_col: np.ndarray) -> np.ndarray:
    """What each agent sees: the 7x7 cells before it, turned so that it stands in the middle of the last row and looks up.

    Walls and doors that are not open hide what is behind them (in every environment: see_through_walls is not looked at);
    hidden cells are 0, 0, 0. Cells outside the grid are walls. The agent's own cell shows what it carries.

    Args:
        frame: uint8 [E, W, H, 3], full observations, as FullyObsWrapper gives them: object, colour, state.
        carried_obj, carried_col: uint8 [E], (1, 5) where nothing is carried.
    Returns: uint8 [E, 7, 7, 3], as MiniGridEnv.gen_obs()["image"].
    Source: gym-minigrid 1.2.2, MiniGridEnv.gen_obs_grid and Grid.process_vis.
    """
    view = np.empty((len(frame), VIEW_SIZE, VIEW_SIZE, 3), np.uint8)
    for e in range(len(frame)):
        x, y, ahead = _pose(frame, e)
        seen = 1 << VIEW_SIZE // 2
        for j in range(VIEW_SIZE - 1, -1, -1):
            blocked = _look(frame, view, e, x, y, ahead, j)
            seen, seen_beyond = _spread(seen, blocked)
            for i in range(VIEW_SIZE):
                if not seen >> i & 1:
                    _show(view, e, i, j, 0, 0, 0)
            seen = seen_beyond
        nothing = carried_obj[e] == EMPTY
        _show(view, e, VIEW_SIZE // 2, VIEW_SIZE - 1, carried_obj[e], 0 if nothing else carried_col[e], 0)
    return view


@compiled
def poses(frame: np.ndarray) -> np.ndarray:
    """Each agent's column, row and direction, int64 [E, 3], in full observations uint8 [E, W, H, 3]."""
    found = np.zeros((len(frame), 3), np.int64)
    for e in range(len(frame)):
        found[e, 0], found[e, 1], found[e, 2] = _pose(frame, e)
    return found


@njit
def _pose(frame, e):
    agent_x, agent_y = 0, 0
    for x in range(frame.shape[1]):
        for y in range(frame.shape[2]):
            if frame[e, x, y, 0] == AGENT:
                agent_x, agent_y = x, y
    return agent_x, agent_y, frame[e, agent_x, agent_y, 2]


@njit
def _show(view, e, i, j, obj, col, state):
    view[e, i, j, 0] = obj
    view[e, i, j, 1] = col
    view[e, i, j, 2] = state


@njit
def _look(frame, view, e, agent_x, agent_y, ahead, j):
    """Row j before the agent, hidden or not; returns what blocks light in it, a bit a cell.

    The agent's own cell blocks none: one sees past what it stands on.
    """
    right, forward, blocked = (ahead + 1) % 4, VIEW_SIZE - 1 - j, 0
    for i in range(VIEW_SIZE):
        sideways = i - VIEW_SIZE // 2
        x = agent_x + forward * STEP_X[ahead] + sideways * STEP_X[right]
        y = agent_y + forward * STEP_Y[ahead] + sideways * STEP_Y[right]
        if 0 <= x < frame.shape[1] and 0 <= y < frame.shape[2]:
            _show(view, e, i, j, frame[e, x, y, 0], frame[e, x, y, 1], frame[e, x, y, 2])
        else:
            _show(view, e, i, j, WALL, GREY, 0)
        blocks = view[e, i, j, 0] == WALL or (view[e, i, j, 0] == DOOR and view[e, i, j, 2] != OPEN)
        blocked |= blocks << i
    return blocked


@njit
def _spread(seen, blocked):
    """(what is seen of a row, and by it of the row beyond): light spreads to the right, then to the left.

    What blocks it is itself seen.
    """
    beyond = 0
    for i in range(VIEW_SIZE - 1):
        if seen & ~blocked & 1 << i:
            seen |= 2 << i
            beyond |= 3 << i
    for i in range(VIEW_SIZE - 1, 0, -1):
        if seen & ~blocked & 1 << i:
            seen |= 1 << i - 1
            beyond |= 3 << i - 1
    return seen, beyond

"""gym-minigrid's egocentric partial view, computed from the full observation: nothing that it shows is missing there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit

from models.grid import MAX_SIDE, are_cells
from torchbeast.core import forms
from torchbeast.core.compiled import compiled
from torchbeast.core.environment import LAST, Environment, Output, Wrapper
from torchbeast.core.rollouts import Field
from utils_folder.minigrid.base import CARRIED_FIELDS
from utils_folder.minigrid.levels import AGENT, DOOR, EMPTY, GREY, OPEN, STEP_X, STEP_Y, WALL
from utils_folder.minigrid.names import PARTIAL_VIEW

VIEW_SIZE, _ = PARTIAL_VIEW
VIEW_SHAPE = (VIEW_SIZE, VIEW_SIZE, 3)
OUT_OF_VIEW = VIEW_SIZE * VIEW_SIZE  # in place of a cell of the view
LOOKED_AT = ("frame", *CARRIED_FIELDS)
VIEW_FIELDS = {  # of `Views`
    "view": Field(VIEW_SHAPE, np.uint8, fits=are_cells),
    "pose": Field((3,), np.int64, fits=forms.within(0, MAX_SIDE - 1)),
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
        ended = out["truncated"]
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
    looks(np.zeros((1, 1, 1, 3), np.uint8), nothing, nothing)


def cell_in_view(cell, pose, *, height: int):
    """Which cell of the agent's view a cell of the full grid is, hidden there or not: i * 7 + j, or OUT_OF_VIEW.

    Args:
        cell: x * height + y (integers of any shape, or tensors); pose: [..., 3], as `Views` gives it.
    """
    direction = pose[..., 2]
    east, south = cell // height - pose[..., 0], cell % height - pose[..., 1]
    step_x, step_y = (1 - direction) * (1 - direction % 2), (2 - direction) * (direction % 2)  # STEP_X, STEP_Y
    forward, sideways = east * step_x + south * step_y, south * step_x - east * step_y
    i, j = sideways + VIEW_SIZE // 2, VIEW_SIZE - 1 - forward
    inside = (i >= 0) & (i < VIEW_SIZE) & (j >= 0) & (j < VIEW_SIZE)
    return OUT_OF_VIEW + (i * VIEW_SIZE + j - OUT_OF_VIEW) * inside


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
    view = np.zeros((len(frame), VIEW_SIZE, VIEW_SIZE, 3), np.uint8)
    for e in range(len(frame)):
        _look(frame[e], view[e])
        _hide(view[e])
        nothing = carried_obj[e] == EMPTY
        view[e, VIEW_SIZE // 2, VIEW_SIZE - 1, 0] = carried_obj[e]
        view[e, VIEW_SIZE // 2, VIEW_SIZE - 1, 1] = 0 if nothing else carried_col[e]
        view[e, VIEW_SIZE // 2, VIEW_SIZE - 1, 2] = 0
    return view


@compiled
def poses(frame: np.ndarray) -> np.ndarray:
    """Each agent's column, row and direction, int64 [E, 3], in full observations uint8 [E, W, H, 3]."""
    found = np.zeros((len(frame), 3), np.int64)
    for e in range(len(frame)):
        found[e, 0], found[e, 1], found[e, 2] = _pose(frame[e])
    return found


@njit
def _pose(frame):
    agent_x, agent_y = 0, 0
    for x in range(frame.shape[0]):
        for y in range(frame.shape[1]):
            if frame[x, y, 0] == AGENT:
                agent_x, agent_y = x, y
    return agent_x, agent_y, frame[agent_x, agent_y, 2]


@njit
def _look(frame, view):
    """The cells before the agent, hidden or not. The agent's own is left empty: one sees past what it stands on."""
    W, H = frame.shape[:2]
    agent_x, agent_y, ahead = _pose(frame)
    right = (ahead + 1) % 4
    for i in range(VIEW_SIZE):
        for j in range(VIEW_SIZE):
            forward, sideways = VIEW_SIZE - 1 - j, i - VIEW_SIZE // 2
            x = agent_x + forward * STEP_X[ahead] + sideways * STEP_X[right]
            y = agent_y + forward * STEP_Y[ahead] + sideways * STEP_Y[right]
            if 0 <= x < W and 0 <= y < H:
                view[i, j] = frame[x, y]
            else:
                view[i, j, 0], view[i, j, 1], view[i, j, 2] = WALL, GREY, 0
    view[VIEW_SIZE // 2, VIEW_SIZE - 1] = EMPTY, 0, 0


@njit
def _hide(view):
    """Light spreads row by row away from the agent, to the right and then to the left; what blocks it is itself seen."""
    seen = np.zeros((VIEW_SIZE, VIEW_SIZE), np.bool_)
    seen[VIEW_SIZE // 2, VIEW_SIZE - 1] = True
    for j in range(VIEW_SIZE - 1, -1, -1):
        for i in range(VIEW_SIZE - 1):
            _spread(view, seen, i, j, 1)
        for i in range(VIEW_SIZE - 1, 0, -1):
            _spread(view, seen, i, j, -1)
    for i in range(VIEW_SIZE):
        for j in range(VIEW_SIZE):
            if not seen[i, j]:
                view[i, j] = 0, 0, 0


@njit
def _spread(view, seen, i, j, side):
    blocked = view[i, j, 0] == WALL or (view[i, j, 0] == DOOR and view[i, j, 2] != OPEN)
    if not seen[i, j] or blocked:
        return
    seen[i + side, j] = True
    if j > 0:
        seen[i, j - 1] = True
        seen[i + side, j - 1] = True

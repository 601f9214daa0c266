"""gym-minigrid's egocentric partial view, computed from the full observation: nothing that it shows is missing there."""

from __future__ import annotations

import numpy as np
from numba import njit

from torchbeast.core.compiled import compiled
from utils_folder.minigrid.levels import AGENT, DOOR, EMPTY, GREY, OPEN, STEP_X, STEP_Y, WALL

VIEW_SIZE = 7
VIEW_SHAPE = (VIEW_SIZE, VIEW_SIZE, 3)


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


@njit
def _look(frame, view):
    """The cells before the agent, hidden or not. The agent's own is left empty: one sees past what it stands on."""
    W, H = frame.shape[:2]
    agent_x, agent_y = 0, 0
    for x in range(W):
        for y in range(H):
            if frame[x, y, 0] == AGENT:
                agent_x, agent_y = x, y
    ahead = frame[agent_x, agent_y, 2]
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

"""The agent's view by gym-minigrid itself, cell by cell."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gym_minigrid.minigrid import DIR_TO_VEC, OBJECT_TO_IDX, Grid, MiniGridEnv, MissionSpace

from main.training.sources import InlineActor
from utils_folder.minigrid import view


def plain_cells_in_view(cells: torch.Tensor, poses: torch.Tensor, *, height: int) -> torch.Tensor:
    """Which cell i * 7 + j of the view each cell of the grid is, 49 where it is none: cells [...], poses [..., 3]."""
    found = [_of_one(*divmod(int(c), height), *p.tolist()) for c, p in zip(cells.flatten(), poses.flatten(0, -2), strict=True)]
    return torch.tensor(found).view_as(cells)


def _of_one(x: int, y: int, agent_x: int, agent_y: int, direction: int) -> int:
    ahead = DIR_TO_VEC[direction]
    game = SimpleNamespace(
        agent_pos=(agent_x, agent_y), dir_vec=ahead, right_vec=np.array((-ahead[1], ahead[0])), agent_view_size=7
    )
    i, j = MiniGridEnv.get_view_coords(game, x, y)
    return int(i * 7 + j) if 0 <= i < 7 and 0 <= j < 7 else 49


def plain_seen_cells(frame: np.ndarray) -> np.ndarray:
    """Which cells gym-minigrid lights in its picture of a full observation [W, H, 3], bool [W, H]."""
    width, height, _ = frame.shape
    game = MiniGridEnv(MissionSpace(lambda: ""), width=width, height=height)
    ((x, y),) = np.argwhere(frame[..., 0] == OBJECT_TO_IDX["agent"])
    game.grid, _ = Grid.decode(np.where(frame[..., :1] == OBJECT_TO_IDX["agent"], [1, 0, 0], frame))  # the agent is no object
    game.agent_pos, game.agent_dir, game.carrying = np.array([x, y]), int(frame[x, y, 2]), None
    lit = game.get_frame(highlight=True, tile_size=4) != game.get_frame(highlight=False, tile_size=4)
    return lit.reshape(height, 4, width, 4, 3).any(axis=(1, 3, 4)).T


def views_made(monkeypatch: pytest.MonkeyPatch, source: InlineActor) -> int:
    """Of how many states one is made while the source's first rollouts are filled, one of each environment."""
    counts, look = Counter(), view.partial_view

    def counted(frame, *more):
        counts["views"] += len(frame)
        return look(frame, *more)

    with monkeypatch.context() as patched:
        patched.setattr(view, "partial_view", counted)
        source.get(4)
    return counts["views"]

"""The partial view computed from full observations is the one that gym-minigrid makes of the game itself."""

from __future__ import annotations

import gym
import numpy as np
import pytest
from gym_minigrid.wrappers import FullyObsWrapper

from utils_folder.minigrid import carried
from utils_folder.minigrid.view import partial_view

GAMES = ("KeyCorridorS3R3", "ObstructedMaze-Full", "MultiRoom-N6", "LavaGapS5", "FourRooms")


@pytest.mark.parametrize("name", GAMES)
def test_it_is_gym_minigrids_own(name):
    """Along random play; all views of a game in one call, so that none leaks into the next."""
    env = FullyObsWrapper(gym.make(f"MiniGrid-{name}-v0", disable_env_checker=True))
    game = env.unwrapped
    game.see_through_walls = False
    random = np.random.default_rng(0)
    observation, _ = env.reset(seed=1)
    frames, hands, views = [], [], []
    for _ in range(600):
        frames.append(observation["image"])
        hands.append(carried(game))
        views.append(game.gen_obs()["image"])
        observation, _, terminated, truncated, _ = env.step(random.choice([0, 1, 2, 2, 2, 2, 3, 4, 5, 5]))
        if terminated or truncated:
            observation, _ = env.reset()
    hands = np.array(hands, np.uint8)
    mine = partial_view(np.array(frames), hands[:, 0], hands[:, 1])
    assert np.array_equal(mine, views)
    if name == "ObstructedMaze-Full":
        assert (hands[:, 0] != 1).any(), "nothing was carried: the test has not looked at that"


def test_non_square_grids_and_stacked_frames_views():
    """The last three channels of a stack are a view into it, not contiguous; W != H finds swapped axes."""
    stack = np.zeros((1, 4, 6, 6), np.uint8)
    stack[..., 3] = 1
    stack[0, 2, 4, 3:] = 10, 0, 0  # looks to the right (+x)
    stack[0, 3, 4, 3:] = 5, 3, 0
    view = partial_view(stack[..., 3:], np.array([6], np.uint8), np.array([4], np.uint8))[0]
    assert view[3, 6].tolist() == [6, 4, 0], "what it carries"
    assert view[3, 5].tolist() == [5, 3, 0], "the cell before it"
    assert view[3, 4].tolist() == [2, 5, 0], "beyond the grid is wall"
    assert view[4, 6].tolist() == [1, 0, 0], "the cell to its right, (2, 5)"
    assert view[5, 6].tolist() == [2, 5, 0], "the wall below that"
    assert view[6, 6].tolist() == [0, 0, 0], "behind the wall"

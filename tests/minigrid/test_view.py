"""The partial view computed from full observations is the one that gym-minigrid makes of the game itself."""

from __future__ import annotations

from itertools import product

import gym
import numpy as np
import pytest
import torch
from gym_minigrid.wrappers import FullyObsWrapper

from tests.helpers.views import plain_cells_in_view, plain_seen_cells
from utils_folder.minigrid import REGISTRY, carried, make_environments
from utils_folder.minigrid.view import OUT_OF_VIEW, VIEW_FIELDS, cell_in_view, looks, partial_view, seen_cells

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


# -- Environments that tell of it ------------------------------------------------------------------------------------------

ENGINES = [name for name, engine in REGISTRY.items() if engine.names()]  # those that are installed
MAZE = "MiniGrid-ObstructedMaze-1Dl-v0"  # 11 x 6
SEEDS = [5, 6, 17]
LAST = ("view", "pose", "carried_obj")


def shown(env):
    """The view and the pose of gym-minigrid's own game."""
    game = env.unwrapped
    return game.gen_obs()["image"], [*game.agent_pos, game.agent_dir]


def played(name):
    envs = [gym.make(name, disable_env_checker=True) for _ in SEEDS]
    for env, seed in zip(envs, SEEDS):
        env.reset(seed=seed)
        env.unwrapped.max_steps = 7
    return envs


@pytest.mark.parametrize("name", ["MiniGrid-LavaGapS5-v0", MAZE])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("k", [1, 2])
def test_every_engine_tells_what_gym_minigrids_agent_sees_and_where_it_stands(name, engine, k):
    """In each state, in the last ones of episodes, and after a restart and a saved state."""
    task, made = f'{name} {{"max_steps": 7}}', {"engine": engine, "num_input_frames": k, "views": True}
    environment, plain = (make_environments(task, SEEDS, **made | {"views": on}) for on in (True, False))
    environment.keep_last(LAST)
    envs, random, kept = played(name), np.random.default_rng(3), 0
    out, other = environment.initial(), plain.initial()
    for t in range(60):
        for field, values in other.items():
            assert np.array_equal(values, out[field]), field
        for e, env in enumerate(envs):
            view, pose = shown(env)
            assert np.array_equal(out["view"][e], view) and out["pose"][e].tolist() == pose, (t, e)
        actions = random.choice([0, 1, 2, 2, 2, 3], 3)
        out, other = environment.step(actions), plain.step(actions)
        if t == 30:
            state = environment.state_dict()
            environment = make_environments(task, [1, 2, 3], **made)
            environment.keep_last(LAST)
            for field, values in environment.load_state_dict(state).items():
                assert field.startswith("last_") or np.array_equal(values, out[field]), field
        for e, env in enumerate(envs):
            _, _, terminated, truncated, _ = env.step(actions[e])
            over = terminated or truncated
            view, pose = shown(env) if over else (0, [0, 0, 0])
            if t != 30:  # what was kept before is the actor's to know
                assert (out["last_view"][e] == view).all() and out["last_pose"][e].tolist() == pose
                kept += over
            if over:
                env.reset()
        if t == 40:
            where = np.array([True, False, True]) & ~out["done"]
            out, other = environment.restart(where), plain.restart(where)
            for e in np.flatnonzero(where):
                envs[e].reset()
    assert kept > 5 and where.any()


def test_nothing_is_told_that_nobody_asked_for():
    environment = make_environments(MAZE, SEEDS)
    assert environment.initial().keys().isdisjoint(VIEW_FIELDS)
    environment = make_environments(MAZE, SEEDS, views=True)
    environment.keep_last(("frame",))
    assert environment.initial().keys() >= {*VIEW_FIELDS, "last_frame"} and "last_view" not in environment.initial()


@pytest.mark.parametrize("pose, fits", [((31, 31, 3), True), ((0, 32, 0), False), ((0, 0, 4), False), ((-1, 0, 0), False)])
def test_a_pose_from_elsewhere_is_looked_at(pose, fits):
    """Compiled code would read beyond its tables."""
    assert bool(VIEW_FIELDS["pose"].fits(torch.tensor([[pose]])).all()) == fits


# -- Cells of the grid in it -----------------------------------------------------------------------------------------------

WIDTH, HEIGHT = 9, 5
PLACES = list(product(range(WIDTH), range(HEIGHT), range(4), range(WIDTH * HEIGHT)))


def test_a_cell_is_marked_where_the_view_shows_what_lies_there():
    """The agent at each place and in each direction of a grid without walls, a ball in each other cell."""
    poses, cells = np.array([place[:3] for place in PLACES]), np.array([place[3] for place in PLACES])
    frames = np.zeros((len(PLACES), WIDTH, HEIGHT, 3), np.uint8)
    frames[..., 0] = 1
    each = np.arange(len(PLACES))
    frames[each, cells // HEIGHT, cells % HEIGHT] = 6, 2, 0
    frames[each, poses[:, 0], poses[:, 1]] = np.stack([np.full(len(PLACES), 10), poses[:, 2] * 0, poses[:, 2]], 1)
    views, found = looks(frames, np.ones(len(PLACES), np.uint8), np.full(len(PLACES), 5, np.uint8))
    assert np.array_equal(found, poses)
    marked = cell_in_view(cells, found, height=HEIGHT)
    balls = (views[..., 0] == 6).reshape(-1, 49)
    expected = np.where(balls.any(1), balls.argmax(1), OUT_OF_VIEW)
    own = cells == poses[:, 0] * HEIGHT + poses[:, 1]  # the agent stands on it: the middle of the last row
    assert own.sum() == WIDTH * HEIGHT * 4 and (expected[own] == OUT_OF_VIEW).all()
    expected[own] = 3 * 7 + 6
    assert np.array_equal(marked, expected)
    assert 0.2 < (marked == OUT_OF_VIEW).mean() < 0.8 and set(marked[marked != OUT_OF_VIEW]) == set(range(49))


def test_a_cell_is_marked_where_gym_minigrid_has_it():
    """Hidden or not; arrays and tensors alike."""
    poses, cells = torch.tensor([place[:3] for place in PLACES[::7]]), torch.tensor([place[3] for place in PLACES[::7]])
    marked = cell_in_view(cells, poses, height=HEIGHT)
    assert torch.equal(marked, plain_cells_in_view(cells, poses, height=HEIGHT)) and marked.dtype == torch.int64
    assert cell_in_view(cells.numpy(), poses.numpy(), height=HEIGHT).tolist() == marked.tolist()


@pytest.mark.parametrize("name", ["ObstructedMaze-1Dl", "MultiRoom-N6"])
def test_the_cells_seen_are_those_that_gym_minigrid_lights(name):
    """Along random play: 11 x 6 cells with a door, and rooms in a row."""
    environment = make_environments(f"MiniGrid-{name}-v0", [1, 2, 3])
    out, random, shares = environment.initial(), np.random.default_rng(0), []
    for _ in range(60):
        out = environment.step(random.choice([0, 1, 2, 2, 2, 3, 4, 5], size=3))
        views, poses = looks(out["frame"], out["carried_obj"], out["carried_col"])
        for frame, view, pose in zip(out["frame"], views, poses):
            width, height, _ = frame.shape
            seen = seen_cells(view, pose, width=width, height=height)
            assert seen.dtype == np.bool_ and np.array_equal(seen, plain_seen_cells(frame))
            shares.append(seen.mean())
    assert len(set(shares)) > 5 and max(shares) < 0.6

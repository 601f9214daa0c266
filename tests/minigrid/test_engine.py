"""The compiled engine against gym-minigrid itself: level by level and step by step."""

from __future__ import annotations

import io

import gym
import numpy as np
import pytest
import torch
from gym_minigrid.envs.keycorridor import KeyCorridorEnv
from gym_minigrid.minigrid import (
    COLOR_NAMES,
    COLOR_TO_IDX,
    OBJECT_TO_IDX,
    STATE_TO_IDX,
    Ball,
    Box,
    Door,
    Floor,
    Goal,
    Key,
    Lava,
    MiniGridEnv,
    Wall,
)

from tests.helpers.marks import rarer
from torchbeast.core.environment import generator_state
from utils_folder.minigrid import engine as engine_module
from utils_folder.minigrid import levels, making
from utils_folder.minigrid.engine import CompiledEnvironment, playable

REGISTERED = sorted(name for name in gym.envs.registry if name.startswith("MiniGrid-"))
KEY_CORRIDOR = [name for name in REGISTERED if "KeyCorridor" in name]
OBSTRUCTED_MAZE = [name for name in REGISTERED if "ObstructedMaze" in name]
OTHERS = [name for name in REGISTERED if name not in KEY_CORRIDOR + OBSTRUCTED_MAZE]
REFUSED = [name for name in OTHERS if "Dynamic-Obstacles" in name]
PLAYED = [name for name in OTHERS if name not in REFUSED]
S3R3 = "MiniGrid-KeyCorridorS3R3-v0"
DOOR_KEY = "MiniGrid-DoorKey-5x5-v0"  # its levels are made by gym-minigrid


class Twin:
    """gym-minigrid itself as one environment of a batch: the slow, obvious implementation of the contract."""

    def __init__(self, env_name, seed, fixed_seed=None):
        self.env = gym.make(env_name, disable_env_checker=True).unwrapped
        self.env.gen_obs = lambda: None  # the partial view takes most of the time and draws nothing
        self.fixed_seed = fixed_seed
        self.episode_return, self.episode_step, self.reward, self.done = 0.0, 0, 0.0, True
        self.truncated = False
        self.env.reset(seed=seed if fixed_seed is None else fixed_seed)

    def step(self, action):
        if self.done:
            self.episode_return, self.episode_step = 0.0, 0
        _, self.reward, terminated, truncated, _ = self.env.step(action)
        self.done = terminated or truncated
        self.truncated = truncated and not terminated
        self.episode_return = np.float32(self.episode_return) + np.float32(self.reward)
        self.episode_step += 1
        assert self.episode_step == self.env.step_count
        if self.done:
            self.reset()

    def reset(self):
        self.env.reset(seed=self.fixed_seed)

    def output(self):
        frame = self.env.grid.encode()
        frame[tuple(self.env.agent_pos)] = OBJECT_TO_IDX["agent"], COLOR_TO_IDX["red"], self.env.agent_dir
        carried = self.env.carrying
        return {
            "frame": frame,
            "reward": np.float32(self.reward),
            "done": self.done,
            "truncated": self.truncated,
            "episode_return": np.float32(self.episode_return),
            "episode_step": self.episode_step,
            "carried_obj": OBJECT_TO_IDX[carried.type if carried else "empty"],
            "carried_col": COLOR_TO_IDX[carried.color if carried else "grey"],
        }


def assert_equal(output, twins):
    for e, twin in enumerate(twins):
        for name, expected in twin.output().items():
            assert np.array_equal(output[name][e], expected), f"environment {e}, {name}"


def copied(output):
    return {name: array.copy() for name, array in output.items()}


def assert_same(output, expected):
    assert output.keys() == expected.keys()
    for name, array in output.items():
        assert array.dtype == expected[name].dtype
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


NAMES = {index: name for name, index in OBJECT_TO_IDX.items()}
CLOSED, LOCKED = STATE_TO_IDX["closed"], STATE_TO_IDX["locked"]


def explore(frame, carried, rng):
    """A random action that opens, picks up and drops sensibly enough to get somewhere."""
    draw, turn = rng.random(), int(rng.integers(2))
    if draw < 0.1:
        return int(rng.integers(7))
    (x,), (y,) = np.nonzero(frame[..., 0] == OBJECT_TO_IDX["agent"])
    dx, dy = ((1, 0), (0, 1), (-1, 0), (0, -1))[frame[x, y, 2]]
    kind, _, state = frame[x + dx, y + dy]
    hands, locked = NAMES[carried], (frame[..., 2] * (frame[..., 0] == OBJECT_TO_IDX["door"]) == LOCKED).any()
    if NAMES[kind] == "wall":
        return turn
    if NAMES[kind] == "door":
        useful = state == CLOSED or (state == LOCKED and hands == "key")
        return 6 if draw < 0.2 else 5 if useful else 2 if draw < 0.8 else turn
    if NAMES[kind] == "box":
        return 5 if draw < 0.5 else turn if draw < 0.8 else 3
    if NAMES[kind] in ("key", "ball"):
        return 3 if hands == "empty" and draw < 0.7 else turn
    drops = {"empty": 0, "key": 0.12 if locked else 0.5}.get(hands, 0.3)
    if draw < drops:
        return 4
    return 2 if draw < 0.85 else turn


def play_both(env_name, seeds, steps, **kwargs):
    """Plays engine and twins side by side and compares all at every step; counts (episodes, successes)."""
    engine, twins = CompiledEnvironment(env_name, seeds, **kwargs), [Twin(env_name, seed, **kwargs) for seed in seeds]
    rng = np.random.default_rng(7)
    output = engine.initial()
    assert_equal(output, twins)
    episodes = successes = 0
    for _ in range(steps):
        actions = [explore(frame, carried, rng) for frame, carried in zip(output["frame"], output["carried_obj"])]
        output = engine.step(np.array(actions))
        for twin, action in zip(twins, actions):
            twin.step(action)
        assert_equal(output, twins)
        episodes += output["done"].sum()
        successes += (output["reward"] > 0).sum()
    return episodes, successes


def compare_levels(env_name, seeds, episodes):
    engine, twins = CompiledEnvironment(env_name, seeds), [Twin(env_name, seed) for seed in seeds]
    output = engine.initial()
    everywhere = np.ones(len(seeds), bool)
    for _ in range(episodes):
        for e, twin in enumerate(twins):
            assert np.array_equal(output["frame"][e], twin.output()["frame"])
            twin.reset()
        engine.step(np.full(len(seeds), 6))
        output = engine.restart(everywhere)


# --- Levels and steps equal gym-minigrid's --------------------------------------------------------------------------


@pytest.mark.parametrize("env_name", KEY_CORRIDOR + OBSTRUCTED_MAZE)
def test_levels_are_those_of_gym_minigrid(env_name):
    compare_levels(env_name, seeds=[0, 1, 12345], episodes=12)


@pytest.mark.parametrize("env_name", KEY_CORRIDOR + OBSTRUCTED_MAZE)
def test_steps_are_those_of_gym_minigrid(env_name):
    play_both(env_name, seeds=[3, 2**31, 5], steps=450)


@pytest.mark.parametrize("env_name", ["MiniGrid-KeyCorridorS3R1-v0", "MiniGrid-ObstructedMaze-1Dlh-v0"])
def test_comparison_covers_successes(env_name):
    episodes, successes = play_both(env_name, seeds=[3, 1], steps=2000)
    assert successes >= 3 and episodes > successes


@pytest.mark.parametrize("env_name", OTHERS)
def test_other_environments_are_equal_or_refused(env_name):
    reason = playable(env_name)
    assert (reason is not None) == (env_name in REFUSED)
    if reason is None:
        play_both(env_name, seeds=[4, 9], steps=150)
    else:
        with pytest.raises(ValueError, match=reason):
            CompiledEnvironment(env_name, [0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "env_name",
    ["Fetch-5x5-N2", "GoToDoor-5x5", "GoToObject-6x6-N2", "MemoryS7", "PutNear-6x6-N2", "RedBlueDoors-6x6", "Unlock"],
)
def test_comparison_covers_each_rule(env_name):
    episodes, successes = play_both(f"MiniGrid-{env_name}-v0", seeds=[4, 9, 1], steps=2000)
    assert successes >= 3 and episodes > successes


@pytest.mark.slow
@pytest.mark.parametrize("env_name", [*PLAYED[::4], *rarer(name for name in PLAYED if name not in PLAYED[::4])])
def test_other_environments_for_long(env_name):
    successes = play_both(env_name, seeds=[4, 9, 1], steps=2000)[1]
    rarely = ("MultiRoom", "LockedRoom", "Playground", "16x16", "FourRooms", "LavaCrossing", "BlockedUnlock")
    if not any(word in env_name for word in rarely):
        assert successes > 0


@pytest.mark.slow
@pytest.mark.parametrize("family", [KEY_CORRIDOR, OBSTRUCTED_MAZE], ids=["KeyCorridor", "ObstructedMaze"])
def test_ten_thousand_levels(family):
    for env_name in family:
        compare_levels(env_name, seeds=range(1000, 1020), episodes=10_000 // (20 * len(family)) + 1)


@pytest.mark.parametrize(
    "total_steps, wanted",
    [
        pytest.param(100_000, 30, marks=pytest.mark.slow),
        pytest.param(1_000_000, 300, marks=[pytest.mark.soak, pytest.mark.timeout(1800)]),
    ],
)
@pytest.mark.parametrize(
    "family",
    [
        pytest.param(KEY_CORRIDOR, id="KeyCorridor"),
        pytest.param(OBSTRUCTED_MAZE, id="ObstructedMaze", marks=pytest.mark.soak),
    ],
)
def test_many_steps(family, total_steps, wanted):
    successes = [play_both(env_name, range(40), total_steps // (40 * len(family)) + 1)[1] for env_name in family]
    print(dict(zip(family, successes)))
    assert sum(successes) >= wanted
    assert sum(count > 0 for count in successes) >= 4


class Zoo(KeyCorridorEnv):
    """What the registered environments lack: look-alikes of the target, boxes in boxes, floor, all in one."""

    def _gen_grid(self, width, height):
        super()._gen_grid(width, height)
        target = self.obj
        key = Key(self._rand_color())
        boxed = Box("green", Box("red", Box("blue", self._rand_elem([target, Ball(target.color), key]))))
        things = [boxed, Box("grey"), Ball(target.color), Ball(target.color), key, Floor("red"), Floor("blue")]
        doors = [Door("red"), Door("yellow", is_open=True), Door("blue", is_locked=True)]
        for thing in [*things, *doors, Lava(), Goal(), Key("blue")]:
            self.place_obj(thing, top=(5, 0), size=(6, self.height))


gym.register("Zoo-v0", entry_point=Zoo)


@pytest.mark.slow
def test_objects_keep_their_identity_and_contents_wherever_they_go():
    episodes, successes = play_both("Zoo-v0", seeds=[0, 1, 2, 3], steps=2000)
    assert episodes > 30 and successes > 10


def test_every_toggle_is_gym_minigrids():
    env = Twin(DOOR_KEY, 0).env
    hands = [None, *(make(colour) for make in (Key, Ball, Box) for colour in ("red", "yellow"))]
    states = ({}, {"is_open": True}, {"is_locked": True})
    makers = [lambda state=state: Door("red", **state) for state in states]
    makers += [lambda: Box("red"), lambda: Box("red", Box("blue", Key("red"))), Key, Ball, Goal, Lava, Floor, Wall]
    for env.carrying in hands:
        carried = making.cell(env, env.carrying) if env.carrying else levels.NOTHING
        for make in makers:
            thing = make()
            before = making.cell(env, thing)
            env.grid.set(1, 1, thing)
            thing.toggle(env, (1, 1))
            assert levels.toggled(before, carried) == making.cell(env, env.grid.get(1, 1))


@pytest.mark.parametrize("direction, success", [(0, False), (1, True)])
def test_put_near_wants_the_object_put_down(direction, success):
    """The agent holds the right object beside the target: facing it there is no room to drop it, below there is."""
    engine, twin = CompiledEnvironment("MiniGrid-PutNear-8x8-N3-v0", [0]), Twin("MiniGrid-PutNear-8x8-N3-v0", 0)
    engine.initial()
    env, world = twin.env, engine._world
    target, env.carrying = env.grid.get(*env.target_pos), env.grid.get(*env.move_pos)
    for x in range(1, env.width - 1):
        for y in range(1, env.height - 1):
            env.grid.set(x, y, None)
    env.target_pos = (4, 4)
    env.put_obj(target, 4, 4)
    env.agent_pos, env.agent_dir = (3, 4), direction
    world.cells[0] = making.level_cells(env, engine._rule)
    world.agent[0], world.places[0, 0] = (3, 4, direction), (4, 4)
    world.carried[0] = making.cell(env, env.carrying, engine._rule)
    twin.step(4)
    output = engine.step(np.array([4]))
    assert output["done"][0] == twin.done and output["done"][0]
    assert output["reward"][0] == np.float32(twin.reward) and (twin.reward > 0) == success


# --- Random numbers and failures ------------------------------------------------------------------------------------


def test_rand_int_is_numpys():
    generator = np.random.default_rng(5)
    stream = engine_module._random_state(generator)
    # Above 2**31 nearly half of all draws are rejected; a range of one number must not draw at all.
    ranges = [(0, 7), (3, 4), (2, 5), (-4, 2), (0, 2), (1, 3_000_000_001), (0, 2**32 - 1)]
    for n in range(7000):
        low, high = ranges[n * n % 7 if n % 3 else n % 7]
        assert levels.rand_int(stream, low, high) == generator.integers(low, high)
    np.testing.assert_array_equal(stream, engine_module._random_state(generator))


def test_generator_comes_back_from_its_row():
    generator = np.random.default_rng(11)
    generator.integers(0, 5)
    again = engine_module._generator(engine_module._random_state(generator))
    assert generator_state(again) == generator_state(generator)
    assert generator_state(generator)["has_uint32"] == 1


def engine_and_gym():
    engine, twin = CompiledEnvironment(S3R3, [8]), Twin(S3R3, 8)
    engine.initial()
    return engine, engine._world, twin.env


def test_a_room_without_a_free_cell_fails_after_as_many_tries_as_in_gym_minigrid():
    engine, world, env = engine_and_gym()
    env.grid.grid = [Wall()] * len(env.grid.grid)
    world.cells[0] = levels.WALL_CELL
    with pytest.raises(RecursionError):
        env.place_in_room(2, 1, Key())
    with pytest.raises(RecursionError, match="rejection sampling failed"):
        levels.find_place(world.cells[0], world.agent[0], engine._game, 5, world.random_state[0])
    np.testing.assert_array_equal(world.random_state[0], engine_module._random_state(env.np_random))


@pytest.mark.slow
def test_rooms_that_cannot_be_connected_fail_after_as_many_tries_as_in_gym_minigrid():
    engine, world, env = engine_and_gym()
    gym_rooms = [room for row in env.room_grid for room in row]
    for room in gym_rooms:
        room.doors, room.locked = [None] * 4, True
    door_at = [[at or (-1, -1) for at in room.door_pos] for room in gym_rooms]
    rooms = levels.Rooms(np.zeros((9, 4), bool), np.array(door_at), np.ones(9, bool))
    with pytest.raises(RecursionError):
        env.connect_all()
    with pytest.raises(RecursionError, match="connect_all failed"):
        levels.connect_all(world.cells[0], world.agent[0], rooms, engine._game, world.random_state[0])
    np.testing.assert_array_equal(world.random_state[0], engine_module._random_state(env.np_random))


# --- The contract of Environment ------------------------------------------------------------------------------------


@pytest.fixture(params=[S3R3, DOOR_KEY])
def env_name(request):
    """One environment whose levels the engine makes, one whose levels gym-minigrid makes."""
    return request.param


def random_actions(E, steps, seed=0):
    return np.random.default_rng(seed).choice(7, p=[0.15, 0.15, 0.3, 0.15, 0.05, 0.15, 0.05], size=(steps, E))


def test_first_output_and_attributes(env_name):
    engine = CompiledEnvironment(env_name, [4, 5, 6])
    env = gym.make(env_name, disable_env_checker=True).unwrapped
    output = engine.initial()
    assert (engine.num_envs, engine.num_actions, engine.max_steps) == (3, 7, env.max_steps)
    assert engine.frame_shape == (env.width, env.height, 3) and output["frame"].shape == (3, *engine.frame_shape)
    dtypes = {name: array.dtype for name, array in output.items()}
    assert dtypes == {
        "frame": np.uint8, "reward": np.float32, "done": bool, "truncated": bool, "episode_return": np.float32,
        "episode_step": np.int32, "carried_obj": np.uint8, "carried_col": np.uint8,
    }  # fmt: skip
    assert output["done"].all() and not output["truncated"].any() and not output["reward"].any()
    assert not output["episode_return"].any() and not output["episode_step"].any()
    assert (output["carried_obj"] == 1).all() and (output["carried_col"] == 5).all()


def test_output_is_written_in_place(env_name):
    engine = CompiledEnvironment(env_name, [4, 5])
    first = engine.initial()
    arrays = dict(first)
    for output in (engine.step(np.array([2, 0])), engine.restart(np.array([True, False])), engine.initial()):
        assert output is first and all(output[name] is array for name, array in arrays.items())


def test_initial_again_goes_on_with_the_same_streams(env_name):
    engine, twins = CompiledEnvironment(env_name, [4, 5]), [Twin(env_name, seed) for seed in (4, 5)]
    engine.initial()
    engine.step(np.array([2, 3]))
    for twin in twins:
        twin.reset()
    assert_equal(engine.initial(), twins)


def test_environments_do_not_disturb_each_other(env_name):
    seeds = [7, 3, 3, 11, 0]
    actions = random_actions(5, 600)
    together, alone = CompiledEnvironment(env_name, seeds), [CompiledEnvironment(env_name, [seed]) for seed in seeds]
    outputs = [engine.initial() for engine in alone]
    output = together.initial()
    for row in actions:
        output = together.step(row)
        outputs = [engine.step(row[e : e + 1]) for e, engine in enumerate(alone)]
        assert_same(output, {name: np.concatenate([one[name] for one in outputs]) for name in output})


def test_actions_of_any_integer_type_and_stride():
    engines = [CompiledEnvironment(S3R3, [1, 2, 3]) for _ in range(2)]
    for engine in engines:
        engine.initial()
    for row in random_actions(3, 50):
        strided = np.repeat(row, 2).astype(np.uint8)[::2]
        assert_same(engines[0].step(row), engines[1].step(strided))


def test_fixed_seed_gives_the_same_level_always(env_name):
    play_both(env_name, seeds=[1, 2, 3], steps=400, fixed_seed=17)
    engine = CompiledEnvironment(env_name, [1, 2], fixed_seed=17)
    level = engine.initial()["frame"].copy()
    assert np.array_equal(level[0], level[1])
    engine.step(np.array([2, 0]))
    assert np.array_equal(engine.restart(np.array([True, True]))["frame"], level)


def test_restart_ends_the_chosen_episodes_only(env_name):
    engine, twins = CompiledEnvironment(env_name, [4, 5, 6]), [Twin(env_name, seed) for seed in (4, 5, 6)]
    engine.initial()
    for row in random_actions(3, 7, seed=2):
        before = copied(engine.step(row))
        for twin, action in zip(twins, row):
            twin.step(action)
    assert not before["done"].any()
    output = engine.restart(np.array([True, False, True]))
    for e in (0, 2):
        twins[e].done = True
        twins[e].reset()
    assert_equal(output, twins)
    assert output["episode_step"].tolist() == [7, 7, 7]
    for row in random_actions(3, 200, seed=3):
        for twin, action in zip(twins, row):
            twin.step(action)
        assert_equal(engine.step(row), twins)


def test_restart_leaves_ended_episodes_alone(env_name):
    engine = CompiledEnvironment(env_name, [4, 5])
    engine.initial()
    output = engine.step(np.array([6, 6]))
    while not output["done"].any():
        output = engine.step(np.array([6, 6]))
    before, state = copied(output), engine.state_dict()
    assert_same(engine.restart(output["done"].copy()), before)
    assert torch.equal(engine.state_dict()["world"]["random_state"], state["world"]["random_state"])


def test_restart_takes_away_what_is_carried():
    engine = CompiledEnvironment("Zoo-v0", range(6))
    output = engine.initial()
    rng = np.random.default_rng(0)
    while not (output["carried_obj"] != 1).any():
        output = engine.step(np.array([explore(frame, 1, rng) for frame in output["frame"]]))
    output = engine.restart(np.ones(6, bool))
    assert (output["carried_obj"] == 1).all() and (output["carried_col"] == 5).all()


@pytest.mark.parametrize("env_name", [S3R3, DOOR_KEY, "MiniGrid-ObstructedMaze-2Dlhb-v0", "MiniGrid-MemoryS7-v0"])
def test_state_dict_round_trip(env_name):
    engine = CompiledEnvironment(env_name, [4, 5, 6, 7])
    engine.initial()
    for row in random_actions(4, 333):
        output = engine.step(row)
    at_save = copied(output)
    file = io.BytesIO()
    torch.save(engine.state_dict(), file)
    more = random_actions(4, 700, seed=1)
    after = [copied(engine.step(row)) for row in more]

    file.seek(0)
    other = CompiledEnvironment(env_name, [0, 0, 0, 0])
    for resumed in (other, engine):
        file.seek(0)
        assert_same(resumed.load_state_dict(torch.load(file, weights_only=True)), at_save)
        for row, expected in zip(more, after):
            assert_same(resumed.step(row), expected)


def test_state_dict_is_a_copy():
    engine = CompiledEnvironment(S3R3, [4])
    engine.initial()
    state = engine.state_dict()
    frame = state["world"]["frame"].clone()
    engine.restart(np.array([True]))
    engine.step(np.array([0]))
    assert torch.equal(state["world"]["frame"], frame)


def test_state_of_another_game_is_refused():
    state = CompiledEnvironment(S3R3, [4, 5]).state_dict()
    for other in (CompiledEnvironment(S3R3, [4]), CompiledEnvironment("MiniGrid-KeyCorridorS3R2-v0", [4, 5])):
        with pytest.raises(ValueError, match=r"MiniGrid-KeyCorridorS3R3-v0. \(a tensor \[2, 7, 7, 3\]"):
            other.load_state_dict(state)


def test_wrong_calls_are_refused():
    engine = CompiledEnvironment(S3R3, [4, 5])
    with pytest.raises(IndexError, match="initial"):
        engine.step(np.array([0, 0]))
    engine.initial()
    for action in (-1, 7):
        with pytest.raises(ValueError, match="action"):
            engine.step(np.array([0, action]))
    with pytest.raises(ValueError, match="2 actions"):
        engine.step(np.array([0, 0, 0]))
    with pytest.raises(ValueError, match="2 booleans"):
        engine.restart(np.array([True]))


# --- What the engine must not play ----------------------------------------------------------------------------------


class OwnStep(KeyCorridorEnv):
    def step(self, action):
        return super().step(action)


class OwnReward(KeyCorridorEnv):
    def _reward(self):
        return 1


class Oven(Box):
    pass


class OwnObject(KeyCorridorEnv):
    def _gen_grid(self, width, height):
        super()._gen_grid(width, height)
        self.put_obj(Oven(COLOR_NAMES[0]), 0, 0)


class FewerActions(KeyCorridorEnv):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.action_space = gym.spaces.Discrete(3)


@pytest.mark.parametrize(
    "env_class, kwargs, reason",
    [
        (OwnStep, {}, "rules of OwnStep"),
        (OwnReward, {}, "_reward"),
        (OwnObject, {}, "Oven"),
        (FewerActions, {}, "3 actions"),
        (KeyCorridorEnv, {"max_episode_steps": 9}, "TimeLimit"),
    ],
)
def test_environments_of_others_are_refused(env_class, kwargs, reason):
    name = f"Refused{env_class.__name__}-v0"
    gym.register(name, entry_point=env_class, **kwargs)
    try:
        assert reason in playable(name)
        with pytest.raises(ValueError, match=f"{name}.*{reason}"):
            CompiledEnvironment(name, [0])
    finally:
        del gym.envs.registry[name]


def test_unknown_names_and_other_games():
    assert "no MiniGrid" in playable("CartPole-v1")
    assert playable("MiniGrid-KeyCorridorS3R9-v0") == "gym-minigrid has no environment of that name"
    assert MiniGridEnv.step in engine_module.RULES

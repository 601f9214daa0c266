"""gym-minigrid's games, compiled: a batch of environments as arrays, the same levels and the same rules, much faster.

The levels of KeyCorridor and ObstructedMaze are made in compiled code from the same random stream as gym-minigrid's;
those of all other environments are made by gym-minigrid itself and only played here. `playable` says which environments
the engine plays exactly.

The compiled code is in levels.py. The first engine on a machine compiles it (some ten seconds) and Numba keeps
it on disk: in `__pycache__` beside that file, else in the user's cache folder, else in a private temporary one, or under
`NUMBA_CACHE_DIR` if that is set. Later ones load it in a tenth of a second, and processes forked after a first step have
it already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn

import gym
import numpy as np
import torch
from gym.utils import seeding
from gym.wrappers import OrderEnforcing
from gym_minigrid import envs
from gym_minigrid.envs.keycorridor import KeyCorridorEnv
from gym_minigrid.envs.obstructedmaze import (
    ObstructedMaze_1Dlhb,
    ObstructedMaze_2Dl,
    ObstructedMaze_2Dlh,
    ObstructedMaze_2Dlhb,
    ObstructedMaze_Full,
    ObstructedMazeEnv,
)
from gym_minigrid.minigrid import (
    OBJECT_TO_IDX,
    Ball,
    Box,
    Door,
    Floor,
    Goal,
    Key,
    Lava,
    MiniGridEnv,
    Wall,
    WorldObj,
)

import utils_folder.minigrid.levels as compiled
from torchbeast.core.environment import Environment, Output
from utils_folder.minigrid.base import Engine
from utils_folder.minigrid.levels import Game, World

OUTPUT = ("frame", "reward", "done", "episode_return", "episode_step", "carried_obj", "carried_col")
OBJECT_CLASSES = (Wall, Floor, Door, Key, Ball, Box, Goal, Lava)
LOW_WORD = (1 << 64) - 1


class Rule(NamedTuple):
    """What ends an episode: its code for the compiled half, and what of a gym-minigrid level the rule refers to."""

    code: int
    is_target: Callable[[MiniGridEnv, WorldObj], bool] = lambda env, thing: False
    places: Callable[[MiniGridEnv], Sequence[tuple[int, int]]] = lambda env: ()


def _position_of(env: MiniGridEnv, thing: WorldObj) -> tuple[int, int]:
    index = next(index for index, other in enumerate(env.grid.grid) if other is thing)
    return index % env.width, index // env.width


PICK_UP = Rule(compiled.PICK_UP, lambda env, thing: thing is env.obj)

# An environment class is known by the function that is its `step`.
RULES = {
    MiniGridEnv.step: Rule(compiled.NO_RULE),
    KeyCorridorEnv.step: PICK_UP,
    ObstructedMazeEnv.step: PICK_UP,
    envs.UnlockPickupEnv.step: PICK_UP,
    envs.BlockedUnlockPickupEnv.step: PICK_UP,
    envs.UnlockEnv.step: Rule(compiled.UNLOCK, lambda env, thing: thing is env.door),
    envs.FetchEnv.step: Rule(compiled.FETCH, lambda env, thing: (thing.type, thing.color) == (env.targetType, env.targetColor)),
    envs.RedBlueDoorEnv.step: Rule(
        compiled.RED_BLUE,
        lambda env, thing: thing is env.blue_door,
        lambda env: [_position_of(env, env.red_door)],
    ),
    envs.GoToDoorEnv.step: Rule(compiled.GO_TO_DOOR, places=lambda env: [env.target_pos]),
    envs.GoToObjectEnv.step: Rule(compiled.GO_TO_OBJECT, places=lambda env: [env.target_pos]),
    envs.MemoryEnv.step: Rule(compiled.MEMORY, places=lambda env: [env.success_pos, env.failure_pos]),
    envs.PutNearEnv.step: Rule(
        compiled.PUT_NEAR,
        lambda env, thing: (thing.type, thing.color) == (env.move_type, env.moveColor),
        lambda env: [env.target_pos],
    ),
}

# Exact classes: a subclass could make other levels.
MAKERS = {
    KeyCorridorEnv: compiled.KEY_CORRIDOR,
    ObstructedMaze_1Dlhb: compiled.OBSTRUCTED_MAZE_1D,
    ObstructedMaze_Full: compiled.OBSTRUCTED_MAZE_FULL,
    ObstructedMaze_2Dl: compiled.OBSTRUCTED_MAZE_FULL,
    ObstructedMaze_2Dlh: compiled.OBSTRUCTED_MAZE_FULL,
    ObstructedMaze_2Dlhb: compiled.OBSTRUCTED_MAZE_FULL,
}


def playable(env_name: str) -> str | None:
    """None if the engine plays this environment exactly as gym-minigrid does, else one line that says why it does not.

    Raises: gym.error.Error if gym knows no environment of that name.
    """
    return _refusal(gym.make(env_name, disable_env_checker=True))


def _refusal(env: gym.Env) -> str | None:
    game = env.unwrapped
    if not isinstance(game, MiniGridEnv):
        return f"{type(game).__name__} is no MiniGrid environment"
    if type(game).step not in RULES:
        return f"the engine does not know the rules of {type(game).__name__}.step"
    for method in ("reset", "_reward", "gen_obs"):
        if getattr(type(game), method) is not getattr(MiniGridEnv, method):
            return f"{type(game).__name__} has its own {method}"
    if game.action_space.n != compiled.NUM_ACTIONS:
        return f"{type(game).__name__} has {game.action_space.n} actions instead of {compiled.NUM_ACTIONS}"
    while env is not game:
        if not isinstance(env, OrderEnforcing):
            return f"it is wrapped in {type(env).__name__}"
        env = env.env
    if type(game) in MAKERS:
        return None
    try:
        game.reset(seed=0)
        _cells(game)
    except ValueError as error:
        return str(error)
    return None


class CompiledEnvironment(Environment):
    """E copies of a gym-minigrid environment, each exactly as gym-minigrid plays it.

    Environment e is `gym.make(env_name)` whose first reset is `reset(seed=seeds[e])` and whose later ones are
    `reset()`; with `fixed_seed` every reset of every environment is `reset(seed=fixed_seed)`. The output has what
    `Environment` promises and what the agent carries:

        frame        uint8 [E, W, H, 3]  FullyObsWrapper's (kind, colour, state); the agent is (10, 0, direction)
        carried_obj  uint8 [E]           its kind, 1 (empty) for nothing
        carried_col  uint8 [E]           its colour, 5 (grey) for nothing

    Raises: ValueError if the environment is not `playable`; RecursionError, where gym-minigrid raises it, if a level
        cannot be completed.
    """

    num_actions = compiled.NUM_ACTIONS

    def __init__(self, env_name: str, seeds: Sequence[int], *, fixed_seed: int | None = None):
        made = gym.make(env_name, disable_env_checker=True)
        refusal = _refusal(made)
        if refusal:
            raise ValueError(f"{env_name}: {refusal}")
        self._gym = made.unwrapped
        self._gym.gen_obs = lambda: None  # nobody looks at the partial view that a reset returns
        self._rule = RULES[type(self._gym).step]
        self._game = _game(self._gym, self._rule)
        self._env_name = env_name
        self._seed_state = np.empty(0, np.uint64) if fixed_seed is None else _seed_state(fixed_seed)
        self._world = _empty_world(len(seeds), self._gym.width, self._gym.height)
        for e, seed in enumerate(seeds):
            self._world.random_state[e] = _seed_state(seed)
        self._output = {name: getattr(self._world, name) for name in OUTPUT}
        self.num_envs = len(seeds)
        self.frame_shape = self._world.frame.shape[1:]
        self.max_steps = self._gym.max_steps

    def initial(self) -> Output:
        self._world.reward[:] = 0
        self._world.done[:] = True
        self._world.episode_return[:] = 0
        self._world.episode_step[:] = 0
        self._begin(self._world.done)
        return self._output

    def step(self, actions: np.ndarray) -> Output:
        actions = np.ascontiguousarray(actions, dtype=np.int64)
        if actions.shape != (self.num_envs,):
            raise ValueError(f"expected {self.num_envs} actions, got an array of shape {actions.shape}")
        if compiled.step_all(self._world, actions, self._game):
            self._begin(self._world.done)
        return self._output

    def restart(self, where: np.ndarray) -> Output:
        where = np.asarray(where, dtype=bool)
        if where.shape != (self.num_envs,):
            raise ValueError(f"expected {self.num_envs} booleans, got an array of shape {where.shape}")
        going_on = where & ~self._world.done
        self._world.done[going_on] = True
        self._begin(going_on)
        return self._output

    def state_dict(self) -> dict:
        arrays = self._world._asdict()
        arrays["random_state"] = arrays["random_state"].view(np.int64)  # torch saves no uint64
        return {"env_name": self._env_name, "world": {name: torch.tensor(array) for name, array in arrays.items()}}

    def load_state_dict(self, state: dict) -> Output:
        """Goes back to the moment of `state_dict`.

        Raises: ValueError if that was another game or another number of environments.
        """
        saved = {name: tensor.numpy() for name, tensor in state["world"].items()}
        if state["env_name"] != self._env_name or saved["frame"].shape != self._world.frame.shape:
            theirs = f"{len(saved['frame'])} x {state['env_name']}"
            raise ValueError(f"a state of {theirs} does not fit {self.num_envs} x {self._env_name}")
        saved["random_state"] = saved["random_state"].view(np.uint64)
        for name, array in self._world._asdict().items():
            array[...] = saved[name]
        return self._output

    def close(self) -> None:
        self._gym.close()

    def _begin(self, where: np.ndarray) -> None:
        """New levels where `where`."""
        if self._game.maker != compiled.MADE_BY_GYM:
            compiled.begin_where(self._world, where, self._game, self._seed_state)
            return
        for e in np.flatnonzero(where):
            self._take_level(e)

    def _take_level(self, e: int) -> None:
        """Has gym-minigrid make environment e's next level and copies it."""
        world, env = self._world, self._gym
        env.np_random = _generator(self._seed_state if self._seed_state.size else world.random_state[e])
        env.reset()
        world.random_state[e] = _random_state(env.np_random)
        world.cells[e] = _cells(env, self._rule)
        world.agent[e] = *env.agent_pos, env.agent_dir
        for place, position in enumerate(self._rule.places(env)):
            world.places[e, place] = position
        compiled.show_level(world, e)


def _empty_world(E: int, W: int, H: int) -> World:
    return World(
        cells=np.zeros((E, W, H), np.int64),
        agent=np.full((E, 3), -1),
        places=np.zeros((E, 2, 2), np.int64),
        carried=np.zeros(E, np.int64),
        random_state=np.zeros((E, 6), np.uint64),
        frame=np.zeros((E, W, H, 3), np.uint8),
        reward=np.zeros(E, np.float32),
        done=np.zeros(E, bool),
        episode_return=np.zeros(E, np.float32),
        episode_step=np.zeros(E, np.int32),
        carried_obj=np.zeros(E, np.uint8),
        carried_col=np.zeros(E, np.uint8),
    )


def _game(env: MiniGridEnv, rule: Rule) -> Game:
    maker = MAKERS.get(type(env), compiled.MADE_BY_GYM)
    game = Game(rule.code, env.max_steps, maker)
    if maker == compiled.MADE_BY_GYM:
        return game
    game = game._replace(room_size=env.room_size, num_rows=env.num_rows, num_cols=env.num_cols)
    if maker == compiled.KEY_CORRIDOR:
        return game._replace(object_kind=OBJECT_TO_IDX[env.obj_type])
    game = game._replace(key_in_box=int(env.key_in_box), blocked=int(env.blocked))
    if maker == compiled.OBSTRUCTED_MAZE_1D:
        return game
    return game._replace(agent_i=env.agent_room[0], agent_j=env.agent_room[1], num_quarters=env.num_quarters)


def _cells(env: MiniGridEnv, rule: Rule = RULES[MiniGridEnv.step]) -> np.ndarray:
    """The grid of a gym-minigrid environment as int64 [W, H].

    Raises: ValueError if there is something in it that the engine does not know.
    """
    row_by_row = [_cell(env, thing, rule) for thing in env.grid.grid]
    return np.array(row_by_row, np.int64).reshape(env.height, env.width).T


def _cell(env: MiniGridEnv, thing: WorldObj | None, rule: Rule = RULES[MiniGridEnv.step]) -> int:
    """An object, or None for an empty cell, as the integer that levels.py describes."""
    if thing is None:
        return compiled.EMPTY_CELL
    if type(thing) not in OBJECT_CLASSES:
        _unknown(env, f"objects of class {type(thing).__name__}")
    if isinstance(thing, Door) and thing.is_open and thing.is_locked:
        _unknown(env, "doors that are open and locked at once")
    kind, colour, state = thing.encode()
    contents = 0 if thing.contains is None else _cell(env, thing.contains, rule)
    target = compiled.TARGET if rule.is_target(env, thing) else 0
    return compiled.make_object(kind, colour, state, contents) | target


def _unknown(env: MiniGridEnv, what: str) -> NoReturn:
    raise ValueError(f"{type(env).__name__} has {what}, which the engine does not know")


def _seed_state(seed: int) -> np.ndarray:
    return _random_state(seeding.np_random(int(seed))[0])


def _random_state(generator: np.random.Generator) -> np.ndarray:
    """A PCG64 generator's state as a row of World.random_state, uint64 [6]."""
    state = generator.bit_generator.state
    words = [word for key in ("state", "inc") for word in (state["state"][key] >> 64, state["state"][key] & LOW_WORD)]
    return np.array([*words, state["has_uint32"], state["uinteger"]], np.uint64)


def _generator(random_state: np.ndarray) -> np.random.Generator:
    """A generator that goes on from a row of World.random_state."""
    high, low, inc_high, inc_low, has_uint32, uinteger = map(int, random_state)
    bit_generator = np.random.PCG64(0)
    bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": high << 64 | low, "inc": inc_high << 64 | inc_low},
        "has_uint32": has_uint32,
        "uinteger": uinteger,
    }
    return np.random.Generator(bit_generator)


COMPILED = Engine(playable, CompiledEnvironment)

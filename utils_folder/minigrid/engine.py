"""gym-minigrid's games, compiled: a batch of environments as arrays, the same levels and the same rules, much faster.

The levels of KeyCorridor and ObstructedMaze are made in compiled code from the same random stream as gym-minigrid's;
those of all other environments are made by gym-minigrid itself and only played here. `playable` says which environments
the engine plays exactly.

The compiled levels and rules are in levels.py. The first engine on a machine compiles (some 20 seconds), and what it made is
kept on disk, where every copy of the program finds it (torchbeast/core/compiled.py). Later ones load it in a tenth of a
second, and processes forked after a first step have it already.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

import gym
import numpy as np
import torch
from gym.utils import seeding
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
from gym_minigrid.minigrid import COLOR_TO_IDX, OBJECT_TO_IDX, Ball, Box, Door, Key, MiniGridEnv, WorldObj
from gym_minigrid.roomgrid import RoomGrid
from gym_minigrid.wrappers import FullyObsWrapper

import utils_folder.minigrid.levels as compiled
from torchbeast.core import forms
from torchbeast.core.environment import Environment, LastStates, Output
from torchbeast.core.settings import UsageError
from utils_folder.minigrid.base import NO_SUCH, Engine
from utils_folder.minigrid.frames import Frames
from utils_folder.minigrid.levels import Game, World
from utils_folder.minigrid.making import NO_RULE, LevelMaker, Rule, UnknownLevel, outlives
from utils_folder.minigrid.names import GYM_TASKS, reason
from utils_folder.minigrid.rules import foreign, inherited, is_plain

logger = logging.getLogger("amigo")

OUTPUT = ("frame", "reward", "done", "truncated", "episode_return", "episode_step", "carried_obj", "carried_col")
ENTERED = (compiled.EMPTY, compiled.FLOOR, compiled.GOAL, compiled.LAVA, compiled.DOOR)  # cells that an agent can be in
LOW_WORD = (1 << 64) - 1
LOOKED_AT = 6  # levels of a user's task, before it is said to be playable


def _position_of(env: MiniGridEnv, thing: WorldObj) -> tuple[int, int]:
    index = next(index for index, other in enumerate(env.grid.grid) if other is thing)
    return index % env.width, index // env.width


PICK_UP = Rule(compiled.PICK_UP, lambda env, thing: thing is env.obj, things=lambda env: [env.obj])

# An environment class is known by the function that is its `step`.
RULES = {
    MiniGridEnv.step: NO_RULE,
    KeyCorridorEnv.step: PICK_UP,
    ObstructedMazeEnv.step: PICK_UP,
    envs.UnlockPickupEnv.step: PICK_UP,
    envs.BlockedUnlockPickupEnv.step: PICK_UP,
    envs.UnlockEnv.step: Rule(compiled.UNLOCK, lambda env, thing: thing is env.door, closed=lambda env: [env.door]),
    envs.FetchEnv.step: Rule(compiled.FETCH, lambda env, thing: (thing.type, thing.color) == (env.targetType, env.targetColor)),
    envs.RedBlueDoorEnv.step: Rule(
        compiled.RED_BLUE,
        lambda env, thing: thing is env.blue_door,
        lambda env: [_position_of(env, env.red_door)],
        lambda env: [env.blue_door],
        lambda env: [env.red_door],
    ),
    envs.GoToDoorEnv.step: Rule(compiled.GO_TO_DOOR, places=lambda env: [env.target_pos]),
    envs.GoToObjectEnv.step: Rule(compiled.GO_TO_OBJECT, places=lambda env: [env.target_pos]),
    envs.MemoryEnv.step: Rule(compiled.MEMORY, places=lambda env: [env.success_pos, env.failure_pos]),
    envs.PutNearEnv.step: Rule(
        compiled.PUT_NEAR,
        lambda env, thing: (thing.type, thing.color) == (env.move_type, env.moveColor),
        lambda env: [env.target_pos],
        single=(Door, Key, Ball, Box),  # what was dropped must be the very thing that then lies there
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
    """None if the engine plays this environment exactly as gym-minigrid does, else one line that says why it does not."""
    return _refusal(GYM_TASKS.make(env_name)) if GYM_TASKS.has(env_name) else NO_SUCH


def _refusal(env: gym.Env) -> str | None:
    game = env.unwrapped
    if isinstance(game, MiniGridEnv) and type(game).step not in RULES:
        return f"the engine does not know the rules of {type(game).__name__}.step"
    why = foreign(env)
    if why is not None:
        return why
    steps = [base for base in type(game).__mro__ if "step" in vars(base) and base not in (MiniGridEnv, gym.Env)]
    if len(steps) > 1:
        return f"{type(game).__name__} has the rules of {' and of '.join(base.__name__ for base in steps)}"
    if _maker(game) != compiled.MADE_BY_GYM:
        return None
    seeds = range(1 if is_plain(game) else LOOKED_AT)
    try:
        return outlives(LevelMaker(game, RULES[type(game).step]), [seeding.np_random(seed)[0] for seed in seeds])
    except UnknownLevel as error:
        return str(error)
    except Exception as error:  # whatever a user's code raises is said when gym-minigrid is to play it
        return f"its levels fail ({reason(error)})"


class CompiledEnvironment(Environment):
    """E copies of a gym-minigrid environment, each exactly as gym-minigrid plays it.

    Environment e is `GYM_TASKS.make(env_name)` whose first reset is `reset(seed=seeds[e])` and whose later ones are
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
        refusal = playable(env_name)
        if refusal:
            raise ValueError(f"{env_name}: {refusal}")
        game = _make(env_name)
        self._rule = RULES[type(game).step]
        self._game = _game(game, self._rule)
        self._env_name = env_name
        # gym-minigrid's own classes keep nothing from level to level: one object makes the levels of all.
        others = [] if is_plain(game) else [_make(env_name) for _ in seeds[1:]]
        self._makers = [LevelMaker(each, self._rule) for each in (game, *others)]
        self._seed_state = np.empty(0, np.uint64) if fixed_seed is None else _seed_state(fixed_seed)
        self._world = _empty_world(len(seeds), game.width, game.height)
        self._live = LiveEpisodes(env_name, self._world)
        for e, seed in enumerate(seeds):
            self._world.random_state[e] = _seed_state(seed)
        self._output = {name: getattr(self._world, name) for name in OUTPUT}
        self._last = LastStates(self._output)
        self.num_envs = len(seeds)
        self.frame_shape = self._world.frame.shape[1:]
        self.max_steps = game.max_steps

    def keep_last(self, names: Sequence[str]) -> None:
        self._last.add(names)

    def initial(self) -> Output:
        self._world.reward[:] = 0
        self._world.done[:] = True
        self._world.truncated[:] = False
        self._last.clear()
        self._world.episode_return[:] = 0
        self._world.episode_step[:] = 0
        self._begin(self._world.done)
        return self._output

    def step(self, actions: np.ndarray) -> Output:
        actions = np.ascontiguousarray(actions, dtype=np.int64)
        if actions.shape != (self.num_envs,):
            raise ValueError(f"expected {self.num_envs} actions, got an array of shape {actions.shape}")
        returns = self._live.returns()
        ended = compiled.step_all(self._world, actions, self._game)
        if returns:
            self._live.step(actions, returns)
            ended = self._world.done.any()
        self._last.clear()
        if ended:
            self._last.keep(self._world.done)
            self._begin(self._world.done)
        return self._output

    def restart(self, where: np.ndarray) -> Output:
        where = np.asarray(where, dtype=bool)
        if where.shape != (self.num_envs,):
            raise ValueError(f"expected {self.num_envs} booleans, got an array of shape {where.shape}")
        going_on = where & ~self._world.done
        self._last.keep(going_on)
        self._world.done[going_on] = True
        self._begin(going_on)
        return self._output

    def state_dict(self) -> dict:
        arrays = self._world._asdict()
        arrays["random_state"] = arrays["random_state"].view(np.int64)  # torch saves no uint64
        world = {name: torch.tensor(array) for name, array in arrays.items()}
        return {"env_name": self._env_name, "world": world, **self._live.state_dict()}

    def load_state_dict(self, state: dict) -> Output:
        """Goes back to the moment of `state_dict`.

        Raises: ValueError if that was another game or another number of environments.
        """
        where = "source/actor/environment"
        live = _live_episodes(self.num_envs, self.max_steps)
        entries = {"env_name": forms.text, "world": forms.mapping, "live": live}
        forms.record(entries, optional=("live",))(where, state)
        frames = state["world"].get("frame")
        if state["env_name"] != self._env_name or np.shape(frames) != self._world.frame.shape:
            theirs = f"{forms.shown(state['env_name'])} ({forms.shown(frames)})"
            raise ValueError(f"a state of {theirs} does not fit {self.num_envs} x {self._env_name}")
        arrays = self._world._asdict()
        arrays["random_state"] = arrays["random_state"].view(np.int64)
        form = forms.like(arrays, _fits(self._world, self.max_steps), optional=("truncated",))  # younger than some
        form(f"{where}/world", state["world"])
        for name, array in arrays.items():
            array[...] = state["world"][name].numpy() if name in state["world"] else 0
        live = state.get("live", {})
        self._check_shown(where, live)
        for e, (random_state, actions) in live.items():
            maker = self._maker_of(e)
            maker.begin(_generator(random_state.numpy().view(np.uint64)))
            self._live.replay(e, maker.game, random_state.numpy().view(np.uint64), actions)
        return self._output

    def _check_shown(self, where: str, live: Collection[int]) -> None:
        """What is in the cells is what is shown of them: positions and frames cannot be looked at one by one.

        But for episodes that are played `live`.
        """
        world, envs = self._world, np.array([e for e in range(self.num_envs) if e not in live], int)
        again = _empty_world(*world.frame.shape[:3])
        again.cells[:], again.agent[:] = world.cells, world.agent
        for e in envs.tolist():
            compiled.show_level(again, e)
        same = (
            np.array_equal(again.frame[envs], world.frame[envs])
            and np.array_equal((world.carried & compiled.KIND_MASK)[envs], world.carried_obj[envs])
            and np.array_equal((world.carried >> compiled.COLOUR_SHIFT & compiled.COLOUR_MASK)[envs], world.carried_col[envs])
        )
        standing = compiled.kind_of(world.cells[envs, world.agent[envs, 0], world.agent[envs, 1]])
        if not same or not np.isin(standing, ENTERED).all():
            raise forms.EntryError(f"{where}/world is no state of this game: its frames are not those of its cells")

    def close(self) -> None:
        for maker in self._makers:
            maker.game.close()

    def _maker_of(self, e: int) -> LevelMaker:
        return self._makers[e % len(self._makers)]

    def _begin(self, where: np.ndarray) -> None:
        """New levels where `where`."""
        if self._game.maker != compiled.MADE_BY_GYM:
            compiled.begin_where(self._world, where, self._game, self._seed_state)
            return
        for e in np.flatnonzero(where):
            self._take_level(e)

    def _take_level(self, e: int) -> None:
        """Has gym-minigrid make environment e's next level, and copies it; or has gym-minigrid play it too."""
        world, maker = self._world, self._maker_of(e)
        random_state = self._seed_state if self._seed_state.size else world.random_state[e].copy()
        was_live = self._live.end(e)
        maker.begin(_generator(random_state))
        why = maker.depends(played=not was_live)
        if why is not None:
            raise UsageError(f"{self._env_name}: a level depends on those before it ({why}): use --engine gym")
        world.random_state[e] = _random_state(maker.game.np_random)
        try:
            level = maker.level()
        except UnknownLevel as why:
            self._live.begin(e, maker.game, random_state, str(why))
            return
        world.cells[e], world.agent[e] = level.cells, level.agent
        for place, position in enumerate(level.places):
            world.places[e, place] = position
        compiled.show_level(world, e)


def _fits(world: World, max_steps: int) -> dict[str, forms.Fits]:
    """Which values the arrays of a world can have, where not all do."""
    W, H = world.frame.shape[1:3]
    within = forms.within
    return {
        "cells": _are_objects,
        "carried": _are_objects,
        "agent": lambda agent: (agent >= 0) & (agent < torch.tensor([W, H, len(compiled.STEP_X)])),
        "places": lambda places: (places >= 0) & (places < torch.tensor([W, H])),
        "random_state": lambda state: (state[:, 3] & 1 == 1) & within(0, 1)(state[:, 4]) & within(0, 2**32 - 1)(state[:, 5]),
        "episode_step": within(0, max_steps),
    }


def _live_episodes(num_envs: int, max_steps: int) -> forms.Form:
    """By environment: where the generator stood before the level was made, and the actions since."""
    actions = forms.each(forms.whole(0, compiled.NUM_ACTIONS - 1), at_most=max_steps)
    episode = forms.pair(forms.tensor((6,), torch.int64), actions)
    return forms.record(dict.fromkeys(range(num_envs), episode), optional=range(num_envs))


def _are_objects(cells: torch.Tensor) -> torch.Tensor:
    """Which integers are objects as levels.py describes them, and so is what they contain."""
    fits = cells >= 0
    for _ in range(64 // compiled.CONTENTS_SHIFT):
        fits &= compiled.kind_of(cells) < len(OBJECT_TO_IDX)
        fits &= (compiled.colour_of(cells) < len(COLOR_TO_IDX)) & (cells % (1 << compiled.CONTENTS_SHIFT) < 2 * compiled.TARGET)
        cells = cells >> compiled.CONTENTS_SHIFT
    return fits


class LiveEpisodes:
    """Episodes whose levels the compiled rules do not play: gym-minigrid's own objects play them, from the level on.

    Compiled code plays in an empty room in their place, and what it says of it is written over.
    """

    def __init__(self, env_name: str, world: World):
        self._env_name = env_name
        self._world = world
        self._frames = Frames(env_name, world.frame.shape[1:3])
        self._games: dict[int, tuple[FullyObsWrapper, np.ndarray, list[int]]] = {}
        self._said = False

    def begin(self, e: int, game: MiniGridEnv, random_state: np.ndarray, why: str) -> None:
        """`game` plays environment e's episode; it has made the level, from `random_state`."""
        world, env = self._world, FullyObsWrapper(game)
        self._games[e] = env, random_state, []
        world.cells[e], world.agent[e], world.places[e], world.carried[e] = compiled.WALL_CELL, (1, 1, 0), 0, compiled.NOTHING
        with self._frames.naming(game):
            observation = env.observation(game.gen_obs())
        self._show(e, observation)
        if not self._said:
            logger.warning(f"gym-minigrid itself plays such levels of {self._env_name}: {why}")
            self._said = True

    def end(self, e: int) -> bool:
        """Whether environment e's episode was one of these; it is over."""
        return self._games.pop(e, None) is not None

    def returns(self) -> dict[int, np.float32]:
        """What these episodes have returned so far."""
        world = self._world
        return {e: np.float32(0) if world.done[e] else world.episode_return[e] for e in self._games}

    def step(self, actions: np.ndarray, returns: dict[int, np.float32]) -> None:
        """Takes their actions, after compiled code has taken all; `returns` is what they had returned before."""
        world = self._world
        for e, before in returns.items():
            env, _, taken = self._games[e]
            taken.append(int(actions[e]))
            with self._frames.naming(env):
                observation, reward, terminated, truncated, _ = env.step(taken[-1])
            self._show(e, observation)
            world.reward[e], world.done[e], world.truncated[e] = reward, terminated or truncated, truncated and not terminated
            world.episode_return[e] = before + np.float32(reward)

    def _show(self, e: int, observation: dict) -> None:
        for name, value in self._frames(self._games[e][0], observation).items():
            getattr(self._world, name)[e] = value

    def state_dict(self) -> dict:
        """Empty where there are none."""
        if not self._games:
            return {}
        return {"live": {e: (torch.tensor(at.view(np.int64)), list(taken)) for e, (_, at, taken) in self._games.items()}}

    def replay(self, e: int, game: MiniGridEnv, random_state: np.ndarray, actions: list[int]) -> None:
        """An episode that another process began; `game` has made its level again."""
        env = FullyObsWrapper(game)
        game.gen_obs()
        for action in actions:
            env.step(action)
        self._games[e] = env, random_state.copy(), list(actions)


def _make(env_name: str) -> MiniGridEnv:
    return GYM_TASKS.make(env_name).unwrapped


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
        truncated=np.zeros(E, bool),
        episode_return=np.zeros(E, np.float32),
        episode_step=np.zeros(E, np.int32),
        carried_obj=np.zeros(E, np.uint8),
        carried_col=np.zeros(E, np.uint8),
    )


def _maker(env: MiniGridEnv) -> int:
    """Who makes the levels: compiled code only for exact classes, as what they are registered with allows."""
    maker = MAKERS.get(type(env), compiled.MADE_BY_GYM)
    if maker == compiled.MADE_BY_GYM or vars(env).keys() & inherited(type(env)) or not _has_rooms(env):
        return compiled.MADE_BY_GYM
    if maker == compiled.KEY_CORRIDOR:
        fits = env.num_cols == 3 and env.obj_type in ("key", "ball", "box")
        return maker if fits else compiled.MADE_BY_GYM
    fits = isinstance(env.key_in_box, bool) and isinstance(env.blocked, bool)
    if maker == compiled.OBSTRUCTED_MAZE_FULL:
        fits = fits and tuple(env.agent_room) in np.ndindex(3, 3) and env.num_quarters in (1, 2, 3, 4)
    return maker if fits else compiled.MADE_BY_GYM


def _has_rooms(env: RoomGrid) -> bool:
    pitch = env.room_size - 1
    return (env.width, env.height) == (pitch * env.num_cols + 1, pitch * env.num_rows + 1)


def _game(env: MiniGridEnv, rule: Rule) -> Game:
    maker = _maker(env)
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


COMPILED = Engine(playable, CompiledEnvironment, GYM_TASKS.names, GYM_TASKS.survey)

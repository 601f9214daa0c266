"""Levels that gym-minigrid makes, and whether the compiled rules play them: what of a level the rules read, looked at."""

from __future__ import annotations

import copy
import pickle
import random
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import numpy as np
from gym_minigrid.minigrid import Ball, Box, Door, Floor, Goal, Grid, Key, Lava, MiniGridEnv, Wall, WorldObj

import utils_folder.minigrid.levels as compiled
from utils_folder.minigrid.rules import foreign_attribute, is_own, is_plain

MOST_STEPS = 2**31 - 1  # episode_step is int32
DEEPEST = 4  # boxes within boxes that an integer has room for
KINDS = {Wall: "wall", Floor: "floor", Door: "door", Key: "key", Ball: "ball", Box: "box", Goal: "goal", Lava: "lava"}
COLOURS = ("red", "green", "blue", "purple", "yellow", "grey")
UNCHANGING = (Wall, Floor, Goal, Lava)  # objects that nothing happens to
PARTS = {"type", "color", "contains", "init_pos", "cur_pos"}
DOOR_PARTS = {*PARTS, "is_open", "is_locked"}
INTEGERS = (int, np.integer)
PLAIN = (bool, int, float, str, bytes, type(None), np.generic)
LEFT_BY_PLAY = ("carrying", "step_count", "grid")  # what an episode that compiled code has played has not changed


class UnknownLevel(ValueError):
    """The compiled rules do not play this level; the message says what of it they do not know."""


class Rule(NamedTuple):
    """What ends an episode: its code for the compiled half, and what of a gym-minigrid level the rule refers to.

    closed: doors that must be closed at first, for the compiled rule looks at the action that opens them.
    doors: other doors, things: other objects that the rule refers to; no two are the same.
    single: classes of which no object may be in two places, for what happens to it in one would be seen in the other.
    """

    code: int
    is_target: Callable[[MiniGridEnv, WorldObj], bool] = lambda env, thing: False
    places: Callable[[MiniGridEnv], Sequence[tuple[int, int]]] = lambda env: ()
    closed: Callable[[MiniGridEnv], Sequence[WorldObj]] = lambda env: ()
    doors: Callable[[MiniGridEnv], Sequence[WorldObj]] = lambda env: ()
    things: Callable[[MiniGridEnv], Sequence[WorldObj | None]] = lambda env: ()
    single: tuple[type[WorldObj], ...] = (Door,)


NO_RULE = Rule(compiled.NO_RULE)


class Level(NamedTuple):
    """A level as the compiled rules play it: int64 [W, H], (x, y, direction), and the rule's places."""

    cells: np.ndarray
    agent: tuple[int, int, int]
    places: list[tuple[int, int]]


class LevelMaker:
    """Makes one environment's levels, one after the other, with a gym-minigrid object that nobody plays with meanwhile.

    Args:
        game: the object. Its class may be a user's: then every environment needs an object of its own, for it may count its
            levels, and what it reads while it makes one is watched: an episode that compiled code has played has left no
            trace on the object.
        rule: the game's.
    """

    def __init__(self, game: MiniGridEnv, rule: Rule):
        self.game = game
        self._rule = rule
        self.plain = is_plain(game)
        self._limit, self._size = game.max_steps, (game.width, game.height)
        self._changed: set[str] = set(LEFT_BY_PLAY)
        self._played: weakref.WeakSet = weakref.WeakSet()
        self.reads: dict[str, Any] = {}  # what the last level's making read of the level before it
        self.begun = False

    def begin(self, generator: np.random.Generator) -> None:
        """Makes the next level: what MiniGridEnv.reset does, but for the partial view, which nobody looks at."""
        game = self.game
        game.np_random = generator
        before = dict(vars(game))
        with self._watched():
            game.agent_pos = (-1, -1)
            game.agent_dir = -1
            game._gen_grid(game.width, game.height)
        self._changed |= {name for name, value in vars(game).items() if before.get(name, before) is not value}
        placed = game.agent_pos >= (0, 0) if isinstance(game.agent_pos, tuple) else all(game.agent_pos >= 0)
        assert placed, f"{type(game).__name__}._gen_grid places no agent"
        under = game.grid.get(*game.agent_pos)
        assert under is None or under.can_overlap(), f"{type(game).__name__}._gen_grid places the agent on an object"
        game.carrying = None
        game.step_count = 0
        self.begun = True

    def _check(self) -> None:
        game = self.game
        why = foreign_attribute(game)
        if why is not None:
            raise UnknownLevel(why)
        if type(game.max_steps) is not int or not 1 <= game.max_steps <= MOST_STEPS or game.max_steps != self._limit:
            raise _unknown(game, f"a step limit of its own ({game.max_steps})")
        grid = game.grid
        if type(grid) is not Grid or vars(grid).keys() != {"width", "height", "grid"} or type(grid.grid) is not list:
            raise _unknown(game, "a grid of its own kind")
        sizes = {(grid.width, grid.height), (game.width, game.height), self._size}
        if len(sizes) > 1 or len(grid.grid) != grid.width * grid.height:
            raise _unknown(game, f"a grid of {grid.width}x{grid.height} in place of {self._size[0]}x{self._size[1]}")
        position, direction = game.agent_pos, game.agent_dir
        if not _is_position(position, grid) or not isinstance(direction, INTEGERS) or not 0 <= direction < 4:
            raise _unknown(game, f"an agent at {position} that looks to {direction}")

    def level(self) -> Level:
        """The level just made. Raises: UnknownLevel."""
        if not self.plain:
            self._check()
        try:
            return self._level()
        except (AttributeError, StopIteration, TypeError, ValueError) as error:
            if isinstance(error, UnknownLevel):
                raise
            raise _unknown(self.game, f"a level without what its rules read ({error})") from None

    def _level(self) -> Level:
        game, rule = self.game, self._rule
        cells = level_cells(game, rule)
        if any(type(thing) not in KINDS for thing in rule.things(game) if thing is not None):
            raise _unknown(game, "a task about an object of its own")
        closed, doors = rule.closed(game), rule.doors(game)
        if any(type(door) is not Door for door in (*closed, *doors)) or any(door.is_open for door in closed):
            raise _unknown(game, "doors of its task that are open at first, or no doors")
        twice = _twice([thing for thing in _things(game) if isinstance(thing, rule.single)]) or _twice([*closed, *doors])
        if twice is not None:
            raise _unknown(game, f"one {twice.type} in two places")
        self._played.update(thing for thing in _things(game) if not isinstance(thing, UNCHANGING))
        places = [_place(game, position) for position in rule.places(game)]
        return Level(cells, (*(int(at) for at in game.agent_pos), int(game.agent_dir)), places)

    def depends(self, *, played: bool = True) -> str | None:
        """What the level just made may have from earlier ones that compiled code has played, on which it has left no trace.

        played: whether the last one was. What is read of it that no play changes, a number for instance, is no matter.
        """
        if self.plain:
            return None
        generator = self.game.np_random
        if type(generator) is not np.random.Generator or type(generator.bit_generator) is not np.random.PCG64:
            return "random numbers of another kind than gym's"
        again = [thing for thing in _things(self.game) if type(thing) in KINDS and thing in self._played]
        if again:
            return f"a {again[0].type} that was in one before"
        deep = [name for name, value in self.reads.items() if name in LEFT_BY_PLAY or not isinstance(value, PLAIN)]
        return min(deep) if played and deep else None

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Notes which of the attributes that came with the last level are read before they are set."""
        self.reads = {}
        if self.plain or not self.begun:
            yield
            return
        cls = type(self.game)
        names = [name for name in self._changed if not hasattr(getattr(cls, name, None), "__set__")]
        before = {name: vars(cls)[name] for name in names if name in vars(cls)}
        stale = {name for name in names if name in vars(self.game)}
        for name in names:
            setattr(cls, name, _Watch(name, getattr(cls, name, _Watch), self.game, stale, self.reads))
        try:
            yield
        finally:
            for name in names:
                if name in before:
                    setattr(cls, name, before[name])
                else:
                    delattr(cls, name)


class _Watch:
    """In a class: an attribute of one of its objects, which notes whether it is read while it is in `stale`."""

    def __init__(self, name: str, default: Any, game: MiniGridEnv, stale: set[str], reads: dict[str, Any]):
        self._name, self._default, self._game, self._stale, self._reads = name, default, game, stale, reads

    def __get__(self, game: MiniGridEnv | None, cls: type) -> Any:
        values = {} if game is None else vars(game)
        if game is self._game and self._name in self._stale:
            self._reads[self._name] = values[self._name]
        if self._name not in values and self._default is _Watch:
            raise AttributeError(f"{cls.__name__!r} object has no attribute {self._name!r}")
        return values.get(self._name, self._default)

    def __set__(self, game: MiniGridEnv, value: Any) -> None:
        vars(game)[self._name] = value
        if game is self._game:
            self._stale.discard(self._name)

    def __delete__(self, game: MiniGridEnv) -> None:
        if self._name not in vars(game):
            raise AttributeError(self._name)
        del vars(game)[self._name]
        self._stale.discard(self._name)


# --- Objects and places -----------------------------------------------------------------------------------------------


def level_cells(game: MiniGridEnv, rule: Rule) -> np.ndarray:
    """The grid of a gym-minigrid environment as int64 [W, H]. Raises: UnknownLevel."""
    row_by_row = [cell(game, thing, rule) for thing in game.grid.grid]
    return np.array(row_by_row, np.int64).reshape(game.height, game.width).T


def cell(game: MiniGridEnv, thing: WorldObj | None, rule: Rule = NO_RULE, depth: int = 0) -> int:
    """An object, or None for an empty cell, as the integer that levels.py describes. Raises: UnknownLevel."""
    if thing is None:
        return compiled.EMPTY_CELL
    kind = KINDS.get(type(thing))
    if kind is None:
        raise _unknown(game, f"objects of class {type(thing).__name__}")
    if not (thing.type == kind and thing.color in COLOURS and vars(thing).keys() == (DOOR_PARTS if kind == "door" else PARTS)):
        raise _unknown(game, f"a {kind} with something of its own ({_odd_part(thing, kind)})")
    if type(thing) is Door and thing.is_open and thing.is_locked:
        raise _unknown(game, "doors that are open and locked at once")
    if depth == DEEPEST:
        raise _unknown(game, f"objects in more than {DEEPEST - 1} boxes")
    number, colour, state = thing.encode()
    contents = 0 if type(thing) is not Box or thing.contains is None else cell(game, thing.contains, rule, depth + 1)
    target = compiled.TARGET if rule.is_target(game, thing) else 0
    return compiled.make_object(number, colour, state, contents) | target


def _things(game: MiniGridEnv) -> Iterator[WorldObj]:
    """The objects of a level, and what is in them."""
    waiting = [(thing, 0) for thing in game.grid.grid if thing is not None]
    while waiting:
        thing, depth = waiting.pop()
        yield thing
        inside = vars(thing).get("contains")
        if isinstance(inside, WorldObj) and depth < DEEPEST:
            waiting.append((inside, depth + 1))


def _twice(things: Sequence[WorldObj]) -> WorldObj | None:
    """The first one that is the same thing as one before it."""
    seen: set[int] = set()
    return next((thing for thing in things if id(thing) in seen or seen.add(id(thing))), None)


def _odd_part(thing: WorldObj, kind: str) -> str:
    more = sorted(vars(thing).keys() ^ (DOOR_PARTS if type(thing) is Door else PARTS))
    return more[0] if more else f"type {thing.type}" if thing.type != kind else f"colour {thing.color}"


def _is_position(position: Any, grid: Grid) -> bool:
    if not isinstance(position, (tuple, np.ndarray)) or len(position) != 2:
        return False
    whole = all(isinstance(at, INTEGERS) for at in position)
    return whole and 0 <= position[0] < grid.width and 0 <= position[1] < grid.height


def _place(game: MiniGridEnv, position: Any) -> tuple[int, int]:
    if type(position) is not tuple or not _is_position(position, game.grid):
        raise _unknown(game, f"a task at {position}, which is no cell")
    return int(position[0]), int(position[1])


def _unknown(game: MiniGridEnv, what: str) -> UnknownLevel:
    return UnknownLevel(f"{type(game).__name__} has {what}, which the engine does not know")


# --- What outlives a level --------------------------------------------------------------------------------------------


def outlives(maker: LevelMaker, generators: Sequence[np.random.Generator]) -> str | None:
    """Makes levels, and looks whether one is told anything by those before it; what it is told by, in one line, or None.

    They are made twice; the second time each as if those before it had been played, in every way that play could show.

    Raises: UnknownLevel if one of these levels is not played.
    """
    game, levels = maker.game, []
    for generator in copy.deepcopy(generators):
        before = _remembered(game)
        maker.begin(generator)
        after = _remembered(game)
        changed = sorted(key for key, (value, content) in after.items() if _changed(before.get(key), value, content))
        by = maker.depends() or next(iter([*sorted(maker.reads), *changed]), None)
        if by:
            return _dependence(game, by)
        levels.append(maker.level())
    if maker.plain:
        return None
    with ExitStack() as traces:
        for generator, unplayed in zip(copy.deepcopy(generators), levels):
            maker.begin(generator)
            if not _same_level(maker.level(), unplayed):
                return _dependence(game, "they differ after one that was played")
            traces.enter_context(_played(game))
    return None


def _dependence(game: MiniGridEnv, by: str) -> str:
    return f"the levels of {type(game).__name__} depend on those before them ({by})"


def _same_level(level: Level, other: Level) -> bool:
    return np.array_equal(level.cells, other.cells) and level[1:] == other[1:]


@contextmanager
def _played(game: MiniGridEnv) -> Iterator[None]:
    """A level's traces as if it had been played: its doors turned, its things gone, one of them carried, its time over.

    Afterwards its things, which may be kept somewhere, are as they were.
    """
    things = list(_things(game))
    before = [dict(vars(thing)) for thing in things]
    movable = [thing for thing in things if isinstance(thing, (Key, Ball, Box))]
    game.grid.grid[:] = [None if isinstance(thing, (Key, Ball, Box)) else thing for thing in game.grid.grid]
    for thing in things:
        if isinstance(thing, Door):
            thing.is_open, thing.is_locked = not thing.is_open, False
    for thing in movable:
        thing.cur_pos = np.array([-1, -1])
    game.carrying, game.step_count = movable[0] if movable else None, game.max_steps
    try:
        yield
    finally:
        for thing, parts in zip(things, before):
            vars(thing).update(parts)


def _changed(before: tuple[Any, bytes | None] | None, value: Any, content: bytes | None) -> bool:
    """Whether it is the same thing as before, with another content; in a class or module, also whether it is another thing."""
    return before is not None and before[1] != content and (before[0] is value or isinstance(value, PLAIN))


def _remembered(game: MiniGridEnv) -> dict[str, tuple[Any, bytes | None]]:
    """What making a level could leave behind, by name: the thing and what is in it."""
    if is_plain(game):
        return {}
    kept = {"random": (random, _content(random.getstate())), "numpy.random": (np.random, _content(np.random.get_state()))}
    for base in type(game).__mro__:
        if is_own(base):
            continue
        module = vars(sys.modules[base.__module__]) if base.__module__ in sys.modules else {}
        for holder, values in ((base.__name__, vars(base)), (base.__module__, module)):
            data = {name: value for name, value in values.items() if not name.startswith("__") and _is_data(value)}
            kept |= {f"{holder}.{name}": (value, _content(value)) for name, value in data.items()}
    attributes = {name: value for name, value in vars(game).items() if name != "_np_random" and not isinstance(value, PLAIN)}
    return kept | {name: (value, _content(value)) for name, value in attributes.items() if _is_data(value)}


def _is_data(value: Any) -> bool:
    return not isinstance(value, (ModuleType, type, FunctionType, property, staticmethod, classmethod))


def _content(value: Any) -> bytes | None:
    try:
        return pickle.dumps(value)
    except Exception:  # what cannot be written down is not compared
        return None

"""Whose rules a game has: gym-minigrid's own, or a user's.

The compiled engine plays gym-minigrid's rules and no others. What these read is not listed here but found in the code of
gym-minigrid's step, reset and observation themselves: every name that they read, and that what they call reads. Of that
nothing may be another's: not a class attribute or property, not an attribute of the object, not the classes and tables of
gym-minigrid's modules, which are compared with a second, private reading of their source; and that source must be the
release's, for it may have been edited where it is installed.
"""

from __future__ import annotations

import builtins
import enum
import functools
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

import gym
import numpy as np
from gym.envs.registration import load
from gym.wrappers import OrderEnforcing
from gym_minigrid import minigrid, wrappers
from gym_minigrid.minigrid import MiniGridEnv

PACKAGE = "gym_minigrid."
ROOTS = ("reset", "step", "_reward", "gen_obs", "np_random", "unwrapped", "action_space")
FREE = {"__init__", "_gen_grid", "render"}  # who makes an object and its levels, and draws them, changes no rule
# What any class has, or says of itself; no lookup and no comparison goes through these.
HARMLESS = {
    *("__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__abstractmethods__"),
    *("_abc_impl", "__parameters__", "__orig_bases__", "__firstlineno__", "__static_attributes__", "__annotate__"),
    *("__annotations_cache__", "__annotate_func__", "__conditional_annotations__", "__slotnames__", "__str__", "__repr__"),
}
TABLES = ("OBJECT_TO_IDX", "COLOR_TO_IDX", "STATE_TO_IDX", "IDX_TO_OBJECT", "IDX_TO_COLOR", "COLORS")  # may have more in them
PLAIN = (bool, int, float, complex, str, bytes, type(None), tuple, range, np.generic)
RELEASE = "gym-minigrid 1.2.2"
# The modules that its rules and levels come from, and how the SHA-256 of their source begins.
SOURCES = {
    "minigrid": "3ca71c7fa52870ec",
    "roomgrid": "522cf645fd84de3c",
    "wrappers": "df5b2ad3cc2c0644",
    "envs.blockedunlockpickup": "b063794d06a416e3",
    "envs.crossing": "9ed539bca1589b31",
    "envs.distshift": "d9acfeb51b147238",
    "envs.doorkey": "93785bfac53b37d0",
    "envs.dynamicobstacles": "c6b9153ad1ea046b",
    "envs.empty": "43aa0ea9ef82bae8",
    "envs.fetch": "2003a79f3e7a48a2",
    "envs.fourrooms": "4cf1e252848ac678",
    "envs.gotodoor": "5d37e95f33a51117",
    "envs.gotoobject": "972c7bb086b316f2",
    "envs.keycorridor": "79f259d722105b4d",
    "envs.lavagap": "3dc678d1ab2e6b93",
    "envs.lockedroom": "8ce2a40af0886117",
    "envs.memory": "5463a2802a4fe166",
    "envs.multiroom": "a03d5bad0dacae4e",
    "envs.obstructedmaze": "da7f719f685394f9",
    "envs.playground": "743250ca82267c5c",
    "envs.putnear": "3b9f6cc50bf16178",
    "envs.redbluedoors": "0dcf0694f484f754",
    "envs.unlock": "df6c5cd9210224d6",
    "envs.unlockpickup": "97935ab690398a70",
}


def foreign(env: gym.Env) -> str | None:
    """What of the rules of `env`, as gym.make returns it, is not gym-minigrid's own, in one line; None if nothing is."""
    game = env.unwrapped
    if not isinstance(game, MiniGridEnv):
        return f"{type(game).__name__} is no MiniGrid environment"
    cls = type(game)
    return _foreign_wrapper(env, game) or _foreign_module(cls) or foreign_class(cls) or foreign_attribute(game)


def is_own(cls: type) -> bool:
    """Whether a class is gym-minigrid's own (or gym's, or Python's), not a user's, wherever that one has been put."""
    module = sys.modules.get(cls.__module__)
    standard = cls.__module__.startswith("gym.") or cls.__module__ in ("builtins", "typing", "abc")
    standard = standard or is_shipped(cls.__module__)
    return standard and getattr(module, cls.__name__, None) is cls


def is_plain(game: MiniGridEnv) -> bool:
    """Whether no code and no object of a user's has a hand in the game: gym-minigrid's own class, called with plain values."""
    spec = game.spec
    if not is_own(type(game)) or spec is None:
        return False
    entry_point = spec.entry_point if callable(spec.entry_point) else load(spec.entry_point)
    return entry_point is type(game) and all(_is_plain_value(value) for value in spec.kwargs.values())


def _is_plain_value(value: Any) -> bool:
    if isinstance(value, type):
        return is_own(value)
    if type(value) in (list, tuple):
        return all(map(_is_plain_value, value))
    return type(value) in PLAIN


def _foreign_wrapper(env: gym.Env, game: MiniGridEnv) -> str | None:
    while env is not game:
        if type(env) is not OrderEnforcing or vars(env).keys() & vars(OrderEnforcing).keys():
            return f"it is wrapped in {type(env).__name__}"
        env = env.env
    return None


def foreign_class(cls: type) -> str | None:
    """What a user's classes among the bases define that the rules read."""
    read = names_read(cls)
    for base in cls.__mro__:
        if is_own(base):
            continue
        for name in vars(base):
            special = name.startswith("__") and name.endswith("__")
            if name not in FREE and name not in HARMLESS and (special or name in read):
                return f"{base.__name__} has its own {name}"
    return None


def foreign_attribute(game: MiniGridEnv) -> str | None:
    """What the object itself has that its class has too, and the rules read; and actions that are not MiniGrid's."""
    name = type(game).__name__
    hidden = sorted((vars(game).keys() & names_read(type(game)) & inherited(type(game))) - FREE)
    if hidden:
        return f"{name} has its own {hidden[0]}"
    if game.render_mode == "human":
        return f"{name} is drawn while it is played"
    if getattr(game, "actions", None) is not MiniGridEnv.Actions:
        return f"{name} has its own numbering of actions"
    number, expected = getattr(game.action_space, "n", None), len(MiniGridEnv.Actions)
    return None if number == expected else f"{name} has {number} actions instead of {expected}"


@functools.cache
def inherited(cls: type) -> frozenset[str]:
    """Methods, properties and the like; plain values of a class are there to be set anew on an object."""
    own = (vars(base) for base in cls.__mro__ if is_own(base))
    return frozenset(name for members in own for name, value in members.items() if not isinstance(value, (*PLAIN, dict)))


# --- What the rules read ----------------------------------------------------------------------------------------------


@functools.cache
def names_read(cls: type) -> frozenset[str]:
    """Every name that the rules of a game of this class read: in its own step's code and in all that this calls."""
    own = [base for base in cls.__mro__ if is_own(base) and base is not object]
    things = [value for value in vars(minigrid).values() if isinstance(value, type) and value.__module__ == minigrid.__name__]
    holders = [*own, *things, wrappers.FullyObsWrapper]
    found: set[str] = set()
    waiting = {*ROOTS, "observation"}
    while waiting:
        name = waiting.pop()
        found.add(name)
        codes = [code for holder in holders for code in _codes(vars(holder).get(name))] if name not in FREE else []
        waiting |= {read for code in codes for read in code.co_names} - found
    return frozenset(found)


def _codes(value: Any) -> Iterator[CodeType]:
    """The code of a function, a property or a method, and of the functions within."""
    parts = [getattr(value, part, None) for part in ("fget", "fset", "fdel", "__func__")]
    waiting = [part.__code__ for part in (value, *parts) if isinstance(part, FunctionType)]
    while waiting:
        code = waiting.pop()
        yield code
        waiting += [constant for constant in code.co_consts if isinstance(constant, CodeType)]


# --- Whether gym-minigrid is as it was released -----------------------------------------------------------------------


def _foreign_module(cls: type) -> str | None:
    """What has been put into gym-minigrid's modules, or taken out, where the rules or levels of a game of `cls` come from."""
    modules = {*(base.__module__ for base in cls.__mro__ if is_shipped(base.__module__)), minigrid.__name__, wrappers.__name__}
    edited = [name for name in sorted(modules) if _digest(name) != SOURCES[name.removeprefix(PACKAGE)]]
    if edited:
        return f"the file of {edited[0]} is not that of {RELEASE}"
    for name in sorted({*modules, "gym.core", "gym.utils.seeding"}):
        different = _difference(sys.modules[name], _as_released(name), name)
        if different is not None:
            return f"{different} is not gym-minigrid's own"
    return None


def is_shipped(module: str) -> bool:
    """Whether gym-minigrid comes with this module, edited or not."""
    return module.startswith(PACKAGE) and module.removeprefix(PACKAGE) in SOURCES


@functools.cache
def _digest(name: str) -> str | None:
    """Of a module's source, whatever its line ends are; None where it has none."""
    source = importlib.util.find_spec(name).loader.get_source(name)
    return None if source is None else hashlib.sha256(source.encode()).hexdigest()[:16]


@functools.cache
def _as_released(name: str) -> ModuleType:
    """A module as its source makes it, known to nobody else."""
    spec = importlib.util.find_spec(name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _difference(now: Any, released: Any, name: str) -> str | None:
    """The name of the first part that differs; None if there is none."""
    if now is released:
        return None
    if isinstance(released, (ModuleType, type)) and type(now) is type(released):
        return _different_member(now, released, name)
    for part in ("fget", "fset", "fdel", "__func__"):
        if hasattr(released, part) and hasattr(now, part):
            different = _difference(getattr(now, part), getattr(released, part), name)
            if different is not None:
                return different
    return None if _same(now, released) else name


def _different_member(now: Any, released: Any, name: str) -> str | None:
    module = isinstance(released, ModuleType)
    more = vars(now).keys() - vars(released).keys()
    if module:
        more &= vars(builtins).keys()  # anything else that is put there is read by nobody
    elif _identity(now) != _identity(released):
        return name
    elif issubclass(released, enum.Enum):
        return None if [*now.__members__.items()] == [*released.__members__.items()] else name
    if more - HARMLESS:
        return f"{name}.{min(more - HARMLESS)}"
    for member, value in vars(released).items():
        if member in HARMLESS or (module and member.startswith("__")):
            continue
        if member not in vars(now):
            return f"{name}.{member}"
        different = _difference_of_member(vars(now)[member], value, f"{name}.{member}", name)
        if different is not None:
            return different
    return None


def _identity(cls: type) -> list[tuple[str, str]]:
    return [(base.__module__, base.__qualname__) for base in cls.__mro__]


def _difference_of_member(now: Any, released: Any, name: str, holder: str) -> str | None:
    """As `_difference`, but what a module has imported from another one is compared there: here it must be the thing itself."""
    imported = getattr(released, "__module__", None)
    if isinstance(released, type) and imported != holder and not holder.startswith(f"{imported}."):
        return None if now is released else name
    if isinstance(released, ModuleType):
        return None if now is released else name
    return _difference(now, released, name)


def _same(now: Any, released: Any) -> bool:
    if isinstance(released, FunctionType):
        return isinstance(now, FunctionType) and _function(now) == _function(released)
    if type(now) is not type(released):
        return False
    if isinstance(released, dict):
        return all(key in now and _same(now[key], value) for key, value in released.items())
    if isinstance(released, (list, tuple)):
        return len(now) == len(released) and all(_same(a, b) for a, b in zip(now, released))
    if isinstance(released, np.ndarray):
        return np.array_equal(now, released)
    if isinstance(released, (*PLAIN, set, frozenset)):
        return now == released
    return True


def _function(function: FunctionType) -> tuple[CodeType, str, str]:
    return function.__code__, repr(function.__defaults__), repr(function.__kwdefaults__)

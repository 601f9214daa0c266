"""Which task is meant, and a first look at it.

A task is written `[MODULE:]NAME[ ARGUMENTS]`: NAME is registered with gym (or Gymnasium), by MODULE if one is named, which is
then imported; ARGUMENTS are a JSON object, what gym.make gets.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import gym
import numpy as np
from gym_minigrid.minigrid import MiniGridEnv
from gym_minigrid.wrappers import FullyObsWrapper

from models.grid import MAX_SIDE

LEVELS = 32  # looked at before a task is played
LONGEST_REASON = 200
PARTIAL_VIEW = (7, False)  # `Survey.agent_view` of what view.py shows
LIMITS = ("max_steps", "max_episode_steps")
SIZES = ("size", "width", "height", "grid_size", "room_size", "num_rows", "num_cols")
NOT_FOR_USERS = {
    "id": "the task is named by --env",
    "disable_env_checker": "this program looks at the task itself",
    "autoreset": "this program resets its environments itself",
    "apply_api_compatibility": "mend the environment instead: its step must return five values",
    "render_mode": "this program draws itself (--record_video, --mode test_render)",
}


class UnknownEnvironment(gym.error.UnregisteredEnv, ValueError):
    """Nothing is registered under the name; the message is one line with the remedy."""


class Survey(NamedTuple):
    """What a first look at some levels of a task tells.

    size: (W, H) of the grid; action_names: of each action; max_steps: the step limit, of levels that set their own the
    largest; missions: those seen that differ; reward_range: the least and the most that a step pays, as the task says itself;
    own_view: whether what the task shows is not what MiniGrid shows of it; agent_view: how many cells a side the part has that
    MiniGrid's agents see of it, and whether they see through walls.
    """

    size: tuple[int, int]
    action_names: tuple[str, ...]
    max_steps: int
    missions: tuple[str, ...]
    reward_range: tuple[float, float]
    own_view: bool
    agent_view: tuple[int, bool]

    @property
    def num_actions(self) -> int:
        return len(self.action_names)

    def notices(self, *, partial: bool) -> list[str]:
        """What of the task is in no input of the agent, a line each: missions that differ, observations of its own.

        partial: the student sees the partial view, not the whole grid.
        """
        told = []
        if len(self.missions) > 1:
            some = ", ".join(repr(mission) for mission in self.missions[:2])
            told.append(
                f"the mission differs by episode ({some}, ...) and is in no input of the agent: what the grid does not show "
                "of it, it can only guess"
            )
        if self.own_view:
            seen = "the partial view" if partial else "the whole grid"
            told.append(f"the task has observations of its own, which are in no input of the agent: it sees {seen}")
        if partial and self.agent_view != PARTIAL_VIEW:
            side, through = self.agent_view
            told.append(
                f"the task's own view has {side}x{side} cells{' and goes through walls' * through}, the student's is that of "
                f"all tasks: {PARTIAL_VIEW[0]}x{PARTIAL_VIEW[0]} cells, and walls and closed doors hide what is behind them"
            )
        return told


# -- Names -------------------------------------------------------------------------------------------------------------


def task_name(env: str, env_args: str | None) -> str:
    """The task of these flags."""
    return env if env_args is None else f"{env} {env_args}"


def module_of(task: str) -> str | None:
    """The module that is imported for it; None if it needs none."""
    module, colon, _ = task.partition(" ")[0].partition(":")
    return module if colon else None


def canonical_args(text: str | None) -> str | None:
    """The same JSON object, always written in one way; None for an empty one. Raises: ValueError, one line with the remedy."""
    args = {} if text is None else _parsed(text)
    for name, value in args.items():
        if name in NOT_FOR_USERS:
            raise ValueError(f"--env_args {name}: leave it out; {NOT_FOR_USERS[name]}")
        if name in LIMITS and not (type(value) is int and 1 <= value < 2**31):
            raise ValueError(f"--env_args {name} must be a whole number of steps, at least 1, got {json.dumps(value)[:40]}")
        if name in SIZES and isinstance(value, (int, float)) and value > MAX_SIDE:
            raise ValueError(f"--env_args {name} {value}: grids end at {MAX_SIDE}x{MAX_SIDE}; choose a smaller one")
    return json.dumps(args, sort_keys=True) if args else None


def _parsed(text: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a name stands in it twice")
        return dict(pairs)

    def no_number(text: str) -> None:
        raise ValueError(f"{text} is no number of JSON")

    try:
        args = json.loads(text, object_pairs_hook=unique, parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--env_args must be a JSON object such as '{{\"max_steps\": 200}}' ({reason(error)})") from None
    if not isinstance(args, dict):
        raise ValueError(f"--env_args must be a JSON object such as '{{\"max_steps\": 200}}', not {text[:40]}")
    return args


def _tuples(value: Any) -> Any:
    """JSON knows lists only; positions and the like are tuples in gym-minigrid."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"the module {module!r} cannot be imported ({reason(error)}): mend it, install it, or set PYTHONPATH"
        ) from error


def close_to(name: str, known: Sequence[str]) -> str | None:
    """A question after the names that are nearest to this one; None if none is near."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else None


# -- Making it ---------------------------------------------------------------------------------------------------------


class Tasks:
    """The tasks that are registered with a library, and a first look at each.

    Args:
        library: gym, or Gymnasium, which has the same registry, makers and wrappers.
        game: the class that its MiniGrid environments derive from.
        seen: the wrapper that shows the whole grid.
        names: tells which environments the library has without a user's module.
        others: tasks that are registered besides may be asked for without naming a module.
    """

    def __init__(
        self, library: ModuleType, game: type, seen: type, names: Callable[[], list[str]], *, others: bool = False
    ):
        self._library = library
        self._game_class = game
        self._seen = seen
        self.names = names
        self._others = others
        self._looked: dict[tuple[str, int | None], tuple[Any, Survey]] = {}

    def has(self, task: str) -> bool:
        """Whether it is registered here. Imports its module. Raises: ValueError if that cannot be imported."""
        name, module = _named(task)
        if module is not None:
            _import(module)
        return name in self._library.envs.registry and (module is not None or self._others or name in self.names())

    def make(self, task: str) -> Any:
        """The environment of a task, as gym.make makes it. Raises: ValueError, one line with the remedy."""
        spec, args = self._spec(task)
        with _faults(f"{task} cannot be made{', see --env_args' if args else ''}"):
            return self._made(spec, args)

    def _spec(self, task: str) -> tuple[Any, dict[str, Any]]:
        """What is registered under the name, and its arguments. Raises: UnknownEnvironment."""
        name, module = _named(task)
        if not self.has(task):
            registry = list(self._library.envs.registry)
            hint = close_to(name, registry if module is not None else self.names())
            if module is not None:
                remedy = hint or "register it there, with gym (or with Gymnasium, if it is made for Minigrid 3)"
                raise UnknownEnvironment(f"the module {module!r} registers no environment {name!r}: {remedy}")
            raise UnknownEnvironment(f"unknown environment {name!r}: {hint or 'no known name is near it'}")
        _, _, text = task.partition(" ")
        args = _parsed(text) if text else {}
        return self._library.envs.registry[name], {key: _tuples(value) for key, value in args.items()}

    def _made(self, spec: Any, args: dict[str, Any]) -> Any:
        make, limit = self._library.make, args.get("max_steps")
        try:
            env = make(spec, disable_env_checker=True, **args)
        except TypeError:
            if limit is None:
                raise
            # Most of MiniGrid's classes compute it themselves and do not take it.
            env = make(spec, disable_env_checker=True, **{name: args[name] for name in args if name != "max_steps"})
        if limit is not None and env.unwrapped.max_steps != limit:
            env.unwrapped.max_steps = limit
        return env

    def _game(self, task: str) -> Any:
        """`make` of what must be MiniGrid. Raises: ValueError."""
        env = self.make(task)
        game, wanted = env.unwrapped, self._game_class
        if not isinstance(game, wanted):
            first, *others = self.names()
            raise ValueError(
                f"{task} is no MiniGrid environment, as {first} and {len(others)} others are: {type(game).__name__} does not "
                f"derive from {wanted.__module__}.{wanted.__name__}"
            )
        return env

    def step_limit(self, env: Any) -> int:
        """Of an episode: the environment's own or a TimeLimit's around it, whichever comes first."""
        limits = [env.unwrapped.max_steps]
        while env is not env.unwrapped:
            if isinstance(env, self._library.wrappers.TimeLimit):
                limits.append(env._max_episode_steps)
            env = env.env
        return min(limits)

    # -- The first look ------------------------------------------------------------------------------------------------

    def survey(self, task: str, fixed_seed: int | None = None) -> Survey:
        """Plays every action once, and looks at some levels; only at that of `fixed_seed` if it is given.

        Raises: ValueError, one line, if it cannot be played; UnknownEnvironment, which is one, if it is not registered here.
        """
        spec, _ = self._spec(task)
        seen, found = self._looked.get((task, fixed_seed), (None, None))
        if found is None or seen is not spec:  # a module may have registered another task under the name
            found = self._look(task, fixed_seed)
            self._looked[task, fixed_seed] = spec, found
        return found

    def _look(self, task: str, fixed_seed: int | None) -> Survey:
        seeds = range(LEVELS) if fixed_seed is None else [fixed_seed]
        env = self._game(task)
        self._check_actions(task, env)
        self._try(task, env, seeds)
        limits, missions = [], {}
        for seed in seeds:
            with _faults(f"{task} fails at a reset"):
                if _completed(env, seed):
                    limits.append(self.step_limit(env))
                    missions[str(env.unwrapped.mission)] = None
        self._check_limits(task, limits)
        game = env.unwrapped
        size, names = (game.grid.width, game.grid.height), _action_names(self._as_registered(env))
        with _faults(f"{task} fails at a reset"):
            own_view = self._own_view(env, seeds)
        env.close()
        agent_view = int(game.agent_view_size), bool(game.see_through_walls)
        return Survey(size, names, max(limits), tuple(missions), _reward_range(env), own_view, agent_view)

    def _own_view(self, env: Any, seeds: Sequence[int]) -> bool:
        """Whether the task shows something else than the part that MiniGrid's agents see, or the whole grid."""
        shown, _ = env.reset(seed=next(seed for seed in seeds if _completed(env, seed)))
        part = self._game_class.gen_obs(env.unwrapped)
        whole = self._seen(env).observation(part)
        same = any(np.array_equal(shown.get("image"), view["image"]) for view in (part, whole))
        return not same or bool(shown.keys() - part.keys())

    def _check_actions(self, task: str, env: Any) -> None:
        space = env.action_space
        if not isinstance(space, self._library.spaces.Discrete) or space.start != 0:
            raise ValueError(f"{task} has the actions {space}: this program plays Discrete(n), counted from 0")

    def _check_limits(self, task: str, limits: list[int]) -> None:
        asked = self._spec(task)[1].get("max_steps", math.inf)
        for limit in limits:
            if not 1 <= limit < math.inf:
                raise ValueError(f"{task} has a step limit of {limit}: give one, as --env_args '{{\"max_steps\": 200}}'")
            if limit > asked:
                raise ValueError(f"{task}: its levels set their own step limit ({limit}): leave max_steps out of --env_args")

    def _as_registered(self, env: Any) -> Any:
        """Without the wrappers that the library's `make` puts around it."""
        while isinstance(env, (self._library.wrappers.OrderEnforcing, self._library.wrappers.TimeLimit)):
            env = env.env
        return env

    def _try(self, task: str, env: Any, seeds: Sequence[int]) -> None:
        """Takes each action, without the library's own wrappers first, so that what is wrong can be named."""
        game = self._as_registered(env)
        with _faults(f"{task} fails at its first reset"):
            seed = next((seed for seed in seeds if _completed(game, seed)), seeds[0])
            answer = game.reset(seed=seed)
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise ValueError(
                f"{task} speaks gym's old API: its reset must return an observation and a dict, as gym 0.26 has it"
            )
        with _faults(f"{task} cannot be seen: leave out its wrappers of observations, the agent sees the whole grid"):
            seen = self._seen(env)
        for action in range(env.action_space.n):
            with _faults(f"{task} fails at its first step, with action {action}"):
                game.reset(seed=seed)
                answer = game.step(action)
            _check_answer(task, answer)
            with _faults(f"{task} fails at its first step, with action {action}"):
                seen.reset(seed=seed)
                _, reward, *_ = seen.step(action)
                finite = math.isfinite(reward)
            if not finite:
                raise ValueError(f"{task} gives a reward of {reward} for action {action}: rewards must be finite")


def _named(task: str) -> tuple[str, str | None]:
    """The name that is registered, and the module that registers it, if one is named."""
    name, module = task.partition(" ")[0], module_of(task)
    return (name, None) if module is None else (name.partition(":")[2], module)


def _reward_range(env: Any) -> tuple[float, float]:
    """Gymnasium's environments need not say it."""
    low, high = getattr(env, "reward_range", (-math.inf, math.inf))
    return float(low), float(high)


def _action_names(env: Any) -> tuple[str, ...]:
    """As the task itself calls them; by their number where it has no name for one.

    A wrapper's `actions` count before those within. What is within one that changes actions does not name them.
    """
    number, game = env.action_space.n, env.unwrapped
    while env is not game and not (hasattr(type(env), "actions") or "actions" in vars(env)):
        if hasattr(type(env), "action") or env.action_space != env.env.action_space:
            return tuple(f"action {action}" for action in range(number))
        env = env.env
    try:
        names = {int(action): str(action.name) for action in env.actions}
    except (AttributeError, TypeError, ValueError):
        names = {}
    return tuple(names.get(action, f"action {action}") for action in range(number))


def _completed(env: Any, seed: int) -> bool:
    """Resets it; False where gym-minigrid gives the level up, which it says by a RecursionError of its own."""
    try:
        env.reset(seed=seed)
    except RecursionError as error:
        if "recursion depth" in str(error):
            raise
        return False
    return True


def _check_answer(task: str, answer: Any) -> None:
    if isinstance(answer, tuple) and len(answer) == 5:
        return
    found = f"{len(answer)} values" if isinstance(answer, tuple) else type(answer).__name__
    old = " (gym's old API)" if found == "4 values" else ""
    raise ValueError(
        f"{task}: its step returns {found}{old}, and must return five: observation, reward, terminated, truncated, info"
    )


@contextlib.contextmanager
def _faults(what: str) -> Iterator[None]:
    """Whatever the user's code raises becomes a ValueError of one line."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what} ({reason(error)})") from error


def reason(error: BaseException) -> str:
    text = " ".join(str(error).split())[:LONGEST_REASON]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


# gym-minigrid's own, and any that a user's module has registered with gym.
GYM_TASKS = Tasks(
    gym, MiniGridEnv, FullyObsWrapper, lambda: [name for name in gym.envs.registry if name.startswith("MiniGrid-")], others=True
)

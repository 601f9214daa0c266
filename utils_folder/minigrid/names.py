"""Which task is meant, and a first look at it.

A task is written `[MODULE:]NAME[ ARGUMENTS]`: NAME is registered with gym, by MODULE if one is named, which is then imported;
ARGUMENTS are a JSON object, what gym.make gets.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import gym
from gym.envs.registration import EnvSpec
from gym.wrappers import TimeLimit
from gym_minigrid.minigrid import MiniGridEnv
from gym_minigrid.wrappers import FullyObsWrapper

from models.grid import MAX_SIDE

LEVELS = 10  # looked at before a task is played
LONGEST_REASON = 200
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
    largest; missions: those seen that differ.
    """

    size: tuple[int, int]
    action_names: tuple[str, ...]
    max_steps: int
    missions: tuple[str, ...]

    @property
    def num_actions(self) -> int:
        return len(self.action_names)

    def notice(self) -> str | None:
        """One line on missions that differ by episode; None where there is one only."""
        if len(self.missions) < 2:
            return None
        some = ", ".join(repr(mission) for mission in self.missions[:2])
        return (
            f"the mission differs by episode ({some}, ...) and is in no input of the agent: what the grid does not show of "
            "it, it can only guess"
        )


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
        raise ValueError(f"--env_args must be a JSON object such as '{{\"max_steps\": 200}}' ({_reason(error)})") from None
    if not isinstance(args, dict):
        raise ValueError(f"--env_args must be a JSON object such as '{{\"max_steps\": 200}}', not {text[:40]}")
    return args


def _tuples(value: Any) -> Any:
    """JSON knows lists only; positions and the like are tuples in gym-minigrid."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _spec(task: str) -> tuple[EnvSpec, dict[str, Any]]:
    """What is registered under the name, and its arguments. Imports its module. Raises: ValueError with the remedy."""
    name, _, text = task.partition(" ")
    module = module_of(task)
    if module is not None:
        name = name.partition(":")[2]
        _import(module)
    if name not in gym.envs.registry:
        raise UnknownEnvironment(_unknown(name, module))
    return gym.envs.registry[name], {key: _tuples(value) for key, value in (_parsed(text) if text else {}).items()}


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"the module {module!r} cannot be imported ({_reason(error)}): mend it, install it, or set PYTHONPATH"
        ) from error


def _unknown(name: str, module: str | None) -> str:
    """What to say of a name that is not registered."""
    everything = [known for known in gym.envs.registry if known.startswith("MiniGrid-") or module is not None]
    close = difflib.get_close_matches(name, everything, n=3, cutoff=0.5)
    if module is not None:
        hint = f"did you mean {' or '.join(close)}?" if close else "call gym.register in it (gym's, not gymnasium's)"
        return f"the module {module!r} registers no environment {name!r}: {hint}"
    hint = f"did you mean {' or '.join(close)}?" if close else f"known ones are {_known()}"
    return f"unknown environment {name!r}: {hint}; one of your own is MODULE:NAME, whose module registers it"


def _known() -> str:
    first, *others = [known for known in gym.envs.registry if known.startswith("MiniGrid-")]
    return f"{first} and {len(others)} others"


# -- Making it ---------------------------------------------------------------------------------------------------------


def make_game(task: str) -> gym.Env:
    """The gym environment of a task, as gym.make makes it. Raises: ValueError, one line with the remedy."""
    spec, args = _spec(task)
    with _faults(f"{task} cannot be made{', see --env_args' if args else ''}"):
        return _made(spec, args)


def _game(task: str) -> gym.Env:
    """`make_game` of what must be MiniGrid. Raises: ValueError."""
    env = make_game(task)
    game = env.unwrapped
    if not isinstance(game, MiniGridEnv):
        raise ValueError(
            f"{task} is no MiniGrid environment, as {_known()} are: {type(game).__name__} does not derive from "
            "gym_minigrid.minigrid.MiniGridEnv"
        )
    return env


def _made(spec: EnvSpec, args: dict[str, Any]) -> gym.Env:
    limit = args.get("max_steps")
    try:
        env = gym.make(spec, disable_env_checker=True, **args)
    except TypeError:
        if limit is None:
            raise
        # Most of gym-minigrid's classes compute it themselves and do not take it.
        env = gym.make(spec, disable_env_checker=True, **{name: args[name] for name in args if name != "max_steps"})
    if limit is not None and env.unwrapped.max_steps != limit:
        env.unwrapped.max_steps = limit
    return env


def step_limit(env: gym.Env) -> int:
    """Of an episode: the environment's own or a TimeLimit's around it, whichever comes first."""
    limits = [env.unwrapped.max_steps]
    while env is not env.unwrapped:
        if isinstance(env, TimeLimit):
            limits.append(env._max_episode_steps)
        env = env.env
    return min(limits)


def check_name(task: str) -> None:
    """Raises ValueError, naming close matches, unless it is a MiniGrid environment that can be made."""
    _game(task).close()


def grid_size(task: str) -> tuple[int, int]:
    """(W, H) of a task: of the grid that its levels are in. Raises: ValueError if there is no such one."""
    game = _game(task).unwrapped
    with _faults(f"{task} fails at its first reset"):
        for seed in range(LEVELS):
            if _completed(game, seed):
                break
        return _size(game)


def _size(game: MiniGridEnv) -> tuple[int, int]:
    return game.grid.width, game.grid.height


def reward_range(task: str) -> tuple[float, float]:
    """The least and the most that a step of a task pays, as it says itself."""
    low, high = make_game(task).reward_range
    return float(low), float(high)


# -- The first look ----------------------------------------------------------------------------------------------------


def survey(task: str, fixed_seed: int | None = None) -> Survey:
    """Plays every action once, and looks at some levels; only at that of `fixed_seed` if it is given.

    Raises: ValueError, one line, if it cannot be played.
    """
    seeds = range(LEVELS) if fixed_seed is None else [fixed_seed]
    env = _game(task)
    _check_actions(task, env)
    _try(task, env, seeds)
    limits, missions = [], {}
    for seed in seeds:
        with _faults(f"{task} fails at a reset"):
            if _completed(env, seed):
                limits.append(step_limit(env))
                missions[str(env.unwrapped.mission)] = None
    game = env.unwrapped
    _check_limits(task, limits)
    env.close()
    return Survey(_size(game), _action_names(game, env.action_space.n), max(limits), tuple(missions))


def _check_actions(task: str, env: gym.Env) -> None:
    space = env.action_space
    if not isinstance(space, gym.spaces.Discrete) or space.start != 0:
        raise ValueError(f"{task} has the actions {space}: this program plays Discrete(n), counted from 0")


def _check_limits(task: str, limits: list[int]) -> None:
    asked = _spec(task)[1].get("max_steps", math.inf)
    for limit in limits:
        if not 1 <= limit < math.inf:
            raise ValueError(f"{task} has a step limit of {limit}: give one, as --env_args '{{\"max_steps\": 200}}'")
        if limit > asked:
            raise ValueError(f"{task}: its levels set their own step limit ({limit}): leave max_steps out of --env_args")


def _action_names(game: MiniGridEnv, number: int) -> tuple[str, ...]:
    """As the task itself calls them; by their number where it has no name for one."""
    try:
        names = {int(action): str(action.name) for action in game.actions}
    except (AttributeError, TypeError, ValueError):
        names = {}
    return tuple(names.get(action, f"action {action}") for action in range(number))


def _completed(env: gym.Env, seed: int) -> bool:
    """Resets it; False where gym-minigrid gives the level up, which it says by a RecursionError of its own."""
    try:
        env.reset(seed=seed)
    except RecursionError as error:
        if "recursion depth" in str(error):
            raise
        return False
    return True


def _try(task: str, env: gym.Env, seeds: Sequence[int]) -> None:
    """Takes each action, in the environment itself first, so that what is wrong can be named."""
    game = env.unwrapped
    with _faults(f"{task} fails at its first reset"):
        seed = next((seed for seed in seeds if _completed(game, seed)), seeds[0])
        answer = game.reset(seed=seed)
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise ValueError(f"{task} speaks gym's old API: its reset must return an observation and a dict, as gym 0.26 has it")
    seen = FullyObsWrapper(env)
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
        raise ValueError(f"{what} ({_reason(error)})") from error


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())[:LONGEST_REASON]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__

"""A batch of environments that reset themselves, and the adapter that makes one of ordinary gym environments."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from torchbeast.core import forms
from torchbeast.core.settings import UsageError

Output = dict[str, np.ndarray]
LAST = "last_"  # how the names of what `keep_last` keeps begin


class Environment(abc.ABC):
    """E environments that step together and reset themselves.

    Every method that returns an output returns the same dict of arrays, overwritten by the next call: copy what you keep.
    It has at least

        frame           uint8   [E, W, H, C]
        reward          float32 [E]  of the action just taken
        done            bool    [E]  that action ended an episode (True in the first output of all)
        truncated       bool    [E]  it was the step limit that ended it, and nothing else; only where `done`
        episode_return  float32 [E]  sum of rewards of the current episode
        episode_step    int32   [E]  actions taken in the current episode

    Where `done`, `frame` is already the first one of the next episode, while `episode_return` and `episode_step` still
    belong to the episode that ended; their sums restart with the next step.

    Attributes:
        num_envs: E.
        frame_shape: (W, H, C).
        num_actions: A.
        max_steps: the step limit of an episode.
    """

    num_envs: int
    frame_shape: tuple[int, int, int]
    num_actions: int
    max_steps: int

    def keep_last(self, names: Sequence[str]) -> None:
        """From now on the output also has `last_NAME`: where `done`, what NAME was in the state that the action led to.

        That state is replaced by the next episode's first one; elsewhere, and in the first output of all, `last_NAME` is 0.
        NAME is a field of the observation.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot keep last states, which these settings need")

    @abc.abstractmethod
    def initial(self) -> Output:
        """Starts an episode everywhere: reward 0, done True, episode_return 0, episode_step 0."""

    @abc.abstractmethod
    def step(self, actions: np.ndarray) -> Output:
        """Takes one action (integers [E], each in [0, A)) in each environment."""

    @abc.abstractmethod
    def restart(self, where: np.ndarray) -> Output:
        """Ends the current episode where `where` (bool [E]) as if its last step had ended it: `done` and `frame` change.

        Returns the output of the last step with `done` set and the next episode's first `frame` there; environments whose
        episode that step has ended already are left alone.
        """

    @abc.abstractmethod
    def state_dict(self) -> dict:
        """All that is needed to go on exactly from here: numbers, strings, lists, dicts and tensors only."""

    @abc.abstractmethod
    def load_state_dict(self, state: dict) -> Output:
        """Goes back to the moment of `state_dict` and returns the output that was current then."""

    def missions(self) -> list[str]:
        """What each present episode asks for, in words, [E]; empty where that is not known."""
        return [""] * self.num_envs

    def close(self) -> None:
        """Frees what the environments hold."""


class LastStates:
    """What is kept of states that a reset replaces, in an environment's output."""

    def __init__(self, out: Output):
        self._out = out
        self._names: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self._names)

    def add(self, names: Sequence[str]) -> None:
        self._names = (*self._names, *names)
        self._out.update({LAST + name: np.zeros_like(self._out[name]) for name in names})

    def clear(self) -> None:
        """Called before each action, and in the first state of all."""
        for name in self._names:
            self._out[LAST + name][...] = 0

    def keep(self, ended: np.ndarray) -> None:
        """Called where (bool [E]) an episode has just ended, while the observation is the action's, before a reset."""
        for name in self._names:
            self._out[LAST + name][ended] = self._out[name][ended]


def generator_state(generator: np.random.Generator) -> dict:
    """A NumPy PCG64 generator's state as strings and small ints (its 128-bit numbers do not fit a tensor).

    Raises: UsageError if it is another one.
    """
    if not isinstance(getattr(generator, "bit_generator", None), np.random.PCG64):
        raise UsageError("an environment's np_random must be NumPy's Generator(PCG64(seed)), as gym makes it")
    state = generator.bit_generator.state
    return {
        "state": str(state["state"]["state"]),
        "inc": str(state["state"]["inc"]),
        "has_uint32": state["has_uint32"],
        "uinteger": state["uinteger"],
    }


GENERATOR = {  # `generator_state`
    "state": forms.digits,
    "inc": forms.digits,
    "has_uint32": forms.whole(high=1),
    "uinteger": forms.whole(high=2**32 - 1),
}


def set_generator_state(generator: np.random.Generator, state: dict) -> None:
    """Puts a PCG64 generator into the state that `generator_state` returned."""
    generator.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": int(state["state"]), "inc": int(state["inc"])},
        "has_uint32": state["has_uint32"],
        "uinteger": state["uinteger"],
    }


class GymEnvironment(Environment):
    """Ordinary gym 0.26 or Gymnasium environments, stepped one after the other.

    Args:
        envs: the gym environments; their randomness must come from `unwrapped.np_random`.
        observe: `observe(env, observation)` -> the observation's fields, among them `frame`.
        seeds: environment e's first episode is `reset(seed=seeds[e])`, later ones go on with its generator.
        max_steps: the step limit of an episode.
        fixed_seed: if given, every episode is `reset(seed=fixed_seed)`.
        playing: `with playing(env)` is around each reset and step of it, and may say better what has gone wrong there.
    """

    def __init__(
        self,
        envs: Sequence[Any],
        observe: Callable[[Any, Any], dict[str, Any]],
        *,
        seeds: Sequence[int],
        max_steps: int,
        fixed_seed: int | None = None,
        playing: Callable[[Any], AbstractContextManager] = nullcontext,
    ):
        if len(envs) != len(seeds):
            raise ValueError(f"{len(envs)} environments need as many seeds, got {len(seeds)}")
        self._envs = list(envs)
        self._observe = observe
        self._seeds: list[int | None] = list(seeds)
        self._fixed_seed = fixed_seed
        self._playing = playing
        self.num_envs = len(self._envs)
        self.num_actions = int(self._envs[0].action_space.n)
        self.max_steps = max_steps
        # An episode's exact state is where its generator stood before the level was made, and the actions since.
        self._level_states: list[dict | None] = [None] * self.num_envs
        self._actions: list[list[int]] = [[] for _ in self._envs]
        first = [self._reset(e) for e in range(self.num_envs)]
        self.frame_shape = np.asarray(first[0]["frame"]).shape
        self._first: list[dict] | None = first
        self._out: Output = {name: np.stack([np.asarray(f[name]) for f in first]) for name in first[0]}
        self._out["reward"] = np.zeros(self.num_envs, np.float32)
        self._out["done"] = np.ones(self.num_envs, np.bool_)
        self._out["truncated"] = np.zeros(self.num_envs, np.bool_)
        self._out["episode_return"] = np.zeros(self.num_envs, np.float32)
        self._out["episode_step"] = np.zeros(self.num_envs, np.int32)
        self._last = LastStates(self._out)

    def keep_last(self, names: Sequence[str]) -> None:
        self._last.add(names)

    def _reset(self, e: int) -> dict[str, Any]:
        env = self._envs[e]
        seed = self._fixed_seed if self._fixed_seed is not None else self._seeds[e]
        self._seeds[e] = None  # used once
        self._level_states[e] = None if seed is not None else generator_state(env.unwrapped.np_random)
        if seed is not None:
            self._level_states[e] = {"seed": int(seed)}
        self._actions[e] = []
        with self._playing(env):
            observation, _ = env.reset(seed=seed)
        return self._observe(env, observation)

    def _put(self, e: int, observed: dict[str, Any]) -> None:
        for name, value in observed.items():
            self._out[name][e] = value

    def _pay(self, e: int, reward: Any) -> None:
        """Raises: UsageError if it is no finite number: learning would leave that out, or clip it, without a word."""
        with np.errstate(over="ignore"):
            self._out["reward"][e] = reward
            self._out["episode_return"][e] += self._out["reward"][e]
        if not np.isfinite(self._out["reward"][e]):
            name, step = type(self._envs[e].unwrapped).__name__, len(self._actions[e])
            raise UsageError(f"{name} pays a reward of {reward} at step {step} of an episode: rewards must be finite numbers")

    def initial(self) -> Output:
        if self._first is None:
            raise RuntimeError("initial() starts the environments; they have been started already")
        self._first = None
        return self._out

    def step(self, actions: np.ndarray) -> Output:
        out = self._out
        for e, env in enumerate(self._envs):
            action = int(actions[e])
            if out["done"][e]:
                out["episode_return"][e] = 0
                out["episode_step"][e] = 0
            self._actions[e].append(action)
            with self._playing(env):
                observation, reward, terminated, truncated, _ = env.step(action)
            self._pay(e, reward)
            out["done"][e] = terminated or truncated
            out["truncated"][e] = truncated and not terminated
            out["episode_step"][e] += 1
            if self._last or not out["done"][e]:
                self._put(e, self._observe(env, observation))
        self._last.clear()
        self._last.keep(out["done"])
        for e in np.flatnonzero(out["done"]):
            self._put(e, self._reset(e))
        return out

    def restart(self, where: np.ndarray) -> Output:
        going_on = where & ~self._out["done"]
        self._last.keep(going_on)
        for e in np.flatnonzero(going_on):
            self._out["done"][e] = True
            self._put(e, self._reset(e))
        return self._out

    def state_dict(self) -> dict:
        return {
            "levels": [dict(level) for level in self._level_states],
            "actions": [list(actions) for actions in self._actions],
            "out": {name: torch.from_numpy(value.copy()) for name, value in self._out.items()},
        }

    def load_state_dict(self, state: dict) -> Output:
        """Makes each level again and replays its actions."""
        self._check(state)
        self._first = None
        for e, (level, actions) in enumerate(zip(state["levels"], state["actions"], strict=True)):
            env = self._envs[e]
            if "seed" not in level:
                set_generator_state(env.unwrapped.np_random, level)
            observation, _ = env.reset(seed=level.get("seed"))
            for action in actions:
                observation = env.step(action)[0]
            self._compare(e, observation, state)
            self._seeds[e] = None
            self._level_states[e] = dict(level)
            self._actions[e] = list(actions)
        for name, value in state["out"].items():
            self._out[name][...] = value.numpy()
        return self._out

    def _compare(self, e: int, observation: Any, state: dict) -> None:
        """Raises: EntryError unless the replayed episode of environment e has come to where its output says it is."""
        out = state["out"]
        observed = self._observe(self._envs[e], observation)
        same = all(np.array_equal(out[name][e].numpy(), value) for name, value in observed.items())
        if not same or (not out["done"][e] and out["episode_step"][e] != len(state["actions"][e])):
            raise forms.EntryError(f"source/actor/environment: episode {e} does not lead to what its environment shows")

    def _check(self, state: dict) -> None:
        action = forms.whole(high=self.num_actions - 1)
        wanted = {
            "levels": forms.each(forms.mapping, count=self.num_envs),
            "actions": forms.each(forms.each(action, at_most=self.max_steps), count=self.num_envs),
            "out": forms.like(self._out, optional=("truncated",)),  # younger than some
        }
        forms.record(wanted)("source/actor/environment", state)
        for level in state["levels"]:
            form = {"seed": forms.whole()} if "seed" in level else GENERATOR
            forms.record(form)("source/actor/environment/levels", level)

    def missions(self) -> list[str]:
        return [str(getattr(env.unwrapped, "mission", "")) for env in self._envs]

    def close(self) -> None:
        for env in self._envs:
            env.close()


class Wrapper(Environment):
    """An environment around another, which says what is not its own to say."""

    def __init__(self, environment: Environment):
        self._env = environment
        self.num_envs = environment.num_envs
        self.frame_shape = environment.frame_shape
        self.num_actions = environment.num_actions
        self.max_steps = environment.max_steps

    def keep_last(self, names: Sequence[str]) -> None:
        self._env.keep_last(names)

    def state_dict(self) -> dict:
        return self._env.state_dict()

    def missions(self) -> list[str]:
        return self._env.missions()

    def close(self) -> None:
        self._env.close()


class FrameStack(Wrapper):
    """Stacks the last k frames on the last axis, oldest first; an episode starts with its first frame k times."""

    def __init__(self, environment: Environment, num_frames: int):
        if num_frames < 1:
            raise ValueError(f"num_frames must be at least 1, got {num_frames}")
        super().__init__(environment)
        self._k = num_frames
        width, height, channels = environment.frame_shape
        self.frame_shape = (width, height, channels * num_frames)
        self._channels = channels
        self._stack = np.zeros((self.num_envs, *self.frame_shape), np.uint8)
        self._own = {"frame": self._stack}  # of the output
        self._out: Output = {}

    def keep_last(self, names: Sequence[str]) -> None:
        super().keep_last(names)
        if "frame" in names:
            self._own[LAST + "frame"] = np.zeros_like(self._stack)

    def _stacked(self, out: Output, ended: np.ndarray) -> Output:
        """`ended`: where an episode had a last state."""
        c, self._out = self._channels, out
        self._stack[..., :-c] = self._stack[..., c:]
        self._stack[..., -c:] = out["frame"]
        if LAST + "frame" in self._own:
            last = self._own[LAST + "frame"]
            last[...] = 0
            last[ended] = np.concatenate([self._stack[ended, ..., :-c], out[LAST + "frame"][ended]], axis=-1)
        self._repeat_first(out, out["done"])
        return out | self._own

    def _repeat_first(self, out: Output, where: np.ndarray) -> None:
        self._stack[where] = np.tile(out["frame"][where], self._k)

    def initial(self) -> Output:
        out = self._env.initial()
        return self._stacked(out, np.zeros_like(out["done"]))

    def step(self, actions: np.ndarray) -> Output:
        out = self._env.step(actions)
        return self._stacked(out, out["done"])

    def restart(self, where: np.ndarray) -> Output:
        if LAST + "frame" in self._own:
            going_on = where & ~self._out["done"]
            self._own[LAST + "frame"][going_on] = self._stack[going_on]
        out = self._env.restart(where)
        self._repeat_first(out, where)
        return out | self._own

    def state_dict(self) -> dict:
        return {"env": self._env.state_dict(), "stack": torch.from_numpy(self._stack.copy())}

    def load_state_dict(self, state: dict) -> Output:
        stack = forms.tensor(self._stack.shape, torch.uint8)
        forms.record({"env": forms.mapping, "stack": stack})("source/actor/environment", state)
        self._out = out = self._env.load_state_dict(state["env"])
        self._stack[...] = state["stack"].numpy()
        return out | self._own

"""Tasks of users' own: the example of the page, and odd ones, as modules that can be imported."""

from __future__ import annotations

import re
from pathlib import Path

from tests.helpers.program import ROOT

(EXAMPLE,) = [
    code
    for code in re.findall(r"^```python\n(.*?)^```$", (ROOT / "utils_folder/README.md").read_text(), re.DOTALL | re.MULTILINE)
    if "gym.register(" in code
]
ODD = """
import enum
import math

import gym
import numpy as np
from gym_minigrid.envs import EmptyEnv
from gym_minigrid.minigrid import Grid, MiniGridEnv, MissionSpace
from gym_minigrid.wrappers import FullyObsWrapper, ImgObsWrapper, RGBImgObsWrapper


class Room(MiniGridEnv):
    reward = 1.0

    def __init__(self, width=6, height=5, **more):
        mission = MissionSpace(mission_func=lambda: "wait")
        super().__init__(mission_space=mission, width=width, height=height, **{"max_steps": 20, **more})
        self.prepare()

    def prepare(self):
        pass

    def _gen_grid(self, width, height):
        self.grid = Grid(width, height)
        self.grid.wall_rect(0, 0, width, height)
        self.place_agent()
        self.mission = "wait"

    def step(self, action):
        observation, _, terminated, truncated, info = super().step(min(action, 6))
        return observation, self.reward, terminated, truncated, info


class Nine(Room):
    class Actions(enum.IntEnum):
        left, right, forward, pickup, drop, toggle, done, wave, whistle = range(9)

    def prepare(self):
        self.actions = Nine.Actions
        self.action_space = gym.spaces.Discrete(9)


class Nameless(Room):
    def prepare(self):
        self.action_space = gym.spaces.Discrete(8)


class Old(Room):
    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated or truncated, info


class OldReset(Room):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)[0]


class Unseeded(Room):
    def reset(self):
        return super().reset()


class FailingStep(Room):
    def step(self, action):
        if action == 5:
            raise OSError("the door is\\nstuck")
        return super().step(action)


class FailingReset(Room):
    def _gen_grid(self, width, height):
        raise KeyError("no grid")


class FailingLater(Room):
    levels = 0

    def _gen_grid(self, width, height):
        self.levels += 1
        if self.levels > 20:
            raise KeyError("no more levels")
        super()._gen_grid(width, height)


class NotANumber(Room):
    reward = math.nan


class NoLimit(Room):
    def prepare(self):
        self.max_steps = math.inf


class OwnLimit(Room):
    def _gen_grid(self, width, height):
        super()._gen_grid(width, height)
        self.max_steps = 30


class Deep(Room):
    def _gen_grid(self, width, height):
        self._gen_grid(width, height)


class Boxed(Room):
    def prepare(self):
        self.action_space = gym.spaces.Box(0, 1, (2,))


class FromOne(Room):
    def prepare(self):
        self.action_space = gym.spaces.Discrete(7, start=1)


class NoRoom(gym.Env):
    pass


class FailingLevel(EmptyEnv):
    '''Nothing but its levels is its own.'''

    def _gen_grid(self, width, height):
        raise TypeError("a grid of\\nwords")


class Lately(Room):
    '''Its rewards are numbers until a level has been played for a while.'''

    later = math.nan

    def step(self, action):
        self.reward = self.later if self.step_count > 10 else 0.0
        return super().step(action)


class LatelyInfinite(Lately):
    later = math.inf


class LatelyNone(Lately):
    later = None


class LatelyHuge(Lately):
    '''Two of them are no number of 32 bits.'''

    later = 3e38


class Leaping(gym.ActionWrapper):
    class actions(enum.IntEnum):
        left, right, forward, pickup, drop, toggle, done, leap, spin = range(9)

    def __init__(self, env):
        super().__init__(env)
        self.action_space = gym.spaces.Discrete(9)

    def action(self, action):
        return action % 7


class Three(gym.ActionWrapper):
    '''It has no names for what it makes of the actions within.'''

    def __init__(self, env):
        super().__init__(env)
        self.action_space = gym.spaces.Discrete(3)

    def action(self, action):
        return (2, 3, 5)[action]


class FourValues(gym.Wrapper):
    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated or truncated, info


class Blind(gym.ObservationWrapper):
    def observation(self, observation):
        return {**observation, "image": 0 * observation["image"]}


class Told(Room):
    '''More is told than the grid shows.'''

    def gen_obs(self):
        return {**super().gen_obs(), "steps": self.step_count}


for kind in (Room, Told, Nine, Nameless, Old, OldReset, Unseeded, FailingStep, FailingReset, FailingLater, NotANumber, NoLimit,
             OwnLimit, Deep, Boxed, FromOne, NoRoom, FailingLevel, Lately, LatelyInfinite, LatelyNone, LatelyHuge):
    gym.register(f"{kind.__name__}-v0", entry_point=kind)
for wrapper in (Leaping, Three, Blind, FourValues, FullyObsWrapper, ImgObsWrapper, RGBImgObsWrapper):
    gym.register(f"{wrapper.__name__}-v0", entry_point=lambda wrapper=wrapper: wrapper(Room()), max_episode_steps=30)
gym.register("Short-v0", entry_point=Room, max_episode_steps=9)
gym.register("ours/Room-v1", entry_point=Room)
"""


def write(folder: Path) -> None:
    """my_tasks.py, the page's example, odd_tasks.py, and broken_tasks.py, which cannot be imported."""
    (folder / "my_tasks.py").write_text(EXAMPLE)
    (folder / "odd_tasks.py").write_text(ODD)
    (folder / "broken_tasks.py").write_text("raise SystemExit('I am no module')\n")

"""Shared by the tests of motivations and learner: settings, a scripted environment, agents, batches."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from main import settings as settings_module
from main.training.learner import Learner
from main.training.recipe import Agent, probe
from main.training.sources import InlineActor
from torchbeast.core.environment import Environment
from torchbeast.core.optimizer import LearningSettings
from torchbeast.core.rollouts import Field, Rollouts
from torchbeast.core.settings import Settings
from utils_folder.motivations.base import Motivation, Task

AGENT = 10


def make_settings(**overrides) -> Settings:
    """The default settings, with overrides; a name that is no flag is refused."""
    unknown = overrides.keys() - settings_module.defaults().keys()
    assert not unknown, f"no such flags: {unknown}"
    return settings_module.make(overrides)


class ScriptedEnvironment(Environment):
    """Plays hand-made outputs: frames [t][E, W, H, C], done and reward [t][E].

    `restarted` [E, W, H, C] are the first frames after a restart.
    """

    def __init__(self, frames, done=None, reward=None, restarted=None, max_steps=50):
        self._frames = np.asarray(frames, np.uint8)
        length, self.num_envs = self._frames.shape[:2]
        self._done = np.zeros((length, self.num_envs), bool) if done is None else np.array(done, bool)
        self._done[0] = True
        self._reward = np.zeros((length, self.num_envs), np.float32) if reward is None else np.array(reward, np.float32)
        self._restarted = restarted
        self.restarts: list[tuple[int, list[bool]]] = []
        self.frame_shape, self.num_actions, self.max_steps = self._frames.shape[2:], 7, max_steps
        self._t = 0
        self._out = {
            "frame": self._frames[0].copy(), "reward": self._reward[0].copy(), "done": self._done[0].copy(),
            "episode_return": np.zeros(self.num_envs, np.float32), "episode_step": np.zeros(self.num_envs, np.int32),
            "carried_obj": np.ones(self.num_envs, np.uint8), "carried_col": np.full(self.num_envs, 5, np.uint8),
        }  # fmt: skip

    def initial(self):
        return self._out

    def step(self, actions):
        self._t += 1
        for name, values in (("frame", self._frames), ("reward", self._reward), ("done", self._done)):
            self._out[name][:] = values[self._t]
        return self._out

    def restart(self, where):
        self.restarts.append((self._t, list(map(bool, where))))
        for e in np.flatnonzero(where & ~self._out["done"]):
            self._out["done"][e] = True
            self._out["frame"][e] = self._restarted[e]
        return self._out

    def state_dict(self):
        raise NotImplementedError

    load_state_dict = state_dict


def random_frames(*shape: int) -> Tensor:
    """uint8 [..., W, H, 3k] of random cells with one agent in each of the k frames, from torch's global generator."""
    *leading, width, height, channels = shape
    frames = torch.empty(*leading, width * height, channels // 3, 3, dtype=torch.uint8)
    for channel, size in enumerate((10, 6, 4)):
        frames[..., channel] = torch.randint(size, frames.shape[:-1])
    for frame in frames.view(-1, *frames.shape[-3:]):
        for i in range(frame.shape[1]):
            frame[torch.randint(width * height, ()), i] = torch.tensor([AGENT, 0, torch.randint(4, ())], dtype=torch.uint8)
    return frames.reshape(shape)


def random_batch(task: Task, settings: Settings, *, p_done=0.25, p_true=0.3) -> dict[str, Tensor]:
    """Rollouts as the agent of these settings declares them, with random but well-formed fields: [T+1, B, ...].

    `p_true`: share of True in the motivation's bools. What its fields mean it alone knows: where that matters, its own tests
    make them, each with a helper beside this one.
    """
    with torch.random.fork_rng(devices=[]):  # the batch is the same, whatever the networks are
        fields = Agent.make(settings, task).rollout_fields()
    T, B = settings[LearningSettings].unroll_length, settings[LearningSettings].batch_size
    batch = {name: random_field(field, T, B, p_true) for name, field in fields.items()}
    return batch | {
        "reward": torch.where((torch.rand(T + 1, B) < 0.4), torch.rand(T + 1, B) * 1.5 - 0.5, torch.zeros(())),
        "done": torch.rand(T + 1, B) < p_done,
        "episode_return": torch.rand(T + 1, B),
        "episode_step": torch.randint(1, 50, (T + 1, B), dtype=torch.int32),
        "carried_obj": torch.randint(11, (T + 1, B), dtype=torch.uint8),
        "carried_col": torch.randint(6, (T + 1, B), dtype=torch.uint8),
        "action": torch.randint(task.num_actions, (T + 1, B)),
        "policy_version": torch.full((B,), 2),
    }


def random_field(field: Field, T: int, B: int, p_true: float) -> Tensor:
    """Values by dtype: frames where the shape is that of one, small whole numbers, which are cells of any grid too."""
    shape = (T + 1, B, *field.shape) if field.per_row else (B, *field.shape)
    dtype = torch.from_numpy(np.empty(0, field.dtype)).dtype
    if dtype == torch.bool:
        return torch.rand(shape) < p_true
    if dtype.is_floating_point:
        return torch.randn(shape, dtype=dtype)
    if dtype == torch.uint8 and len(field.shape) == 3 and field.shape[-1] % 3 == 0:
        return random_frames(*shape)
    return torch.randint(1, 4, shape, dtype=dtype)


def make_motivation(settings: Settings, task: Task) -> Motivation:
    return Agent.make(settings, task).motivation


def make_inline(settings: Settings, *, num_envs: int, seed: int = 0) -> tuple[Learner, InlineActor, Rollouts]:
    """A learner and an actor in this process on real environments, made by the recipe."""
    torch.manual_seed(seed)
    seeds = [seed + 10 + e for e in range(num_envs)]
    agent = Agent.make(settings, probe(settings))
    own = settings[LearningSettings]
    rollouts = Rollouts(agent.rollout_fields(), unroll_length=own.unroll_length, num_buffers=num_envs + own.batch_size)
    actor = agent.actor(seeds, torch.Generator().manual_seed(seed + 1))
    return agent.learner(), InlineActor(actor, rollouts), rollouts


def assert_same_tree(a, b, path="") -> None:
    """Bit-identical nested dicts, lists, tensors and numbers."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_same_tree(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b)):
            assert_same_tree(x, y, f"{path}/{i}")
    elif isinstance(a, Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), path
    else:
        assert a == b, path

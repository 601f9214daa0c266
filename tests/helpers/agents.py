"""Shared by the tests of motivations and learner: flags, a scripted environment, batches, twins of V-trace and RMSprop."""

from __future__ import annotations

import argparse
import math

import numpy as np
import torch
from main.actor import Actor
from main.learner import Learner, rollout_fields
from main.sources import InlineActor
from torch import Tensor, nn
from utils_folder.motivation import Task, make_motivation

from main import flags as flags_module
from tests.helpers.plain_networks import PlainRandomNetwork, PlainStudent, PlainTeacher
from torchbeast.core.environment import Environment
from torchbeast.core.rollouts import Rollouts
from torchbeast.core.weights import Reader
from utils_folder import minigrid
from utils_folder.minigrid.view import VIEW_SHAPE

AGENT = 10


def make_flags(**overrides) -> argparse.Namespace:
    """The default flags, with overrides; a name that is no flag is refused."""
    values = flags_module.defaults()
    unknown = overrides.keys() - values.keys()
    assert not unknown, f"no such flags: {unknown}"
    return argparse.Namespace(**{**values, **overrides})


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


def random_batch(task: Task, flags: argparse.Namespace, *, p_done=0.25, p_reached=0.3, steps=(1, 40)) -> dict[str, Tensor]:
    """Rollouts of any motivation with random but well-formed fields: [T+1, B, ...]."""
    T, B = flags.unroll_length, flags.batch_size
    width, height, _ = task.frame_shape
    done = torch.rand(T + 1, B) < p_done
    logits = torch.randn(T + 1, B, (width - 2) * (height - 2) if flags.inner else width * height)
    x, y = torch.randint(1, width - 1, (T + 2, B)), torch.randint(1, height - 1, (T + 2, B))
    goal = x * height + y
    batch = {
        "frame": random_frames(T + 1, B, *task.frame_shape),
        "reward": torch.where((torch.rand(T + 1, B) < 0.4), torch.rand(T + 1, B) * 1.5 - 0.5, torch.zeros(())),
        "done": done,
        "episode_return": torch.rand(T + 1, B),
        "episode_step": torch.randint(1, 50, (T + 1, B), dtype=torch.int32),
        "carried_obj": torch.randint(11, (T + 1, B), dtype=torch.uint8),
        "carried_col": torch.randint(6, (T + 1, B), dtype=torch.uint8),
        "action": torch.randint(task.num_actions, (T + 1, B)),
        "policy_logits": torch.randn(T + 1, B, task.num_actions),
        "baseline": torch.randn(T + 1, B),
        "policy_version": torch.full((B,), 2),
        "visits": torch.randint(1, 3, (T + 1, B), dtype=torch.int32),
        "view": torch.randint(4, (T + 1, B, *VIEW_SHAPE), dtype=torch.uint8),  # no agent in it
        "goal": goal[1:],
        "late_goal": goal[:-1],
        "goal_frame": random_frames(T + 1, B, *task.frame_shape),
        "generator_logits": logits,
        "goal_step": torch.randint(*steps, (T + 1, B), dtype=torch.int32),
        "reached": torch.rand(T + 1, B) < p_reached,
    }
    if flags.use_lstm:
        for i in range(2):
            batch[f"core_state_{i}"] = torch.randn(B, flags.num_lstm_layers, flags.state_embedding_dim)
    return batch


def plain_twin(network: nn.Module, plain: nn.Module) -> nn.Module:
    """`plain` in float64 with the weights of `network`."""
    plain.load_state_dict(network.state_dict(), strict=True)
    if not plain.use_embedding:  # its raw values are float32
        plain.cells = Tensor.double
        plain.carried = lambda obj, colour: torch.stack([obj, colour], dim=1).double()
    return plain.double()


def plain_student(learner: Learner, task: Task) -> PlainStudent:
    flags = learner.flags
    plain = PlainStudent(
        task.frame_shape, task.num_actions, goal_conditioned=flags.model != "novelty_based", goal_dim=flags.goal_dim,
        hidden_dim=flags.state_embedding_dim, use_lstm=flags.use_lstm, num_lstm_layers=flags.num_lstm_layers,
        use_embedding=not flags.disable_use_embedding,
    )  # fmt: skip
    return plain_twin(learner.student, plain)


def plain_teacher(teacher: nn.Module, task: Task, flags: argparse.Namespace) -> PlainTeacher:
    plain = PlainTeacher(
        task.frame_shape, inner=flags.inner, mirrored=flags.as_published, use_embedding=not flags.disable_use_embedding
    )
    return plain_twin(teacher, plain)


def plain_random_network(network: nn.Module, task: Task, output: str) -> PlainRandomNetwork:
    return plain_twin(network, PlainRandomNetwork(task.frame_shape, output=output))


class PlainRMSprop:
    """RMSprop by hand in float64: norm clipped at 40, rate * (1 - updates * T * B / total_frames), floor 0."""

    def __init__(self, network: nn.Module, rate: float, flags: argparse.Namespace):
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.squares = [torch.zeros_like(p) for p in self.parameters]
        self.buffers = [torch.zeros_like(p) for p in self.parameters]
        self.rate, self.flags, self.updates, self.norms = rate, flags, 0, []

    def step(self, loss: Tensor, *, counts: bool = True) -> None:
        flags = self.flags
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients if g is not None))
        learned = self.updates * flags.unroll_length * flags.batch_size
        rate = self.rate * max(0.0, 1 - learned / flags.total_frames)
        for p, g, square, buffer in zip(self.parameters, gradients, self.squares, self.buffers):
            if g is None:
                continue
            g = g * min(1.0, 40 / norm)
            square.copy_(flags.alpha * square + (1 - flags.alpha) * g**2)
            buffer.copy_(flags.momentum * buffer + g / (square.sqrt() + flags.epsilon))
            p.data.sub_(rate * buffer)
        self.updates += counts
        self.norms.append(norm)


def plain_vtrace(log_rhos, discounts, rewards, values, bootstrap):
    """(v_s, advantages) as lists [T][B], by equation 1 of IMPALA as it stands: the double sum; rho-bar = c-bar = 1."""
    T, B = len(rewards), len(rewards[0])
    targets = [[0.0] * B for _ in range(T)]
    advantages = [[0.0] * B for _ in range(T)]
    for b in range(B):
        V = [float(values[t][b]) for t in range(T)] + [float(bootstrap[b])]
        rho = [min(1.0, math.exp(float(log_rhos[t][b]))) for t in range(T)]
        r = [float(rewards[t][b]) for t in range(T)]
        gamma = [float(discounts[t][b]) for t in range(T)]
        v = [0.0] * T + [V[T]]
        for s in range(T):
            v[s] = V[s]
            for t in range(s, T):
                weight = math.prod(gamma[i] * rho[i] for i in range(s, t))
                v[s] += weight * rho[t] * (r[t] + gamma[t] * V[t + 1] - V[t])
        for s in range(T):
            targets[s][b] = v[s]
            advantages[s][b] = rho[s] * (r[s] + gamma[s] * v[s + 1] - V[s])
    return targets, advantages


def snapshot(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.named_parameters()}


def assert_same_change(
    network: nn.Module, plain: nn.Module, before: dict[str, Tensor], unused=("embed_goal", "embed_agent_loc")
):
    """float32 weights moved from `before` to where the float64 twin's are; every weight that is used moved noticeably."""
    plain_now = dict(plain.named_parameters())
    for name, value in network.named_parameters():
        moved = (plain_now[name].detach() - before[name].double()).abs().max().item()
        if name.split(".")[0] in unused:
            assert moved == 0 and torch.equal(value, before[name]), name
            continue
        assert moved > 1e-5, f"{name} hardly moved ({moved}): the comparison is empty"
        torch.testing.assert_close(
            value.detach().double(),
            plain_now[name].detach(),
            rtol=0,
            atol=3e-3 * moved + 3e-7,
            msg=lambda m: f"{name}: {m}",  # noqa: B023
        )


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


def make_inline(flags: argparse.Namespace, *, num_envs: int, seed: int = 0) -> tuple[Learner, InlineActor, Rollouts]:
    """A learner and an actor in this process on real environments, as main/train.py puts them together."""
    torch.manual_seed(seed)
    environment = minigrid.make_environments(
        flags.env, [seed + 10 + e for e in range(num_envs)], engine=flags.engine, num_input_frames=flags.num_input_frames
    )
    task = Task.of(environment)
    learner = Learner(flags, task, make_motivation(flags, task))
    fields = rollout_fields(task, learner)
    rollouts = Rollouts(fields, unroll_length=flags.unroll_length, num_buffers=num_envs + flags.batch_size)
    generator = torch.Generator().manual_seed(seed + 1)
    student = Reader(fresh_student(learner, task), learner.shared)
    actor = Actor(environment, student, learner.motivation.actor(num_envs, generator), generator)
    return learner, InlineActor(actor, rollouts), rollouts


def fresh_student(learner: Learner, task: Task) -> nn.Module:
    from main.learner import make_student

    return make_student(learner.flags, task, learner.motivation)

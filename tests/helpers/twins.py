"""Slow twins in float64 of what learns: the student, RMSprop, V-trace; and how weights are compared with theirs."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from main.settings import RunSettings
from main.training.recipe import Agent
from models.grid import CellSettings
from models.student import StudentSettings
from tests.helpers.plain_networks import PlainStudent
from tests.helpers.views import plain_cells_in_view
from torchbeast.core.optimizer import LearningSettings
from torchbeast.core.settings import Settings
from utils_folder.minigrid import EnvironmentSettings
from utils_folder.motivations.rewards import RewardSettings


def plain_twin(network: nn.Module, plain: nn.Module) -> nn.Module:
    """`plain` in float64 with the weights of `network`."""
    plain.load_state_dict(network.state_dict(), strict=True)
    if not plain.use_embedding:  # its raw values are float32
        plain.cells = Tensor.double
        plain.carried = lambda obj, colour: torch.stack([obj, colour], dim=1).double()
    return plain.double()


def sizes(settings: Settings) -> tuple[int, int]:
    """(T, B)."""
    return settings[LearningSettings].unroll_length, settings[LearningSettings].batch_size


def is_partial(settings: Settings) -> bool:
    return settings[EnvironmentSettings].student_view == "partial"


def plain_student(agent: Agent) -> PlainStudent:
    own = agent.settings[StudentSettings]
    plain = PlainStudent(
        (7, 7, 3) if is_partial(agent.settings) else agent.task.frame_shape, agent.task.num_actions,
        goal_conditioned=agent.motivation.goal_conditioned,
        goal_dim=own.goal_dim, hidden_dim=own.state_embedding_dim, use_lstm=own.use_lstm,
        num_lstm_layers=own.num_lstm_layers, use_embedding=not agent.settings[CellSettings].disable_use_embedding,
        intrinsic_value=agent.settings[RewardSettings].reward_mixing == "apart",
    )  # fmt: skip
    return plain_twin(agent.student, plain)


class PlainStudentLearner:
    """The student's update of SPEC section 4 in float64, entry by entry, given the intrinsic rewards and the goals."""

    def __init__(self, agent: Agent):
        self.settings, self.T, self.B = agent.settings, *sizes(agent.settings)
        self.student = plain_student(agent)
        self.optimizer = PlainRMSprop(self.student, agent.settings[LearningSettings].learning_rate, agent.settings)

    def learn(self, batch, intrinsic, goals) -> tuple[dict[str, Tensor], int]:
        """The parts of the loss by column, and how many importance weights were clipped; `intrinsic` [T][B], t = 1..T."""
        losses, clipped = self.loss(batch, intrinsic, goals)
        self.optimizer.step(losses["total_loss"])
        return losses, clipped

    def loss(self, batch, intrinsic, goals):
        T, B, own = self.T, self.B, self.settings[LearningSettings]
        inputs = {name: batch[name] for name in ("frame", "carried_obj", "carried_col", "done")} | {"goal": goals}
        if is_partial(self.settings):
            inputs["frame"] = batch["view"]
            if goals is not None:
                inputs["goal"] = plain_cells_in_view(goals, batch["pose"], height=batch["frame"].shape[3])
        core = tuple(batch[f"core_state_{i}"].transpose(0, 1).double() for i in range(2) if f"core_state_{i}" in batch)
        outputs, _ = self.student(inputs, core)
        policy, values = outputs["policy_logits"].log_softmax(-1), outputs["baseline"]
        behaviour = batch["policy_logits"].double().log_softmax(-1)
        apart = self.settings[RewardSettings].reward_mixing == "apart"
        zeros = [[0.0] * B for _ in range(T)]
        log_rhos, discounts, rewards, lasting = ([row[:] for row in zeros] for _ in range(4))
        for t in range(1, T + 1):
            for b in range(B):
                a = int(batch["action"][t, b])
                log_rhos[t - 1][b] = float(policy[t - 1, b, a] - behaviour[t, b, a])
                discounts[t - 1][b] = 0.0 if batch["done"][t, b] else own.discounting
                lasting[t - 1][b] = self.settings[RewardSettings].intrinsic_discounting
                rewards[t - 1][b] = self.reward(float(batch["reward"][t, b]), float(intrinsic[t - 1][b]))
        targets, advantages = plain_vtrace(log_rhos, discounts, rewards, values[:-1].detach(), values[-1].detach())
        if apart:
            others = outputs["intrinsic_baseline"]
            targets_i, advantages_i = plain_vtrace(log_rhos, lasting, intrinsic, others[:-1].detach(), others[-1].detach())
        pg = baseline = entropy = intrinsic_baseline = divergence = 0.0
        for t in range(T):
            for b in range(B):
                divergence += float((behaviour[t + 1, b].exp() * (behaviour[t + 1, b] - policy[t, b])).sum()) / (T * B)
                advantage = advantages[t][b] + (advantages_i[t][b] if apart else 0.0)
                ratio, epsilon = math.exp(log_rhos[t][b]), own.policy_clip
                if epsilon is not None and ((advantage > 0 and ratio > 1 + epsilon) or (advantage < 0 and ratio < 1 - epsilon)):
                    advantage = 0.0
                pg = pg - policy[t, b, int(batch["action"][t + 1, b])] * advantage / B
                baseline = baseline + own.baseline_cost * 0.5 * (targets[t][b] - values[t, b]) ** 2 / B
                entropy = entropy + own.entropy_cost * (policy[t, b].exp() * policy[t, b]).sum() / B
                if apart:
                    error = (targets_i[t][b] - others[t, b]) ** 2
                    intrinsic_baseline = intrinsic_baseline + own.baseline_cost * 0.5 * error / B
        losses = {"pg_loss": pg, "baseline_loss": baseline, "entropy_loss": entropy}
        losses |= {"intrinsic_baseline_loss": intrinsic_baseline} if apart else {}
        found = {"total_loss": sum(losses.values())} | losses | {"policy_kl": divergence}
        return found, sum(x > 0 for row in log_rhos for x in row)

    def reward(self, extrinsic: float, intrinsic: float) -> float:
        own = self.settings[RewardSettings]
        counts = not own.no_extrinsic_rewards
        if own.reward_mixing == "apart":
            return extrinsic if counts else 0.0
        if own.reward_mixing == "sum":
            return extrinsic + intrinsic if counts else intrinsic
        clipped = min(max(extrinsic + intrinsic if counts else intrinsic, -1.0), 1.0)
        return clipped + (1.0 if extrinsic > 0 and counts else 0.0)


class PlainRMSprop:
    """RMSprop by hand in float64: norm clipped, rate * (1 - updates * T * B / total_frames), floor 0."""

    def __init__(self, network: nn.Module, rate: float, settings: Settings):
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.squares = [torch.zeros_like(p) for p in self.parameters]
        self.buffers = [torch.zeros_like(p) for p in self.parameters]
        self.rate, self.updates, self.norms = rate, 0, []
        self.learning, self.total_frames = settings[LearningSettings], settings[RunSettings].total_frames

    def step(self, loss: Tensor, *, counts: bool = True) -> None:
        own = self.learning
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients if g is not None))
        learned = self.updates * own.unroll_length * own.batch_size
        rate = self.rate * max(0.0, 1 - learned / self.total_frames)
        for p, g, square, buffer in zip(self.parameters, gradients, self.squares, self.buffers):
            if g is None:
                continue
            g = g * min(1.0, own.max_grad_norm / norm)
            square.copy_(own.alpha * square + (1 - own.alpha) * g**2)
            buffer.copy_(own.momentum * buffer + g / (square.sqrt() + own.epsilon))
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

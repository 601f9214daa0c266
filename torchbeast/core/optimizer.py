"""RMSprop or Adam with a clipped gradient and a learning rate that falls linearly to zero."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from torchbeast.core import forms
from torchbeast.core.compiled import compiled
from torchbeast.core.joined import STEP, Joined
from torchbeast.core.ranks import ALONE, Alone
from torchbeast.core.settings import TRAINING, flag

BAD_UPDATES = 3
METHODS = ("rmsprop", "adam")
HOW = ("foreach", "fused", "capturable", "differentiable")  # settings of PyTorch's rules that change no number
# What each keeps of a parameter: a mean of its squared gradients, and of the gradients (RMSprop with momentum alone).
SQUARES = {"rmsprop": ("square_avg",), "adam": ("exp_avg_sq",)}
MEANS = {"rmsprop": ("momentum_buffer",), "adam": ("exp_avg",)}


@dataclass(frozen=True)
class LearningSettings:
    """How the student learns; others that learn beside it share batches and schedule."""

    title = "Student"
    example = "--batch_size 32 --learning_rate 0.0005"
    needs = TRAINING
    batch_size: int = flag(8, "rollouts in a student update (of each rank)", at_least=1)
    unroll_length: int = flag(100, "steps in a rollout", at_least=1)
    learning_rate: float = flag(0.001, "student's learning rate; it falls linearly to 0 over total_frames", at_least=0)
    discounting: float = flag(0.99, "discount factor gamma", at_least=0, at_most=1)
    bootstrap_time_limit: bool = flag(
        False, "an episode that ran out of time goes on in value: gamma * V(its last state) is added to the reward there (ours)"
    )
    entropy_cost: float = flag(0.0005, "weight of the entropy loss", at_least=0)
    baseline_cost: float = flag(0.5, "weight of the baseline loss (student and teacher)", at_least=0)
    max_grad_norm: float = flag(
        40.0, "a gradient with a larger norm is scaled down to this norm (the student's, and those of the motivation)", above=0
    )
    policy_clip: float | None = flag(
        None, "PPO's epsilon: what was played is pushed no further once its probability has changed by more than this share of "
        "what it was then (default: no bound)", above=0,
    )  # fmt: skip
    alpha: float = flag(0.99, "RMSprop's smoothing constant", above=0, at_most=1)
    momentum: float = flag(0.0, "RMSprop's momentum", at_least=0)
    epsilon: float = flag(0.01, "RMSprop's epsilon", at_least=1e-30)  # float32 has few numbers below


class Diverged(Exception):
    """Several updates in a row had no finite gradient: nothing can be learned any more."""


class _RMSprop(torch.optim.RMSprop):
    """The same of one vector on a CPU in one pass over memory: PyTorch's calls take twice as long."""

    @torch.no_grad()
    def step(self) -> None:
        (group,) = self.param_groups
        (parameter,) = group["params"]
        if not parameter.is_cpu:
            super().step()
            return
        state, momentum = self.state[parameter], group["momentum"]
        if not state:
            kept = (*SQUARES["rmsprop"], *(MEANS["rmsprop"] if momentum else ()))
            state.update({STEP: torch.zeros(())} | {name: torch.zeros_like(parameter) for name in kept})
        state[STEP] += 1
        buffer = state["momentum_buffer"] if momentum else parameter.grad  # of which nothing is then used
        alpha, numbers = group["alpha"], (np.float32(group[name]) for name in ("lr", "eps", "momentum"))
        vectors = (x.numpy() for x in (parameter, parameter.grad, state["square_avg"], buffer))
        _rmsprop(*vectors, np.float32(alpha), np.float32(1 - alpha), *numbers)


@compiled(nogil=True, error_model="numpy")
def _rmsprop(parameter, gradient, square, buffer, alpha, rest, rate, epsilon, momentum):
    """v = alpha v + (1 - alpha) g^2; buffer = momentum buffer + g / (sqrt(v) + epsilon); parameter -= rate buffer.

    rest: 1 - alpha, of which float32 would keep little where alpha is nearly 1.
    """
    for i in range(len(parameter)):
        g = gradient[i]
        square[i] = alpha * square[i] + rest * g * g
        step = g / (np.sqrt(square[i]) + epsilon)
        if momentum > 0:
            step += momentum * buffer[i]
            buffer[i] = step
        parameter[i] -= rate * step


class Optimizer:
    """One step per update: gradient of a loss, norm clipped, RMSprop or Adam, schedule.

    The parameters become views of one vector (`Joined`).

    Args:
        parameters: what is learned; those that get no gradient stay as they are.
        learning_rate: at the start.
        frames_per_update, total_frames: after u updates (that count) the rate is
            learning_rate * (1 - min(u * frames_per_update, total_frames) / total_frames).
        alpha, epsilon, momentum: RMSprop's (Adam keeps to PyTorch's defaults).
        method: "rmsprop" or "adam".
        max_norm: the gradient's norm is clipped at this.
        ranks: the gradient is the mean over these.
    Source: IMPALA (arXiv 1802.01561), appendix D; TorchBeast (arXiv 1910.03552).
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        learning_rate: float,
        frames_per_update: int,
        total_frames: int,
        alpha: float,
        epsilon: float,
        momentum: float,
        method: str = "rmsprop",
        max_norm: float,
        ranks: Alone = ALONE,
    ):
        self._joined = Joined(parameters)
        self._ranks = ranks
        self.max_norm = max_norm
        self._method = method
        vector = [self._joined.vector]
        if method == "adam":
            self.rule: torch.optim.Optimizer = torch.optim.Adam(vector, lr=learning_rate)
        else:
            self.rule = _RMSprop(vector, lr=learning_rate, alpha=alpha, eps=epsilon, momentum=momentum)

        def remaining(updates: int) -> float:
            return 1 - min(updates * frames_per_update, total_frames) / total_frames

        self._remaining = remaining
        self._frames_per_update = frames_per_update
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.rule, remaining)
        self.skipped = 0  # updates not applied
        self._bad_in_a_row = 0

    def step(self, loss: Tensor | None, weight: float = 1.0, *, counts: bool = True) -> Tensor:
        """Minimises the mean of `loss` over ranks. Returns the gradient's norm before clipping (float32 scalar).

        `weight`: of this rank's loss; their mean over ranks must be 1. A rank that has nothing to learn from gives None, 0.
        `counts`: whether the learning rate falls with this update.
        An update whose gradient is not finite is not applied. Raises: Diverged at the third of them in a row.
        """
        self.differentiate(loss)
        return self.apply(loss, weight, counts=counts)

    def differentiate(self, loss: Tensor | None) -> None:
        """The first half of `step`: the parameters' gradients."""
        self._joined.join()
        self._joined.vector.grad.zero_()
        if loss is not None:
            loss.backward()

    def apply(self, loss: Tensor | None, weight: float = 1.0, *, counts: bool = True) -> Tensor:
        """The second half of `step`, with the gradients that are there."""
        self._ranks.average(self._joined.vector.grad, weight)
        norm = nn.utils.clip_grad_norm_(self._joined.vector, self.max_norm)
        if norm.isfinite():
            self.rule.step()
            torch.autograd.graph.increment_version(self._joined.parameters)  # a graph of before must not be learned from
            self._bad_in_a_row = 0
        else:
            self.skipped += 1
            self._bad_in_a_row += 1
            if self._bad_in_a_row == BAD_UPDATES:
                last = "none here" if loss is None else loss.item()
                raise Diverged(
                    f"{BAD_UPDATES} updates in a row had a loss or gradient that is not finite (loss {last}): try a "
                    "lower learning rate, or look for infinite rewards"
                )
        if counts:
            self.schedule.step()
        return norm

    def warnings(self, whose: str, flag: str) -> Iterator[str]:
        """What a user should know, a line each. `whose`: updates these are; `flag`: sets the learning rate."""
        if self.skipped:
            yield (
                f"a {whose} update had a loss or gradient that is not finite and was not applied; "
                f"if it happens often, lower --{flag}"
            )

    @property
    def updates(self) -> int:
        """Those that count."""
        return self.schedule.last_epoch

    def state_dict(self) -> tuple[dict, dict]:
        """(The update rule's state, by parameter, the schedule's)."""
        rule = self.rule.state_dict()
        (group,) = rule["param_groups"]
        rule = {
            "state": self._joined.split(rule["state"][0]) if rule["state"] else {},
            "param_groups": [group | {"params": list(range(len(self._joined.parameters)))}],
        }
        return rule, {**self.schedule.state_dict(), "frames_per_update": self._frames_per_update}

    def load_state_dict(self, rule: dict, schedule: dict) -> None:
        """Goes on from there; where an update now takes other frames (of more ranks, or fewer), from the same frames.

        Raises: EntryError if they are not the state of such an optimiser.
        """
        schedule = {"frames_per_update": self._frames_per_update} | self._checked_schedule(schedule)
        self._check_rule(rule, schedule["last_epoch"])
        then = schedule.pop("frames_per_update")
        if then != self._frames_per_update:
            schedule["last_epoch"] = schedule["last_epoch"] * then / self._frames_per_update
        # Settings are the run's own, looked at above; of them the file tells nothing that a rule would not know by itself.
        self._joined.join()
        state = {0: self._joined.gather(rule["state"])} if rule["state"] else {}
        self.rule.load_state_dict({"state": state, "param_groups": self.rule.state_dict()["param_groups"]})
        self.schedule.load_state_dict(schedule)
        for group in self.rule.param_groups:  # total_frames may be another than when the state was saved
            group["lr"] = group["initial_lr"] * self._remaining(self.schedule.last_epoch)

    def _checked_schedule(self, schedule: dict) -> dict:
        """What of it this schedule has too: versions of PyTorch differ in what they add."""
        own = self.schedule.state_dict()
        wanted = {
            "last_epoch": forms.number(0, forms.MOST),
            "_step_count": forms.whole(1),
            "base_lrs": forms.just(own["base_lrs"]),
            "_last_lr": forms.each(forms.number(0), count=1),
        }
        forms.record(wanted, exact=False)("schedule", schedule)
        known = {name: value for name, value in schedule.items() if name in own}
        forms.record({name: forms.just(own[name]) for name in known.keys() - wanted.keys()}, exact=False)("schedule", known)
        if "frames_per_update" not in schedule:  # older ones do not say
            return known
        forms.whole(1)("schedule/frames_per_update", schedule["frames_per_update"])
        return known | {"frames_per_update": schedule["frames_per_update"]}

    def _check_rule(self, rule: dict, updates: float) -> None:
        """Its statistics are finite and of the parameters' shapes, and its settings are this one's."""
        forms.record({"state": forms.mapping, "param_groups": forms.each(forms.mapping, count=1)})("optimizer", rule)
        (own,), (group,), state = self.state_dict()[0]["param_groups"], rule["param_groups"], rule["state"]
        each = {i: self._statistics(p) for i, p in enumerate(self._joined.parameters) if i in state}
        forms.record(each)("optimizer/state", state)
        if not state and updates >= BAD_UPDATES:
            raise forms.EntryError(f"optimizer/state is empty after {updates:g} updates")
        wanted = {name: forms.just(own[name]) for name in own if name in {*group, "params"} - {*HOW}}
        wanted |= {"lr": forms.number(0), "initial_lr": forms.just(own["initial_lr"])}
        forms.record(wanted, exact=False)("optimizer/param_groups/0", group)

    def _statistics(self, parameter: Tensor) -> forms.Form:
        """What the rule keeps of a parameter."""
        squares, count = forms.within(0, math.inf), forms.within(0, forms.MOST)
        wanted = {name: forms.tensor(parameter.shape, parameter.dtype, squares) for name in SQUARES[self._method]}
        others = [name for name in MEANS[self._method] if name != "momentum_buffer" or self.rule.param_groups[0]["momentum"]]
        wanted |= {name: forms.tensor(parameter.shape, parameter.dtype) for name in others}
        return forms.record({STEP: forms.tensor((), torch.float32, count), **wanted})


OptimizerMaker = Callable[..., Optimizer]  # (parameters, *, learning_rate, method="rmsprop")


def optimizer_maker(learning: LearningSettings, *, total_frames: int, ranks: Alone = ALONE) -> OptimizerMaker:
    """Makes the optimisers of one run, which all follow one schedule: T * B frames an update and rank."""
    return functools.partial(
        Optimizer,
        frames_per_update=learning.unroll_length * learning.batch_size * ranks.size,
        total_frames=total_frames,
        alpha=learning.alpha,
        epsilon=learning.epsilon,
        momentum=learning.momentum,
        max_norm=learning.max_grad_norm,
        ranks=ranks,
    )

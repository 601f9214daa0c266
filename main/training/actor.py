"""An actor: acts for E environments in one forward pass a step, and fills their rollouts."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable

import numpy as np
import torch

from main.training.sight import FULL, Sight
from torchbeast.core import forms
from torchbeast.core.console import cut
from torchbeast.core.environment import LAST, Environment
from torchbeast.core.exchange import ActorPort
from torchbeast.core.rollouts import CORE_STATE, Rollouts
from torchbeast.core.sampling import sample
from torchbeast.core.settings import UsageError
from torchbeast.core.weights import Reader
from utils_folder.motivations.base import MotivationActor

WRONG_INPUT = 2  # exit code of an actor process whose environment cannot be played; starting it again is of no use


class Actor:
    """E environments, the student's newest weights, and the motivation that watches them.

    Attributes:
        row: the present state's row: what every rollout field is in it, [E, ...] each; overwritten by `advance`.
    """

    def __init__(
        self,
        environment: Environment,
        student: Reader,
        motivation: MotivationActor,
        generator: torch.Generator,
        *,
        greedy: bool = False,
        weights: str | None = None,
        sight: Sight = FULL,
    ):
        """`weights`: where those of an agent that does not learn come from. What it answers must then be finite numbers: where
        it learns the learner sees to that. `sight`: what the student sees of states."""
        self.environment = environment
        self._student = student
        self._motivation = motivation
        self._generator = generator
        self._greedy = greedy
        self._weights = weights
        self._sight = sight
        self._core_state = student.network.initial_state(environment.num_envs)
        self.row: dict[str, np.ndarray] = {}

    @torch.no_grad()
    def start(self) -> dict[str, np.ndarray]:
        """The first state of all; it was not acted for, so its action, logits and baseline are zero."""
        num_envs = self.environment.num_envs
        outputs = {
            "action": np.zeros(num_envs, np.int64),
            "policy_logits": np.zeros((num_envs, self.environment.num_actions), np.float32),
            "baseline": np.zeros(num_envs, np.float32),
        }
        return self._arrive(self.environment.initial(), outputs)

    @torch.no_grad()
    def advance(self) -> dict[str, np.ndarray]:
        """Acts in the present state, in every environment; returns the row of the state that this led to."""
        self._student.refresh()
        self._motivation.refresh()
        seen = {**self._sight.inputs(self.row, self.row.get("goal")), "done": self.row["done"]}
        logits, baseline, self._core_state = self._student.network.act(seen, self._core_state, self._student.composed)
        action = logits.argmax(-1) if self._greedy else sample(logits, self._generator)
        results = {"action": action, "policy_logits": logits, "baseline": baseline}
        return self._arrive(self.environment.step(action), results)

    def _arrive(self, out: dict, results: dict) -> dict[str, np.ndarray]:
        observed = self._motivation.observe(out, self.environment)
        if self._weights is not None:
            _check_answers({**observed, **results}, self._weights)
        self.row = {**out, **observed, **results}
        return self.row

    def fill(self, rollouts: Rollouts, slots: np.ndarray, stopped: Callable[[], bool] = lambda: False) -> bool:
        """Writes one rollout per environment into `slots` (int64 [E]). False if `stopped()` became true meanwhile."""
        if not self.row:
            self.start()
        self._student.refresh()
        slots = rollouts.place(slots)
        rollouts.write(0, slots, self.row | self._initial_core_state() | {"policy_version": self._student.version})
        for t in range(1, rollouts.unroll_length + 1):
            if stopped():
                return False
            rollouts.write(t, slots, self.advance())
        return True

    def _initial_core_state(self) -> dict[str, np.ndarray]:
        """The LSTM's state on arrival, [E, layers, hidden] each; empty without LSTM."""
        return {f"{CORE_STATE}{i}": s.transpose(0, 1).numpy() for i, s in enumerate(self._core_state)}

    def state_dict(self) -> dict:
        """All that is needed to go on exactly from here."""
        return {
            "environment": self.environment.state_dict(),
            "motivation": self._motivation.state_dict(),
            "generator": self._generator.get_state(),
            "core_state": list(self._core_state),
            "results": {k: torch.from_numpy(self.row[k].copy()) for k in ("action", "policy_logits", "baseline")},
            "observed": {
                k: torch.from_numpy(v.copy()) for k, v in self.row.items() if k not in ("action", "policy_logits", "baseline")
            },
        }

    def load_state_dict(self, state: dict) -> None:
        """Goes back to the moment of `state_dict`. Raises: ValueError, one line, for what is no such state."""
        own = ("environment", "motivation", "generator", "core_state", "results", "observed")
        forms.record(dict.fromkeys(own, forms.anything))("source/actor", state)
        out = self.environment.load_state_dict(state["environment"])
        observed = state["observed"]
        for name in [name for name in out if name in observed and not name.startswith(LAST)]:
            if not np.array_equal(observed[name], out[name]):
                raise forms.EntryError(f"source/actor/observed/{name} is not what the environments show")
        core_state = forms.each(forms.anything, count=len(self._core_state))
        core_state("source/actor/core_state", state["core_state"])
        for mine, stored in zip(self._core_state, state["core_state"]):
            forms.tensor(mine.shape, mine.dtype)("source/actor/core_state", stored)
        self._motivation.load_state_dict(state["motivation"])
        forms.generator("source/actor/generator", state["generator"])
        self._generator.set_state(state["generator"])
        self._core_state = tuple(state["core_state"])
        # `out` has what an older state lacks.
        self.row = {**out, **{k: v.numpy() for k, v in (observed | state["results"]).items()}}


def _check_answers(answers: dict[str, np.ndarray], weights: str) -> None:
    """Raises: UsageError if networks gave numbers with which nothing can be chosen: large weights, though finite, do that."""
    for name, values in answers.items():
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
            raise UsageError(
                f"{weights}: its weights are finite, but {name} made with them is not (NaN or infinite), so it plays nothing; "
                "give another checkpoint"
            )


def run(build: Callable[[], Actor], rollouts: Rollouts, port: ActorPort, stop: np.ndarray, heartbeat: np.ndarray) -> None:
    """An actor process: fills the rollouts it is given until `stop[0]` is set or the learner's process is gone.

    `heartbeat[0]` (int64, shared) grows with every step, for who watches whether this process gets on.
    """
    torch.set_num_threads(1)
    parent = os.getppid()

    def stopped() -> bool:
        heartbeat[0] += 1
        return bool(stop[0]) or os.getppid() != parent

    try:
        actor = build()
        while True:
            slots = port.next_slots()
            if not actor.fill(rollouts, slots, stopped):
                return
            port.full(slots)
    except (EOFError, ConnectionError):
        return  # the learner's process has closed the pipe: the run is over
    except UsageError as error:
        port.failed(str(error))
        raise SystemExit(WRONG_INPUT) from None
    except BaseException:  # an environment may even ask for an end of the program
        port.failed(cut(traceback.format_exc()))
        raise SystemExit(1) from None

"""A trained agent, as a checkpoint holds it: what it was trained with decides what it is."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from main import settings as settings_module
from main.settings import EvaluationSettings, RunSettings
from main.training import preflight, recipe
from main.training.actor import Actor
from models import STUDENTS
from torchbeast.core import checkpoint, forms
from torchbeast.core.sampling import derive_seed, torch_generator
from torchbeast.core.settings import Settings, UsageError
from utils_folder import minigrid
from utils_folder.motivations.base import Motivation, Task

logger = logging.getLogger("amigo")

MAX_BATCH = 256


def load(settings: Settings, given: dict[str, Any]) -> Trained:
    """The agent at `weight_path`; its settings are these, with those that the checkpoint decides. Raises: UsageError."""
    try:
        state = checkpoint.load(Path(settings[EvaluationSettings].weight_path))
    except checkpoint.CheckpointError as error:
        raise UsageError(f"--weight_path {error}") from None
    settings = _with_its_own(settings, given, state)
    settings_module.check(settings)
    return Trained(settings, state)


def _with_its_own(settings: Settings, given: dict[str, Any], state: dict) -> Settings:
    """The settings, with those of the networks and the variant as the checkpoint has them."""
    flags = settings_module.flags()
    unsaid = {name: about.published for name, about in flags.items() if about.published is not None}
    implied = unsaid if checkpoint.is_published(state) else {}
    stored = {**settings_module.defaults(), **implied, **settings_module.stored(state["flags"])}
    own = {name: stored[name] for name, about in flags.items() if about.agent}
    for name, value in own.items():
        if name in given and given[name] != value:
            logger.warning(f"--{name} {given[name]}: the agent was trained with {value}, which is used")
    seed = settings[RunSettings].seed
    seed = int.from_bytes(os.urandom(4), "little") >> 1 if seed is None else seed
    return settings.replace(**own, env=given.get("env", stored["env"]), seed=seed)


class Trained:
    """A trained student and what motivates it, and the actors that play with them."""

    def __init__(self, settings: Settings, state: dict):
        self.settings = settings
        self._check_grid(state)
        task = recipe.probe(settings)
        weight_path = settings[EvaluationSettings].weight_path
        try:
            preflight.network(settings, task, state["model_state_dict"])
            self._agent = recipe.Agent.make(settings, task)
            self._agent.motivation.load_state_dict(state)
            forms.load_weights(self._agent.student, state, "model_state_dict")
        except UsageError as error:
            raise UsageError(f"--weight_path {weight_path}: {error}") from None
        except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UsageError(f"--weight_path {weight_path}: its weights do not fit its own flags ({first})") from None
        self._agent.shared.publish(self._agent.student)

    @property
    def task(self) -> Task:
        return self._agent.task

    @property
    def motivation(self) -> Motivation:
        return self._agent.motivation

    def _check_grid(self, state: dict) -> None:
        run, weight_path = self.settings[RunSettings], self.settings[EvaluationSettings].weight_path
        width, height = minigrid.grid_size(run.env)
        try:
            why = STUDENTS[run.student_network].misfit(state["model_state_dict"], width, height)
        except ValueError as error:
            raise UsageError(f"--weight_path {weight_path}: {error}") from None
        if why is not None:
            raise UsageError(
                f"--weight_path {weight_path}: {why} ({state['flags'].get('env')}), and {run.env} has {width}x{height}; "
                "choose the agent's own --env"
            )

    def actor(self, num_envs: int, stream: str) -> Actor:
        """Plays in E fresh environments; `stream` names its randomness."""
        seed = self.settings[RunSettings].seed
        seeds = [derive_seed(seed, f"{stream} environment", e) for e in range(num_envs)]
        generator = torch_generator(seed, f"{stream} actor")
        return self._agent.actor(seeds, generator, greedy=self.settings[EvaluationSettings].greedy)

    def actors(self, num_episodes: int, stream: str) -> Iterator[Actor]:
        """Actors with that many environments in all."""
        for first in range(0, num_episodes, MAX_BATCH):
            yield self.actor(min(MAX_BATCH, num_episodes - first), f"{stream} {first}")

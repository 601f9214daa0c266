"""A trained agent, as a checkpoint holds it: what it was trained with decides what it is."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from main import settings as settings_module
from main.settings import EvaluationSettings, RunSettings
from main.training import preflight, recipe
from main.training.actor import Actor
from main.training.sight import Sight
from models import STUDENTS
from torchbeast.core import checkpoint, forms
from torchbeast.core.sampling import derive_seed, torch_generator
from torchbeast.core.settings import Settings, UsageError
from utils_folder import minigrid
from utils_folder.minigrid import EnvironmentSettings, Survey
from utils_folder.motivations.base import Motivation, Task

logger = logging.getLogger("amigo")

MAX_BATCH = 256


def load(settings: Settings, given: dict[str, Any]) -> Trained:
    """The agent at `weight_path`; its settings are these, with those that the checkpoint decides. Raises: UsageError."""
    try:
        state, weight_path = checkpoint.find(Path(settings[EvaluationSettings].weight_path))
    except checkpoint.CheckpointError as error:
        raise UsageError(f"--weight_path {error}") from None
    stored = _stored(state, weight_path)
    if "env" not in given:
        settings_module.refuse_foreign_module(stored["env"], given, weight_path)
    settings = _with_its_own(settings.replace(weight_path=str(weight_path)), given, stored)
    settings_module.check(settings)
    agents_own = {name for name, about in settings_module.flags().items() if about.agent}  # said already, where they differ
    settings_module.warn_of_idle(settings, [name for name in given if name not in agents_own])
    _check_task(settings, stored, state["model_state_dict"])
    return Trained(settings, state)


def _stored(state: dict, path: Path) -> dict[str, Any]:
    """Every flag as the agent in the checkpoint `path` was trained with it."""
    implied = {name: about.published for name, about in settings_module.flags().items() if about.published is not None}
    known = settings_module.stored(state["flags"], path)
    return {**settings_module.defaults(), **(implied if checkpoint.is_published(state) else {}), **known}


def _with_its_own(settings: Settings, given: dict[str, Any], stored: dict[str, Any]) -> Settings:
    """The settings; those of the networks and the variant, and the task unless another is given, as the checkpoint has them."""
    own = {name: stored[name] for name, about in settings_module.flags().items() if about.agent}
    for name, value in own.items():
        if name in given and given[name] != value:
            logger.warning(f"--{name} {given[name]}: the agent was trained with {value}, which is used")
    env = given.get("env", stored["env"])
    env_args = given.get("env_args", stored["env_args"] if env == stored["env"] else None)
    seed = settings[RunSettings].seed
    seed = int.from_bytes(os.urandom(4), "little") >> 1 if seed is None else seed
    settings = settings.replace(**own, env=env, env_args=env_args, seed=seed)
    level = stored["env_seed"] if stored["fix_seed"] else None
    if level not in (None, settings[EnvironmentSettings].fixed_seed):
        logger.warning(
            f"the agent was trained on one level only and plays others here: --fix_seed --env_seed {level} plays its own"
        )
    return settings


def _check_task(settings: Settings, stored: dict[str, Any], weights: dict[str, Any]) -> None:
    """Raises UsageError if the agent was trained on another grid, or with other actions, than it is to play with."""
    weight_path = settings[EvaluationSettings].weight_path
    try:
        cells, actions = STUDENTS[settings[RunSettings].student_network].trained_on(weights)
    except ValueError as error:
        raise UsageError(f"--weight_path {weight_path}: {error}") from None
    if settings[EnvironmentSettings].student_is_partial:
        cells = None  # those of the view
    here, there = _survey(settings), _survey_of_its_own(settings, stored)
    W, H = here.size
    if there is not None and cells in (None, math.prod(there.size)) and actions in (None, there.num_actions):
        fits = (there.size, there.num_actions) == (here.size, here.num_actions)
        grid = f" on a grid of {there.size[0]}x{there.size[1]} ({math.prod(there.size)} cells)"
        trained = f"{grid} with {there.num_actions} actions"
    else:  # its task is not known here, or no longer what it was
        fits = cells in (None, W * H) and actions in (None, here.num_actions)
        trained = f"{'' if cells is None else f' on a grid of {cells} cells'} with {actions} actions"
    if not fits:
        raise UsageError(
            f"--weight_path {weight_path}: the agent was trained{trained} ({stored['env']}), and "
            f"{recipe.task_name(settings)} has {W}x{H} and {here.num_actions} actions; choose the agent's own --env"
        )


def _survey(settings: Settings) -> Survey:
    return minigrid.survey(recipe.task_name(settings), settings[EnvironmentSettings].fixed_seed)


def _survey_of_its_own(settings: Settings, stored: dict[str, Any]) -> Survey | None:
    """Of the task that the agent was trained on; None if that cannot be made here, or is not to be imported."""
    its_own = settings.replace(env=stored["env"], env_args=stored["env_args"])
    try:
        given = {"env": settings[RunSettings].env}
        settings_module.refuse_foreign_module(stored["env"], given, Path(settings[EvaluationSettings].weight_path))
        return _survey(its_own)
    except (UsageError, ValueError):
        return None


class Trained:
    """A trained student and what motivates it, and the actors that play with them.

    Attributes:
        survey: what a first look at its task tells.
    """

    def __init__(self, settings: Settings, state: dict):
        self.settings = settings
        self.survey = _survey(settings)
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

    @property
    def sight(self) -> Sight:
        return self._agent.sight

    def actor(self, num_envs: int, stream: str, *, telling: bool = False) -> Actor:
        """Plays in E fresh environments; `stream` names its randomness; `telling`: they know their missions, if they can."""
        seed = self.settings[RunSettings].seed
        seeds = [derive_seed(seed, f"{stream} environment", e) for e in range(num_envs)]
        generator = torch_generator(seed, f"{stream} actor")
        agent = self._agent
        if telling:
            engine = minigrid.telling_engine(recipe.task_name(self.settings), self.settings[EnvironmentSettings].engine)
            agent = agent._replace(settings=self.settings.replace(engine=engine))
        own = self.settings[EvaluationSettings]
        return agent.actor(seeds, generator, greedy=own.greedy, weights=own.weight_path)

    def actors(self, num_episodes: int, stream: str) -> Iterator[Actor]:
        """Actors with that many environments in all."""
        for first in range(0, num_episodes, MAX_BATCH):
            yield self.actor(min(MAX_BATCH, num_episodes - first), f"{stream} {first}")

"""How well a trained agent plays: statistics over fresh episodes, with intervals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from main.playing.trained import Trained
from main.settings import EvaluationSettings, RunSettings
from main.training import recipe
from main.training.actor import Actor
from torchbeast.core.settings import Settings, UsageError
from torchbeast.core.success import solved, success_rate

CONFIDENCE = 0.95


class Episodes(NamedTuple):
    """One entry per episode: float32 [N], int32 [N]."""

    returns: np.ndarray
    steps: np.ndarray


def score(agent: Trained) -> dict[str, Any]:
    """Means with intervals (`summarise`) over `num_episodes` fresh episodes. Raises: UsageError for returns that have none."""
    num_episodes = agent.settings[EvaluationSettings].num_episodes
    task, name = agent.task, recipe.task_name(agent.settings)
    episodes = play(agent.actors(num_episodes, "evaluation"), num_episodes)
    if wrong := int((~np.isfinite(episodes.returns)).sum()):
        raise UsageError(
            f"{name} gave {wrong} of {num_episodes} episodes a return that is no finite number: mend its rewards"
        )
    return summarise(episodes, max_steps=task.max_steps, reward_range=agent.survey.reward_range)


def play(actors: Iterator[Actor], num_episodes: int) -> Episodes:
    """The first episode of every environment. (The first N to end of a batch that goes on would favour short ones.)"""
    returns, steps = np.zeros(num_episodes, np.float32), np.zeros(num_episodes, np.int32)
    first = 0
    for actor in actors:
        last = first + actor.environment.num_envs
        actor.start()
        running = np.ones(last - first, np.bool_)
        while running.any():
            row = actor.advance()
            ended = np.flatnonzero(running & row["done"])
            returns[first + ended] = row["episode_return"][ended]
            steps[first + ended] = row["episode_step"][ended]
            running[ended] = False
        actor.environment.close()
        first = last
    return Episodes(returns, steps)


def summarise(episodes: Episodes, *, max_steps: int, reward_range: tuple[float, float]) -> dict[str, Any]:
    """Means with 95% intervals: Wilson's for the success rate, Student's t for return and steps (None for one episode).

    They end where what is possible ends: at 1 step and `max_steps`, and for a return at those of `reward_range` that no
    episode was beyond (MiniGrid pays once in an episode; a task that pays more often has no such bounds).
    """
    successes = sum(map(solved, episodes.returns))
    rate = stats.binomtest(successes, len(episodes.returns)).proportion_ci(CONFIDENCE, method="wilson")
    return {
        "episodes": len(episodes.returns),
        "success_rate": success_rate(episodes.returns),
        "success_rate_interval": [float(rate.low), float(rate.high)],
        **_mean("return", episodes.returns, *reward_range),
        **_mean("steps", episodes.steps, 1, max_steps),
    }


def _mean(name: str, values: np.ndarray, least: float, most: float) -> dict[str, Any]:
    values = values.astype(np.float64)  # squares of large returns are no float32
    mean = float(values.mean())
    if len(values) < 2:
        return {f"mean_{name}": mean, f"mean_{name}_interval": None}
    spread = stats.sem(values)
    # With no spread at all t's interval is undefined; it is then the mean itself.
    low, high = stats.t.interval(CONFIDENCE, len(values) - 1, mean, spread) if spread > 0 else (mean, mean)
    low = max(low, least) if values.min() >= least else low
    high = min(high, most) if values.max() <= most else high
    return {f"mean_{name}": mean, f"mean_{name}_interval": [float(low), float(high)]}


def report(settings: Settings, summary: dict[str, Any]) -> str:
    """The summary for a person."""

    def line(title: str, key: str) -> str:
        interval = summary[f"{key}_interval"]
        text = "no interval from one episode" if interval is None else "95% interval {:.3f} to {:.3f}".format(*interval)
        return f"  {title:<14}{summary[key]:9.3f}   {text}"

    run, own = settings[RunSettings], settings[EvaluationSettings]
    actions, task = "greedy" if own.greedy else "sampled", recipe.task_name(settings)
    return "\n".join(
        [
            f"{own.weight_path} on {task}: {summary['episodes']} episodes, {actions} actions, seed {run.seed}",
            line("success rate", "success_rate"),
            line("mean return", "mean_return"),
            line("mean steps", "mean_steps"),
        ]
    )

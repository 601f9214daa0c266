"""Whether an experiment's runs differ from its control's: the difference of their means, its interval, and a test."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

from main.analysis import table
from main.analysis.curves import CONFIDENCE, RESAMPLES
from main.analysis.log import Declared
from main.analysis.table import Experiment, Outcome

FEWEST = 5  # runs of each from which on they are compared: of 4 and 4 no test can give less than p = 0.03
HEAD = ("experiment", "control", "success, all frames", "p", "success, in the end", "p")
FIGURES: tuple[Callable[[Outcome], float], ...] = (lambda run: run.area or 0.0, lambda run: run.success or 0.0)


class Difference(NamedTuple):
    """Of two groups' means.

    low, high: percentile bootstrap 95% interval, each group's runs drawn anew by themselves.
    p: how large a share of all ways in which the runs can be split into such groups gives a difference as large, either way.
    """

    value: float
    low: float
    high: float
    p: float


def compare(runs: Sequence[float], control: Sequence[float]) -> Difference:
    """The mean of `runs` less that of `control`, a number of each run.

    Source: the permutation test of Fisher 1935 (of all splits up to 9,999, else of so many); for a few runs of reinforcement
    learning Agarwal et al., arXiv 2108.13264.
    """
    samples, difference = (np.array(runs, float), np.array(control, float)), _difference_of_means
    resampled = {"vectorized": True, "rng": np.random.default_rng(0)}
    test = stats.permutation_test(samples, difference, **resampled)
    interval = stats.bootstrap(
        samples, difference, n_resamples=RESAMPLES, confidence_level=CONFIDENCE, method="percentile", **resampled
    ).confidence_interval
    return Difference(float(test.statistic), float(interval.low), float(interval.high), float(test.pvalue))


def _difference_of_means(ours: np.ndarray, control: np.ndarray, axis: int = -1) -> np.ndarray:
    return ours.mean(axis) - control.mean(axis)


def rows(experiments: Sequence[Experiment], runs: Path, declared: Declared) -> list[list[str]]:
    """A row for each experiment that names a control, where of both enough runs are finished."""
    by_name = {experiment.name: experiment for experiment in experiments}

    @functools.cache
    def outcomes(name: str) -> list[Outcome]:
        experiment = by_name[name]
        return [table.outcome(folder, experiment.reach, declared) for folder in table.finished(experiment, runs)]

    found = []
    for experiment in experiments:
        if experiment.control is None or min(map(len, map(outcomes, (experiment.name, experiment.control)))) < FEWEST:
            continue
        groups = outcomes(experiment.name), outcomes(experiment.control)
        differences = [compare(*([figure(run) for run in group] for group in groups)) for figure in FIGURES]
        cells = [(f"{d.value:+.2f} ({d.low:+.2f} to {d.high:+.2f})", f"{d.p:.3f}") for d in differences]
        found.append([experiment.name, experiment.control, *cells[0], *cells[1]])
    return found

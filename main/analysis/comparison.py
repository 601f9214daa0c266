"""Whether an experiment's runs differ from its control's: the difference of their means, its interval, and a test."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

from main.analysis import table
from main.analysis.curves import CONFIDENCE, RESAMPLES
from main.analysis.log import Declared
from main.analysis.table import Experiment, Outcome

FEWEST = 5  # runs of each from which on they are compared: of 4 and 4 no test can give less than p = 0.03
HEAD = ("experiment", "control", "success, all frames", "p", "success, in the end", "p", "falls a run", "p")
SPLITS = 200_000  # more are not all looked at: of ten runs and ten there are 184,756
DIGITS = 9  # of a difference that count: what is beyond is rounding, by which equal ones would differ
FIGURES = ("area", "success", "falls")  # of an Outcome, in the order of HEAD


class Difference(NamedTuple):
    """Of two groups' means.

    low, high: percentile bootstrap 95% interval, each group's runs drawn anew by themselves. Of five runs and five it is too
        narrow: it held the true difference of normally distributed numbers in 88% of 1,000 cases.
    p: in how large a share of all ways in which the runs can be split into such groups the means are as far apart, either way.
    """

    value: float
    low: float
    high: float
    p: float


def compare(runs: Sequence[float], control: Sequence[float]) -> Difference:
    """The mean of `runs` less that of `control`, a number of each run.

    Source: the permutation test of Fisher 1935, of all splits (of SPLITS drawn ones where there are more); for a few runs of
    reinforcement learning Agarwal et al., arXiv 2108.13264.
    """
    samples = np.array(runs, float), np.array(control, float)
    resampled = {"vectorized": True, "rng": np.random.default_rng(0)}
    test = stats.permutation_test(samples, _distance, alternative="greater", n_resamples=SPLITS, batch=10_000, **resampled)
    interval = stats.bootstrap(
        samples, _difference, n_resamples=RESAMPLES, confidence_level=CONFIDENCE, method="percentile", **resampled
    ).confidence_interval
    return Difference(float(_difference(*samples)), float(interval.low), float(interval.high), float(test.pvalue))


def _difference(ours: np.ndarray, control: np.ndarray, axis: int = -1) -> np.ndarray:
    """Of the means."""
    return np.round(ours.mean(axis) - control.mean(axis), DIGITS)


def _distance(ours: np.ndarray, control: np.ndarray, axis: int = -1) -> np.ndarray:
    return abs(_difference(ours, control, axis))


def compared(experiments: Sequence[Experiment], runs: Path) -> list[Experiment]:
    """Those that name a control, where of both enough runs are finished."""
    enough = {e.name for e in experiments if len(table.finished(e, runs)) >= FEWEST}
    return [e for e in experiments if enough >= {e.name, e.control}]


def rows(experiments: Sequence[Experiment], runs: Path, declared: Declared) -> list[list[str]]:
    """A row for each that is compared."""
    by_name = {experiment.name: experiment for experiment in experiments}

    @functools.cache
    def outcomes(name: str) -> list[Outcome]:
        experiment = by_name[name]
        return [table.of_run(experiment, folder, declared) for folder in table.finished(experiment, runs)]

    found = []
    for experiment in compared(experiments, runs):
        groups = outcomes(experiment.name), outcomes(experiment.control)
        differences = [compare(*(table.figures(group, name) for group in groups)) for name in FIGURES]
        found.append([experiment.name, experiment.control, *(cell for d in differences for cell in _cells(d))])
    return found


def _cells(found: Difference) -> tuple[str, str]:
    p = f"{found.p:.3f}" if found.p >= 0.0005 else "< 0.001"
    return f"{found.value:+.2f} ({found.low:+.2f} to {found.high:+.2f})", p

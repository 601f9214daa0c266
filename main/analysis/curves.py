"""Learning curves in numbers: logs become groups, groups become curves over bins, with a bootstrap interval over seeds."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from main.analysis.log import EXPERIMENT, Log, means
from torchbeast.core import run_folder
from torchbeast.core.settings import UsageError

ABSENT = "not recorded"

CONFIDENCE = 0.95
FEWEST = 4  # seeds of which an interval is given; fewer are shown themselves: their resamples do not go beyond what was seen
RESAMPLES = 2000


class Curve(NamedTuple):
    """What is drawn of one group in one panel; all arrays [K].

    Attributes:
        label: the group's.
        x: middle of each bin, frames or hours.
        value: mean or IQM over the seeds that have a value there.
        low, high: bootstrap 95% interval; NaN where there are fewer than FEWEST seeds.
        seeds: int64, how many seeds those are.
        runs: float64 [S, K], each seed's own value; NaN where it has none. Of no seed, [0, 0], where only the band is drawn.
    """

    label: str
    x: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seeds: np.ndarray
    runs: np.ndarray = np.empty((0, 0))


class Group(NamedTuple):
    """Logs of runs that differ only in their seed."""

    label: str
    logs: list[Log]


def group_logs(
    logs: Sequence[Log], seed_like: Collection[str], by: Sequence[str] = ()
) -> tuple[list[Group], tuple[str, ...]]:
    """Logs with the same values of the arguments `by`, in the order of their first one; and the arguments that name them.

    Without `by`: all arguments count that differ between the runs, but for those of `seed_like`; the groups are named by as few
    of them as tell the groups apart. A run without meta.json is a group of its own, under its own name.
    Raises: UsageError for an argument that no run has.
    """
    known = [log.arguments for log in logs if log.arguments is not None]
    every = list(dict.fromkeys(["model", "env", *(name for arguments in known for name in arguments)]))
    _check_arguments(by, every if known else [], known)
    counting = [name for name in every if name not in {*seed_like, EXPERIMENT}]
    differing = [name for name in counting if len({_value(arguments, name) for arguments in known}) > 1]
    groups: dict[tuple, list[Log]] = {}
    for i, log in enumerate(logs):
        known_key = (*(_value(log.arguments, n) for n in by or differing),) if log.arguments is not None else (None, i)
        groups.setdefault(known_key, []).append(log)
    firsts = [group[0].arguments for group in groups.values() if group[0].arguments is not None]
    names = tuple(by) or _telling(firsts, differing)
    labels = _labels([group[0] for group in groups.values()], names)
    return [Group(label, group) for label, group in zip(labels, groups.values())], names


def _check_arguments(by: Sequence[str], every: Sequence[str], known: Sequence[dict]) -> None:
    for name in by:
        if not known:
            raise UsageError(f"--by {name}: no RUN has a meta.json to take it from; leave out --by")
        if not any(name in arguments for arguments in known):
            close = difflib.get_close_matches(name, every, n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else "see the args in meta.json"
            raise UsageError(f"--by {name}: no RUN has such an argument; {hint}")


def _value(arguments: dict[str, Any], name: str) -> str:
    value = arguments.get(name, ABSENT)
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return "on" if value else "off"
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _telling(firsts: Sequence[dict], names: Sequence[str]) -> tuple[str, ...]:
    """Few arguments (greedily chosen) whose values are different in every group."""
    chosen: list[str] = []

    def told(more: str | None = None) -> int:
        keep = chosen + ([more] if more else [])
        return len({tuple(_value(arguments, name) for name in keep) for arguments in firsts})

    while told() < len(firsts):
        best = max(names, key=told)  # the first of equals
        if told(best) == told():
            # Only together do two more arguments tell more; any one of them brings that nearer.
            best = next(name for name in names if name not in chosen)
        chosen.append(best)
    return tuple(chosen)


def _labels(firsts: Sequence[Log], names: Sequence[str]) -> list[str]:
    labels = []
    for log in firsts:
        if log.arguments is None:
            labels.append(log.name)
        elif names:
            labels.append(", ".join(_value(log.arguments, name) for name in names))
        else:
            labels.append(str(log.arguments.get("model", log.name)))
    twice = {label for label in labels if labels.count(label) > 1}
    own = [str(log.path.parent if log.path.name in run_folder.LOGS else log.path) for log in firsts]
    return [path if label in twice and log.arguments is None else label for log, label, path in zip(firsts, labels, own)]


def binned(x: np.ndarray, values: np.ndarray, weights: np.ndarray, width: float) -> np.ndarray:
    """Weighted means of `values` in the bins (k * width, (k + 1) * width], as far as x reaches the middle of a bin.

    A row at x tells of what happened before x, hence the closed right end. Bins without a value between bins with one (no
    episode ended) are interpolated, so that a group's curve does not jump as its seeds come and go.

    Args:
        x: float64 [N], increasing.
        values: float64 [N], NaN where there is none.
        weights: float64 [N], not negative.
        width: of a bin, in units of x.
    Returns: float64 [K], NaN before the first value and after the last one; K is at least 1.
    """
    size = max(1, int(x[-1] / width + 0.5))
    index = np.maximum(np.ceil(x / width).astype(int) - 1, 0)
    here = index < size
    each = means(values[here], weights[here], lambda rows: np.bincount(index[here], rows, size))
    there = np.flatnonzero(np.isfinite(each))
    return np.interp(np.arange(size), there, each[there], math.nan, math.nan) if len(there) else each


def iqm(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """Interquartile mean: the mean without the lowest and the highest quarter (rounded down: of three values, none).

    Source: Agarwal et al., arXiv 2108.13264.
    """
    return stats.trim_mean(values, 0.25, axis=axis)


STATISTICS = {"mean": np.mean, "iqm": iqm}


def over_seeds(values: np.ndarray, stat: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The statistic over the seeds that have a value, with its percentile bootstrap 95% interval.

    Of two or three seeds that would be their range, which holds the true mean of normally distributed values in 50% and 74%
    of cases: there is no interval then. Of a few more it is too narrow: of 8,000 rows of 4, 5 and 10 normally distributed
    values it held the mean in 80%, 84% and 90%; of values that are 1 with probability 0.8 and else 0 in 56%, 67% and 89%.

    Args:
        values: float64 [S, K], a seed in each row, NaN where it has no value.
        stat: "mean" or "iqm".
    Returns: value, low, high: float64 [K], the last two NaN where there are fewer than FEWEST seeds; seeds: int64 [K].
    """
    present = np.isfinite(values)
    value, low, high = np.full((3, values.shape[1]), math.nan)
    patterns, which = np.unique(present, axis=1, return_inverse=True)
    for p, pattern in enumerate(patterns.T):
        bins = np.flatnonzero(which.ravel() == p)
        sample = values[np.ix_(pattern, bins)]
        if len(sample):
            value[bins] = STATISTICS[stat](sample, axis=0)
        if len(sample) >= FEWEST:
            interval = stats.bootstrap(
                (sample,), STATISTICS[stat], axis=0, n_resamples=RESAMPLES, batch=200, confidence_level=CONFIDENCE,
                method="percentile", rng=np.random.default_rng(0),
            ).confidence_interval  # fmt: skip
            low[bins], high[bins] = interval
    return value, low, high, present.sum(axis=0)


def make_curve(group: Group, column: str, *, x: str, width: float, stat: str) -> Curve:
    """The group's curve of one column; logs without it are left out. x: "frames" or "hours"; width: of a bin, in its unit."""
    there = [log for log in group.logs if log.has(column)]
    rows = [binned(getattr(log, x), log.columns[column], log.spans(column), width) for log in there]
    if not rows:
        return Curve(group.label, *np.empty((4, 0)), np.empty(0, int))
    values = np.full((len(rows), max(map(len, rows))), math.nan)
    for all_bins, row in zip(values, rows):
        all_bins[: len(row)] = row
    middles = (np.arange(values.shape[1]) + 0.5) * width
    return Curve(group.label, middles, *over_seeds(values, stat), values)


def default_window(logs: Iterable[Log]) -> float:
    """About a hundred points for the longest run: its frames / 100, rounded to 1, 2 or 5 times a power of ten."""
    wanted = max(log.frames[-1] for log in logs) / 100
    power = 10.0 ** math.floor(math.log10(max(wanted, 1.0)))
    return min((factor * power for factor in (1, 2, 5, 10)), key=lambda window: abs(math.log(window / max(wanted, 1.0))))

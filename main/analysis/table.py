"""The table of experiments: its rows, what their runs came to, and that as lines and as Markdown."""

from __future__ import annotations

import configparser
import difflib
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from main.analysis import curves
from main.analysis.keep import thinned
from main.analysis.log import Declared, Log, NoRows, means, read_log, read_meta
from torchbeast.core import run_folder
from torchbeast.core.settings import UsageError, positive_whole_number, whole_number
from torchbeast.core.success import ROUNDING, Falls

WINDOW = 1_000_000  # frames over which success and return are meant, where a row does not say `window_frames`
FALL_EPISODES = 3  # in a row that counts: the rate of fewer is hardly one
COLUMNS = ("episodes", "success_rate", "mean_episode_return")
REQUIRED = ("env", "flags", "frames", "seeds", "reach", "published")
OPTIONAL = ("window_frames", "control")
# What the entries say themselves, what makes no run, and what leaves none to go on with or to keep.
NOT_IN_FLAGS = (
    "--env", "--total_frames", "--seed", "--savedir", "--xpid", "--resume", "--mode", "--dry_run", "-h", "--help",
    "--disable_checkpoint",
)  # fmt: skip
NONE = "–"
LOG_HEAD = ("experiment", "runs", "success", "return", "success, all frames", "first reached", "falls", "hours")
Check = Callable[[Sequence[str]], None]  # raises UsageError, a line a problem, for a command line that cannot be a run's


class Experiment(NamedTuple):
    """One row of the table.

    Attributes:
        window: frames over which its success and return are meant.
        control: the row of the same table that it is to be compared with, if any.
    """

    name: str
    arguments: list[str]
    frames: int
    seeds: list[int]
    reach: float
    published: str
    window: int = WINDOW
    control: str | None = None

    @property
    def env(self) -> str:
        return self.arguments[self.arguments.index("--env") + 1]


class Outcome(NamedTuple):
    """What one run came to.

    Attributes:
        frames: done.
        success, mean_return: over the frames of the last window; None where no episode ended in it.
        area: success over all frames, which is the area under its curve; None where no episode ended.
        reached_at: frames at which the success rate over a window first was the row's; None if it never was.
        falls: how often the success rate of rows fell, as `Falls` counts.
        recoveries: how often it came back.
        hours: of training.
    """

    frames: int
    success: float | None = None
    mean_return: float | None = None
    area: float | None = None
    reached_at: int | None = None
    falls: int = 0
    recoveries: int = 0
    hours: float = 0.0


def read_table(path: Path, check: Check) -> list[Experiment]:
    """The rows of an INI file. Raises: UsageError for a table or flags that cannot work."""
    parser = configparser.ConfigParser()
    try:
        if not parser.read(path, encoding="utf-8-sig"):  # an editor may have put a mark before it
            raise UsageError(f"{path}: no such table; results/experiments.ini is one")
        if not parser.sections():
            raise UsageError(f"{path} has no row, as [NAME] begins one; results/experiments.ini shows how")
        _refuse_unread(parser)
        rows = [_experiment(name, parser[name], check) for name in parser.sections()]
    except UnicodeDecodeError:
        raise UsageError(f"{path} is no text in UTF-8; save it as that") from None
    except configparser.Error as error:
        raise UsageError(f"{path}: {' '.join(str(error).split())}") from None
    for row in rows:
        others = [other for other in rows if other is not row and other.name == row.control]
        if row.control is not None and not others:
            raise UsageError(f"[{row.name}] control = {row.control}: it must be another row of {path}")
        if any((other.env, other.frames, other.window) != (row.env, row.frames, row.window) for other in others):
            raise UsageError(f"[{row.name}] control = {row.control}: it must be of the same env, frames and window_frames")
    return rows


def _refuse_unread(parser: configparser.ConfigParser) -> None:
    """Raises: UsageError for an entry that no row reads, itself or by an entry that names it as %(NAME)s: a misspelt one."""
    shared, read = parser.items(parser.default_section, raw=True), set()
    for section in parser.sections():
        row = dict(parser.items(section, raw=True))
        reached = _reached(row, parser.optionxform)
        _refuse(section, [entry for entry in row.items() if entry not in shared], reached)
        read |= reached
    _refuse(parser.default_section, shared, read)


def _reached(row: dict[str, str], as_key: Callable[[str], str]) -> set[str]:
    """Which entries are read for a row's own ones, those that entries name included."""
    reached, waiting = set(), {*REQUIRED, *OPTIONAL}
    while waiting:
        reached |= waiting
        named = {as_key(name) for key in waiting for name in re.findall(r"%\(([^)]+)\)s", row.get(key, "").replace("%%", ""))}
        waiting = named - reached
    return reached


def _refuse(section: str, entries: Iterable[tuple[str, str]], reached: set[str]) -> None:
    for key, _ in entries:
        if key not in reached:
            remedy = near(key, (*REQUIRED, *OPTIONAL))
            raise UsageError(f"[{section}] {key} is read by nothing, and no entry that is read names %({key})s; {remedy}")


def near(name: str, names: Sequence[str]) -> str:
    """What a name that is none of `names` may have been meant for, or else all of them, for a person."""
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(names)}"


def _experiment(name: str, row: configparser.SectionProxy, check: Check) -> Experiment:
    if not run_folder.is_plain(name) or name.startswith("-") or name != name.strip() or "|" in name:
        rule = f"{run_folder.not_plain(name)}; and without a leading -, spaces at its ends, or |"
        raise UsageError(f"a row's name begins those of its runs: it must be {rule}")
    missing = [key for key in REQUIRED if key not in row]
    if missing:
        raise UsageError(f"[{name}] lacks {', '.join(missing)}")
    seeds, reach = _value(row, "seeds", _seeds, "1 2 3, each once"), _value(row, "reach", _rate, "0.9, above 0 and up to 1")
    words = _value(row, "flags", shlex.split, "--model default --num_actors 40")
    window = WINDOW
    if "window_frames" in row:
        window = _value(row, "window_frames", positive_whole_number, f"{WINDOW}")
    given = ["-h" if word.startswith("-h") else word.partition("=")[0] for word in words]  # -hall is -h all
    others = [flag for flag in NOT_IN_FLAGS if flag in given]
    if others:
        raise UsageError(f"[{name}] flags: take {' and '.join(others)} out; a row trains; env, frames and seeds are entries")
    arguments = ["--env", row["env"], *words, "--total_frames", row["frames"]]
    try:
        for seed in sorted({min(seeds), max(seeds)}):
            check([*arguments, "--seed", str(seed), "--xpid", f"{name}-{seed}"])
    except UsageError as error:
        raise UsageError("\n".join(f"[{name}] {problem}" for problem in str(error).splitlines())) from None
    frames = whole_number(row["frames"])
    if "window_frames" in row and window > frames:
        raise UsageError(f"[{name}] window_frames = {row['window_frames']}: a run has {frames:,} frames; give so many or fewer")
    return Experiment(name, arguments, frames, seeds, reach, row["published"], window, row.get("control"))


def _value(row: configparser.SectionProxy, key: str, read: Callable[[str], Any], example: str) -> Any:
    try:
        return read(row[key])
    except ValueError:
        raise UsageError(f"[{row.name}] {key} = {row[key]}: write it as {example}") from None


def _seeds(text: str) -> list[int]:
    if not text.strip():
        raise ValueError("no seed")
    seeds = [whole_number(seed) for seed in text.split()]
    if len(set(seeds)) < len(seeds):
        raise ValueError("a seed twice: its run would count twice")
    return seeds


def _rate(text: str) -> float:
    if not 0 < float(text) <= 1:
        raise ValueError("no success rate that a run could reach")
    return float(text)


def run_dir(experiment: Experiment, seed: int, savedir: Path) -> Path:
    """Where a run of it lies."""
    return savedir / f"{experiment.name}-{seed}"


def is_finished(folder: Path) -> bool:
    """Whether a run has come to its end. Raises: UsageError for a damaged meta.json."""
    return read_meta(folder / run_folder.METADATA, {}).finished


def finished(experiment: Experiment, runs: Path) -> list[Path]:
    """The folders of its runs that have come to their end. Raises: UsageError for a damaged meta.json."""
    folders = [run_dir(experiment, seed, runs) for seed in experiment.seeds]
    return [folder for folder in folders if is_finished(folder)]


def outcome(folder: Path, reach: float, declared: Declared, window: int = WINDOW) -> Outcome:
    """What a run's log says, thinned as it is kept: means over windows of so many frames, and falls of its rows.

    A run of fewer frames than that reaches nothing. Raises: UsageError for a log that cannot be read.
    """
    try:
        log = read_log(folder, declared)
    except NoRows:
        return Outcome(0)
    missing = [name for name in COLUMNS if name not in log.columns]
    if missing:
        raise UsageError(f"{log.path} has no column {missing[0]}: it is no log of this program; move its folder away")
    hours = 0.0 if log.hours is None else float(log.hours[-1])
    columns = thinned(log)
    log = log._replace(frames=columns["frames"], columns=columns)
    success, returns = (_recent(log, name, window) for name in ("success_rate", "mean_episode_return"))
    there = np.isfinite(success) & (log.frames >= window)
    frames, rates = log.frames[there], success[there]
    reached = np.flatnonzero(rates >= reach - ROUNDING)
    falls = _falls(log)
    return Outcome(
        frames=int(log.frames[-1]),
        success=_number(success[-1]),
        mean_return=_number(returns[-1]),
        area=_number(means(log.columns["success_rate"], log.spans("success_rate"), lambda rows: rows.sum(keepdims=True))[0]),
        reached_at=int(frames[reached[0]]) if len(reached) else None,
        falls=falls.count,
        recoveries=falls.recoveries,
        hours=hours,
    )


def of_run(experiment: Experiment, folder: Path, declared: Declared) -> Outcome:
    """What a run of this row came to."""
    return outcome(folder, experiment.reach, declared, experiment.window)


def _recent(log: Log, name: str, window: int) -> np.ndarray:
    """At each row, the mean of a column over the frames of the window that ends there; NaN where no episode ended in it."""
    before = np.searchsorted(log.frames, log.frames - window, side="right") - 1

    def add(values: np.ndarray) -> np.ndarray:
        sums = np.cumsum(values)
        return sums - np.where(before >= 0, sums[before], 0)

    return means(log.columns[name], log.spans(name), add)


def _falls(log: Log) -> Falls:
    """Of the rows of enough episodes."""
    falls = Falls()
    rates = np.where(log.columns["episodes"] >= FALL_EPISODES, log.columns["success_rate"], np.nan)
    for frames, rate in zip(log.frames, rates):
        falls.see(frames, rate)
    return falls


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def line(experiment: Experiment, folder: Path, declared: Declared) -> str:
    """The state of one run, for a person."""
    if run_folder.log_in(folder) is None:
        return f"{folder.name}: not started"
    result = of_run(experiment, folder, declared)
    state = "finished" if is_finished(folder) else f"{result.frames / experiment.frames:.0%} done"
    rates = "no episode" if result.success is None else f"success {result.success:.2f}, return {result.mean_return:.3f}"
    falls = f", {result.falls} falls, {result.recoveries} recoveries" if result.falls else ""
    return (
        f"{folder.name}: {state}, {rates} over the last {experiment.window / 1e6:g} million frames, "
        f"success {experiment.reach:g} {_when(result)}{falls}, {result.hours:.1f} hours"
    )


def _when(result: Outcome) -> str:
    return "not reached" if result.reached_at is None else f"reached at {result.reached_at / 1e6:.1f} million frames"


def verdict(experiment: Experiment, folders: list[Path], declared: Declared) -> str:
    """What the finished runs of a row came to, beside the published figure."""
    results = [of_run(experiment, folder, declared) for folder in folders if is_finished(folder)]
    if not results:
        return f"{experiment.name}: no run is finished (published: {experiment.published})"
    frames = sorted(result.reached_at / 1e6 for result in results if result.reached_at is not None)
    when = f" after {', '.join(f'{f:.1f}' for f in frames)} million frames" if frames else ""
    return (
        f"{experiment.name}: {'' if frames else 'NOT '}reached by {len(frames)} of {len(results)} finished runs{when} "
        f"(published: {experiment.published})"
    )


# As Markdown


def log_rows(experiments: Sequence[Experiment], runs: Path, declared: Declared) -> list[list[str]]:
    """One row of the first table for each experiment with a finished run, from the logs."""
    rows = []
    for experiment in experiments:
        results = [of_run(experiment, folder, declared) for folder in finished(experiment, runs)]
        if results:
            rows.append([experiment.name, str(len(results)), *_cells(results)])
    return rows


def _cells(results: Sequence[Outcome]) -> list[str]:
    reached = [NONE if r.reached_at is None else f"{r.reached_at / 1e6:.1f}" for r in results]
    falls = [f"{r.falls}" + (f" (back {r.recoveries})" if r.falls else "") for r in results]
    hours = [f"{r.hours:.1f}" for r in results]
    success, returns, area = (figures(results, name) for name in ("success", "mean_return", "area"))
    return [_mean(success, 2), _mean(returns, 3), _mean(area, 2), *(", ".join(cells) for cells in (reached, falls, hours))]


def figures(results: Sequence[Outcome], name: str) -> list[float]:
    """Each run's success, mean_return, area or falls; 0 where no episode ended."""
    return [getattr(result, name) or 0.0 for result in results]


def _mean(values: Sequence[float], digits: int) -> str:
    """The mean over runs, with a bootstrap 95% interval; of fewer than FEWEST runs, with the runs themselves."""
    mean, low, high, _ = (float(x[0]) for x in curves.over_seeds(np.array(values)[:, None], "mean"))
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    runs = ", ".join(f"{value:.{digits}f}" for value in values)
    return f"{mean:.{digits}f} ({runs if np.isnan(low) else f'{low:.{digits}f} to {high:.{digits}f}'})"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def put_in(text: str, tables: dict[str, str]) -> str:
    """`text` with each table between its marks, `<!-- NAME table -->` and `<!-- end -->`. Raises: UsageError without them."""
    for name, content in tables.items():
        parts = re.split(rf"(?<=<!-- {name} table -->\n)(?:(?!<!--).)*(?=<!-- end -->)", text, flags=re.DOTALL)
        if len(parts) != 2:
            raise UsageError(f"--into: the file needs one <!-- {name} table --> and an <!-- end --> after it; put them in")
        text = f"{content}\n".join(parts)
    return text

"""`python -m main.reproduce TABLE`: runs or goes on with every experiment of a table, and says what was reached."""

from __future__ import annotations

import argparse
import configparser
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from main import flags as flags_module
from main import keep, logs
from main.train import SIGNALS
from torchbeast.core import run_folder
from torchbeast.core.checkpoint import CheckpointError
from torchbeast.core.settings import UsageError

WINDOW_FRAMES = 1_000_000
STOPPED = tuple(SIGNALS.values())  # exit codes of a run that a signal has ended
COLUMNS = ("episodes", "success_rate", "mean_episode_return")
REQUIRED = ("env", "flags", "frames", "seeds", "reach", "published")


class Experiment(NamedTuple):
    """One row of the table."""

    name: str
    arguments: list[str]
    frames: int
    seeds: list[int]
    reach: float
    published: str


class Outcome(NamedTuple):
    """What one run came to.

    Attributes:
        frames: done.
        success, mean_return: over the episodes of the last window; None where none ended.
        reached_at: frames at which the success rate first was the row's; None if it never was.
        collapses: how often it fell below half of that afterwards.
        recoveries: how often it came back.
        hours: of training.
    """

    frames: int
    success: float | None = None
    mean_return: float | None = None
    reached_at: int | None = None
    collapses: int = 0
    recoveries: int = 0
    hours: float = 0.0


def read_table(path: Path) -> list[Experiment]:
    """The rows of an INI file. Raises: UsageError for a table or flags that cannot work."""
    parser = configparser.ConfigParser()
    try:
        if not parser.read(path):
            raise UsageError(f"{path}: no such table; results/experiments.ini is one")
        if not parser.sections():
            raise UsageError(f"{path} has no row, as [NAME] begins one; results/experiments.ini shows how")
        return [_experiment(name, parser[name]) for name in parser.sections()]
    except (configparser.Error, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {' '.join(str(error).split())}") from None


def _experiment(name: str, row: configparser.SectionProxy) -> Experiment:
    missing = [key for key in REQUIRED if key not in row]
    if missing:
        raise UsageError(f"[{name}] lacks {', '.join(missing)}")
    seeds, reach = _value(row, "seeds", _seeds, "1 2 3"), _value(row, "reach", float, "0.9")
    words = _value(row, "flags", shlex.split, "--model default --modify")
    arguments = ["--env", row["env"], *words, "--total_frames", row["frames"]]
    try:
        flags, _ = flags_module.parse(arguments)
    except UsageError as error:
        raise UsageError(f"[{name}] {error}") from None
    found = flags_module.problems(flags)
    if found:
        raise UsageError("\n".join(f"[{name}] {problem}" for problem in found))
    return Experiment(name, arguments, flags.total_frames, seeds, reach, row["published"])


def _value(row: configparser.SectionProxy, key: str, read: Callable[[str], Any], example: str) -> Any:
    try:
        return read(row[key])
    except ValueError:
        raise UsageError(f"[{row.name}] {key} = {row[key]}: write it as {example}") from None


def _seeds(text: str) -> list[int]:
    if not text.strip():
        raise ValueError("no seed")
    return [int(seed) for seed in text.split()]


def run_dir(experiment: Experiment, seed: int, savedir: Path) -> Path:
    """Where a run of it lies."""
    return savedir / f"{experiment.name}-{seed}"


def is_finished(folder: Path) -> bool:
    """Whether a run has come to its end. Raises: UsageError for a damaged meta.json."""
    return logs.read_meta(folder / run_folder.METADATA).finished


def check_same(experiment: Experiment, folder: Path) -> None:
    """Raises: UsageError if the run there was not made with the row's flags, as when the row has changed since."""
    made_with = logs.read_meta(folder / run_folder.METADATA).arguments
    if made_with is None:
        return
    wanted, given = flags_module.parse(experiment.arguments)
    for flag in given:
        if made_with.get(flag) != getattr(wanted, flag):
            raise UsageError(
                f"{folder} was made with {flag} {made_with.get(flag)}, and [{experiment.name}] has {getattr(wanted, flag)}: "
                "give the row another name, or move the folder away"
            )


def command(experiment: Experiment, seed: int, savedir: Path) -> list[str]:
    """Starts the run, or goes on with it."""
    folder = run_dir(experiment, seed, savedir)
    program = [sys.executable, "-m", "main.main"]
    if (folder / run_folder.CHECKPOINT).exists():
        return [*program, "--resume", str(folder)]
    return [*program, *experiment.arguments, "--seed", str(seed), "--savedir", str(savedir), "--xpid", folder.name]


def outcome(folder: Path, reach: float) -> Outcome:
    """What a run's log says. Rates are over the episodes that ended in a window of a million frames.

    A run of fewer frames than that reaches nothing. Raises: UsageError for a log that cannot be read.
    """
    try:
        run = logs.read_run(folder)
    except logs.NoRows:
        return Outcome(0)
    missing = [name for name in COLUMNS if name not in run.columns]
    if missing:
        raise UsageError(f"{run.path} has no column {missing[0]}: it is no log of this program; move its folder away")
    success, returns = (_recent(run, name) for name in ("success_rate", "mean_episode_return"))
    there = np.isfinite(success) & (run.frames >= WINDOW_FRAMES)
    frames, rates = run.frames[there], success[there]
    reached = np.flatnonzero(rates >= reach)
    collapses, recoveries = _falls(rates[reached[0] :], reach) if len(reached) else (0, 0)
    return Outcome(
        frames=int(run.frames[-1]),
        success=_number(success[-1]),
        mean_return=_number(returns[-1]),
        reached_at=int(frames[reached[0]]) if len(reached) else None,
        collapses=collapses,
        recoveries=recoveries,
        hours=0.0 if run.hours is None else float(run.hours[-1]),
    )


def _recent(run: logs.Run, name: str) -> np.ndarray:
    """At each row, the mean of a column over the episodes of the window that ends there; NaN where none ended."""
    episodes = np.nan_to_num(run.columns["episodes"])
    total, ended = np.cumsum(episodes * np.nan_to_num(run.columns[name])), np.cumsum(episodes)
    before = np.searchsorted(run.frames, run.frames - WINDOW_FRAMES, side="right") - 1
    total_before, ended_before = (np.where(before >= 0, sums[before], 0) for sums in (total, ended))
    count = ended - ended_before
    return np.divide(total - total_before, count, out=np.full(len(count), np.nan), where=count > 0)


def _falls(rates: np.ndarray, reach: float) -> tuple[int, int]:
    """How often rates that have reached `reach` fall below half of it, and come back."""
    collapses = recoveries = 0
    for rate in rates:
        down = collapses > recoveries
        collapses += not down and rate < reach / 2
        recoveries += down and rate >= reach
    return collapses, recoveries


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def find(experiment: Experiment, seed: int, savedir: Path, kept: Path | None) -> Path:
    """Where a run lies: among the kept ones, or else where it was made."""
    if kept is not None and is_finished(run_dir(experiment, seed, kept)):
        return run_dir(experiment, seed, kept)
    return run_dir(experiment, seed, savedir)


def line(experiment: Experiment, folder: Path) -> str:
    """The state of one run, for a person."""
    if not (folder / run_folder.LOG).exists():
        return f"{folder.name}: not started"
    result = outcome(folder, experiment.reach)
    state = "finished" if is_finished(folder) else f"{result.frames / experiment.frames:.0%} done"
    rates = "no episode" if result.success is None else f"success {result.success:.2f}, return {result.mean_return:.3f}"
    falls = f", {result.collapses} collapses, {result.recoveries} recoveries" if result.collapses else ""
    return (
        f"{folder.name}: {state}, {rates} over the last million frames, success {experiment.reach:g} {_when(result)}"
        f"{falls}, {result.hours:.1f} hours"
    )


def _when(result: Outcome) -> str:
    return "not reached" if result.reached_at is None else f"reached at {result.reached_at / 1e6:.1f} million frames"


def verdict(experiment: Experiment, folders: list[Path]) -> str:
    """What the finished runs of a row came to, beside the published figure."""
    results = [outcome(folder, experiment.reach) for folder in folders if is_finished(folder)]
    if not results:
        return f"{experiment.name}: no run is finished (published: {experiment.published})"
    frames = sorted(result.reached_at / 1e6 for result in results if result.reached_at is not None)
    when = f" after {', '.join(f'{f:.1f}' for f in frames)} million frames" if frames else ""
    return (
        f"{experiment.name}: {'reached' if frames else 'NOT reached'} by {len(frames)} of {len(results)} finished runs{when} "
        f"(published: {experiment.published})"
    )


def run_all(experiments: list[Experiment], savedir: Path, kept: Path | None = None) -> int:
    """One run after the other. Ctrl-C ends the present one with a checkpoint, and this; the next call goes on there.

    What is kept of a finished run is written into `kept`; a run that is kept there already is not run again.
    """
    for experiment in experiments:
        for seed in experiment.seeds:
            if not is_finished(find(experiment, seed, savedir, kept)):
                arguments = command(experiment, seed, savedir)
                print(shlex.join(arguments), flush=True)
                code = _run(arguments)
                if code:
                    remedy = "the same command goes on from here" if code in STOPPED else "its cause stands above"
                    print(f"error: the run ended with exit code {code}; {remedy}", file=sys.stderr)
                    return code
            folder = find(experiment, seed, savedir, kept)
            if kept is not None and folder != run_dir(experiment, seed, kept):
                keep.keep(folder, run_dir(experiment, seed, kept))
            print(line(experiment, folder), flush=True)
    return 0


def _run(arguments: list[str]) -> int:
    """Runs one program and hands signals on to it: it knows how to end well."""
    process = subprocess.Popen(arguments, start_new_session=True)
    handed_on = {number: number for number in SIGNALS}
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
        handed_on[signal.SIGHUP] = signal.SIGTERM  # the terminal was closed
    previous = {number: signal.signal(number, lambda number, _: process.send_signal(handed_on[number])) for number in handed_on}
    try:
        return process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m main.reproduce", description="Runs a table of experiments.")
    parser.add_argument("table", type=Path, help="an INI file such as results/experiments.ini")
    parser.add_argument("--savedir", type=Path, default=Path("experiments"), help="folder for the runs (default: experiments)")
    parser.add_argument("--keep", type=Path, help="folder for what is kept of finished runs: thinned log, metadata, weights")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="these rows only")
    parser.add_argument("--list", action="store_true", help="say how far each run is, and stop")
    options = parser.parse_args(argv)
    try:
        experiments = read_table(options.table)
        names = [experiment.name for experiment in experiments]
        unknown = [name for name in options.only or [] if name not in names]
        if unknown:
            raise UsageError(f"no row {', '.join(unknown)} in {options.table}: there are {', '.join(names)}")
        return _reproduce([e for e in experiments if options.only is None or e.name in options.only], options)
    except (UsageError, CheckpointError) as error:
        for text in str(error).splitlines():
            print(f"error: {text}", file=sys.stderr)
        return 2


def _reproduce(experiments: list[Experiment], options: argparse.Namespace) -> int:
    for experiment in experiments:
        for seed in experiment.seeds:
            check_same(experiment, find(experiment, seed, options.savedir, options.keep))
    for flag in ("savedir", "keep"):
        folder = getattr(options, flag)
        if folder is not None and folder.exists() and not folder.is_dir():
            raise UsageError(f"--{flag} {folder} is no folder: give one")
    code = 0 if options.list else run_all(experiments, options.savedir, options.keep)
    if code == 0:
        for experiment in experiments:
            folders = [find(experiment, seed, options.savedir, options.keep) for seed in experiment.seeds]
            if options.list:
                print("\n".join(line(experiment, folder) for folder in folders))
            print(verdict(experiment, folders))
    return code


if __name__ == "__main__":
    sys.exit(main())

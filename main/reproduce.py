"""`python -m main.reproduce TABLE`: runs or goes on with every experiment of a table, and says what was reached."""

from __future__ import annotations

import argparse
import configparser
import csv
import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from main import flags as flags_module
from main.flags import UsageError

WINDOW_FRAMES = 1_000_000
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
    """What one run came to: frames done, success rate over the last window, where it first reached the row's."""

    frames: int
    success: float | None
    reached_at: int | None


def read_table(path: Path) -> list[Experiment]:
    """The rows of an INI file. Raises: UsageError for a table or flags that cannot work."""
    parser = configparser.ConfigParser()
    try:
        if not parser.read(path):
            raise UsageError(f"{path}: no such table; results/experiments.ini is one")
        return [_experiment(name, parser[name]) for name in parser.sections()]
    except configparser.Error as error:
        raise UsageError(f"{path}: {' '.join(str(error).split())}") from None


def _experiment(name: str, row: configparser.SectionProxy) -> Experiment:
    missing = [key for key in REQUIRED if key not in row]
    if missing:
        raise UsageError(f"[{name}] lacks {', '.join(missing)}")
    arguments = ["--env", row["env"], *shlex.split(row["flags"]), "--total_frames", row["frames"]]
    flags, _ = flags_module.parse(arguments)
    found = flags_module.problems(flags)
    if found:
        raise UsageError("\n".join(f"[{name}] {problem}" for problem in found))
    return Experiment(
        name, arguments, flags.total_frames, [int(s) for s in row["seeds"].split()], float(row["reach"]), row["published"]
    )


def run_dir(experiment: Experiment, seed: int, savedir: Path) -> Path:
    """Where a run of it lies."""
    return savedir / f"{experiment.name}-{seed}"


def is_finished(folder: Path) -> bool:
    """Whether a run has come to its end."""
    meta = folder / "meta.json"
    return meta.is_file() and json.loads(meta.read_text()).get("successful") is True


def command(experiment: Experiment, seed: int, savedir: Path) -> list[str]:
    """Starts the run, or goes on with it."""
    folder = run_dir(experiment, seed, savedir)
    program = [sys.executable, "-m", "main.main"]
    if (folder / "model.tar").exists():
        return [*program, "--resume", str(folder)]
    return [*program, *experiment.arguments, "--seed", str(seed), "--savedir", str(savedir), "--xpid", folder.name]


def outcome(folder: Path, reach: float) -> Outcome:
    """What a run's log says. Success rates are over the episodes that ended in a window of a million frames."""
    with open(folder / "logs.csv") as file:
        names = file.readline().removeprefix("# ").strip().split(",")
        columns = [names.index(name) for name in ("frames", "episodes", "success_rate")]
        rows = [[float(row[c] or 0) for c in columns] for row in csv.reader(file) if len(row) == len(names)]
    if not rows:
        return Outcome(0, None, None)
    frames, episodes, success = np.array(rows).T
    solved, ended = np.cumsum(episodes * success), np.cumsum(episodes)
    before = np.searchsorted(frames, frames - WINDOW_FRAMES, side="right") - 1
    solved_before, ended_before = (np.where(before >= 0, total[before], 0) for total in (solved, ended))
    rate = (solved - solved_before) / np.maximum(ended - ended_before, 1)
    reached = np.flatnonzero((rate >= reach) & (frames >= WINDOW_FRAMES))
    return Outcome(int(frames[-1]), float(rate[-1]), int(frames[reached[0]]) if len(reached) else None)


def line(experiment: Experiment, seed: int, savedir: Path) -> str:
    """The state of one run, for a person."""
    folder = run_dir(experiment, seed, savedir)
    if not (folder / "logs.csv").exists():
        return f"{folder.name}: not started"
    result = outcome(folder, experiment.reach)
    state = "finished" if is_finished(folder) else f"{result.frames / experiment.frames:.0%} done"
    success = "no episode" if result.success is None else f"success {result.success:.2f}"
    reached = (
        f"{experiment.reach:g} not reached"
        if result.reached_at is None
        else f"{experiment.reach:g} reached at {result.reached_at / 1e6:.1f} million frames"
    )
    return f"{folder.name}: {state}, {success} over the last million frames, {reached} (published: {experiment.published})"


def run_all(experiments: list[Experiment], savedir: Path) -> int:
    """One run after the other. Ctrl-C ends the present one with a checkpoint, and this; the next call goes on there."""
    for experiment in experiments:
        for seed in experiment.seeds:
            if is_finished(run_dir(experiment, seed, savedir)):
                continue
            arguments = command(experiment, seed, savedir)
            print(shlex.join(arguments), flush=True)
            code = _run(arguments)
            if code:
                print(f"error: the run ended with exit code {code}; the same command goes on from here", file=sys.stderr)
                return code
            print(line(experiment, seed, savedir), flush=True)
    return 0


def _run(arguments: list[str]) -> int:
    """Runs one program and hands signals on to it: it knows how to end well."""
    process = subprocess.Popen(arguments, start_new_session=True)
    previous = {
        number: signal.signal(number, lambda number, _: process.send_signal(number))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    }
    try:
        return process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m main.reproduce", description="Runs a table of experiments.")
    parser.add_argument("table", type=Path, help="an INI file such as results/experiments.ini")
    parser.add_argument("--savedir", type=Path, default=Path("experiments"), help="folder for the runs (default: experiments)")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="these rows only")
    parser.add_argument("--list", action="store_true", help="say how far each run is, and stop")
    options = parser.parse_args(argv)
    try:
        experiments = read_table(options.table)
        names = [experiment.name for experiment in experiments]
        unknown = [name for name in options.only or [] if name not in names]
        if unknown:
            raise UsageError(f"no row {', '.join(unknown)} in {options.table}: there are {', '.join(names)}")
    except UsageError as error:
        for text in str(error).splitlines():
            print(f"error: {text}", file=sys.stderr)
        return 2
    chosen = [experiment for experiment in experiments if options.only is None or experiment.name in options.only]
    code = 0 if options.list else run_all(chosen, options.savedir)
    if code == 0:
        for experiment in chosen:
            for seed in experiment.seeds:
                print(line(experiment, seed, options.savedir))
    return code


if __name__ == "__main__":
    sys.exit(main())

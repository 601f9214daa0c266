"""`python -m main.reproduce TABLE`: runs or goes on with every experiment of a table, and says what was reached."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from main.training import interrupt

if __name__ == "__main__":  # what is imported below takes seconds
    interrupt.end_at_once()

from tqdm import tqdm

from main import command
from main import settings as settings_module
from main.amigo import program
from main.analysis import keep, table
from main.analysis.log import Declared
from main.analysis.table import Experiment, is_finished, run_dir
from main.training import programs
from main.training.programs import Programs
from torchbeast.core import outputs, run_folder
from torchbeast.core.settings import Parser, UsageError, a_path, positive_whole_number

FOLDER = "experimentMinigrid"  # as the document's commands have it


def command_line(experiment: Experiment, seed: int, savedir: Path) -> list[str]:
    """Starts the run, or goes on with it."""
    folder = run_dir(experiment, seed, savedir)
    program = [sys.executable, "-m", "main.main"]
    if run_folder.checkpoints(folder):
        return [*program, "--resume", str(folder)]
    return [*program, *experiment.arguments, "--seed", str(seed), "--savedir", str(savedir), "--xpid", folder.name]


def find(experiment: Experiment, seed: int, savedir: Path, kept: Path | None) -> Path:
    """Where a run lies: among the kept ones, or else where it was made."""
    if kept is not None and is_finished(run_dir(experiment, seed, kept)):
        return run_dir(experiment, seed, kept)
    return run_dir(experiment, seed, savedir)


def runs_of(experiments: list[Experiment]) -> list[tuple[Experiment, int]]:
    """Row and seed of every run, in order."""
    return [(experiment, seed) for experiment in experiments for seed in experiment.seeds]


def most_jobs(rows: list[Experiment]) -> int:
    """How many runs of these rows may go on side by side so that each has what it needs of the machine."""
    return programs.most([settings_module.parse(row.arguments)[0] for row in rows])


def run_all(experiments: list[Experiment], savedir: Path, kept: Path | None, declared: Declared, jobs: int = 1) -> int:
    """So many runs at a time. Ctrl-C ends the present ones with a checkpoint, and this; the next call goes on there.

    What is kept of a finished run is written into `kept`; a run that is kept there already is not run again. After a failure
    the runs beside it go on to their end, and no other is started. Returns the first exit code that is not 0.
    """
    waiting = deque(runs_of(experiments))
    started: dict[str, tuple[Experiment, int]] = {}
    first = 0
    with Programs(jobs) as running:
        while waiting or started:
            if waiting and not (running.full or running.asked or first):
                experiment, seed = waiting.popleft()
                if is_finished(find(experiment, seed, savedir, kept)):
                    _finish(experiment, seed, savedir, kept, declared)
                    continue
                arguments = command_line(experiment, seed, savedir)
                _print(shlex.join(arguments))
                name = run_dir(experiment, seed, savedir).name
                started[name] = experiment, seed
                running.start(name, arguments)
            elif not started:
                break
            else:
                name, code = running.wait()
                own = started.pop(name)
                first = first or code
                if code:
                    _tell_end(name, code, going_on=0 if running.asked else len(started))
                else:
                    _finish(*own, savedir, kept, declared)
    return first or (interrupt.EXIT_CODES[running.asked[0]] if waiting else 0)


def _finish(experiment: Experiment, seed: int, savedir: Path, kept: Path | None, declared: Declared) -> None:
    folder = find(experiment, seed, savedir, kept)
    if kept is not None and folder != run_dir(experiment, seed, kept):
        first = seed == experiment.seeds[0]  # one agent of a row is enough to look at: weights are most of what is kept
        keep.keep(folder, run_dir(experiment, seed, kept), declared, weights=first)
    _print(table.line(experiment, folder, declared))


def _tell_end(name: str, code: int, *, going_on: int) -> None:
    """`going_on`: how many runs beside it do."""
    stopped = code in interrupt.EXIT_CODES.values()
    remedy = "the same command goes on from here" if stopped else "its cause stands above"
    others = f"; those beside it, {going_on}, go on to their end, and no other is started" if going_on else ""
    _print(f"error: the run {name} ended with exit code {code}; {remedy}{others}", sys.stderr)


def _print(text: str, file: TextIO | None = None) -> None:
    """Above the lines of progress."""
    tqdm.write(text, file or sys.stdout)
    (file or sys.stdout).flush()


def reproduce(options: argparse.Namespace) -> int:
    """Everything the command line asks for. Returns the exit code. Raises: UsageError."""
    experiments = _chosen(table.read_table(options.table, command.check_run), options)
    for experiment in experiments:
        for seed in experiment.seeds:
            command.check_same(experiment, find(experiment, seed, options.savedir, options.keep))
    for flag in ("savedir", "keep"):
        folder = getattr(options, flag)
        if folder is not None:
            outputs.must_hold_folders(f"--{flag}", folder)
    if options.list and options.jobs is not None:
        settings_module.tell_idle({"--jobs": "not with --list"})
    declared = command.declared()
    code = 0 if options.list else run_all(experiments, options.savedir, options.keep, declared, _jobs(experiments, options))
    if code == 0:
        for experiment in experiments:
            folders = [find(experiment, seed, options.savedir, options.keep) for seed in experiment.seeds]
            if options.list:
                print("\n".join(table.line(experiment, folder, declared) for folder in folders))
            print(table.verdict(experiment, folders, declared))
    return code


def _jobs(experiments: list[Experiment], options: argparse.Namespace) -> int:
    runs = runs_of(experiments)
    rows = [row for row, seed in runs if not is_finished(find(row, seed, options.savedir, options.keep))]
    jobs = min(most_jobs(rows) if options.jobs is None else options.jobs, max(1, len(rows)))
    if jobs > 1:
        print(f"{jobs} runs at a time, of {len(rows)}", flush=True)
    return jobs


def _chosen(experiments: list[Experiment], options: argparse.Namespace) -> list[Experiment]:
    names = [experiment.name for experiment in experiments]
    unknown = [name for name in options.only or [] if name not in names]
    if unknown:
        problems = [f"--only {name}: {options.table} has no such row; {table.near(name, names)}" for name in unknown]
        raise UsageError("\n".join(problems))
    return [experiment for experiment in experiments if options.only is None or experiment.name in options.only]


def make_parser() -> Parser:
    parser = Parser(
        prog=program("main.reproduce"),
        description="Runs every experiment of a table that is not finished, or goes on with it, side by side where there are "
        "cores for that; and says what each reached, and when. Ctrl-C ends all with a checkpoint; the same command goes on "
        "from there.",
        examples=("results/experiments.ini --only keycorridor-default", "results/experiments.ini --list --savedir results"),
    )
    parser.add_argument("table", type=a_path, metavar="TABLE", help="an INI file such as results/experiments.ini")
    parser.add_argument("--savedir", type=a_path, default=Path(FOLDER), help=f"folder for the runs (default: {FOLDER})")
    parser.add_argument("--keep", type=a_path,
        help="folder for what is kept of finished runs: thinned log, metadata, weights of a row's first seed")  # fmt: skip
    parser.add_argument("--only", nargs="+", metavar="ROW", help="these rows only")
    parser.add_argument("--jobs", type=positive_whole_number, metavar="N",
        help="runs side by side (default: as many as have cores of their own, each for its actor processes and its "
        "learner)")  # fmt: skip
    parser.add_argument("--list", action="store_true",
        help="say how far each run is, and stop (of those in this repository: --savedir results)")  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns the exit code: 0; 2 for a wrong input; else that of a run that was stopped or failed."""
    return command.run(lambda: reproduce(make_parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())

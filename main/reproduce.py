"""`python -m main.reproduce TABLE`: runs or goes on with every experiment of a table, and says what was reached."""

from __future__ import annotations

import argparse
import difflib
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from main.training import interrupt

if __name__ == "__main__":  # what is imported below takes seconds
    interrupt.end_at_once()

from main import command
from main import settings as settings_module
from main.amigo import program
from main.analysis import keep, table
from main.analysis.log import Declared, read_meta
from main.analysis.table import Experiment, is_finished, run_dir
from torchbeast.core import outputs, run_folder
from torchbeast.core.settings import Parser, UsageError


def check_same(experiment: Experiment, folder: Path) -> None:
    """Raises: UsageError if the run there was not made with the row's flags, as when the row has changed since."""
    made_with = read_meta(folder / run_folder.METADATA, settings_module.defaults()).arguments
    if made_with is None:
        return
    _, wanted = settings_module.parse(experiment.arguments)
    for flag, value in wanted.items():
        if made_with.get(flag) != value:
            raise UsageError(
                f"{folder} was made with {flag} {made_with.get(flag)}, and [{experiment.name}] has {value}: "
                "give the row another name, or move the folder away"
            )


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


def run_all(experiments: list[Experiment], savedir: Path, kept: Path | None, declared: Declared) -> int:
    """One run after the other. Ctrl-C ends the present one with a checkpoint, and this; the next call goes on there.

    What is kept of a finished run is written into `kept`; a run that is kept there already is not run again.
    """
    for experiment in experiments:
        for seed in experiment.seeds:
            if not is_finished(find(experiment, seed, savedir, kept)):
                arguments = command_line(experiment, seed, savedir)
                print(shlex.join(arguments), flush=True)
                code = _run(arguments)
                if code:
                    stopped = code in interrupt.EXIT_CODES.values()
                    remedy = "the same command goes on from here" if stopped else "its cause stands above"
                    command.say(f"the run ended with exit code {code}; {remedy}")
                    return code
            folder = find(experiment, seed, savedir, kept)
            if kept is not None and folder != run_dir(experiment, seed, kept):
                keep.keep(folder, run_dir(experiment, seed, kept), declared)
            print(table.line(experiment, folder, declared), flush=True)
    return 0


def _run(arguments: list[str]) -> int:
    """Runs one program and hands signals on to it: it knows how to end well."""
    process, early = None, []
    before = interrupt.take(lambda number, _: early.append(number) if process is None else process.send_signal(number))
    try:
        process = subprocess.Popen(arguments, start_new_session=True)
        for number in early:
            process.send_signal(number)
        return process.wait()
    finally:
        interrupt.give_back(before)


def reproduce(options: argparse.Namespace) -> int:
    """Everything the command line asks for. Returns the exit code. Raises: UsageError."""
    experiments = _chosen(table.read_table(options.table, command.check_run), options)
    for experiment in experiments:
        for seed in experiment.seeds:
            check_same(experiment, find(experiment, seed, options.savedir, options.keep))
    for flag in ("savedir", "keep"):
        folder = getattr(options, flag)
        if folder is not None:
            outputs.must_hold_folders(f"--{flag}", folder)
    declared = command.declared()
    code = 0 if options.list else run_all(experiments, options.savedir, options.keep, declared)
    if code == 0:
        for experiment in experiments:
            folders = [find(experiment, seed, options.savedir, options.keep) for seed in experiment.seeds]
            if options.list:
                print("\n".join(table.line(experiment, folder, declared) for folder in folders))
            print(table.verdict(experiment, folders, declared))
    return code


def _chosen(experiments: list[Experiment], options: argparse.Namespace) -> list[Experiment]:
    names = [experiment.name for experiment in experiments]
    unknown = [name for name in options.only or [] if name not in names]
    if unknown:
        raise UsageError("\n".join(f"--only {name}: {options.table} has no such row; {_near(name, names)}" for name in unknown))
    return [experiment for experiment in experiments if options.only is None or experiment.name in options.only]


def _near(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(names)}"


def make_parser() -> Parser:
    parser = Parser(
        prog=program("main.reproduce"),
        description="Runs every experiment of a table that is not finished, one after the other, or goes on with it; and says "
        "what each reached, and when. Ctrl-C ends it with a checkpoint; the same command goes on from there.",
    )
    parser.add_argument("table", type=Path, help="an INI file such as results/experiments.ini")
    parser.add_argument("--savedir", type=Path, default=Path("experiments"), help="folder for the runs (default: experiments)")
    parser.add_argument("--keep", type=Path, help="folder for what is kept of finished runs: thinned log, metadata, weights")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="these rows only")
    parser.add_argument("--list", action="store_true",
        help="say how far each run is, and stop (of those in this repository: --savedir results)")  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns the exit code: 0; 2 for a wrong input; else that of a run that was stopped or failed."""
    return command.run(lambda: reproduce(make_parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())

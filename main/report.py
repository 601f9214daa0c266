"""`python -m main.report TABLE --runs FOLDER`: what the kept runs of a table came to, as Markdown."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from main.training import interrupt

if __name__ == "__main__":  # what is imported below takes seconds
    interrupt.end_at_once()

from main import command
from main import settings as settings_module
from main.amigo import program
from main.analysis import comparison, table
from main.analysis.table import Experiment
from main.playing import score, trained
from torchbeast.core import outputs, run_folder
from torchbeast.core.settings import Parser, UsageError, a_path

AGENT_HEAD = ("agent", "success", "return", "steps")
EVALUATION = ("--mode", "test", "--num_episodes", "100", "--seed", "1")


def log_table(experiments: Sequence[Experiment], runs: Path) -> str:
    """A row for each experiment with a finished run, from the logs."""
    return table.markdown(table.LOG_HEAD, table.log_rows(experiments, runs, command.declared()))


def agent_table(experiments: Sequence[Experiment], runs: Path) -> str:
    """A row for each finished run whose weights are there, from what its agent does."""
    return table.markdown(AGENT_HEAD, agent_rows(experiments, runs))


def agent_rows(experiments: Sequence[Experiment], runs: Path) -> list[list[str]]:
    """The rows of that table: weights over 100 fresh episodes, with 95% intervals."""
    rows = []
    for path in weights_of(experiments, runs):
        settings, given = settings_module.parse(["--weight_path", str(path), *EVALUATION])
        scores = score.score(trained.load(settings, given))
        interval = [
            f"{scores[name]:.3f} ({scores[f'{name}_interval'][0]:.3f} to {scores[f'{name}_interval'][1]:.3f})"
            for name in ("success_rate", "mean_return")
        ]
        rows.append([path.parent.name, *interval, f"{scores['mean_steps']:.1f}"])
    return rows


def weights_of(experiments: Sequence[Experiment], runs: Path) -> list[Path]:
    """The weights of finished runs, where they are there."""
    paths = [folder / run_folder.CHECKPOINT for experiment in experiments for folder in table.finished(experiment, runs)]
    return [path for path in paths if path.exists()]


def comparison_table(experiments: Sequence[Experiment], runs: Path) -> str:
    """A row for each experiment that is compared with its control."""
    return table.markdown(comparison.HEAD, comparison.rows(experiments, runs, command.declared()))


TABLES = {"log": log_table, "agent": agent_table, "comparison": comparison_table}
NO_ROW = "No row yet."  # where a page has a place for such a table
ROWS = {"agent": weights_of, "comparison": comparison.compared}  # what these have one for each of


def tables_of(experiments: Sequence[Experiment], runs: Path) -> dict[str, Callable[[Sequence[Experiment], Path], str]]:
    """Those that have a row."""
    return {name: make for name, make in TABLES.items() if name not in ROWS or ROWS[name](experiments, runs)}


def report(options: argparse.Namespace) -> None:
    """Everything the command line asks for. Raises: UsageError, before anything is written."""
    experiments = table.read_table(options.table, command.check_run)
    folders = {experiment.name: table.finished(experiment, options.runs) for experiment in experiments}
    if not any(folders.values()):
        raise UsageError(f"{options.runs}: no finished run of {options.table} is in it; give their folder with --runs")
    for experiment in experiments:
        for folder in folders[experiment.name]:
            command.check_same(experiment, folder)
    makers = tables_of(experiments, options.runs)
    if options.into is None:
        print("\n\n".join(make(experiments, options.runs) for make in makers.values()))
        return
    outputs.must_be_writable("--into", options.into)
    whole = _text(options.into)
    text, crlf = whole.replace("\r\n", "\n"), "\r\n" in whole  # as it is on Windows, and stays
    tables = {name: NO_ROW for name in TABLES if f"<!-- {name} table -->" in text} | dict.fromkeys(makers, "")
    text = table.put_in(text, tables)  # before minutes are spent
    tables = {name: make(experiments, options.runs) for name, make in makers.items()}
    written = table.put_in(text, tables)
    outputs.write({str(options.into): (written.replace("\n", "\r\n") if crlf else written).encode()})


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--into {path} cannot be read ({error}): give a Markdown file") from None


def make_parser() -> Parser:
    parser = Parser(
        prog=program("main.report"),
        description="Tables of what finished runs came to, as Markdown: one from their logs, one from their agents, each of "
        "which plays 100 fresh episodes (together some minutes), and one that compares rows with their controls, where TABLE "
        "names some.",
        examples=("results/experiments.ini", "results/experiments.ini --runs experimentMinigrid"),
    )
    parser.add_argument("table", type=a_path, metavar="TABLE", help="an INI file such as results/experiments.ini")
    parser.add_argument("--runs", type=a_path, default=Path("results"), help="folder of the runs (default: results)")
    parser.add_argument("--into", type=a_path, help="put them into this Markdown file, in place of those that are there")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns the exit code: 0; 2 for a wrong input, with nothing written."""
    return command.run(lambda: report(make_parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())

"""`python -m main.report TABLE --runs FOLDER`: what the kept runs of a table came to, as Markdown."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from main import curves, evaluate, outputs, reproduce
from main import flags as flags_module
from main.reproduce import Experiment, Outcome
from torchbeast.core import run_folder
from torchbeast.core.settings import UsageError

NONE = "–"
LOG_HEAD = ("experiment", "runs", "success", "return", "first reached", "lost again", "hours")
AGENT_HEAD = ("agent", "success", "return", "steps")
EVALUATION = ("--mode", "test", "--num_episodes", "100", "--seed", "1")


def log_rows(experiments: Sequence[Experiment], runs: Path) -> list[list[str]]:
    """One row of the first table for each experiment with a finished run, from the logs."""
    rows = []
    for experiment in experiments:
        folders = _finished(experiment, runs)
        if folders:
            results = [reproduce.outcome(folder, experiment.reach) for folder in folders]
            rows.append([experiment.name, str(len(results)), *_cells(results)])
    return rows


def _cells(results: Sequence[Outcome]) -> list[str]:
    reached = [NONE if r.reached_at is None else f"{r.reached_at / 1e6:.1f}" for r in results]
    lost = [f"{r.collapses}" + (f" (back {r.recoveries})" if r.collapses else "") for r in results]
    hours = [f"{r.hours:.1f}" for r in results]
    success, returns = ([getattr(r, name) or 0.0 for r in results] for name in ("success", "mean_return"))
    return [_mean(success, 2), _mean(returns, 3), *(", ".join(cells) for cells in (reached, lost, hours))]


def _mean(values: Sequence[float], digits: int) -> str:
    """The mean over runs, with a bootstrap 95% interval where there are several (of two or three, that is their range)."""
    mean, low, high, _ = (float(x[0]) for x in curves.over_seeds(np.array(values)[:, None], "mean"))
    interval = "" if np.isnan(low) else f" ({low:.{digits}f} to {high:.{digits}f})"
    return f"{mean:.{digits}f}{interval}"


def agent_rows(experiments: Sequence[Experiment], runs: Path) -> list[list[str]]:
    """One row of the second table for each finished run: its weights over 100 fresh episodes, with 95% intervals."""
    rows = []
    for experiment in experiments:
        for folder in _finished(experiment, runs):
            flags, given = flags_module.parse(["--weight_path", str(folder / run_folder.CHECKPOINT), *EVALUATION])
            scores = evaluate.score(evaluate.load_agent(flags, given))
            interval = [
                f"{scores[name]:.3f} ({scores[f'{name}_interval'][0]:.3f} to {scores[f'{name}_interval'][1]:.3f})"
                for name in ("success_rate", "mean_return")
            ]
            rows.append([folder.name, *interval, f"{scores['mean_steps']:.1f}"])
    return rows


def _finished(experiment: Experiment, runs: Path) -> list[Path]:
    folders = [reproduce.run_dir(experiment, seed, runs) for seed in experiment.seeds]
    return [folder for folder in folders if reproduce.is_finished(folder)]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


TABLES: dict[str, tuple[Sequence[str], Callable]] = {"log": (LOG_HEAD, log_rows), "agent": (AGENT_HEAD, agent_rows)}


def put_in(text: str, tables: dict[str, str]) -> str:
    """`text` with each table between its marks, `<!-- NAME table -->` and `<!-- end -->`. Raises: UsageError without them."""
    for name, content in tables.items():
        parts = re.split(rf"(?<=<!-- {name} table -->\n)(?:(?!<!--).)*(?=<!-- end -->)", text, flags=re.DOTALL)
        if len(parts) != 2:
            raise UsageError(f"--into: the file needs one <!-- {name} table --> and an <!-- end --> after it; put them in")
        text = f"{content}\n".join(parts)
    return text


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m main.report", description="Tables of what finished runs came to.")
    parser.add_argument("table", type=Path, help="an INI file such as results/experiments.ini")
    parser.add_argument("--runs", type=Path, default=Path("results"), help="folder of the runs (default: results)")
    parser.add_argument("--into", type=Path, help="put them into this Markdown file, in place of those that are there")
    options = parser.parse_args(argv)
    try:
        experiments = reproduce.read_table(options.table)
        if not any(_finished(experiment, options.runs) for experiment in experiments):
            raise UsageError(f"{options.runs}: no finished run of {options.table} is in it; give their folder with --runs")
        if options.into is not None:
            put_in(_text(options.into), dict.fromkeys(TABLES, ""))  # before minutes are spent
        tables = {name: table(head, rows(experiments, options.runs)) for name, (head, rows) in TABLES.items()}
        if options.into is None:
            print("\n\n".join(tables.values()))
        else:
            outputs.write({str(options.into): put_in(_text(options.into), tables).encode()})
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--into {path} cannot be read ({error}): give a Markdown file") from None


if __name__ == "__main__":
    sys.exit(main())

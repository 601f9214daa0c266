"""`python -m main.thin RUN`: the log of a run with few rows, in which other programs find a value in every cell."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from main.training import interrupt

if __name__ == "__main__":  # what is imported below takes seconds
    interrupt.end_at_once()

import numpy as np

from main import command
from main.amigo import program
from main.analysis import keep
from main.analysis.log import read_log
from torchbeast.core import outputs, run_folder
from torchbeast.core.settings import Parser, UsageError, a_path, positive_whole_number


def thin(options: argparse.Namespace) -> None:
    """Everything the command line asks for. Raises: UsageError, before anything is written."""
    outputs.must_be_writable("--out", options.out)
    log = read_log(_meant(options.run), command.declared())
    outputs.must_not_be_read("--out", options.out, [log.path])
    columns = keep.thinned(log, options.rows)
    outputs.write({str(options.out): keep.written(columns, options.out)})
    empty = {name: int(np.isnan(values).sum()) for name, values in columns.items()}
    told = ", ".join(f"{name} {count}" for name, count in empty.items() if count)
    print(f"{len(log.frames):,} rows became {len(next(iter(columns.values()))):,}")
    if told:
        print(f"still empty, cells of each column: {told}; fewer --rows leave fewer of them")


def _meant(place: Path) -> Path:
    try:
        return run_folder.meant(place, lambda folder: run_folder.log_in(folder) is not None)
    except FileNotFoundError as error:
        raise UsageError(str(error)) from None


def make_parser() -> Parser:
    parser = Parser(
        prog=program("main.thin"),
        description="Writes the log of a run with few rows. Each is for an equal share of the updates: means, sums, or the "
        "last value. A whole log has empty cells, as where no episode ended in an update, at which programs that take plain "
        "rolling means draw nothing.",
        examples=("experimentMinigrid/latest", "experimentMinigrid/RUN --out thinned.csv --rows 500"),
    )
    about = "the folder of a run, a logs.csv, or a folder of runs, for its latest"
    parser.add_argument("run", type=a_path, metavar="RUN", help=about)
    file = "the file (default: thinned.csv); compressed if it ends with .gz"
    parser.add_argument("--out", type=a_path, default=Path("thinned.csv"), help=file)
    rows = f"at most so many (default: one for {keep.ROW_FRAMES:,} frames, but {keep.FEWEST_ROWS} to {keep.ROWS:,})"
    parser.add_argument("--rows", type=positive_whole_number, help=rows)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns the exit code: 0; 2 for a wrong input, with nothing written."""
    return command.run(lambda: thin(make_parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())

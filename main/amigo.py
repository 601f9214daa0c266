"""`python -m main.amigo COMMAND ...`, or where it is installed `amigo COMMAND ...`: every command by its short name."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from main.training import interrupt

if __name__ == "__main__" or Path(sys.argv[0]).stem == "amigo":  # imports take seconds
    interrupt.end_at_once()

from torchbeast.core.settings import Parser, UsageError


class Command(NamedTuple):
    """A command by its short name."""

    module: str
    meaning: str
    first: tuple[str, ...] = ()  # arguments that stand before the given ones


COMMANDS = dict(
    train=Command("main.main", "trains an agent; with --resume RUN goes on with a run"),
    test=Command("main.main", "plays with a trained agent: --weight_path FILE", ("--mode", "test")),
    plot=Command("main.plot", "draws learning curves of any number of runs"),
    thin=Command("main.thin", "writes the log of a run with few rows, for other programs"),
    curriculum=Command("main.curriculum", "shows what the teacher of a run taught"),
    reproduce=Command("main.reproduce", "runs, or goes on with, every experiment of a table"),
    report=Command("main.report", "makes tables of what finished runs came to"),
    benchmark=Command("main.benchmark", "measures the speed of each part and of the whole"),
)


def program(module: str) -> str:
    """How one types the command in this module: "amigo plot" where that was typed, or "python -m main.plot"."""
    short = sys.argv[1] if len(sys.argv) > 1 else ""
    typed = _installed() and short in COMMANDS and COMMANDS[short].module == module
    return f"amigo {short}" if typed else f"python -m {module}"


def _installed() -> bool:
    """Whether this is the installed program: not a module that Python was told to run."""
    started = Path(sys.argv[0])
    return started.stem == "amigo" and started.suffix != ".py"


def make_parser() -> Parser:
    prog = "amigo" if _installed() else "python -m main.amigo"
    width = max(map(len, COMMANDS))
    parser = Parser(
        prog=prog,
        usage=f"{prog} COMMAND ...",
        description="AMIGo: adversarially motivated intrinsic goals, on MiniGrid.",
        epilog="\n".join([
            "commands:",
            *(f"  {name:{width}}  {about.meaning}" for name, about in COMMANDS.items()),
            f"\nEach lists its flags with --help: {prog} train --help",
        ]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("command", metavar="COMMAND", choices=tuple(COMMANDS), help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns the command's exit code; 2 where there is no such command."""
    name, *rest = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    try:
        chosen = COMMANDS[make_parser().parse_args([name]).command]
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # Imported only now: --help need not wait for PyTorch, and no command for the others.
    return importlib.import_module(chosen.module).main([*chosen.first, *rest])


if __name__ == "__main__":
    sys.exit(main())

"""Entry point: `python -m main.main`. Trains an agent, or plays with a trained one."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from main import flags as flags_module
from main.evaluate import evaluate
from main.progress import ConsoleHandler, RankHandler
from main.train import RunFailed, train
from torchbeast.core import ranks as ranks_module
from torchbeast.core.ranks import Alone, RanksFailed


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Returns the exit code: 0; 2 for a wrong input; 1 for a failure; 130, 143 or 75 after SIGINT, SIGTERM or SIGUSR1.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        ranks = ranks_module.from_environment()
    except RanksFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return run(argv, ranks)


def run(argv: Sequence[str], ranks: Alone) -> int:
    """Runs the command line as one of `ranks`. Returns the exit code."""
    logger = logging.getLogger("amigo")
    logger.setLevel(logging.INFO)
    console = ConsoleHandler() if ranks.first else RankHandler(ranks)
    logger.addHandler(console)
    try:
        return _dispatch(argv, ranks)
    finally:
        logger.removeHandler(console)


def _dispatch(argv: Sequence[str], ranks: Alone) -> int:
    name = "" if ranks.first else f"rank {ranks.rank}: "
    try:
        flags, given = flags_module.parse(argv)
        if flags.mode == "train":
            return train(flags, given, ranks)
        elif not ranks.alone:
            raise flags_module.UsageError(f"--mode {flags.mode} is for one process: leave torchrun out")
        else:
            evaluate(flags, given)
    except flags_module.UsageError as error:
        for line in str(error).splitlines():
            print(f"{name}error: {line}", file=sys.stderr)
        return 2
    except RunFailed as error:
        print(f"{name}error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Entry point: `python -m main.main`. Trains an agent, or plays with a trained one."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from main.training import interrupt

if __name__ == "__main__":  # what is imported below takes seconds
    interrupt.end_at_once()

from main import command
from main import settings as settings_module
from main.playing.evaluate import evaluate
from main.settings import LIST, RunSettings
from main.training.run import RunFailed, train
from torchbeast.core import ranks as ranks_module
from torchbeast.core.ranks import Alone, RanksFailed
from torchbeast.core.settings import UsageError
from utils_folder import minigrid


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Returns the exit code: 0; 2 for a wrong input; 1 for a failure; 130, 143, 75 or 129 after SIGINT, SIGTERM, SIGUSR1 or
    SIGHUP.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        ranks = ranks_module.from_environment()
    except RanksFailed as error:
        command.say(error)
        return 1
    return run(argv, ranks)


def run(argv: Sequence[str], ranks: Alone) -> int:
    """Runs the command line as one of `ranks`. Returns the exit code."""
    return command.run(lambda: _dispatch(argv, ranks), ranks)


def _dispatch(argv: Sequence[str], ranks: Alone) -> int:
    settings, given = settings_module.parse(argv)
    mode = settings[RunSettings].mode
    if settings[RunSettings].env == LIST:
        for line in minigrid.listing() if ranks.first else ():
            print(line, flush=True)
        return 0
    try:
        if mode == "train":
            return train(settings, given, ranks)
        if not ranks.alone:
            raise UsageError(f"--mode {mode} is for one process: leave torchrun out")
        evaluate(settings, given)
    except RunFailed as error:
        command.say(error, ranks)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

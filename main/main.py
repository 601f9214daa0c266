"""Entry point: `python -m main.main`. Trains an agent, or plays with a trained one."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from main import flags as flags_module
from main.evaluate import evaluate
from main.progress import ConsoleHandler
from main.train import RunFailed, train


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Returns the exit code: 0; 2 for a wrong input; 1 for a failure; 130, 143 or 75 after SIGINT, SIGTERM or SIGUSR1.
    """
    logger = logging.getLogger("amigo")
    logger.setLevel(logging.INFO)
    console = ConsoleHandler()
    logger.addHandler(console)
    try:
        return _dispatch(sys.argv[1:] if argv is None else argv)
    finally:
        logger.removeHandler(console)


def _dispatch(argv: Sequence[str]) -> int:
    try:
        flags, given = flags_module.parse(argv)
        if flags.mode == "train":
            return train(flags, given)
        else:
            evaluate(flags, given)
    except flags_module.UsageError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2
    except RunFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Entry point: `python -m main.main`. Trains an agent, or plays with a trained one."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from main import flags as flags_module


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns the exit code: 0, 2 for a wrong input, 1 for a failure."""
    from main.train import RunFailed, train

    logging.getLogger("amigo").setLevel(logging.INFO)
    try:
        flags, given = flags_module.parse(sys.argv[1:] if argv is None else argv)
        if flags.mode == "train":
            train(flags, given)
        else:
            from main.evaluate import evaluate

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

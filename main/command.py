"""What every command shares: what it logs reaches the console, and a wrong input becomes one line and exit code 2; and what
commands that read finished runs are told of the program that made them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence

from tqdm import tqdm

from main import settings as settings_module
from main.analysis.log import Declared
from main.training import recipe
from torchbeast.core.ranks import ALONE, Alone, RanksFailed
from torchbeast.core.settings import UsageError


class ConsoleHandler(logging.Handler):
    """Writes to stderr above a live progress line; leaves out the progress lines where there is a live one."""

    def __init__(self):
        super().__init__(logging.INFO)
        self._live = sys.stderr.isatty()

    def emit(self, record: logging.LogRecord) -> None:
        if not (self._live and getattr(record, "progress", False)):
            tqdm.write(self.format(record), file=sys.stderr)


class RankHandler(logging.Handler):
    """Sends a rank's warnings to rank 0, whose console and log show them."""

    def __init__(self, ranks: Alone):
        super().__init__(logging.WARNING)
        self._ranks = ranks

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        try:
            self._ranks.tell(text)
        except RanksFailed:
            print(f"rank {self._ranks.rank}: {text}", file=sys.stderr)


def run(work: Callable[[], int | None], ranks: Alone = ALONE) -> int:
    """Does the work of a command, as one of `ranks`. Returns the exit code: the work's own (None is 0), or 2."""
    logger = logging.getLogger("amigo")
    logger.setLevel(logging.INFO)
    console = ConsoleHandler() if ranks.first else RankHandler(ranks)
    logger.addHandler(console)
    try:
        return work() or 0
    except UsageError as error:
        for line in str(error).splitlines():
            say(line, ranks)
        return 2
    finally:
        logger.removeHandler(console)


def say(error: object, ranks: Alone = ALONE) -> None:
    """An error, for the user."""
    name = "" if ranks.first else f"rank {ranks.rank}: "
    print(f"{name}error: {error}", file=sys.stderr)


def declared() -> Declared:
    """What logs and metadata of this program's runs hold."""
    flags = settings_module.flags()
    seed_like = frozenset(name for name, about in flags.items() if not about.experiment)
    return Declared(recipe.columns(), seed_like, settings_module.defaults())


def check_run(argv: Sequence[str]) -> None:
    """Raises UsageError with all problems at once if no run can have this command line."""
    settings, _ = settings_module.parse(argv)
    settings_module.check(settings)

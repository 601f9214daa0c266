"""What every command shares: what it logs reaches the console, which may fail; a wrong input becomes one line and exit code 2,
a signal its own exit code; and what commands that read finished runs are told of the program that made them."""

from __future__ import annotations

import errno
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from main import settings as settings_module
from main.analysis.log import Declared, read_meta
from main.analysis.table import Experiment
from main.training import recipe
from main.training.interrupt import EXIT_CODES, Stopped, stopping
from torchbeast.core import run_folder
from torchbeast.core.console import console, cut
from torchbeast.core.ranks import ALONE, Alone, RanksFailed
from torchbeast.core.settings import UsageError

UNREACHABLE = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP)  # what a path that was given can be


class ConsoleHandler(logging.Handler):
    """Writes to stderr above a live progress line; leaves out the progress lines where there is a live one."""

    def __init__(self):
        super().__init__(logging.INFO)
        self._live = sys.stderr.isatty()

    def emit(self, record: logging.LogRecord) -> None:
        if not (self._live and getattr(record, "progress", False)):
            tqdm.write(cut(self.format(record)), file=sys.stderr)


class RankHandler(logging.Handler):
    """Sends a rank's warnings to rank 0, whose console and log show them."""

    def __init__(self, ranks: Alone):
        super().__init__(logging.WARNING)
        self._ranks = ranks

    def emit(self, record: logging.LogRecord) -> None:
        text = cut(self.format(record))
        try:
            self._ranks.tell(text)
        except RanksFailed:
            print(f"rank {self._ranks.rank}: {text}", file=sys.stderr)


def run(work: Callable[[], int | None], ranks: Alone = ALONE) -> int:
    """Does the work of a command, as one of `ranks`.

    Returns the exit code: the work's own (None is 0); 2 for a wrong input; after a signal, its own; 1 if results could not be
    written to stdout.
    """
    with console() as (out, _):
        try:
            with stopping():
                code = _logged(work, ranks)
        except Stopped as stopped:
            _speak(str(stopped), ranks)
            return EXIT_CODES[stopped.number]
        if out.error is not None and not code:
            say(f"what was said on stdout is lost in part ({out.error.strerror})", ranks)
            return 1
        return code


def _logged(work: Callable[[], int | None], ranks: Alone) -> int:
    logger = logging.getLogger("amigo")
    logger.setLevel(logging.INFO)
    handler = ConsoleHandler() if ranks.first else RankHandler(ranks)
    logger.addHandler(handler)
    try:
        return work() or 0
    except UsageError as error:
        for line in str(error).splitlines():
            say(line, ranks)
        return 2
    except OSError as error:
        if error.errno not in UNREACHABLE or error.filename is None:
            raise
        say(f"{error.filename}: {error.strerror}; give a path that can be reached", ranks)
        return 2
    finally:
        logger.removeHandler(handler)


def say(error: object, ranks: Alone = ALONE) -> None:
    """An error, for the user."""
    _speak(f"error: {cut(str(error))}", ranks)


def _speak(text: str, ranks: Alone) -> None:
    with console():
        print(text if ranks.first else f"rank {ranks.rank}: {text}", file=sys.stderr)


def declared() -> Declared:
    """What logs and metadata of this program's runs hold."""
    flags = settings_module.flags()
    seed_like = frozenset(name for name, about in flags.items() if not about.experiment)
    return Declared(recipe.columns(), seed_like, settings_module.defaults())


def check_run(argv: Sequence[str]) -> None:
    """Raises UsageError with all problems at once if no run can have this command line."""
    settings, _ = settings_module.parse(argv)
    settings_module.check(settings)


def check_same(experiment: Experiment, folder: Path) -> None:
    """Raises: UsageError if the run there was made with other flags than the row's, as when the row has changed since.

    Compared are the flags that the row gives, and those that it leaves at their defaults, if they define an experiment and do
    something in it.
    """
    made_with = read_meta(folder / run_folder.METADATA, settings_module.defaults()).arguments
    if made_with is None:
        return
    settings, given = settings_module.parse(experiment.arguments)
    flags, wanted = settings_module.flags(), settings.flat()
    left = [name for name in wanted if name not in given and flags[name].experiment]
    for name in [*given, *left]:
        if made_with.get(name) != wanted[name] and (name in given or not settings_module.idle(settings, [name])):
            raise UsageError(
                f"{folder} was made with {name} {made_with.get(name)}, and [{experiment.name}] has {wanted[name]}: "
                "give the row another name, or move the folder away"
            )


if __name__ == "__main__":
    raise SystemExit("main.command is no command: python -m main --help names them")

"""A process of its own that plays with an agent while training goes on: what --evaluate_minutes starts."""

from __future__ import annotations

import contextlib
import json
import sys

import torch

from main import command
from main import settings as settings_module
from main.playing import score, trained


def main() -> None:
    """Plays as the command line says, and writes the statistics to stdout as JSON."""
    torch.set_num_threads(1)
    raise SystemExit(command.run(_play))


def _play() -> None:
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # a task of the user's own may print
        summary = score.score(trained.load(*settings_module.parse(sys.argv[1:])))
    print(json.dumps(summary, allow_nan=False), file=out)

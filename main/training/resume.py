"""How a run goes on: from its last checkpoint, with its own settings."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from main import settings as settings_module
from main.settings import FileSettings, RunSettings
from main.training import learner
from torchbeast.core import checkpoint, forms, run_folder
from torchbeast.core.optimizer import LearningSettings
from torchbeast.core.ranks import Alone
from torchbeast.core.settings import Settings, UsageError

logger = logging.getLogger("amigo")

# What is looked at before anything is built; each part looks at its own when it loads it.
PLAIN = {"incarnation": forms.whole(), "source": forms.mapping, **learner.PLAIN}
FORM = forms.record(PLAIN, exact=False, optional=learner.YOUNGER)
NO_RUN_ID = "none"  # what torchrun says if it was told no --rdzv_id


def named(settings: Settings) -> Settings:
    """Under torchrun a run needs a name, by which ranks that are started again find it: torchrun's own, if none is given."""
    if settings[FileSettings].xpid is not None:
        return settings
    name = os.environ.get("TORCHELASTIC_RUN_ID", NO_RUN_ID)
    if name == NO_RUN_ID:
        raise UsageError(
            "under torchrun the run needs a name, by which ranks that are started again find it: give --xpid, or --rdzv_id to "
            "torchrun"
        )
    if not run_folder.is_plain(name):
        raise UsageError(f"torchrun's --rdzv_id names the run, and must be {run_folder.not_plain(name)}; or give --xpid")
    return settings.replace(xpid=name)


def begun(files: FileSettings, ranks: Alone) -> str | None:
    """The run's folder if it has a checkpoint: torchrun starts ranks again by the command that started them first."""
    run_dir = Path(files.savedir) / files.xpid
    return str(run_dir) if ranks.share(bool(run_folder.checkpoints(run_dir))) else None


def resumed(place: Path, given: dict[str, Any], ranks: Alone) -> tuple[Settings, dict]:
    """The interrupted run's settings, with the resumable ones that were given, and its checkpoint.

    Args:
        place: the run's folder, one checkpoint in it, or a folder of runs, as `checkpoint.find` has it.
    """
    state, path = _checkpoint(place, ranks)
    try:
        for part in checkpoint.parts(state):
            FORM("", state | part)
    except forms.EntryError as error:
        other = checkpoint.in_place_of([path])
        raise UsageError(f"--resume: {path} cannot be gone on from: {error}; {other}") from None
    stored = {**settings_module.defaults(), **settings_module.stored(state["flags"], path)}
    settings_module.refuse_foreign_module(stored["env"], given, path)
    flags = settings_module.flags()
    if lost := [name for name in _begun_with(path.parent) if name in flags and name not in state["flags"]]:
        raise UsageError(f"--resume: {path} is damaged: its flags lack {', '.join(lost)}, with which the run was begun")
    fixed = [name for name, value in given.items() if not flags[name].resumable and value != stored[name]]
    if fixed:
        raise UsageError(
            "--resume goes on with the run's own flags; not with "
            + ", ".join(f"--{name} {given[name]} (the run has {stored[name]})" for name in fixed)
            + ": leave them out, or start a new run"
        )
    run_dir = run_folder.real(path.parent)
    if not (run_dir / run_folder.METADATA).is_file():
        raise UsageError(f"--resume: {run_dir} has no {run_folder.METADATA}: it is no run's whole folder; give that")
    if not run_folder.is_plain(run_dir.name):  # the run goes on under its folder's name
        raise UsageError(f"--resume {str(run_dir)!r}: a run's folder must be {run_folder.not_plain(run_dir.name)}: rename it")
    settings = settings_module.make({**stored, "resume": None, **given, "savedir": str(run_dir.parent), "xpid": run_dir.name})
    if ranks.first:
        _warn_of_changes(settings, stored["total_frames"], checkpoint.ranks(state), ranks.size)
    return settings, state


def _checkpoint(place: Path, ranks: Alone) -> tuple[dict, Path]:
    """The checkpoint to go on from, and which one that is: all ranks go on from the same."""
    try:
        state, path = checkpoint.find(run_folder.own(place)) if ranks.first else (None, None)
        path = Path(ranks.share(str(path)))
        state = checkpoint.load(path) if state is None else state
        checkpoint.ranks(state)
    except checkpoint.CheckpointError as error:
        raise UsageError(f"--resume: {error}") from None
    if checkpoint.is_published(state):
        raise UsageError(f"--resume: {path} was written by the published code, which saved too little to go on")
    return state, path


def _begun_with(run_dir: Path) -> dict[str, Any]:
    """The arguments in its meta.json: a flag that they lack is younger than the run. {} where they are not there."""
    try:
        return run_folder.read_metadata(run_dir).get("args", {})
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UsageError(f"--resume: {error}") from None


def _warn_of_changes(settings: Settings, total_then: int, ranks_then: int, ranks_now: int) -> None:
    """What makes the run another one than it would have been."""
    batch_size, total_frames = settings[LearningSettings].batch_size, settings[RunSettings].total_frames
    if ranks_then != ranks_now:
        logger.warning(
            f"the run had {ranks_then} ranks and goes on with {ranks_now}: each update now learns from "
            f"{ranks_now * batch_size} rollouts in place of {ranks_then * batch_size}"
        )
    if total_frames != total_then:
        logger.warning(
            f"--total_frames {total_frames:,} in place of {total_then:,}: the learning rate falls to 0 "
            "over the new number, so it jumps here; this is not the run that would have had that number from its start"
        )

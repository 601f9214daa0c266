"""A run's checkpoints: when they are written, and how a run goes on from one."""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path
from typing import Any

from main import flags as flags_module
from main.flags import UsageError
from torchbeast.core import checkpoint, run_folder
from torchbeast.core.ranks import Alone

logger = logging.getLogger("amigo")

RETRY_SECONDS = 60.0  # after one that could not be written
RESUMABLE_KEYS = ("frames", "incarnation", "source", "optimizer_state_dict", "scheduler_state_dict", "weights_version")


class Checkpoints:
    """Those of one run: every `--checkpoint_minutes`, and every `--milestone_frames` one that is kept for good.

    Args:
        run_dir: where they lie.
        frames: learned so far.
    """

    def __init__(self, flags: argparse.Namespace, run_dir: Path, frames: int):
        self.enabled = not flags.disable_checkpoint
        self._path = run_dir / run_folder.CHECKPOINT
        self._seconds = 60 * flags.checkpoint_minutes
        self._keep = flags.keep_checkpoints
        self._every = flags.milestone_frames
        self._milestone = self._following(frames)
        self._next = time.monotonic()
        self._failed = False

    def due(self, frames: int) -> bool:
        """Whether one is to be written now; after one that could not be, not before RETRY_SECONDS are over."""
        if not self.enabled:
            return False
        return time.monotonic() >= self._next or (self._milestone_due(frames) and not self._failed)

    def write(self, state: dict) -> None:
        """Raises: OSError; the last one is then still there."""
        self._next, self._failed = time.monotonic() + RETRY_SECONDS, True
        checkpoint.save(self._path, state, keep=self._keep)
        if self._milestone_due(state["frames"]):
            checkpoint.link(self._path, self._path.with_name(run_folder.milestone(state["frames"])))
            self._milestone = self._following(state["frames"])
        self._next, self._failed = time.monotonic() + self._seconds, False

    def _milestone_due(self, frames: int) -> bool:
        return self._milestone is not None and frames >= self._milestone

    def _following(self, frames: int) -> int | None:
        return None if self._every is None else (frames // self._every + 1) * self._every


def begun(flags: argparse.Namespace, ranks: Alone) -> str | None:
    """The run's folder if it has a checkpoint: torchrun starts ranks again by the command that started them first."""
    if flags.xpid is None:
        raise UsageError("under torchrun the run needs a name, by which ranks that are started again find it: give --xpid")
    run_dir = Path(flags.savedir) / flags.xpid
    return str(run_dir) if ranks.share((run_dir / run_folder.CHECKPOINT).exists()) else None


def resumed(flags: argparse.Namespace, given: dict[str, Any], ranks: Alone) -> tuple[argparse.Namespace, dict]:
    """The interrupted run's flags, with the resumable ones that were given, and its checkpoint."""
    run_dir = Path(flags.resume)
    try:
        state, path = checkpoint.load_newest(run_dir / run_folder.CHECKPOINT) if ranks.first else (None, None)
        path = Path(ranks.share(str(path)))  # all go on from the same one
        state = checkpoint.load(path) if state is None else state
        ranks_then = checkpoint.ranks(state)
    except checkpoint.CheckpointError as error:
        raise UsageError(f"--resume: {error}") from None
    if checkpoint.is_published(state):
        raise UsageError(f"--resume: {path} was written by the published code, which saved too little to go on")
    missing = [key for key in RESUMABLE_KEYS if key not in state]
    if missing:
        raise UsageError(f"--resume: {path} cannot be gone on from: it lacks {', '.join(missing)}")
    stored = {**flags_module.defaults(), **flags_module.stored(state["flags"])}
    fixed = [k for k, v in given.items() if not flags_module.BY_NAME[k].resumable and v != stored[k]]
    if fixed:
        raise UsageError(
            "--resume goes on with the run's own flags; not with "
            + ", ".join(f"--{name} {given[name]} (the run has {stored[name]})" for name in fixed)
            + ": leave them out, or start a new run"
        )
    goes_on = argparse.Namespace(**{**stored, **given})
    if ranks_then != ranks.size and ranks.first:
        logger.warning(
            f"the run had {ranks_then} ranks and goes on with {ranks.size}: each update now learns from "
            f"{ranks.size * goes_on.batch_size} rollouts in place of {ranks_then * goes_on.batch_size}"
        )
    if goes_on.total_frames != stored["total_frames"] and ranks.first:
        logger.warning(
            f"--total_frames {goes_on.total_frames:,} in place of {stored['total_frames']:,}: the learning rate falls to 0 "
            "over the new number, so it jumps here; this is not the run that would have had that number from its start"
        )
    goes_on.savedir, goes_on.xpid = str(run_dir.resolve().parent), run_dir.resolve().name
    return goes_on, state

"""What a run says as it ends, and what is said of one that has ended: what it came to, where it lies, what comes next."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path

from main.amigo import program
from main.settings import FileSettings, RunSettings
from main.training.beside import Progress, clock
from main.training.interrupt import EXIT_CODES
from torchbeast.core import run_folder
from torchbeast.core.ranks import Alone
from torchbeast.core.settings import Settings


def how(successful: bool, ended: bool, number: int | None) -> str:
    """In words. successful: all frames are learned; ended: nothing failed; number: the signal that ended it, if one did."""
    if successful:
        return "finished"
    if not ended:
        return "ended by a failure"
    return "stopped" if number not in EXIT_CODES else f"stopped by {signal.Signals(number).name}"


def closing(how: str, progress: Progress, run_dir: Path, ranks: Alone) -> str:
    """The last line of a run: frames, hours of this start, success, its folder, and the command that comes next."""
    frames = f"{progress.frames:,}" if progress.done else f"{progress.frames:,} of {progress.total:,}"
    success = progress.success() or "no episode ended"
    following = _test(run_dir) if progress.done else _resume(run_dir) if ranks.alone else "the same torchrun command"
    if not run_folder.checkpoints(run_dir):
        following = "none, since it has left no checkpoint"
    return f"{how} at {frames} frames, after {clock(progress.seconds)} h, {success}, in {run_dir}; next: {following}"


def is_over(settings: Settings, state: dict) -> bool:
    """Whether there is nothing left to learn from this checkpoint on, and the run's metadata says that it came to its end."""
    if state["frames"] < settings[RunSettings].total_frames:
        return False
    try:
        return run_folder.read_metadata(_folder(settings)).get("successful") is True
    except FileNotFoundError:
        return False


def over(settings: Settings, state: dict) -> str:
    """What is said of such a run in place of going on with it."""
    folder, frames, total = _folder(settings), state["frames"], settings[RunSettings].total_frames
    return (
        f"{folder} is finished: it has learned from {frames:,} frames, and --total_frames is {total:,}; nothing was done. "
        f"To go on: {_resume(folder)} --total_frames {2 * max(frames, total)}; to see it play: {_test(folder)}"
    )


def _folder(settings: Settings) -> Path:
    files = settings[FileSettings]
    return run_folder.of(files.savedir, files.xpid)


def _resume(run_dir: Path) -> str:
    return f"{program('main.main')} --resume {shlex.quote(str(run_dir))}"


def _test(run_dir: Path) -> str:
    weights = shlex.quote(str(run_dir / run_folder.CHECKPOINT))
    return f"{program('main.main')} --mode test --weight_path {weights}"

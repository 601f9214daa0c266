"""Checkpoints: atomic save, checked load."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch

FORMAT = "amigo-1"  # the published code's checkpoints lack this key
REQUIRED = ("model_state_dict", "flags")


class CheckpointError(ValueError):
    """A file that cannot be used as a checkpoint; the message is one line and names the file."""


def save(path: Path, state: dict) -> None:
    """Writes `state` so that `path` is at every moment either the old file or the whole new one."""
    handle, temporary = tempfile.mkstemp(prefix=path.name, suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def load(path: Path) -> dict:
    """Reads a checkpoint, ours or the published code's, running no code that it may contain.

    Raises: CheckpointError if it is missing, damaged, or something else.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give the path of a run's model.tar")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Whatever a damaged or hostile file makes the reader raise, the user needs the same line; the cause stays attached.
        raise CheckpointError(f"{path}: not a readable checkpoint (damaged, cut short, or not one at all)") from error
    if not isinstance(state, dict) or any(not isinstance(state.get(key), dict) for key in REQUIRED):
        raise CheckpointError(f"{path}: not an agent's checkpoint (it lacks {' or '.join(REQUIRED)})")
    return state


def is_published(state: dict) -> bool:
    """Whether the published code wrote it."""
    return "format" not in state

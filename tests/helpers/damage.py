"""Checkpoints that are changed, and a look at whether anything else was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from torchbeast.core import checkpoint

Damage = Callable[[Path, Path], object]  # to the checkpoint at the first path; the second is where code in it would show


def changed(**entries: Any) -> Damage:
    """The checkpoint with other entries; None removes one."""

    def change(path, trap):
        state = checkpoint.load(path) | entries
        torch.save({k: v for k, v in state.items() if v is not None}, path)

    return change


def flag(name: str, value: Any) -> Damage:
    """The checkpoint with another value of a flag."""

    def change(path, trap):
        state = checkpoint.load(path)
        state["flags"][name] = value
        torch.save(state, path)

    return change


def contents(folder: Path) -> dict[str, bytes]:
    """Every file in it."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

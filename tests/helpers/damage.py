"""Checkpoints that are changed, and a look at whether anything else was."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
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


def unended(run: Path) -> Path:
    """The run, as if it had been killed before its end was noted: one that has ended is not gone on with."""
    meta = json.loads((run / "meta.json").read_text())
    (run / "meta.json").write_text(json.dumps(meta | {"successful": None}))
    return run


def contents(folder: Path) -> dict[str, bytes]:
    """Every file in it."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


REMOVED = object()
OTHERS = {  # other values, by what the value is; anything can be removed, or be of another kind
    int: (-5, 2**70, 10**400, float("nan"), 1.5, True),
    float: (float("nan"), float("inf"), -1e300, 10**400, 1 + 1j),
    str: ("", "\udcff", "x" * 100_000, b"bytes"),
    bool: (7, "true"),
    list: ([], [None], [[]] * 1000, {}),
    dict: ({}, {"": 0}, []),
}


def leaves(tree: Any, way: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    """(keys that lead to it, value) of everything in nested dicts and lists, the dicts and lists among them."""
    if way:
        yield way, tree
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inside:
        yield from leaves(value, (*way, key))


def replaced(tree: Any, way: tuple, value: Any) -> Any:
    """A copy in which that stands there; REMOVED takes it out."""
    key, *rest = way
    copy = dict(tree) if isinstance(tree, dict) else dict(enumerate(tree))
    copy[key] = replaced(copy[key], tuple(rest), value) if rest else value
    if copy[key] is REMOVED:
        del copy[key]
    return copy if isinstance(tree, dict) else list(copy.values())


def others(value: Any, chance: random.Random) -> Iterator[tuple[str, Any]]:
    """(name, other value) of what may stand in a hostile file in place of a value."""
    yield "removed", REMOVED
    yield "none", None
    yield "text", "text"
    yield "a list", [value]
    yield "a tensor", torch.zeros(3)
    if isinstance(value, torch.Tensor):
        yield from _other_tensors(value, chance)
    for i, other in enumerate(OTHERS.get(type(value), ())):
        yield f"{type(value).__name__} {i}", other


def _other_tensors(value: torch.Tensor, chance: random.Random) -> Iterator[tuple[str, torch.Tensor]]:
    yield "longer", torch.cat([value.reshape(-1), value.reshape(-1)[:1], torch.zeros(1, dtype=value.dtype)])
    yield "expanded", torch.zeros(1, dtype=value.dtype).expand(10**13)
    yield "sparse", torch.zeros(value.shape or (1,)).to_sparse()
    yield "meta", value.to("meta")
    for dtype in (torch.complex64, torch.float64, torch.float16, torch.int64, torch.int16, torch.uint8, torch.bool):
        if dtype != value.dtype:
            yield f"as {dtype}", value.to(dtype)
    if not value.numel():
        return
    low, high = (-(2**31), 2**31 - 1) if value.dtype == torch.int32 else (-(2**63), 2**63 - 1)
    floats = (float("nan"), float("inf"), -1e38, 1e38)
    extremes = {"float": floats, "int": (low, -1, high), "uint8": (255, 11), "bool": (2, 255)}
    kind = next(kind for kind in ("uint8", "float", "int", "bool") if kind in str(value.dtype))
    for extreme in extremes[kind]:
        yield f"all {extreme}", filled(value, extreme, slice(None))
        yield f"one {extreme}", filled(value, extreme, chance.randrange(value.numel()))


def filled(value: torch.Tensor, extreme: float, where: Any) -> torch.Tensor:
    """A copy with that value there; of a bool, with that byte."""
    copy = value.clone().contiguous()
    flat = copy.view(-1).view(torch.uint8) if value.dtype == torch.bool else copy.view(-1)
    flat[where] = extreme
    return copy

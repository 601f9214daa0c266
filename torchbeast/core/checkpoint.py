"""Checkpoints: atomic save, checked load."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import re
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from torchbeast.core import forms, run_folder
from torchbeast.core.run_folder import replacing

logger = logging.getLogger("amigo")

FORMAT = "amigo-1"  # the published code's checkpoints lack this key
MAX_DEPTH = 100  # of entries in entries
REQUIRED = ("model_state_dict", "flags")


class CheckpointError(ValueError):
    """A file that cannot be used as a checkpoint; the message is one line and names the file."""


def save(path: Path, state: dict, *, keep: int = 1) -> None:
    """Writes `state` so that `path` is at every moment either the old file or the whole new one.

    The `keep` - 1 checkpoints before it stay beside it, as NAME-1.tar (the newest of them), NAME-2.tar, ...: whole ones, of
    fewer frames than it has. One of more, from which the run has gone back, becomes a milestone.
    """
    with _written(path, state):
        _make_room(path, keep, state.get("frames", math.inf))


def write(path: Path, state: dict) -> None:
    """As `save`, but what stays beside it, and whether that is older, is nobody's business here."""
    with _written(path, state):
        pass


@contextlib.contextmanager
def _written(path: Path, state: dict) -> Iterator[None]:
    """At the block's end `path` is the new file."""
    content = io.BytesIO()  # written at once: PyTorch's own writer hides a full disk behind an internal error
    torch.save({"format": FORMAT, **state}, content)
    with replacing(path, alone=True) as temporary:
        with open(temporary, "wb") as file:
            file.write(content.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        yield


def _make_room(path: Path, keep: int, frames: float) -> None:
    """Moves the checkpoints before one of so many frames to their next names; `path` itself stays until it is replaced.

    What is damaged, or holds no less than the new one, must not take the place of a good one before it.
    """
    before = _in_order(path)
    while before and not (then := _frames(before[0][1])) < frames:
        _, other = before.pop(0)
        if frames < then < math.inf:
            milestone = path.with_name(run_folder.milestone(int(then)))
            link(other, milestone)
            logger.warning(f"{other} is ahead of where the run goes on: it stays as {milestone.name}")
    moves = [(old, new, other) for new, (old, other) in enumerate(before[: keep - 1], 1)]
    down, up = ([move for move in moves if sign * (move[1] - move[0]) > 0] for sign in (1, -1))
    for _, new, other in (*reversed(down), *up):  # so none is written over before it has moved
        with contextlib.suppress(FileNotFoundError):  # somebody has deleted it just now
            link(path, earlier(path, new)) if other == path else os.replace(other, earlier(path, new))


def kept(path: Path) -> int:
    """How many of `path` and the checkpoints kept before it there are."""
    return sum(other.exists() for _, other in _in_order(path))


def _in_order(path: Path) -> list[tuple[int, Path]]:
    """`path` and the checkpoints kept before it, each with its number; the newest first."""
    name = re.compile(rf"{re.escape(path.stem)}-([1-9]\d{{0,8}}){re.escape(path.suffix)}", re.ASCII)
    matches = (name.fullmatch(other.name) for other in path.parent.glob(f"*{path.suffix}"))
    return [(0, path), *sorted((int(match[1]), path.with_name(match[0])) for match in matches if match)]


def _frames(path: Path) -> float:
    """Of how many frames a checkpoint is; infinitely many of one that is damaged, is none, or is being deleted."""
    try:
        frames = load(path)["frames"]
    except (CheckpointError, KeyError, FileNotFoundError):
        return math.inf
    return frames if type(frames) is int and frames >= 0 else math.inf


def link(path: Path, other: Path) -> None:
    """`other` becomes a second name of `path`'s present content, at once and whole."""
    with replacing(other, alone=True) as temporary:
        try:
            os.link(path, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, temporary)


def earlier(path: Path, n: int) -> Path:
    """Where the n-th checkpoint before `path` is kept."""
    return path.with_name(f"{path.stem}-{n}{path.suffix}")


def find(place: Path) -> tuple[dict, Path]:
    """The checkpoint that a user means by this place, and which one that is.

    Args:
        place: a checkpoint; a run's folder, where the newest readable one counts; or a folder of runs, where the latest does.
    Raises: CheckpointError if there is none, or it cannot be told which.
    """
    others = run_folder.checkpoints(place.parent)
    if place.is_file() or (place.suffix == Path(run_folder.CHECKPOINT).suffix and not place.is_dir()):
        if not place.exists() and others:
            raise CheckpointError(f"{place}: no such file; there are {', '.join(path.name for path in others)}")
        try:
            return load(place), place
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {in_place_of([place])}" if place.is_file() else str(error)) from error
    try:
        run_dir = run_folder.meant(place)
    except FileNotFoundError as error:
        raise CheckpointError(str(error)) from None
    newest = run_dir / run_folder.CHECKPOINT
    try:
        return load_newest(newest)
    except CheckpointError as error:
        if not run_folder.checkpoints(run_dir):
            raise
        raise CheckpointError(f"{error}; {in_place_of([path for _, path in _in_order(newest)])}") from error


def in_place_of(useless: Sequence[Path]) -> str:
    """What to give in place of these checkpoints of one folder: the newest of those beside them."""
    others = [path for path in run_folder.checkpoints(useless[0].parent) if path not in useless]
    return f"give {others[-1]}" if others else "no other checkpoint is beside it: start a new run"


def load_newest(path: Path) -> tuple[dict, Path]:
    """The newest readable one of `path` and the checkpoints kept before it, and which one that is.

    Damaged ones are named in a warning. Raises: CheckpointError if there is none.
    """
    candidates = [candidate for _, candidate in _in_order(path)]
    if not any(candidate.exists() for candidate in candidates):
        raise CheckpointError(f"{path}: no such file; give the folder of a run of this program (SAVEDIR/XPID)")
    first_error = None
    for candidate in candidates:
        try:
            return load(candidate), candidate
        except CheckpointError as error:
            first_error = first_error or error
            if len(candidates) > 1:  # the only one's error is raised
                logger.warning(f"{error}{'; trying the one before' if candidate != candidates[-1] else ''}")
    raise first_error


def load(path: Path) -> dict:
    """Reads a checkpoint, ours or the published code's, running no code that it may contain.

    Raises: CheckpointError if it is missing, damaged, or something else.
    """
    if not path.is_file():
        there = "no ordinary file" if path.exists() else "no such file"
        raise CheckpointError(f"{path}: {there}; give a run's folder, its {run_folder.CHECKPOINT}, or a folder of runs")
    try:
        _check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:
        # Whatever a damaged or hostile file makes the reader raise, the user needs the same line; the cause stays attached.
        raise CheckpointError(f"{path}: not a readable checkpoint (damaged, cut short, or not one at all)") from error
    _check_sizes(path, state)
    if not isinstance(state, dict) or any(not isinstance(state.get(key), dict) for key in REQUIRED):
        raise CheckpointError(f"{path}: not an agent's checkpoint (it lacks {' or '.join(REQUIRED)})")
    if state.get("format", FORMAT) != FORMAT:
        raise CheckpointError(f"{path}: its format is not {FORMAT}: use the program that wrote it")
    return state


def _check_archive(path: Path) -> None:
    """A zip file's directory, before anything is read: PyTorch stores, and does not deflate; it does not look at checksums.

    Raises: CheckpointError if it holds more than its size, or its contents are not those that were written.
    """
    if not zipfile.is_zipfile(path):  # the published code's form
        return
    with zipfile.ZipFile(path) as archive:
        files = archive.infolist()
        deflated = any(file.compress_type != zipfile.ZIP_STORED for file in files)
        if deflated or sum(file.file_size for file in files) > path.stat().st_size:
            raise CheckpointError(f"{path}: no checkpoint of PyTorch's, which are never compressed: it would unpack to more")
        if (damaged := archive.testzip()) is not None:
            raise CheckpointError(f"{path}: damaged: the checksum of {damaged!r} is wrong; take an earlier checkpoint")


def _check_sizes(path: Path, state: object) -> None:
    """Raises: CheckpointError for what is larger than the file: views of a few numbers as many, entries in circles."""
    size = path.stat().st_size
    waiting: list[tuple[object, int]] = [(state, 0)]
    count = 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if isinstance(value, Tensor):
            plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
            if not plain or value.numel() * value.element_size() > size:
                raise CheckpointError(f"{path}: damaged: {forms.shown(value)} is no plain tensor of this file")
        elif isinstance(value, (dict, list, tuple, set)):
            inside = [*value, *value.values()] if isinstance(value, dict) else value
            waiting += [(item, depth + 1) for item in inside]
        if depth > MAX_DEPTH or count + len(waiting) > size:
            raise CheckpointError(f"{path}: damaged: its entries are nested too deeply, or in circles")


def is_published(state: dict) -> bool:
    """Whether the published code wrote it."""
    return "format" not in state


def parts(state: dict) -> list[dict]:
    """What each rank has for itself, in their order; rank 0's is the state itself. Raises: CheckpointError if it is no such."""
    others = state.get("other_ranks", [])
    try:
        forms.each(forms.mapping)("other_ranks", others)
    except forms.EntryError as error:
        raise CheckpointError(f"the checkpoint is damaged: {error}") from None
    return [state, *others]


def ranks(state: dict) -> int:
    """How many ranks wrote a run's checkpoint. Raises: CheckpointError if that cannot be told."""
    return len(parts(state))


def for_rank(state: dict, rank: int, size: int, *, waiting_keys: Sequence[str]) -> dict:
    """A run's checkpoint as rank `rank` of `size` goes on from it, whatever number of ranks wrote it.

    With another number than then: what waited on ranks that are no more goes to those that are, and environments begin anew.
    Schedules count updates; older ones do not say of how many frames, and count the same frames in updates of the present size.
    """
    of_ranks = parts(state)
    then, state = len(of_ranks), dict(state)
    for part in of_ranks:
        forms.record({"source": forms.mapping, **dict.fromkeys(waiting_keys, forms.mapping)}, exact=False)("", part)
    for key in waiting_keys:
        state[key] = _joined([part[key] for part in of_ranks[rank::size] if part[key]])
    state["source"] = of_ranks[rank]["source"] if then == size else {}
    if then != size:
        for name in [name for name in state if name.endswith("scheduler_state_dict")]:
            forms.record({"last_epoch": forms.number(0, forms.MOST)}, exact=False)(name, state[name])
            if "frames_per_update" not in state[name]:
                state[name] = {**state[name], "last_epoch": state[name]["last_epoch"] * then / size}
    return state


def _joined(parts: Sequence[dict]) -> dict:
    """Tensors [N, ...] by name, one after the other."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}

"""What is kept of a finished run beside the code: a thinned log, its metadata, and the weights that play."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np

from main.analysis.log import Declared, Log, is_compressed, joined, read_log
from torchbeast.core import checkpoint, forms, run_folder
from torchbeast.core.settings import UsageError

ROWS, FEWEST_ROWS, ROW_FRAMES = 1000, 200, 10_000  # at most, and of a short run one for so many frames, but not fewer
DIGITS = 4
OF_RUN = ("training_keys", "source", "other_ranks")  # what the run, not its learner, adds to a checkpoint
STARTED = forms.record({"command": forms.some(forms.text), "args": forms.mapping}, exact=False)  # each start in meta.json
BEFORE = ("optimizer_state_dict", "scheduler_state_dict", "recent_returns")  # how training keys end, where they are not listed


def keep(run_dir: Path, folder: Path, declared: Declared, *, weights: bool = True) -> None:
    """Writes logs.csv.gz (thinned), meta.json and, with `weights`, model.tar of a run into `folder`, which is made.

    Raises: UsageError if the run has no readable log or checkpoint.
    """
    try:
        state = checkpoint.load(run_dir / run_folder.CHECKPOINT)
    except checkpoint.CheckpointError as error:
        raise UsageError(str(error)) from None
    log = read_log(run_dir, declared)
    try:
        meta = run_folder.read_metadata(run_dir)
        forms.each(STARTED)("meta.json", [meta, *meta.get("resumed", [])])
    except ValueError as error:
        raise UsageError(f"{run_dir}: {error}: repair it") from None
    meta["xpid"] = folder.name
    # As if it had been made in `folder`: where code and runs lay is nobody's business.
    place = {"savedir": folder.parent.name, "xpid": folder.name, "resume": f"{folder.parent.name}/{folder.name}"}
    after = {f"--{name}": value for name, value in place.items()}
    for start in (meta, *meta.get("resumed", [])):
        program, *words = start["command"]
        start["command"] = [Path(program).name, *(_word(*pair, after) for pair in zip(("", *words), words))]
        start["args"] = _placed(start["args"], place)
    folder.mkdir(parents=True, exist_ok=True)
    if weights:
        checkpoint.save(folder / run_folder.CHECKPOINT, playing(state) | {"flags": _placed(state["flags"], place)})
    with run_folder.replacing(folder / run_folder.KEPT_LOG) as temporary:
        temporary.write_bytes(written(thinned(log), temporary))
    run_folder.write_metadata(folder, meta)


def playing(state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint without what only going on with the run needs, which is about half of it."""
    training = state.get("training_keys", [key for key in state if key.endswith(BEFORE)])
    return {key: value for key, value in state.items() if key not in (*training, *OF_RUN)}


def _word(before: str, word: str, after: dict[str, str]) -> str:
    """A word of a command line, with the value that comes after a flag or `FLAG=` in place of its own."""
    flag, equals, _ = word.partition("=")
    return f"{flag}={after[flag]}" if equals and flag in after else after.get(before, word)


def _placed(arguments: dict[str, Any], place: dict[str, str]) -> dict[str, Any]:
    """The arguments, with those of `place` in place of their own where they have one."""
    return arguments | {name: value for name, value in place.items() if arguments.get(name) is not None}


def thinned(log: Log, rows: int | None = None) -> dict[str, np.ndarray]:
    """The log's columns with up to `rows` rows, each for an equal share of its updates, float64, NaN where nothing was.

    `rows`: None is one for 10,000 frames, but 200 to 1,000. What becomes of a column's values stands in its declaration
    (Column.join).
    """
    if rows is None:
        rows = int(np.clip(log.frames[-1] // ROW_FRAMES, FEWEST_ROWS, ROWS))
    starts = np.unique(np.linspace(0, len(log.frames), min(rows, len(log.frames)), endpoint=False).astype(int))
    return joined(log.columns, starts, log.join)


def written(columns: dict[str, np.ndarray], path: Path) -> bytes:
    """The columns as a log is written to `path`: a first line that names them, and a line a row; empty where nothing was."""
    file = io.StringIO()
    file.write("# " + ",".join(columns) + "\n")
    csv.writer(file, lineterminator="\n").writerows(zip(*(map(_cell, column) for column in columns.values())))
    content = file.getvalue().encode()
    return gzip.compress(content, mtime=0) if is_compressed(path) else content  # without a time: the same log, the same file


def _cell(value: float) -> str:
    if np.isnan(value):
        return ""
    return str(int(value)) if value == int(value) else f"{value:.{DIGITS}g}" if abs(value) < 1e9 else f"{value:.1f}"

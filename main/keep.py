"""What is kept of a finished run beside the code: a thinned log, its metadata, and the weights that play."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from main import logs
from main.learner import EPISODE_MEANS
from torchbeast.core import checkpoint, run_folder

ROWS = 1000
DIGITS = 5
LAST = ("_tick", "_time", "frames", "generator_current_target")  # as they stood at the end of a row's updates
SUMMED = ("episodes",)
# Only going on with the run needs these; they are half of a checkpoint.
TRAINING = ("optimizer_state_dict", "scheduler_state_dict", "source", "generator_batch", "recent_returns", "other_ranks")


def keep(run_dir: Path, folder: Path) -> None:
    """Writes logs.csv (about 1,000 rows), meta.json and model.tar of a run into `folder`, which is made and names it.

    Raises: UsageError or CheckpointError if the run has no readable log or checkpoint.
    """
    state = checkpoint.load(run_dir / run_folder.CHECKPOINT)
    run = logs.read_run(run_dir)
    meta = run_folder.read_metadata(run_dir)
    meta["xpid"] = folder.name
    # As if it had been made in `folder`: where code and runs lay is nobody's business.
    place = {"savedir": folder.parent.name, "xpid": folder.name, "resume": f"{folder.parent.name}/{folder.name}"}
    after = {f"--{name}": value for name, value in place.items()}
    for start in (meta, *meta.get("resumed", [])):
        program, *words = start["command"]
        start["command"] = [Path(program).name, *(_word(*pair, after) for pair in zip(("", *words), words))]
        start["args"] = _placed(start["args"], place)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {key: value for key, value in state.items() if not key.endswith(TRAINING)}
    weights["flags"] = _placed(state["flags"], place)
    checkpoint.save(folder / run_folder.CHECKPOINT, weights)
    with run_folder.replacing(folder / run_folder.LOG) as temporary, open(temporary, "w", newline="") as file:
        names = list(run.columns)
        file.write("# " + ",".join(names) + "\n")
        csv.writer(file, lineterminator="\n").writerows(zip(*(map(_cell, column) for column in thinned(run).values())))
    run_folder.write_metadata(folder, meta)


def _word(before: str, word: str, after: dict[str, str]) -> str:
    """A word of a command line, with the value that comes after a flag or `FLAG=` in place of its own."""
    flag, equals, _ = word.partition("=")
    return f"{flag}={after[flag]}" if equals and flag in after else after.get(before, word)


def _placed(arguments: dict[str, Any], place: dict[str, str]) -> dict[str, Any]:
    """The arguments, with those of `place` in place of their own where they have one."""
    return arguments | {name: value for name, value in place.items() if arguments.get(name) is not None}


def thinned(run: logs.Run, rows: int = ROWS) -> dict[str, np.ndarray]:
    """The run's columns with up to `rows` rows, each for an equal share of its updates, float64, NaN where nothing was.

    Episodes are added up; what is a mean over episodes stays one; of times, frames and t* the last value stays; all else
    is the mean of the values that there are.
    """
    starts = np.unique(np.linspace(0, len(run.frames), min(rows, len(run.frames)), endpoint=False).astype(int))
    ends = np.append(starts[1:], len(run.frames)) - 1
    episodes = np.nan_to_num(run.columns["episodes"]) if "episodes" in run.columns else np.ones(len(run.frames))
    columns = {}
    for name, values in run.columns.items():
        if name in LAST:
            columns[name] = values[ends]
            continue
        weights = np.isfinite(values) * (episodes if name in EPISODE_MEANS else 1.0)
        total, weight = (np.add.reduceat(x, starts) for x in (weights * np.nan_to_num(values), weights))
        mean = np.divide(total, weight, out=np.full(len(starts), np.nan), where=weight > 0)
        columns[name] = total if name in SUMMED else mean
    return columns


def _cell(value: float) -> str:
    if np.isnan(value):
        return ""
    return str(int(value)) if value == int(value) else f"{value:.{DIGITS}g}" if abs(value) < 1e9 else f"{value:.1f}"

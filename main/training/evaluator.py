"""--evaluate_minutes: a process beside training plays the newest weights; its figures, and the best agent so far.

Training waits only while the weights are copied to a file, as for a checkpoint. Whatever becomes of the other process, or of
the disk, training goes on: that is told once, and tried again when the next evaluation is due.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from main.settings import EvaluationSettings, FileSettings, RunSettings
from main.training.learner import Learner
from main.training.loop import Loop
from main.training.record import Record
from torchbeast.core import checkpoint, forms, run_folder
from torchbeast.core.run_folder import replacing
from torchbeast.core.sampling import derive_seed
from torchbeast.core.settings import Settings
from utils_folder.minigrid import EnvironmentSettings

logger = logging.getLogger("amigo")

PATIENCE_SECONDS = 120.0  # that an evaluation may always take, however short --evaluate_minutes is
END_SECONDS = 2.0
PLAY = """import os
from torchbeast.core import parent
parent.end_with_stdin()
parent.die_with(int(os.environ.pop("AMIGO_PARENT")))
from main.playing import apart
apart.main()"""
MEANS = ("success_rate", "mean_return", "mean_steps")
FIGURES = ("episodes", *(name for mean in MEANS for name in (mean, f"{mean}_low", f"{mean}_high")))
COLUMNS = ("frames", "time", *FIGURES, "best")
BEST_FIGURES = "evaluation"  # the key of the best agent's, in its file
FORM = forms.record({"success_rate": forms.number(0, 1), "mean_return": forms.number()}, exact=False)


class EvaluationFailed(Exception):
    """The process that plays came to no result; the message is the cause."""


class Evaluator:
    """Plays every `evaluate_minutes`, in one process at a time; writes the table of that, and keeps the best agent.

    Args:
        settings: the run's; where `evaluate_minutes` is unset nothing is played.
    """

    def __init__(self, settings: Settings, learner: Learner, loop: Loop):
        self._settings = settings
        self._learner = learner
        self._loop = loop
        minutes = settings[FileSettings].evaluate_minutes
        self._seconds = math.inf if minutes is None else 60 * minutes
        self._next = time.monotonic() + self._seconds
        self._playing: _Playing | None = None
        self._frames = 0  # of the agent that plays
        self._failing = False
        self._rows: list[dict[str, Any]] = []
        self._best = (-math.inf, -math.inf)
        self._resumed_at = learner.frames

    def _take_up(self, run_dir: Path, frames: int) -> None:
        """Goes on with the table and the best agent of a run that goes on at `frames`: rows of later ones go."""
        table, best = run_dir / run_folder.EVALUATIONS, run_dir / run_folder.BEST
        with self._survived():
            if table.exists():
                found = _read_or_set_aside(table)
                self._rows = [row for row in found if row["frames"] <= frames]
                if len(self._rows) < len(found):
                    self._write(run_dir)
            if best.exists():
                self._best = _rank_of(best)

    def __call__(self, record: Record) -> None:
        """Called often, between updates or beside them."""
        if self._resumed_at:
            self._take_up(record.run_dir, self._resumed_at)
            self._resumed_at = 0
        if self._playing is not None and self._playing.over():
            playing, self._playing = self._playing, None
            with self._survived():
                self._finish(playing.result(), record)
            _remove(record.run_dir / run_folder.CANDIDATE)
        elif self._playing is None and time.monotonic() >= self._next:
            self._next = time.monotonic() + self._seconds
            with self._survived():
                path = record.run_dir / run_folder.CANDIDATE
                self._save(path)
                self._playing = _Playing(self._words(path), max(PATIENCE_SECONDS, self._seconds))

    def close(self, run_dir: Path) -> None:
        """Ends the process that plays, if there is one."""
        if self._playing is not None:
            self._playing.end()
            self._playing = None
            _remove(run_dir / run_folder.CANDIDATE)

    @contextlib.contextmanager
    def _survived(self) -> Iterator[None]:
        """No failure ends training: it is told once, until an evaluation has come to its end again."""
        try:
            yield
        except (OSError, checkpoint.CheckpointError, EvaluationFailed) as error:
            if not self._failing:
                logger.warning(f"an evaluation beside training failed ({error}); training goes on, and later ones are tried")
            self._failing = True

    def _save(self, path: Path) -> None:
        """Writes what playing with the present agent takes. Unlike for a checkpoint no other rank is asked."""
        with self._loop.paused():
            state = self._learner.state_dict()
            playing = {key: value for key, value in state.items() if key not in state["training_keys"]}
            checkpoint.write(path, playing | {"flags": self._settings.flat()})
            self._frames = state["frames"]

    def _words(self, path: Path) -> list[str]:
        """The command line that plays this agent, on the run's own task."""
        run, own, task = self._settings[RunSettings], self._settings[EvaluationSettings], self._settings[EnvironmentSettings]
        seed = derive_seed(run.seed, "evaluation beside training", self._frames)
        values = {
            "mode": "test", "weight_path": path.absolute(), "env": run.env, "engine": task.engine, "seed": seed,
            "num_episodes": own.num_episodes, "env_seed": task.env_seed,
        }  # fmt: skip
        switches = {"greedy": own.greedy, "fix_seed": task.fix_seed}
        return [f"--{name}={value}" for name, value in values.items()] + [f"--{name}" for name in switches if switches[name]]

    def _finish(self, summary: dict[str, Any], record: Record) -> None:
        row = {"frames": self._frames, "time": round(time.time(), 3), **_figures(summary), "best": 0}
        self._rows.append(row)
        record.evaluated(self._frames, {f"evaluation/{name}": row[name] for name in FIGURES})
        better = _rank(row) > self._best
        logger.info(
            f"evaluated at {self._frames:,} frames: success {row['success_rate']:.3f} "
            f"({row['success_rate_low']:.3f} to {row['success_rate_high']:.3f}), return {row['mean_return']:.3f}, "
            f"{row['episodes']} episodes{', the best so far' if better else ''}"
        )
        if better:
            self._keep(record.run_dir, row)
        self._write(record.run_dir)
        if self._failing:
            logger.info("evaluations beside training work again")
        self._failing = False

    def _keep(self, run_dir: Path, row: dict[str, Any]) -> None:
        state = checkpoint.load(run_dir / run_folder.CANDIDATE)
        checkpoint.write(run_dir / run_folder.BEST, state | {BEST_FIGURES: {name: row[name] for name in FIGURES}})
        self._best, row["best"] = _rank(row), 1

    def _write(self, run_dir: Path) -> None:
        """The whole table, which is small: so what could not be written before is in it."""
        text = io.StringIO()
        table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(self._rows)
        with replacing(run_dir / run_folder.EVALUATIONS, alone=True) as temporary:
            temporary.write_text(text.getvalue(), encoding="utf-8")


def _rank(figures: dict[str, Any]) -> tuple[float, float]:
    """By which one agent is better than another."""
    return figures["success_rate"], figures["mean_return"]


def _figures(summary: dict[str, Any]) -> dict[str, Any]:
    """The summary of `score.score` as cells; None where there is no interval."""
    cells = {"episodes": summary["episodes"]}
    for mean in MEANS:
        low, high = summary[f"{mean}_interval"] or (None, None)
        cells |= {mean: summary[mean], f"{mean}_low": low, f"{mean}_high": high}
    return cells


def _rank_of(best: Path) -> tuple[float, float]:
    try:
        figures = checkpoint.load(best).get(BEST_FIGURES)
        FORM(BEST_FIGURES, figures)
        return _rank(figures)
    except ValueError as error:
        logger.warning(f"{best} does not say how well it plays ({error}): the next agent that is evaluated takes its place")
        return -math.inf, -math.inf


def _read_or_set_aside(path: Path) -> list[dict[str, Any]]:
    try:
        return _read(path)
    except (ValueError, csv.Error):
        aside = path.with_name(f"{path.stem}-before{path.suffix}")
        os.replace(path, aside)
        logger.warning(f"{path} is no table of evaluations: it stays as {aside.name}, and a new one is begun")
        return []


def _read(path: Path) -> list[dict[str, Any]]:
    """Rows of a table of evaluations. Raises: ValueError or csv.Error if it is none."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        table = csv.DictReader(file)
        if tuple(table.fieldnames or ()) != COLUMNS:
            raise ValueError
        return [_cells(row) for row in table]


def _cells(row: dict[str, Any]) -> dict[str, Any]:
    if None in row or None in row.values():
        raise ValueError  # of another length
    whole = ("frames", "episodes", "best")
    return {name: int(cell) if name in whole else float(cell) if cell else None for name, cell in row.items()}


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


class _Playing:
    """A process that plays, which ends when this one does. What it says goes to files: a pipe could fill.

    Raises: OSError if it cannot be started.
    """

    def __init__(self, words: Sequence[str], seconds: float):
        """It may take so many seconds."""
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        with contextlib.ExitStack() as stack:
            self._out, self._err = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(2))
            environment = {"OMP_NUM_THREADS": "1", "AMIGO_PARENT": str(os.getpid())}  # one core is enough
            self._process = subprocess.Popen(
                [sys.executable, "-c", PLAY, *words],
                stdin=subprocess.PIPE,
                stdout=self._out,
                stderr=self._err,
                env=os.environ | environment,
                start_new_session=True,  # Ctrl-C is for this process, which ends that one
            )
            self._stack = stack.pop_all()

    def over(self) -> bool:
        """Whether it has ended, or is to be ended now."""
        return self._process.poll() is not None or time.monotonic() > self._deadline

    def result(self) -> dict[str, Any]:
        """What it has found out; it is over. Raises: EvaluationFailed."""
        code = self._process.poll()
        try:
            if code is None:
                took = f"it took more than {self._seconds:.0f} s"
                raise EvaluationFailed(f"{took}: fewer --num_episodes or a larger --evaluate_minutes, if it is not stuck")
            if code < 0:
                raise EvaluationFailed(f"its process was killed by signal {-code}")
            self._out.seek(0)
            self._err.seek(0)
            said = self._err.read().decode(errors="replace").strip().splitlines()
            if code > 0:
                raise EvaluationFailed(f"its process ended with exit code {code}: {said[-1] if said else 'it said nothing'}")
            return json.loads(self._out.read())
        except ValueError:
            raise EvaluationFailed("its process gave no result") from None
        finally:
            self.end()

    def end(self) -> None:
        """Whatever state it is in."""
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # it hangs in the kernel, which ends it some day
            self._process.wait(END_SECONDS)
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._stack.close()

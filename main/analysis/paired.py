"""Two checkouts of the program against each other: stretches of each in turn, and the ratio of their rates.

What else a machine does slows both: a ratio of two stretches side by side says more than two rates of different hours.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from torchbeast.core import run_folder
from torchbeast.core.settings import UsageError

WARM_UP_SECONDS = 6.0
START_SECONDS = 120.0
HUGE = 1e14  # as a mean of squared gradients: the most that a checkpoint may hold is 1e15
OWN = ("format", "frames", "weights_version", "incarnation", "flags")  # of a checkpoint, what is not the agent's
# What a checkout is asked to run: it answers each line with the frames per second of a stretch of so many seconds, of those
# that the processor gave it: what other programs took does not count. Weights come to an actor as often as in a run whose
# learner keeps up with it: after each batch's worth of frames.
WORKER = """
import json, sys, time
import torch
from main import benchmark
work, words, env, count, agent, batch = json.loads(sys.argv[1])
benchmark.DOCUMENT = words
torch.set_num_threads(1)
torch.manual_seed(0)
parts = benchmark.Parts(env, count)
learner, student = parts.learner, parts.learner.student
if agent:
    state = torch.load(agent, weights_only=True)
    student.load_state_dict(state["model_state_dict"])
    learner.shared.publish(student)
    learner.motivation.load_state_dict(state)
steps = 0
def every_step():
    global steps
    steps += 1
    if steps * count % batch < count:
        learner.shared.publish(student)
    return False
if work == "acting":
    frames, once = parts.rollouts.unroll_length * count, lambda: parts.actor.fill(parts.rollouts, parts.slots, every_step)
else:
    for _ in range(3):
        parts.actor.fill(parts.rollouts, parts.slots)
    frames, once = batch, parts.update()
print("ready", flush=True)
for line in sys.stdin:
    began, calls = time.process_time(), 0
    while time.process_time() - began < float(line):
        once()
        calls += 1
    print(calls * frames / (time.process_time() - began), flush=True)
"""


class Ratio(NamedTuple):
    """Of this checkout's rates to the other's, in pairs of stretches; and the median rates, frames per second."""

    work: str
    ratios: list[float]
    ours: float
    theirs: float

    def __str__(self) -> str:
        low, first, median, third, high = np.percentile(self.ratios, [0, 25, 50, 75, 100])
        return (
            f"{self.work}: {median:.2f} times as fast (half of {len(self.ratios)} pairs {first:.2f} to {third:.2f}, all "
            f"{low:.2f} to {high:.2f}); {self.ours:,.0f} and {self.theirs:,.0f} frames/s"
        )


def compare(work: str, ours: Callable[[], float], theirs: Callable[[], float], pairs: int) -> Ratio:
    """Stretches in turn, each pair in the other order than the one before."""
    found = []
    for pair in range(pairs):
        rates = [stretch() for stretch in ((ours, theirs) if pair % 2 == 0 else (theirs, ours))]
        found.append(rates if pair % 2 == 0 else rates[::-1])
    mine, others = np.array(found).T
    return Ratio(work, (mine / others).tolist(), float(np.median(mine)), float(np.median(others)))


def place(tree: Path) -> dict[str, Any]:
    """How a process of a checkout is started."""
    return {"cwd": tree, "env": {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tree)}}


@contextmanager
def worker(tree: Path, about: Sequence[Any], seconds: float) -> Iterator[Callable[[], float]]:
    """A process of the checkout that does stretches of acting or learning; `about`: what WORKER reads."""
    words = [sys.executable, "-c", WORKER, json.dumps(about)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **place(tree))

    def stretch(seconds: float = seconds) -> float:
        process.stdin.write(f"{seconds}\n")
        process.stdin.flush()
        return float(answer())

    def answer() -> str:
        if not (line := process.stdout.readline()):
            raise UsageError(f"{tree}: the process to be measured ended early: see above; give flags and an agent that run")
        return line

    try:
        answer()
        stretch(1.0)  # nothing is compiled any more then
        yield stretch
    finally:
        process.kill()
        process.communicate()


def compare_part(
    work: str, trees: Sequence[Path], words: Sequence[str], *, env: str, num_envs: int, batch: int, agent: Path | None,
    pairs: int, seconds: float,
) -> Ratio:  # fmt: skip
    """`work`: "acting" or "learning", one core; `words`: flags; `batch`: frames of an update; `agent`: its checkpoint."""
    about = (work, list(words), env, num_envs, agent and str(agent), batch)
    with ExitStack() as stack:
        ours, theirs = (stack.enter_context(worker(tree, about, seconds)) for tree in trees)
        return compare(work, ours, theirs, pairs)


def whole_program(seconds: float, words: Sequence[str], tree: Path, agent: dict | None = None) -> float:
    """Frames per second of the checkout's `python -m main.main`, logging and checkpoints on.

    `agent`: a checkpoint whose networks the run goes on with, from where its own would have been after a moment.
    """
    with tempfile.TemporaryDirectory() as savedir:
        run_dir = Path(savedir) / "benchmark"
        began = ["--savedir", savedir, "--xpid", "benchmark"]
        if agent is not None:
            _watched(tree, [*words, *began], run_dir, 0.0)
            _take_over(run_dir / run_folder.CHECKPOINT, agent)
            words, began = ["--resume", str(run_dir)], []
        after = _watched(tree, [*words, *began], run_dir, WARM_UP_SECONDS + seconds) + WARM_UP_SECONDS
        lines = (run_dir / run_folder.LOG).read_text().splitlines()
        at = next(line for line in lines if line.startswith("# ")).split(",").index("frames")
        rows = [line.split(",") for line in lines if not line.startswith("#")]
    stamps = np.array([(float(row[1]), float(row[at])) for row in rows])
    stamps = stamps[stamps[:, 0] > after]
    return float((stamps[-1, 1] - stamps[0, 1]) / (stamps[-1, 0] - stamps[0, 0]))


def _watched(tree: Path, words: Sequence[str], run_dir: Path, seconds: float) -> float:
    """A run that is ended so many seconds after its first new row; returns when that came (time.time())."""
    log = run_dir / run_folder.LOG
    before = log.stat().st_size if log.exists() else 0
    with open(run_dir.parent / "errors", "w+") as errors:  # a pipe that nobody reads would fill
        process = subprocess.Popen([sys.executable, "-m", "main.main", *words], stderr=errors, **place(tree))
        try:
            deadline = time.monotonic() + START_SECONDS
            while not (log.exists() and log.stat().st_size > before and log.read_text().count("\n") > 1):
                if process.poll() is not None or time.monotonic() > deadline:
                    text = Path(errors.name).read_text()
                    raise RuntimeError(f"{tree}: the run to be measured ended early: {text}")
                time.sleep(0.1)
            began = time.time()
            time.sleep(seconds)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=30)
    return began


def _take_over(path: Path, agent: dict) -> None:
    """Puts the agent's networks into a run's checkpoint, and what makes its updates' steps as good as none.

    Kept agents come without their optimisers, and a fresh one would undo in a few updates what they have learned.
    """
    state = torch.load(path, weights_only=True)
    state |= {name: value for name, value in agent.items() if name in state and name not in OWN}
    for rule in [value for value in state.values() if isinstance(value, dict) and "param_groups" in value]:
        for statistics in rule["state"].values():
            for name in statistics.keys() & {"square_avg", "exp_avg_sq"}:
                statistics[name].fill_(HUGE)
    torch.save(state, path)

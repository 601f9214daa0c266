"""`python -m tests.program.compare OLD NEW`: do two trees of the program compute the same, to the last bit?

Each case is run in both trees, inline and with one seed, and every leaf of model.tar and every row of logs.csv are compared.
What the newer tree adds (a flag at its default, a key that only it has) is listed and is no difference. A change of structure
must come out equal; a change of numbers must not be hidden in one.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from torchbeast.core.settings import flags_of
from utils_folder.motivations import MOTIVATIONS

COMMON = "--env MiniGrid-KeyCorridorS3R3-v0 --num_actors 8 --num_actor_processes 0 --seed 5"
GENERAL = ("--use_lstm", "--num_input_frames 2", "--disable_use_embedding", "--engine gym --env MiniGrid-Empty-8x8-v0")


def variations(motivation: type) -> list[str]:
    """Each switch and each further choice among a variant's own flags, alone."""
    words = []
    for flag in flags_of(motivation.groups).values():
        if flag.type is bool:
            words.append(f"--{flag.name}")
        words += [f"--{flag.name} {choice}" for choice in flag.choices or () if choice != flag.default]
    return words


def cases() -> dict[str, str]:
    """Arguments by name: every variant as it comes, as its example has it, with each of its own switches; what all share."""
    found = {}
    for name, motivation in MOTIVATIONS.items():
        found[name] = f"--model {name}"
        example = ", its example" if motivation.example else ""
        for words in ["", *variations(motivation)]:
            found[f"{name}{example} {words}".strip()] = f"--model {name} {motivation.example} {words}"
    first = next(iter(MOTIVATIONS))
    return found | {f"{first} {words}": f"--model {first} {words}" for words in GENERAL}


CASES = cases()
IGNORED = ("_time",)  # of a log's columns: when, not what
PLACES = ("savedir", "resume")  # flags that say where a run lies


def run(tree: Path, folder: Path, words: list[str], *, ranks: int = 1) -> None:
    """Trains in `tree` with these arguments. Raises: RuntimeError with what it printed if it fails."""
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *launcher, "-m", "main.main", *words, "--savedir", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(tree)}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{tree}: {' '.join(command)}\n{done.stdout}{done.stderr}")


def train(tree: Path, folder: Path, case: str, frames: int, *, interrupted: bool, ranks: int) -> Path:
    """The run of a case; `interrupted`: ends in the middle, and goes on from there. Returns its folder."""
    shutil.rmtree(folder, ignore_errors=True)
    half = str(frames // 2)
    words = [*COMMON.split(), *case.split(), "--xpid", "run"]
    run(tree, folder, [*words, "--total_frames", half if interrupted else str(frames)], ranks=ranks)
    if interrupted:
        again = ["--resume", str(folder / "run"), "--total_frames", str(frames)]
        run(tree, folder, [*again, *(["--xpid", "run"] if ranks > 1 else [])], ranks=ranks)
    return folder / "run"


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every tensor and number in nested dicts and lists, by its path."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from leaves(value, f"{path}/{name}")
    elif isinstance(tree, (list, tuple)):
        for i, value in enumerate(tree):
            yield from leaves(value, f"{path}/{i}")
    else:
        yield path, tree


def same(a: Any, b: Any) -> bool:
    """To the last bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
    return type(a) is type(b) and (a == b or (a != a and b != b))


def differences(old: Path, new: Path) -> tuple[list[str], list[str]]:
    """Between two runs: what differs, and what only the newer one has."""
    ours, theirs = (dict(leaves(torch.load(run / "model.tar", weights_only=True))) for run in (new, old))
    places = {f"/flags/{name}" for name in PLACES}
    found = [path for path, value in theirs.items() if path not in places and not (path in ours and same(value, ours[path]))]
    log_old, log_new = (rows(run / "logs.csv") for run in (old, new))
    if len(log_old) != len(log_new):
        found.append(f"logs.csv: {len(log_old)} and {len(log_new)} rows")
    for i, (a, b) in enumerate(zip(log_old, log_new)):
        found += [f"logs.csv, row {i}, {name}" for name, cell in a.items() if name not in IGNORED and b.get(name) != cell]
    return found, sorted(ours.keys() - theirs.keys()) + sorted(set(log_new[0]) - set(log_old[0]))


def rows(path: Path) -> list[dict[str, str]]:
    """Of a log, cells as they are written."""
    with open(path, newline="") as file:
        names = file.readline().removeprefix("# ").strip().split(",")
        return [dict(zip(names, row, strict=True)) for row in csv.reader(file)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.program.compare", description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path, help="a checkout")
    parser.add_argument("new", type=Path, help="another")
    parser.add_argument("--frames", type=int, default=24_000, help="of each run (default: 24000)")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="only cases that hold one of these words")
    parser.add_argument("--folder", type=Path, default=Path("compared"), help="for the runs (default: compared)")
    options = parser.parse_args()
    wrong = 0
    chosen = [name for name in CASES if not options.only or any(word in name for word in options.only)]
    for name, interrupted, ranks in ((name, *way) for name in chosen for way in ((False, 1), (True, 1), (True, 2))):
        way = f"{name}{', resumed in the middle' * interrupted}{f', {ranks} ranks' * (ranks > 1)}"
        runs = []
        for which, tree in (("old", options.old), ("new", options.new)):
            folder = options.folder.resolve() / which
            runs.append(train(tree.resolve(), folder, CASES[name], options.frames, interrupted=interrupted, ranks=ranks))
        found, added = differences(*runs)
        wrong += bool(found)
        print(f"{way}: {'equal' if not found else f'DIFFERENT: {found[:5]}'}; only the newer has {added}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""What a newcomer adds is one file and one line; everything else follows by itself.

In a copy of the program the examples of the pages, a motivation and a student's network, are added, each by a file and a line
in its registry. Then the copy trains, is interrupted, goes on, keeps, plays, plots and prints its tables.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.program import ROOT, rows

CODE = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
(MOTIVATION,) = [code for code in CODE.findall((ROOT / "utils_folder/README.md").read_text()) if "(Learned)" in code]
(NETWORK,) = CODE.findall((ROOT / "models/README.md").read_text())
COMMON = "--env MiniGrid-Empty-5x5-v0 --num_actors 4 --batch_size 2 --unroll_length 5 --state_embedding_dim 16"


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of the program with a motivation and a network more: a file and a line each."""
    tree = tmp_path_factory.mktemp("tree")
    for folder in ("main", "models", "utils_folder", "torchbeast", "tests"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for page in ("README.md", "Makefile", "pyproject.toml"):
        shutil.copy(ROOT / page, tree / page)
    motivations = "utils_folder.motivations"
    add(tree / "utils_folder/motivations/guess.py", MOTIVATION, "MOTIVATIONS", '"guess": guess.Guess', motivations)
    add(tree / "models/perceptron.py", NETWORK, "STUDENTS", '"perceptron": perceptron.Perceptron', "models")
    return tree


def add(file: Path, content: str, registry: str, entry: str, package: str) -> None:
    """Writes the file, and its line into the registry beside it (with the import that the line needs)."""
    file.write_text(content)
    init = file.with_name("__init__.py")
    text = init.read_text()
    start = text.index("{", text.index(f"{registry}"))
    text = f"{text[: start + 1]}\n    {entry},{text[start + 1 :]}"
    place = text.index(f"{registry}")
    init.write_text(f"{text[:place]}from {package} import {file.stem}  # noqa: E402\n\n{text[place:]}")


def call(tree: Path, *words: str, **more) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tree)}
    return subprocess.run([sys.executable, "-m", *words], cwd=tree, env=environment, capture_output=True, text=True, **more)


def done(tree: Path, *words: str) -> str:
    result = call(tree, *words)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def run(tree) -> Path:
    """The folder of a run that was interrupted by a signal, and went on to its end."""
    words = f"--model guess --guess_coef 0.7 {COMMON} --savedir runs --xpid a --num_actor_processes 2 --total_frames 100000000"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tree)}
    process = subprocess.Popen([sys.executable, "-m", "main.main", *words.split()], cwd=tree, env=environment)
    log, deadline = tree / "runs/a/logs.csv", time.monotonic() + 60
    while not (log.exists() and len(log.read_text().splitlines()) > 5) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143
    frames = int(rows(tree / "runs/a")[-1]["frames"]) + 100
    done(tree, "main.main", "--resume", "runs/a", "--total_frames", str(frames))
    return tree / "runs/a"


@pytest.mark.slow
def test_it_trains_is_interrupted_and_goes_on(run):
    table = rows(run)
    frames = [row["frames"] for row in table]
    assert frames == list(range(10, int(frames[-1]) + 1, 10))
    assert all(row["guess_error"] >= 0 and row["guesses"] == 10 for row in table)


@pytest.mark.slow
def test_it_is_kept_and_plays_with_the_flag_it_was_trained_with(tree, run):
    (tree / "table.ini").write_text(
        "[guesses]\nenv = MiniGrid-Empty-5x5-v0\nframes = 200\nseeds = 1\nreach = 0.9\npublished = nothing\n"
        f"flags = --model guess --guess_coef 0.7 {COMMON.removeprefix('--env MiniGrid-Empty-5x5-v0 ')}\n"
    )
    done(tree, "main.reproduce", "table.ini", "--savedir", "runs", "--keep", "kept")
    for weights in (run / "model.tar", tree / "kept/guesses-1/model.tar"):
        out = tree / "score.json"
        done(tree, "main.main", "--mode", "test", "--weight_path", str(weights), "--num_episodes", "3", "--json", str(out))
        assert json.loads(out.read_text())["episodes"] == 3
        shown = done(tree, "tests.helpers.show", "--weight_path", str(weights), "--seed", "1")
        assert "coefficient 0.7" in shown
    kept = done(tree, "tests.helpers.show", "--keys", str(tree / "kept/guesses-1/model.tar"))
    assert "guess_state_dict" in kept and "guess_optimizer_state_dict" not in kept
    refused = call(tree, "main.main", "--resume", "kept/guesses-1")
    assert refused.returncode == 2 and "cannot be gone on from" in refused.stderr


@pytest.mark.slow
def test_it_is_plotted_and_stands_in_the_tables(tree, run):
    done(tree, "main.plot", str(run), "--y", "guess_error", "--out", "guess.svg")
    assert (tree / "guess.svg").stat().st_size > 1000
    done(tree, "tests.helpers.pages")
    page = (tree / "main/README.md").read_text()
    assert "| `--guess_coef` | 0.1 | scale of the reward for a wrong guess |" in page
    assert "| `guess_error` | mean squared error of the guess |" in page
    assert "| `--perceptron_width` | 32 |" in page


@pytest.mark.slow
def test_a_second_network_trains_and_plays_with_its_own_settings(tree, run):
    words = "--student_network perceptron --perceptron_width 9 --savedir runs --xpid b --total_frames 100"
    done(tree, "main.main", "--model", "guess", *COMMON.split(), *words.split())
    weights = tree / "runs/b/model.tar"
    done(tree, "main.main", "--mode", "test", "--weight_path", str(weights), "--num_episodes", "2")
    assert "hidden.weight [9, 75]" in done(tree, "tests.helpers.show", "--keys", str(weights))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_tests_of_every_variant_take_it_up(tree, run):
    files = ("training/test_learner.py", "training/test_train.py", "playing/test_trained.py", "playing/test_film.py",
             "program/test_settings.py", "program/test_architecture.py")  # fmt: skip
    chosen = "(guess or declares) and not test_one_file_one_line"
    # In a folder of its own: else it would close the one that all have to the tests of other users that run beside it.
    words = ("-q", "-p", "no:cacheprovider", "--basetemp", str(tree / "temporary"), "-k", chosen)
    result = call(tree, "pytest", *words, *(f"tests/{file}" for file in files))
    assert result.returncode == 0, result.stdout[-3000:]
    assert int(result.stdout.split(" passed")[0].split()[-1]) > 20

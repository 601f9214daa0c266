"""python -m main.curriculum: its numbers, its refusals, and its page in a real browser."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import numpy as np
import pytest

from main import curriculum
from main.curriculum import merged
from tests.test_curriculum import batches, seen
from utils_folder import checkpoint
from utils_folder.curriculum import history

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = {"model": "default", "env": "MiniGrid-Fetch-5x5-N2-v0", "seed": 3}


@pytest.fixture
def run_dir(tmp_path):
    state = {"model_state_dict": {}, "flags": FLAGS, "curriculum": seen(batches(12), width=12).state_dict()}
    checkpoint.save(tmp_path / "model.tar", state)
    return tmp_path


def test_merged_moments_lose_no_count():
    whole = history(seen(batches(12), width=6).state_dict())
    assert len(whole.frames) == 12
    for count in (1, 5, 12, 100):
        few = merged(whole, count)
        assert len(few.frames) == min(count, 12) and few.frames[-1] == whole.frames[-1]
        for name in ("cells", "kinds", "distances", "steps"):
            assert np.array_equal(getattr(few, name).sum(axis=0), getattr(whole, name).sum(axis=0)), name
    halves = merged(whole, 2)
    assert halves.target.tolist() == [12, 18] and halves.frames.tolist() == [36, 72]
    assert np.array_equal(halves.cells[1], whole.cells[6:].sum(axis=0))
    assert np.array_equal(halves.example_frames[1], whole.example_frames[6])


def test_shares_means_and_distances_by_hand():
    whole = merged(history(seen(batches(12)).state_dict()), 1)
    proposed, reached = whole.cells[0, 0], whole.cells[0, 1]
    assert curriculum.shares(whole.cells[:, 0])[0] == pytest.approx(proposed / proposed.sum())
    assert curriculum.mean_steps(whole) == pytest.approx(whole.steps[0] / reached.sum())
    for which in (0, 1):
        counts = whole.distances[0, which].tolist()
        mean = sum(d * n for d, n in enumerate(counts)) / sum(counts)
        assert curriculum.mean_distances(whole)[which] == pytest.approx(mean)
    assert np.isnan(curriculum.shares(np.zeros((1, 3)))).all()


def test_the_program_writes_a_picture_and_a_page(run_dir, tmp_path, capsys):
    assert curriculum.main([str(run_dir)]) == 0
    assert (run_dir / "curriculum.png").read_bytes()[:4] == b"\x89PNG"
    assert "seed 3" in (run_dir / "curriculum.html").read_text()
    assert "http" not in re.sub(r"<script.*?</script>", "", (run_dir / "curriculum.html").read_text(), flags=re.DOTALL)


@pytest.mark.parametrize(
    "content, word",
    [
        (None, "no such file"),
        ({}, "has a teacher"),
        ({"curriculum": seen([]).state_dict()}, "no goal has ended yet"),
    ],
)
def test_runs_without_goals_are_refused(tmp_path, content, word, capsys):
    if content is not None:
        checkpoint.save(tmp_path / "model.tar", {"model_state_dict": {}, "flags": FLAGS, **content})
    assert curriculum.main([str(tmp_path)]) == 2
    assert word in capsys.readouterr().err
    assert not (tmp_path / "curriculum.png").exists()


@pytest.mark.skipif(CHROMIUM is None and not os.environ.get("CI"), reason="needs Chromium")
def test_the_page_opens_in_a_browser_without_an_error(run_dir, tmp_path):
    """The console is silent; both maps, the example's picture, the curves and the slider are there, offline."""
    assert CHROMIUM is not None, "install Chromium: .ci/run does"
    assert curriculum.main([str(run_dir)]) == 0
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000", "--enable-logging=stderr", "--v=0"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    done = subprocess.run(
        [CHROMIUM, *options, f"file://{run_dir / 'curriculum.html'}"], capture_output=True, text=True, timeout=120
    )
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert done.returncode == 0 and not console, console
    dom = re.sub(r"<script.*?</script>", "", done.stdout, flags=re.DOTALL)
    maps = re.findall(r'<g class="hm">.*?<image[^>]*href="(data:image/png;base64,[^"]+)"', dom)
    assert len(maps) == 2
    assert len(re.findall(r'class="js-line"', dom)) >= 4
    assert re.search(r'<g class="layer-above">.*<image[^>]*href="data:image/png', dom, re.DOTALL)
    assert "slider-grip-rect" in dom

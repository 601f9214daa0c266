"""python -m main.curriculum: its numbers, its refusals, and its page in a real browser."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import numpy as np
import pytest
from matplotlib.text import Text

from main import curriculum
from main.curriculum import merged
from tests.helpers.curriculum import batches, seen
from tests.helpers.program import ROOT
from torchbeast.core import checkpoint, run_folder
from utils_folder.motivations.curriculum import KEY, history

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
KINDS = ("png", "svg", "html")
FLAGS = {"model": "default", "env": "MiniGrid-Fetch-5x5-N2-v0", "seed": 3}


@pytest.fixture(params=["older", "apart"])
def run_dir(tmp_path, request):
    """A run, and one of a version that did not count apart what was reached at an episode's end."""
    state = {"model_state_dict": {}, "flags": FLAGS, KEY: seen(batches(12), width=12).state_dict()}
    if request.param == "older":
        del state[KEY]["at_end"]
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
    proposed, inside, at_end = whole.cells[0]
    assert curriculum.shares(whole.cells[:, 0])[0] == pytest.approx(proposed / proposed.sum())
    assert curriculum.mean_steps(whole) == pytest.approx(whole.steps[0] / (inside.sum() + at_end.sum()))
    assert curriculum.fates(whole)[:, 0] == pytest.approx([inside.sum() / proposed.sum(), at_end.sum() / proposed.sum()])
    for which in (0, 1, 2):
        counts = whole.distances[0, which].tolist()
        mean = sum(d * n for d, n in enumerate(counts)) / sum(counts)
        assert curriculum.mean_distances(whole)[which] == pytest.approx(mean)
    assert np.isnan(curriculum.shares(np.zeros((1, 3)))).all()


@pytest.mark.slow
def test_the_program_writes_a_picture_and_a_page(run_dir, tmp_path, capsys):
    assert curriculum.main([str(run_dir)]) == 0
    assert (run_dir / "curriculum.png").read_bytes()[:4] == b"\x89PNG"
    assert "seed 3" in (run_dir / "curriculum.html").read_text()
    assert "http" not in re.sub(r"<script.*?</script>", "", (run_dir / "curriculum.html").read_text(), flags=re.DOTALL)


def test_maps_and_shares_are_drawn_where_they_belong(run_dir):
    """Column x and row y of the grid, [x, y] of the counts, are column and row of the maps; proposed, then each way reached."""
    whole, *_ = curriculum.read(run_dir)
    few = merged(whole, curriculum.PICTURE_MOMENTS)
    figure = curriculum.picture(whole, "")
    maps, curves = figure.subfigs
    rows = np.reshape(maps.axes, (1 + len(whole.names), -1))
    assert [row[0].get_ylabel() for row in rows[1:]] == [f"goals {name}" for name in whole.names]
    images = [[axes.images[0].get_array() for axes in row] for row in rows[1:]]
    page_few = merged(whole, curriculum.PAGE_MOMENTS)
    for which in range(len(whole.names)):
        expected = [counts.T / max(counts.sum(), 1) for counts in few.cells[:, which]]
        assert any((map_ != map_[::-1]).any() for map_ in expected), "too symmetric to tell anything"
        np.testing.assert_allclose(images[which], expected)
        for moment in range(len(page_few.frames)):
            counts = page_few.cells[moment, which]
            np.testing.assert_allclose(curriculum._maps(page_few, moment)[which].z, counts.T / max(counts.sum(), 1))
        stacks = [area.get_paths()[0].vertices[:, 1].max() for area in curves.axes[which].collections]
        present = [curriculum.OBJECT_TO_IDX[kind] for kind in curriculum.kinds_present(whole)]
        totals = np.maximum(whole.kinds[:, which].sum(axis=1, keepdims=True), 1)
        heights = np.cumsum((whole.kinds[:, which] / totals)[:, present], axis=1)
        assert stacks == pytest.approx(heights.max(axis=0))


@pytest.mark.parametrize("teacher", [None, "learned", "uniform"])
def test_of_goals_by_chance_no_target_is_shown(run_dir, teacher):
    """Checkpoints of before --teacher do not say who proposed goals: a teacher did."""
    state = checkpoint.load(run_dir / "model.tar")
    checkpoint.save(run_dir / "model.tar", {**state, "flags": FLAGS | ({} if teacher is None else {"teacher": teacher})})
    whole, title, _ = curriculum.read(run_dir)
    figure, page = curriculum.picture(whole, title), curriculum.page(whole, title)
    written = [text.get_text() for text in figure.findobj(Text)]
    shown = page[page.index("Plotly.newPlot(") :]
    for texts in ("\n".join(written), shown):
        assert ("t*" in texts) == (teacher != "uniform") == (curriculum.TAUGHT in texts) != (curriculum.BY_CHANCE in texts)
        assert "default on MiniGrid-Fetch-5x5-N2-v0, seed 3" in texts and "steps to a reached goal" in texts


def test_the_slider_shows_what_the_picture_does_not():
    """What main/README.md says of a run in results/: the reason for a page beside the picture."""
    whole, *_ = curriculum.read(ROOT / "results" / "keycorridor-window-1")
    picture, page = (merged(whole, count) for count in (curriculum.PICTURE_MOMENTS, curriculum.PAGE_MOMENTS))
    largest = [curriculum.shares(few.cells[:, 0]).max(axis=(1, 2)) for few in (picture, page)]
    assert (picture.frames[1:3] / 1e6).round(1).tolist() == [9.9, 15.0] and largest[0][2] > 0.7
    before, after = page.frames == page.frames[page.frames < 10.8e6].max(), (page.frames > 10.8e6) & (page.frames < 15.1e6)
    assert largest[1][before] > 0.95 and after.sum() >= 5 and (largest[1][after] < 0.05).all()
    ended = page.cells[:, 0].sum(axis=(1, 2))
    assert ended[before] > 30 * ended[after].max()


def test_it_takes_the_places_that_resuming_takes(tmp_path, monkeypatch, capsys):
    """A run, SAVEDIR/latest, a kept checkpoint, or SAVEDIR; where it cannot be told which run is meant, they are named."""
    content = {"model_state_dict": {}, "flags": FLAGS, KEY: seen(batches(12), width=12).state_dict()}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        checkpoint.save(tmp_path / name / "model.tar", content)
    (tmp_path / "a" / "milestone-000000000036.tar").write_bytes((tmp_path / "a" / "model.tar").read_bytes())
    assert curriculum.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "is a folder of runs: give one of them" in error and "there are a, b" in error and error.count("\n") == 1
    monkeypatch.setattr(curriculum, "picture", lambda *_: None)
    monkeypatch.setattr(curriculum, "page", lambda *_: "")
    monkeypatch.setattr(curriculum.plot, "encoded", lambda *_: b"")
    run_folder.point_latest_at(tmp_path / "b")
    for place, run in (("", "b"), ("latest", "b"), ("a", "a"), ("a/model.tar", "a"), ("a/milestone-000000000036.tar", "a")):
        assert curriculum.main([str(tmp_path / place)]) == 0
        assert capsys.readouterr().out.split() == [str(tmp_path / run / f"curriculum.{kind}") for kind in KINDS]


@pytest.mark.parametrize(
    "content, word",
    [
        (None, "give the folder of a run of this program (SAVEDIR/XPID)"),
        ({}, "has a teacher"),
        ({KEY: seen([]).state_dict()}, "no goal has ended yet"),
    ],
)
def test_runs_without_goals_are_refused(tmp_path, content, word, capsys):
    if content is not None:
        checkpoint.save(tmp_path / "model.tar", {"model_state_dict": {}, "flags": FLAGS, **content})
    assert curriculum.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert word in error and error.count("\n") == 1
    assert not (tmp_path / "curriculum.png").exists()


@pytest.mark.slow
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
    assert len(maps) == len(curriculum.read(run_dir)[0].names)
    assert len(re.findall(r'class="js-line"', dom)) >= 4
    assert re.search(r'<g class="layer-above">.*<image[^>]*href="data:image/png', dom, re.DOTALL)
    assert "slider-grip-rect" in dom

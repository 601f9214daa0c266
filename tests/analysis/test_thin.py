"""python -m main.thin: a log in which a plain rolling mean finds a value in every cell."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from main import command, thin
from main.analysis import keep
from main.analysis.log import Log, read_log
from torchbeast.core import run_folder

NAMES = "# _tick,_time,frames,episodes,mean_episode_return,total_loss"
ROWS = 6000


@pytest.fixture
def run_dir(tmp_path) -> Path:
    """A run of which every seventh update ends two episodes."""
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    rows = [f"{i},{1e9 + i},{8 * i},{0 if i % 7 else 2},{'' if i % 7 else i / ROWS},{i / 2}" for i in range(1, ROWS)]
    (folder / "logs.csv").write_text("\n".join([NAMES, *rows]) + "\n")
    (folder / "meta.json").write_text(json.dumps({"args": {"seed": 1}}))
    return folder


def rolling(path: Path, window: int = 10) -> np.ndarray:
    """Plain: over whatever cells there are, an empty one too."""
    with open(path, newline="") as file:
        values = [float(row["mean_episode_return"] or "nan") for row in csv.DictReader(file)]
    return np.convolve(values, np.ones(window) / window, "valid")


def test_a_rolling_mean_over_a_whole_log_is_empty_and_over_a_thinned_one_is_not(run_dir, tmp_path, capsys):
    out = tmp_path / "thinned.csv"
    assert np.isnan(rolling(run_dir / "logs.csv")).all()
    assert thin.main([str(run_dir), "--out", str(out), "--rows", "500"]) == 0
    means = rolling(out)
    assert len(means) == 491 and means == pytest.approx(np.linspace(0, 1, 500)[5:-4], abs=0.01)
    assert out.read_text().splitlines()[0] == NAMES
    said = capsys.readouterr().out
    assert "5,999 rows became 500" in said and "empty" not in said


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_it_is_what_is_kept_of_a_run(run_dir, tmp_path, name):
    assert thin.main([str(run_dir / "logs.csv"), "--out", str(tmp_path / name)]) == 0
    assert (tmp_path / name).read_bytes().startswith(b"\x1f\x8b") == name.endswith(".gz")
    declared = command.declared()
    columns = keep.thinned(read_log(run_dir, declared))
    written = read_log(tmp_path / name, declared).columns
    assert written.keys() == columns.keys()
    for name, values in columns.items():
        np.testing.assert_allclose(written[name], values, rtol=6e-4, err_msg=name)  # of four digits


@pytest.mark.parametrize("frames, rows", [(1e5, 200), (2e6, 200), (4e6, 400), (4.009e6, 400), (1e7, 1000), (3e7, 1000)])
def test_a_row_is_for_10_000_frames_or_more_where_that_gives_200_to_1000_of_them(tmp_path, frames, rows):
    all_frames = np.linspace(0, frames, ROWS + 1)[1:]
    declared = command.declared().columns
    log = Log("run", tmp_path, None, all_frames, {"frames": all_frames}, None, declared)
    assert len(keep.thinned(log)["frames"]) == rows and len(keep.thinned(log, 77)["frames"]) == 77


def test_what_is_still_empty_is_said(run_dir, tmp_path, capsys):
    assert thin.main([str(run_dir), "--out", str(tmp_path / "a.csv"), "--rows", "5000"]) == 0
    said = capsys.readouterr().out
    empty = math.nan if "mean_episode_return" not in said else int(said.split("mean_episode_return ")[1].split(";")[0])
    assert empty == sum(math.isnan(v) for v in rolling(tmp_path / "a.csv", 1)) > 4000 and "fewer --rows" in said


@pytest.mark.parametrize("options, word", [
    (["one"], "is a file of a run"),
    (["other"], "is a file of a run"),
    (["one/../one"], "is a file of a run"),
    (["none"], "make it first"),
])  # fmt: skip
def test_a_runs_own_log_is_not_written_over(run_dir, capsys, options, word):
    other = run_dir.with_name("other")
    other.mkdir()
    for name in ("meta.json", "logs.csv"):
        (other / name).write_bytes((run_dir / name).read_bytes())
    before = {path: path.read_bytes() for path in run_dir.parent.rglob("*") if path.is_file()}
    assert thin.main([str(run_dir), "--out", *(f"{run_dir.parent / where}/logs.csv" for where in options)]) == 2
    error = capsys.readouterr().err
    assert word in error and error.count("\n") == 1
    assert {path: path.read_bytes() for path in run_dir.parent.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("words, said", [(["--rows", "0"], "positive whole number"), (["--out", "."], "is a folder")])
def test_wrong_words_write_nothing(run_dir, tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    assert thin.main([str(run_dir), *words]) == 2
    assert said in capsys.readouterr().err and [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_a_folder_of_runs_stands_for_its_latest_as_for_resuming(run_dir, tmp_path, capsys):
    words = [str(run_dir.parent), "--out", str(tmp_path / "a.csv")]
    assert thin.main(words) == 0
    assert "its only one is one" in capsys.readouterr().err
    (tmp_path / "a.csv").unlink()
    other = run_dir.with_name("two")
    shutil.copytree(run_dir, other)
    assert thin.main(words) == 2
    assert "is a folder of runs: give one of them, as" in capsys.readouterr().err and not (tmp_path / "a.csv").exists()
    run_folder.point_latest_at(other)
    assert thin.main(words) == 0
    assert "its latest one is two" in capsys.readouterr().err


def test_a_log_that_counts_steps_is_thinned_too(tmp_path, capsys):
    """As TorchBeast's."""
    (tmp_path / "log.csv").write_text("step,loss\n10,1\n20,3\n30,5\n40,7\n")
    assert thin.main([str(tmp_path / "log.csv"), "--out", str(tmp_path / "thinned.csv"), "--rows", "2"]) == 0
    assert (tmp_path / "thinned.csv").read_text() == "# step,loss\n20,2\n40,6\n"
    assert "4 rows became 2" in capsys.readouterr().out

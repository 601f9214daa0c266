"""Learning curves: every format of log, grouping, statistics against slow twins, wrong inputs, and the picture itself."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import math
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from PIL import Image

from main import command, plot
from main.analysis import curves
from main.analysis import log as logs
from main.analysis.curves import make_curve
from main.analysis.log import read_columns, read_log, runs_in
from torchbeast.core import run_folder
from torchbeast.core.columns import Column
from torchbeast.core.file_writer import FileWriter
from torchbeast.core.settings import UsageError

ROOT = Path(__file__).resolve().parents[2]
DECLARED = command.declared()
LEVEL, REWARD = (plot.PANELS[name].name for name in ("t_star", "teacher"))
NAMES = ["frames", "mean_episode_return", "success_rate", "episodes", LEVEL]


def write_log(folder: Path, rows, names=NAMES, *, start=1000.0, seconds=2.0) -> Path:
    """A log in TorchBeast's form; None is an empty cell."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["# _tick,_time," + ",".join(names)]
    for i, row in enumerate(rows):
        lines.append(",".join([str(i), str(start + seconds * i), *("" if v is None else str(v) for v in row)]))
    (folder / "logs.csv").write_text("\n".join(lines) + "\n")
    return folder


def write_meta(folder: Path, *, ours=True, resumed=(), **arguments) -> None:
    meta = {"args": arguments, **({"versions": {}} if ours else {})}
    if resumed:
        meta["resumed"] = [{"frames": frames, "args": arguments} for frames in resumed]
    (folder / "meta.json").write_text(json.dumps(meta))


def write_run(folder: Path, *, end=1000, rate=0.5, names=NAMES, **arguments) -> Path:
    """A run of ours: rows every 10 frames whose return is `rate` throughout."""
    values = {"mean_episode_return": rate, "success_rate": rate, "episodes": 3, LEVEL: 7}
    rows = [[frame, *(values.get(name, 0.25) for name in names[1:])] for frame in range(10, end + 1, 10)]
    write_log(folder, rows, names)
    write_meta(folder, **{"model": "default", "env": "MiniGrid-Empty-5x5-v0", "seed": 1, "xpid": folder.name, **arguments})
    return folder


def empty(folder: Path) -> Path:
    return write_log(folder, [])


def run(*arguments) -> int:
    return plot.main([str(argument) for argument in arguments])


# Reading


def test_what_our_file_writer_writes(tmp_path):
    writer = FileWriter.create(tmp_path, "one", args={"model": "default", "seed": 3}, fields=NAMES)
    writer.log({"frames": 800, "mean_episode_return": None, "episodes": 0, LEVEL: 7})
    writer.log({"frames": 1600, "mean_episode_return": 0.25, "success_rate": 0.5, "episodes": 2})
    writer.close(True)
    read = read_log(tmp_path / "one", DECLARED)
    assert read.name == "one" and read.arguments["seed"] == 3
    assert read.arguments["unroll_length"] == 100, "a flag that came later had its default"
    assert read.frames.tolist() == [800, 1600]
    np.testing.assert_equal(read.columns["mean_episode_return"], [math.nan, 0.25])
    np.testing.assert_equal(read.columns[LEVEL], [7, math.nan])
    assert read.hours.shape == (2,) and read.has("success_rate") and not read.has(REWARD)


def test_torchbeasts_log_whose_fields_grow(tmp_path):
    """The header stays as it was at the first row; fields.csv tells what longer rows hold. Texts, CRLF, a torn last row."""
    (tmp_path / "fields.csv").write_text(
        "_tick,_time,step,loss\r\n_tick,_time,step,loss,episode_returns,mean_episode_return\r\n"
    )
    (tmp_path / "logs.csv").write_text(
        "# _tick,_time,step,loss\n0,10.0,80,nan\r\n1,11.0,160,-1.5\r\n"
        '2,12.0,240,2.0,"(0.5, 1.0)",0.75\r\n3,13.0,320,inf,"tensor([0.,\n 1.])",0.5\r\n4,14.0,400,1.0,"()",0.2'
    )
    columns, left_out = read_columns(tmp_path / "logs.csv")
    assert left_out == 1
    np.testing.assert_equal(columns["step"], [80, 160, 240, 320])
    np.testing.assert_equal(columns["loss"], [math.nan, -1.5, 2, math.nan])
    np.testing.assert_equal(columns["mean_episode_return"], [math.nan, math.nan, 0.75, 0.5])
    assert read_log(tmp_path, DECLARED).arguments is None


def test_header_lines_in_the_middle_and_none_at_all(tmp_path):
    log = tmp_path / "logs.csv"
    log.write_text("# _tick,_time,frames,a\n0,1,10,5\n# _tick,_time,frames,b,a\n# a remark\n1,2,20,6,7\n")
    columns, left_out = read_columns(log)
    np.testing.assert_equal(columns["a"], [5, 7])
    np.testing.assert_equal(columns["b"], [math.nan, 6])
    assert left_out == 1  # the remark
    log.write_text("0,1,10,5\n")
    (tmp_path / "fields.csv").write_text("_tick,_time,frames,a\n")
    assert read_columns(log)[0]["a"].tolist() == [5]


@pytest.mark.parametrize("coding", ["utf-8", "utf-16"])
def test_a_compressed_log_is_read_as_it_was(tmp_path, coding):
    """As kept runs have it: it is found by its folder, and named after it."""
    plain = write_log(tmp_path / "a", [[10, 0.1, 0, 1, 7], [20, 0.2, 0, 1, 7]])
    before = read_log(plain, DECLARED)
    content = (plain / "logs.csv").read_text().encode(coding)
    (plain / "logs.csv").unlink()
    (plain / "logs.csv.gz").write_bytes(gzip.compress(content))
    for given in (plain, plain / "logs.csv.gz"):
        after = read_log(given, DECLARED)
        assert after.name == before.name == "a" and after.path.name == "logs.csv.gz"
        np.testing.assert_equal(after.columns, before.columns)
    assert runs_in(tmp_path) == [plain] and runs_in(plain) == []
    (tmp_path / "b.csv.gz").write_bytes((plain / "logs.csv.gz").read_bytes())
    assert read_log(tmp_path / "b.csv.gz", DECLARED).name == "b"


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-9], lambda content: b"frames\n1\n", lambda content: content[:30] + b"?" * 99]
)
def test_a_compressed_log_that_is_damaged(tmp_path, capsys, damage):
    log = write_run(tmp_path / "a") / "logs.csv"
    log.with_name("logs.csv.gz").write_bytes(damage(gzip.compress(log.read_bytes())))
    log.unlink()
    assert run(tmp_path / "a", "--out", tmp_path / "a.png") == 2
    told = capsys.readouterr().err
    assert "logs.csv.gz is damaged (" in told and told.endswith("copy or make it again\n") and told.count("\n") == 1
    assert not (tmp_path / "a.png").exists()


def test_torn_rows_in_the_middle_cost_only_themselves(tmp_path, capsys):
    log = write_log(tmp_path, [[10, 0.1, 0, 1, 7], [20, 0.2, 0, 1, 7], [30, 0.3, 0, 1, 7]]) / "logs.csv"
    lines = log.read_text().splitlines()
    lines[2] = lines[2][:9] + lines[3]  # a crash inside row 1, and the resumed program appends
    log.write_text("\n".join([*lines, "\0\0\0", lines[3].replace(",30,", ",40,"), ""]))
    assert read_log(tmp_path, DECLARED).frames.tolist() == [10, 30, 40]
    assert "unreadable: 1\n" in capsys.readouterr().err


def test_rows_whose_frames_are_no_number_are_left_out_and_told(tmp_path, capsys):
    log = write_log(tmp_path, [[10, 0.1, 0, 1, 7], [20, 0.2, 0, 1, 7], [30, 0.3, 0, 1, 7]]) / "logs.csv"
    log.write_text(log.read_text().replace(",20,", ",1e999,"))
    assert read_log(tmp_path, DECLARED).frames.tolist() == [10, 30]
    assert "unreadable: 1\n" in capsys.readouterr().err


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_log_that_was_edited_on_windows_is_read_as_it_was(tmp_path, coding):
    path = write_log(tmp_path, [[10, 0.1, 0, 1, 7], [20, 0.2, 0, 1, 7]]) / "logs.csv"
    before, _ = read_columns(path)
    (tmp_path / "meta.json").write_text(json.dumps({"args": {"seed": 5}}), encoding="utf-8-sig")
    path.write_bytes(path.read_text().replace("\n", "\r\n").encode(coding))
    columns, left_out = read_columns(path)
    assert list(columns) == list(before) and left_out == 0
    for name, values in before.items():
        np.testing.assert_equal(columns[name], values)
    assert read_log(tmp_path, DECLARED).arguments["seed"] == 5


def test_rows_written_again_after_a_resume_count_once(tmp_path):
    frames = [10, 20, 30, 40, 30, 40, 50, 50]
    write_log(tmp_path, [[f, i, None, 1, 7] for i, f in enumerate(frames)])
    read = read_log(tmp_path / "logs.csv", DECLARED)
    assert read.frames.tolist() == [10, 20, 30, 40, 50]
    assert read.columns["mean_episode_return"].tolist() == [0, 1, 4, 5, 7], "the later rows count"


def uneven(folder: Path, number: int, *, again: int = 0) -> Path:
    """A log whose columns have gaps, of which `again` rows were written twice."""
    draw = random.Random(5)
    order = [*range(number), *range(number - again, number)]
    rows = [
        [10 * i + 10, draw.random() if i % 3 else None, None if i % 7 else 1.0, i % 4, 7 + i // 50, 0.5 if i % 5 == 2 else None]
        for i in order
    ]
    return write_log(folder, rows, [*NAMES, REWARD])


@pytest.mark.parametrize("at_once", [1, 7, 64])
def test_a_log_is_the_same_however_little_of_it_is_read_at_once(tmp_path, monkeypatch, at_once):
    folder = uneven(tmp_path, 300, again=40)
    with open(folder / "logs.csv", "a") as file:
        file.write("torn\n# _tick,_time,frames,new\n0,1,3010,5\n1,2,3020,6")
    (whole, left_out), log = read_columns(folder / "logs.csv"), read_log(folder, DECLARED)
    monkeypatch.setattr(logs, "AT_ONCE", at_once)
    columns, again = read_columns(folder / "logs.csv")
    assert again == left_out == 2 and list(columns) == list(whole) and len(log.frames) == 301
    for name, values in whole.items():
        np.testing.assert_array_equal(columns[name], values)


def test_a_long_log_is_joined_while_it_is_read_to_what_a_picture_shows(tmp_path, monkeypatch):
    """Sums are kept, last values are some row's own, and the curves are the whole log's."""
    folder = uneven(tmp_path, 3000, again=500)
    monkeypatch.setattr(logs, "AT_ONCE", 100)
    whole, thin = read_log(folder, DECLARED), read_log(folder, DECLARED, most=200)
    assert len(whole.frames) == 3000 and 180 <= len(thin.frames) <= 400
    assert thin.frames[-1] == whole.frames[-1] and set(thin.frames) <= set(whole.frames)
    assert thin.columns["episodes"].sum() == pytest.approx(whole.columns["episodes"].sum(), rel=0.01)
    assert np.median(np.diff(thin.frames)) == np.diff(thin.frames).max() == 160, "each row is of as many"
    assert np.isin(np.diff(thin.columns[LEVEL]), (0, 1)).all() and thin.hours[-1] == pytest.approx(whole.hours[-1], rel=0.01)
    for name in ("mean_episode_return", LEVEL, REWARD):
        a, b = (make_curve(curves.Group("", [log]), name, x="frames", width=1000, stat="mean").value for log in (whole, thin))
        np.testing.assert_allclose(a, b, atol=0.08 if name == "mean_episode_return" else 0.5)


@pytest.mark.slow
def test_a_log_of_days_is_plotted_in_little_memory(tmp_path):
    """400,000 rows took 1.2 GiB; the program alone takes 0.4."""
    names = [*NAMES, *(f"column_{i}" for i in range(15))]
    write_log(tmp_path, ([10 * i, 0.5, 0.5, 1, 7, *[0.123456789] * 15] for i in range(1, 400_000)), names)
    code = (
        "import re, sys; from main import plot; code = plot.main(sys.argv[1:]); "
        "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]); sys.exit(code)"
    )
    arguments = [sys.executable, "-c", code, tmp_path, "--out", tmp_path / "a.png", "--panels", "none"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=ROOT)
    assert int(done.stdout.split()[-1]) >> 10 < 640


@pytest.mark.parametrize("how", ["recorded", "seen", "clock"])
def test_hours_leave_pauses_out(tmp_path, how):
    """Frames 10..60, two seconds apart, a night after 30: at a resume of ours, of TorchBeast's; or a clock set back."""
    frames = [10, 20, 30, *([30] if how == "seen" else []), 40, 50, 60]
    times = [100, 102, 104, *([40104] if how == "seen" else []), *([50, 52, 54] if how == "clock" else [40106, 40108, 40110])]
    lines = ["# _tick,_time,frames", *(f"{i},{t},{f}" for i, (t, f) in enumerate(zip(times, frames)))]
    (tmp_path / "logs.csv").write_text("\n".join(lines) + "\n")
    if how == "recorded":
        write_meta(tmp_path, resumed=[30], model="default")
    np.testing.assert_allclose(read_log(tmp_path, DECLARED).hours * 3600, [2, 4, 6, 8, 10, 12])


# Grouping


def groups(runs, by=()):
    found, names = curves.group_logs([read_log(path, DECLARED) for path in runs], DECLARED.seed_like, by)
    return {group.label: [log.name for log in group.logs] for group in found}, names


def test_groups_are_what_differs_but_for_the_seed(tmp_path):
    runs = [
        write_run(tmp_path / "a", seed=1, savedir="x", initials="me"),
        write_run(tmp_path / "b", seed=2, savedir="y", num_threads=9, checkpoint_minutes=1.5),
        write_run(tmp_path / "c", seed=1, entropy_cost=-0.1, use_lstm=True),
        write_run(tmp_path / "d", seed=5, entropy_cost=-0.1, use_lstm=True),
    ]
    found, names = groups(runs[:2])
    assert found == {"default": ["a", "b"]} and names == ()
    found, names = groups(runs)
    assert list(found.values()) == [["a", "b"], ["c", "d"]]
    assert len(names) == 1 and names[0] in ("entropy_cost", "use_lstm"), "one argument is enough to tell two groups"


def test_groups_that_only_two_arguments_tell_apart(tmp_path):
    kinds = itertools.product(["default", "other_variant"], [False, True], [1, 2])
    runs = [write_run(tmp_path / f"{m}{i}{s}", model=m, use_lstm=i, seed=s) for m, i, s in kinds]
    found, names = groups(runs)
    assert names == ("model", "use_lstm") and list(map(len, found.values())) == [2, 2, 2, 2]
    assert "default, off" in found and "other_variant, on" in found


def test_by_the_experiments_of_a_table(tmp_path):
    """Named EXPERIMENT-SEED; only where that is asked for."""
    folders = [write_run(tmp_path / name, seed=int(name[-1])) for name in ("row-1", "row-2", "row-2-2", "other-1")]
    runs = [read_log(folder, DECLARED) for folder in folders]
    grouped, _ = curves.group_logs(runs, DECLARED.seed_like, ("experiment",))
    assert [(group.label, len(group.logs)) for group in grouped] == [("row", 2), ("row-2", 1), ("other", 1)]
    assert len(curves.group_logs(runs, DECLARED.seed_like)[0]) == 1


def test_by_one_and_by_several(tmp_path):
    runs = [
        write_run(tmp_path / "a", env="E", num_actors=5),
        write_run(tmp_path / "b", env="F", num_actors=6),
        write_run(tmp_path / "c", env="E", num_actors=7, model="other_variant"),
    ]
    assert groups(runs, ["model"])[0] == {"default": ["a", "b"], "other_variant": ["c"]}
    assert groups(runs, ["model", "env"])[0] == {"default, E": ["a"], "default, F": ["b"], "other_variant, E": ["c"]}


def test_runs_of_other_programs_are_not_mixed_with_ours(tmp_path):
    ours = write_run(tmp_path / "ours")
    theirs = write_run(tmp_path / "theirs")
    write_meta(theirs, ours=False, model="default", env="MiniGrid-Empty-5x5-v0", seed=2)
    bare = write_log(tmp_path / "bare", [[10, 0.5, 0.5, 1, 7]])
    found, _ = groups([ours, theirs, bare])
    assert list(found.values()) == [["ours"], ["theirs"], ["bare"]] and "bare" in found


def test_the_newest_arguments_of_a_resumed_run_count(tmp_path):
    folder = write_run(tmp_path / "a")
    old = {"args": {"model": "default", "total_frames": 10}, "versions": {}}
    (folder / "meta.json").write_text(json.dumps({**old, "resumed": [{"frames": 5, "args": {"total_frames": 20}}]}))
    assert read_log(folder, DECLARED).arguments["total_frames"] == 20


# Statistics


def slow_bins(x, values, weights, width):
    """Bin by bin, row by row."""
    size = max(1, int(x[-1] / width + 0.5))
    bins = []
    for k in range(size):
        rows = [i for i in range(len(x)) if (k * width < x[i] or k == 0) and x[i] <= (k + 1) * width]
        rows = [i for i in rows if not math.isnan(values[i]) and weights[i] > 0]
        weight = sum(weights[i] for i in rows)
        bins.append(sum(weights[i] * values[i] for i in rows) / weight if rows else math.nan)
    known = [k for k in range(size) if not math.isnan(bins[k])]
    for k in range(size):
        before, after = [j for j in known if j < k], [j for j in known if j > k]
        if k not in known and before and after:
            a, b = before[-1], after[0]
            bins[k] = bins[a] + (bins[b] - bins[a]) * (k - a) / (b - a)
    return bins


@pytest.mark.parametrize("seed", range(5))
def test_bins_against_a_slow_twin(seed):
    rng = np.random.default_rng(seed)
    x = np.cumsum(rng.integers(1, 30, 57)).astype(float)
    values = np.where(rng.random(57) < 0.6, math.nan, rng.normal(size=57))
    weights = rng.integers(0, 4, 57).astype(float)
    for width in (7.0, 50.0, 1000.0):
        np.testing.assert_allclose(curves.binned(x, values, weights, width), slow_bins(x, values, weights, width), atol=1e-12)


def test_bins_by_hand():
    x = np.array([10.0, 20, 21, 60, 74])
    values = np.array([1.0, 0, 4, 6, 9])
    got = curves.binned(x, values, np.array([3.0, 1, 2, 1, 1]), 20)
    np.testing.assert_allclose(got, [0.75, 4, 6, 9])  # 20 and 60 belong to the bins that they end; 74 has passed 70
    assert len(curves.binned(x[:4] + 0, values[:4], np.ones(4), 25)) == 2  # 60 has not reached 62.5
    sparse = np.array([math.nan, 2, math.nan, 5, math.nan])
    np.testing.assert_allclose(curves.binned(x, sparse, np.ones(5), 10), [math.nan, 2, 2.75, 3.5, 4.25, 5, math.nan])


@pytest.mark.parametrize("x, width", [("frames", 60), ("hours", 1.0)])
def test_rows_are_weighted_by_their_frames_and_not_by_their_episodes(tmp_path, x, width):
    """Else a policy that has collapsed, which ends few episodes, would hardly count."""
    rows = [[10, 1.0, 1.0, 9, 7], [40, 0.0, 0.0, 1, 17], [50, None, None, 0, 27]]
    weighted = read_log(write_log(tmp_path / "a", rows), DECLARED)

    def value(column):
        return curves.make_curve(curves.Group("g", [weighted]), column, x=x, width=width, stat="mean").value.tolist()

    assert value("mean_episode_return") == [0.25] and value("success_rate") == [0.25]
    assert value(LEVEL) == [(10 * 7 + 30 * 17 + 10 * 27) / 50]


def test_a_value_counts_by_the_frames_since_the_last_one_and_the_first_by_its_row(tmp_path):
    """As of a column that a resumed run got late: its first value says nothing of the frames before."""
    rows = [[10, None, None, 0, 7], [40, None, 0.5, 4, 17], [50, None, None, 0, 27], [70, None, 0.8, 4, 27]]
    log = read_log(write_log(tmp_path / "a", rows), DECLARED)
    assert log.spans("success_rate").tolist() == [0, 30, 0, 30] and log.spans(LEVEL).tolist() == [10, 30, 10, 20]
    assert log.spans("mean_episode_return").tolist() == [0] * 4


def slow_bootstrap(column, statistic):
    """The exact percentile interval: every way to draw n of n."""
    draws = [statistic([column[i] for i in drawn]) for drawn in itertools.product(range(len(column)), repeat=len(column))]
    return np.percentile(draws, [2.5, 97.5])


def slow_iqm(values):
    cut = int(0.25 * len(values))
    kept = sorted(values)[cut : len(values) - cut]
    return sum(kept) / len(kept)


@pytest.mark.parametrize("stat, slow", [("mean", lambda v: sum(v) / len(v)), ("iqm", slow_iqm)])
def test_statistics_against_slow_twins(stat, slow):
    values = np.random.default_rng(1).normal(size=(5, 3))
    value, low, high, seeds = curves.over_seeds(values, stat)
    for k in range(3):
        assert value[k] == pytest.approx(slow(values[:, k].tolist()))
        exact = slow_bootstrap(values[:, k].tolist(), slow)
        np.testing.assert_allclose([low[k], high[k]], exact, atol=0.12 * values[:, k].std())
    assert seeds.tolist() == [5, 5, 5]
    again = curves.over_seeds(values, stat)
    np.testing.assert_equal(again, (value, low, high, seeds))


def test_the_iqm_leaves_outliers_out():
    values = np.array([[0.0], [1], [2], [100]])
    assert curves.over_seeds(values, "iqm")[0] == [1.5] and curves.over_seeds(values, "mean")[0] == [25.75]


def test_runs_of_different_length(tmp_path):
    """Three seeds, then two, then one: each part is of those that are there, and so few have no band but themselves."""
    runs = [
        read_log(write_run(tmp_path / f"r{i}", end=e, rate=r), DECLARED)
        for i, (e, r) in enumerate([(300, 0), (200, 0.6), (100, 0.9)])
    ]
    curve = curves.make_curve(curves.Group("g", runs), "mean_episode_return", x="frames", width=100, stat="mean")
    assert curve.seeds.tolist() == [3, 2, 1] and curve.x.tolist() == [50, 150, 250]
    np.testing.assert_allclose(curve.value, [0.5, 0.3, 0], atol=1e-12)
    assert np.isnan([curve.low, curve.high]).all()
    np.testing.assert_allclose(curve.runs, [[0] * 3, [0.6, 0.6, math.nan], [0.9, math.nan, math.nan]], atol=1e-12)
    assert plot._entry(curve, 1, "") == "g (3 runs, 2 beyond 50, 1 beyond 150)"


def test_one_seed_is_a_line_alone(tmp_path):
    run = read_log(write_run(tmp_path / "a"), DECLARED)
    curve = curves.make_curve(curves.Group("g", [run]), "success_rate", x="hours", width=run.hours[-1] / 4, stat="mean")
    assert curve.value.tolist() == [0.5] * 4 and np.isnan(curve.low).all() and plot._entry(curve, 1, " h") == "g (1 run)"


@pytest.mark.parametrize("frames, window", [(30e6, 2e5), (1e8, 1e6), (800, 10), (40, 1)])
def test_the_window_has_a_round_default(tmp_path, frames, window):
    run = read_log(write_log(tmp_path, [[frames, 0.5, 0.5, 1, 7]]), DECLARED)
    assert curves.default_window([run]) == pytest.approx(window)


# The program


@pytest.fixture
def two_groups(tmp_path):
    return [
        write_run(tmp_path / "runs" / f"{model}{seed}", end=end, rate=rate, model=model, seed=seed)
        for model, seed, end, rate in [("default", 1, 1000, 0.5), ("default", 2, 700, 0.7), ("other_variant", 1, 1000, 0.1)]
    ]


def test_json_holds_what_is_drawn(two_groups, tmp_path):
    out, numbers = tmp_path / "a.png", tmp_path / "a.json"
    assert run(*two_groups, "--by", "model", "--window", "100", "--out", out, "--json", numbers) == 0
    data = json.loads(numbers.read_text())
    assert [panel["column"] for panel in data["panels"]] == ["mean_episode_return", LEVEL]
    first, second = data["panels"][0]["curves"]
    assert first["label"] == "default" and first["seeds"] == [2] * 7 + [1] * 3 and second["label"] == "other_variant"
    np.testing.assert_allclose(first["value"], [0.6] * 7 + [0.5] * 3)
    assert first["low"] == [None] * 10 and second["value"] == pytest.approx([0.1] * 10)
    assert first["runs"][0] == pytest.approx([0.5] * 10) and first["runs"][1] == [*[pytest.approx(0.7)] * 7, None, None, None]
    assert data["groups"][0]["runs"] == [str(folder / "logs.csv") for folder in two_groups[:2]]
    assert data["by"] == ["model"] and data["window_frames"] == 100 and data["x"] == "frames"


def test_a_run_named_twice_counts_once(two_groups, tmp_path):
    link = tmp_path / "runs" / "latest"
    link.symlink_to(two_groups[0].name)
    assert run(*sorted((tmp_path / "runs").iterdir()), "--out", tmp_path / "a.png", "--json", tmp_path / "a.json") == 0
    assert sorted(len(g["runs"]) for g in json.loads((tmp_path / "a.json").read_text())["groups"]) == [1, 2]


@pytest.fixture
def savedir(tmp_path):
    """As runs leave it: three with rows, `latest` and what it stands for; two that have only begun, and what is no run."""
    folder = tmp_path / "savedir"
    for name, arguments in {"b-1": {}, "b-2": {"seed": 2}, "a-1": {"model": "other"}}.items():
        write_run(folder / name, **arguments)
    empty(folder / "begun")
    (empty(folder / "killed") / "logs.csv").write_text("# _tick,_ti")
    (folder / "notes").mkdir()
    (folder / "curves.png").write_text("")
    run_folder.point_latest_at(folder / "b-1")
    return folder


def drawn(out: Path) -> list[list[str]]:
    """The runs of each group."""
    return [[Path(run).parent.name for run in group["runs"]] for group in json.loads(out.read_text())["groups"]]


def test_a_folder_of_runs_stands_for_all_in_it(savedir, tmp_path, capsys):
    out = tmp_path / "numbers.json"
    options = ("--out", tmp_path / "a.png", "--json", out)
    assert run(savedir, *options) == 0
    assert drawn(out) == [["a-1"], ["b-1", "b-2"]]
    note = capsys.readouterr().err
    assert note == f"note: left out, for they have no rows yet: {savedir / 'begun'}, {savedir / 'killed'}\n"
    assert run(savedir, savedir / "b-1", savedir / "latest", *options, "--by", "experiment") == 0
    assert sorted(map(len, drawn(out))) == [1, 2], "each run once"
    for one in (savedir / "latest", savedir / "b-1", savedir / "b-1" / "logs.csv"):
        assert run(one, *options) == 0
        assert [*map(len, drawn(out))] == [1]
    assert run(savedir / "begun", *options) == 2, "one that is named is not left out"


@pytest.mark.parametrize("kind, magic", [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_files_are_pictures_and_the_same_each_time(two_groups, tmp_path, kind, magic):
    files = [tmp_path / f"{name}.{kind}" for name in "ab"]
    for file in files:
        assert run(*two_groups, "--out", file, "--size", "6x5", "--dpi", "50", "--panels", "none") == 0
    content = files[0].read_bytes()
    assert content.startswith(magic) and content == files[1].read_bytes()
    if kind == "png":
        picture = Image.open(io.BytesIO(content))
        assert picture.size == (300, 250) and len(np.unique(picture.convert("L"))) > 20
    if kind == "svg":
        assert b'width="432pt"' in content and b'height="360pt"' in content


def draw(labels, *, panels=3, **options):
    x = np.arange(40) * 1e5 + 5e4
    drawn = [curves.Curve(label, x, x / 4e6, x / 5e6, x / 3e6, np.repeat([3, 2], [30, 10])) for label in labels]
    shown = [(panel, drawn) for panel in list(plot.PANELS.values())[:panels]]
    return plot.picture(shown, x="frames", caption="Mean over seeds; " * 9, **options)


@pytest.mark.parametrize("labels, options", [
    (["default"], {}),
    ([f"model {i}, MiniGrid-KeyCorridorS3R3-v0, {i / 10}" for i in range(9)], {"legend": "model, env, baseline_cost_and_more"}),
    (["a very long name of a run " * 8, "b"], {"title": "MiniGrid-ObstructedMaze-1Dl-v0 and some more " * 6}),
    (["default", "other_variant"], {"size": (5.0, 7.0), "title": "MiniGrid-KeyCorridorS3R3-v0"}),
    (["b"], {"panels": 1}),
])  # fmt: skip
def test_every_word_is_inside_and_the_legend_covers_no_data(labels, options):
    figure = draw(labels, **options)
    figure.canvas.draw()
    width, height = figure.bbox.size
    hidden = {t for ax in figure.axes for t in (*ax.get_xticklabels(which="both"), *ax.get_yticklabels(which="both"))}
    texts = [t for t in figure.findobj(Text) if t.get_text() and t.get_visible() and t not in hidden]
    extents = [t.get_window_extent() for t in texts]
    assert len(extents) >= len(labels) + len(figure.axes) + 2
    for text, box in zip(texts, extents):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, text.get_text()
    legend = figure.legends[0].get_window_extent()
    assert not any(legend.overlaps(ax.get_tightbbox()) for ax in figure.axes)
    assert not any(a.get_tightbbox().overlaps(b.get_tightbbox()) for a, b in itertools.combinations(figure.axes, 2))
    assert all("(" in text.get_text() for text in figure.legends[0].get_texts())
    assert figure.axes[-1].get_xlabel() == "environment frames (millions)"
    if "size" in options:
        assert tuple(figure.get_size_inches()) == options["size"]


def test_names_are_not_read_as_formulas_nor_hidden():
    figure = draw(["_a$b$^{"], panels=1, title="x $\\foo$")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["_a$b$^{ (3 runs, 2 beyond 2.95M)"]


def test_a_size_that_is_too_small_is_refused():
    with pytest.raises(UsageError, match="too small"):
        draw(["default"], size=(2.0, 2.0))
    with pytest.raises(UsageError, match="too small"):
        draw(["default", "other"], size=(9.0, 2.5))


def test_curves_can_be_told_apart_without_colour():
    def lightness(colour):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        return 116 * float(np.dot(linear, [0.2126, 0.7152, 0.0722])) ** (1 / 3) - 16  # CIE L*

    values = [lightness(colour) for colour in plot.COLOURS]
    assert max(values) < 75, "to be seen on white"
    assert all(abs(a - b) > 7 for a, b in itertools.combinations(values, 2))
    styles = [(s["color"], str(s["linestyle"])) for s in map(plot._line, range(len(plot.COLOURS) * len(plot.LINES)))]
    assert len(set(styles)) == len(styles)
    assert all(a[1] != b[1] for a, b in zip(styles, styles[1:]))


def test_lines_bands_and_dots_lie_where_the_numbers_are():
    """In millions of frames; the line is broken where a run ends: the rest's mean is another one, no slope may join them."""
    axes = draw(["default"], panels=1).axes[0]
    line, dots = axes.lines
    x = np.arange(40) / 10 + 0.05
    np.testing.assert_allclose(line.get_xydata(), np.insert(np.stack([x, x / 4], 1), 30, np.nan, axis=0))
    (path,) = axes.collections[0].get_paths()
    band = {(round(a, 6), round(b, 6)) for a, b in path.vertices}
    assert band == {(round(a, 6), round(a / share, 6)) for a in x for share in (5, 3)}
    np.testing.assert_allclose(dots.get_xydata(), [[x[29], x[29] / 4]])


@pytest.mark.parametrize("ends, said", [([1000, 1000], False), ([1000, 700], True)])
def test_the_caption_tells_of_bands_of_single_seeds_and_of_dots_where_there_are_some(tmp_path, monkeypatch, ends, said):
    captions, caption = [], plot._caption
    monkeypatch.setattr(plot, "_caption", lambda *a, **k: captions.append(caption(*a, **k)) or captions[-1])
    folders = [write_run(tmp_path / f"a{seed}", end=end, seed=seed) for seed, end in enumerate(ends)]
    for x in ("frames", "hours"):
        assert run(*folders, "--out", tmp_path / "a.png", "--x", x) == 0
        assert ("dot: a run ends" in captions[-1]) == said
        assert "thin: the seeds, where fewer than 4" in captions[-1] and "shaded" not in captions[-1]
    more = [write_run(tmp_path / f"b{seed}", end=900, seed=seed) for seed in range(2, 4)]
    assert run(*folders, *more, "--out", tmp_path / "a.png") == 0
    assert "shaded: bootstrap 95% interval" in captions[-1] and "thin" not in captions[-1]


def test_two_or_three_seeds_are_drawn_themselves_and_not_as_a_band():
    x, nan = np.array([0.5, 1.5, 2.5]), np.nan
    runs = np.array([[1.0, 2, 3], [3, 4, nan]])
    curve = curves.Curve("g", x, np.array([2.0, 3, 3]), np.full(3, nan), np.full(3, nan), np.array([2, 2, 1]), runs)
    axes = plot.picture([(plot.PANELS["return"], [curve])], x="hours", caption="").axes[0]
    mean, *seeds, _dots = axes.lines
    assert len(seeds) == 2 and all(line.get_linewidth() < mean.get_linewidth() for line in seeds)
    for line, own in zip(seeds, runs):
        np.testing.assert_allclose(line.get_ydata(), [own[0], own[1], nan])


def test_panels_are_those_of_the_declared_columns():
    """What episodes come to first, and only that unless asked for; of the others the last declared ones first."""
    kinds = [("a", "mean", "low"), ("b", "episodes", "high"), ("c", "sum", ""), ("d", "last", "top"), ("e", "episodes", "next")]
    columns = {name: Column(name, "", join, panel=panel) for name, join, panel in kinds}
    panels = [(key, column.name) for key, column in plot.panels_of(columns).items()]
    assert panels == [("high", "b"), ("next", "e"), ("top", "d"), ("low", "a")]
    assert [*plot.PANELS][:2] == ["return", "success"] and plot.FURTHER == ("t_star", "teacher", "intrinsic")


@pytest.mark.parametrize("make, options, words", [
    (lambda p: p / "none", [], "does not exist: give the folder of a run"),
    (lambda p: p.parent, [], "no logs.csv; but folders further down have one: give theirs, as"),
    (lambda p: empty(p / "some" / "e").parent, [], "no run in"),
    (lambda p: empty(p / "e"), [], "has no rows yet"),
    (lambda p: write_log(p / "e", [[0, 0.5, 0.5, 1, 7]]), [], "no frames above 0"),
    (lambda p: write_log(p / "e", [[5]], ["loss"]), [], "no column frames"),
    (lambda p: write_log(p / "e", [[9, None, None, 0, 7]]), [], "no values of mean_episode_return"),
    (lambda p: write_log(p / "e", [[9, 0.5]], NAMES[:2]), ["--y", "success"], "choose one of return"),
    *((lambda p: write_log(p / "e", [[9, 0.5]], NAMES[:2]), words, f"'{words[1]}' is no list: write NAME or NAME,NAME")
      for words in (["--panels", "none,t_star"], ["--panels", ""], ["--by", "model,"])),
    (lambda p: write_log(p / "e", [[9, 0.5]], NAMES[:2]), ["--panels", "teacher"], f"no RUN has values of {REWARD}"),
    (lambda p: write_log(p / "e", [[9, 0.5]], NAMES[:2]), ["--by", "model"], "leave out --by"),
    (lambda p: write_log(p / "e", [[9, 0.5]], NAMES[:2]), ["--window", ".000001"], "give a larger one"),
    (lambda p: write_log(p / "e", [[9, 0.5]], NAMES[:2], seconds=0, start=math.nan), ["--x", "hours"], "use --x frames"),
    (lambda p: p / "good", ["--y", "mean_episode_retrun"], "mean_episode_return"),
    (lambda p: p / "good", ["--by", "modle"], "did you mean"),
    (lambda p: p / "good", ["--out", "a.gif"], "give a name that ends in"),
    (lambda p: p / "good", ["--out", "none/a.png"], "make it first"),
    (lambda p: p / "good", ["--json", "none/a.json"], "make it first"),
    (lambda p: p / "good", ["--json", "picture.png"], "the same file"),
    (lambda p: p / "good", ["--size", "1x1"], "too small"),
    (lambda p: p / "good", ["--size", "100x100", "--dpi", "1200"], "more than 250,000,000 pixels"),
    (lambda p: p / "good", ["--title", "\udcff"], "is no text in UTF-8"),
    (lambda p: p / "good", ["--json", "a" * 300], "File name too long"),
    (lambda p: p / "good", ["--json", "b" * 253], "cannot be written"),
])  # fmt: skip
def test_wrong_inputs(tmp_path, monkeypatch, capsys, make, options, words):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    write_run(tmp_path / "in" / "good", end=20)
    assert run(make(tmp_path / "in"), "--out", "picture.png", "--json", "numbers.json", *options) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1 and words in message
    assert not list((tmp_path / "out").iterdir())


def test_a_log_that_lies_alone_is_not_written_over(tmp_path, capsys):
    """It has no metadata beside it, by which it would be known as a run's."""
    (write_run(tmp_path / "a") / "meta.json").unlink()
    log = tmp_path / "a" / "logs.csv"
    before = log.read_bytes()
    assert run(log, "--out", tmp_path / "a.png", "--json", log) == 2
    assert "--json " in (told := capsys.readouterr().err) and "is what is read, and is not written over" in told
    assert log.read_bytes() == before and not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"args": 3}', '{"args": {}, "resumed": [{}]}'])
def test_damaged_metadata(tmp_path, capsys, content):
    (write_run(tmp_path / "a") / "meta.json").write_text(content)
    assert run(tmp_path / "a", "--out", tmp_path / "a.png") == 2
    assert "meta.json is damaged" in capsys.readouterr().err and not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("options", [["--size", "7"], ["--size", "nanx3"], ["--window", "0"], ["--x", "days"], ["--dpi", "0"]])
def test_wrong_words(tmp_path, capsys, options):
    assert run(tmp_path, *options) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {options[0]}: invalid ") and message.count("\n") == 1
    assert message.endswith("; see python -m main.plot --help\n")


@pytest.mark.slow
def test_without_a_screen_and_with_another_matplotlibrc(tmp_path):
    """A process of its own: the user's settings (here: cut to the contents) and the lack of a screen change nothing."""
    (tmp_path / "matplotlibrc").write_text("savefig.bbox: tight\nbackend: TkAgg\n")
    folder = write_run(tmp_path / "a", names=[*NAMES, REWARD, "mean_intrinsic_rewards"])
    command = [sys.executable, "-m", "main.plot", folder, "--out", tmp_path / "a.png", "--size", "6x9", "--dpi", "40"]
    environment = {"MATPLOTLIBRC": str(tmp_path / "matplotlibrc"), "OMP_NUM_THREADS": "1", "DISPLAY": ":77", "PATH": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert Image.open(tmp_path / "a.png").size == (240, 360)

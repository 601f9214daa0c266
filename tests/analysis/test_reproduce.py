"""The table of experiments: read, run, gone on with, judged."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from main import command, report, reproduce
from main import settings as settings_module
from main.analysis import keep
from main.analysis.log import Log, read_log
from main.analysis.table import Experiment, Outcome, line, of_run, outcome, read_table
from main.playing.evaluate import evaluate
from main.training import beside, preflight, programs
from tests.helpers.marks import rarer
from tests.helpers.program import ROOT
from torchbeast.core.columns import Column
from utils_folder.motivations import MOTIVATIONS

pytestmark = pytest.mark.slow

OTHER = next(name for name in MOTIVATIONS if name != "default" and "_" in name)
SMALL = "--num_actors 5 --batch_size 4 --unroll_length 6 --state_embedding_dim 32 --num_actor_processes 1"
DECLARED = command.declared()
TABLE = f"""
[DEFAULT]
env = MiniGrid-Empty-5x5-v0
frames = 480
seeds = 1 2
reach = 0.9
published = nowhere
[teacher]
flags = --model default {SMALL}
[other]
flags = --model {OTHER} {SMALL}
seeds = 3
"""


@pytest.fixture
def table(tmp_path) -> Path:
    path = tmp_path / "table.ini"
    path.write_text(TABLE)
    return path


def log(folder: Path, rows: list[tuple]) -> Path:
    folder.mkdir(parents=True)
    lines = [
        "# _tick,_time,frames,episodes,success_rate,mean_episode_return",
        *(f"{i},{3600.0 * i},{','.join(map(str, row))},{row[-1] and row[-1] / 2}" for i, row in enumerate(rows)),
    ]
    (folder / "logs.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_the_shipped_table_is_one_that_works():
    experiments = read_table(ROOT / "results" / "experiments.ini", command.check_run)
    named = {(e.arguments[1].split("-")[1], e.arguments[e.arguments.index("--model") + 1]) for e in experiments}
    for task in ("KeyCorridorS3R3", "ObstructedMaze"):
        assert len({model for env, model in named if env == task and model in MOTIVATIONS}) >= 3
    assert any(e.name.endswith("as-published") for e in experiments)
    assert any("S4R3" in e.arguments[1] for e in experiments)
    assert all(e.published and e.seeds and 0 < e.reach <= 1 for e in experiments)


def test_the_rate_is_over_the_last_million_frames_and_not_over_their_episodes(tmp_path):
    rows = [(400_000 * i, e, s) for i, (e, s) in enumerate([(0, ""), (10, 0.0), (30, 0.5), (10, 1.0), (0, ""), (2, 1.0)], 1)]
    folder = log(tmp_path / "run", rows)

    def slow(reach, width=1_000_000):
        reached, rate = None, None
        ended = [(f, s) for f, e, s in rows if e]
        began = ended[0][0] - 400_000  # the first value is that of its row
        for frames, *_ in rows:
            window = [(f - last, s) for (last, _), (f, s) in zip([(began, 0), *ended], ended) if frames - width < f <= frames]
            rate = sum(span * s for span, s in window) / max(1, sum(span for span, _ in window))
            if reached is None and rate >= reach and frames >= width:
                reached = frames
        return rate, reached

    for reach in (0.3, 0.4, 0.6, 0.9, 1.1):
        for width in (2_000_000, 1_000_000):
            result = outcome(folder, reach, DECLARED, width)
            assert (result.success, result.reached_at) == pytest.approx(slow(reach, width))
        assert result.frames == 2_400_000 and result.mean_return == pytest.approx(result.success / 2)
        assert result.hours == pytest.approx(6)
    assert slow(0.3, 2_000_000)[1] == 2_000_000
    assert slow(0.9)[1] == 2_400_000 and slow(0.3)[1] == 1_600_000 and slow(1.1)[1] is None


@pytest.mark.parametrize("reach", [1.0, 0.9, 0.7, 0.55])
def test_a_rate_that_is_just_the_one_asked_for_reaches_it(tmp_path, reach):
    """Whatever sums of floats make of the rows before: 1/13, 2/13 and so on, then `reach` in every row."""
    for k in range(1, 13):
        rows = [(30_000 * i, 4, round(k / 13, 17) if i <= 150 else reach) for i in range(1, 301)]
        result = outcome(log(tmp_path / f"run-{k}", rows), reach, DECLARED)
        if k / 13 < reach:  # the first window without a row of before: 33 rows of a million frames
            assert result.reached_at == 30_000 * (150 + 34)


def test_success_over_all_frames_does_not_depend_on_how_many_frames_a_row_has(tmp_path):
    """Half of the frames fail, in episodes of 270 steps that end at once in 40 environments; half solve, two in each row.

    The rows in which nothing ended tell of failure too.
    """
    failing = [(f, 40 if f % 10_800 == 0 else 0, 0.0 if f % 10_800 == 0 else "") for f in range(400, 540_001, 400)]
    solving = [(f, 2, 1.0) for f in range(540_400, 1_080_001, 400)]
    folder = log(tmp_path / "run", failing + solving)
    assert outcome(folder, 0.9, DECLARED).area == pytest.approx(0.5, abs=0.005)
    run = read_log(folder, DECLARED)
    for rows in (2700, 1350, 900, 300, 100):
        columns = keep.thinned(run, rows)
        short = run._replace(frames=columns["frames"], columns=columns)
        rate = columns["success_rate"]
        assert np.nansum(short.spans("success_rate") * rate) / 1_080_000 == pytest.approx(0.5, abs=0.005)


def test_a_row_says_over_how_many_frames_its_success_is_meant(tmp_path):
    (tmp_path / "table.ini").write_text(TABLE.replace("frames = 480", "frames = 3e5") + "window_frames = 2e5\n")
    teacher, other = read_table(tmp_path / "table.ini", command.check_run)
    folder = log(tmp_path / "other-3", [(100_000, 4, 0.5), (200_000, 4, 0.7), (300_000, 4, 0.9)])
    assert (teacher.window, other.window) == (1_000_000, 200_000)
    assert of_run(other, folder, DECLARED).success == pytest.approx(0.8)
    assert of_run(teacher, folder, DECLARED).success == pytest.approx(0.7)
    assert "success 0.80, return 0.400 over the last 0.2 million frames" in line(other, folder, DECLARED)


def test_a_window_weighs_rows_by_their_frames(tmp_path):
    """A resumed run with larger batches: one row is of 100,000 frames, one of 800,000."""
    folder = log(tmp_path / "run", [(100_000, 50, 1.0), (900_000, 2, 0.0)])
    assert outcome(folder, 0.9, DECLARED).success == pytest.approx(1 / 9)


@pytest.mark.parametrize(
    "rates, falls, recoveries",
    [
        ([0.9, 0.3], 1, 0),
        ([0.9 - 1e-12, 0.3 + 1e-12], 1, 0),  # rounding
        ([0.89, 0.3], 0, 0),
        ([0.9, 0.31], 0, 0),
        ([0.9, 0.5, 0.1, 0.2, 0.0], 1, 0),  # one fall until it is back
        ([0.9, 0.1, 0.8, 0.1], 1, 0),
        ([0.9, 0.1, 0.95, 0.1, 0.92], 2, 2),
        ([0.9, 0.8, 0.6, 0.5, 0.3], 1, 0),  # a million frames
        ([0.9, 0.8, 0.7, 0.6, 0.5, 0.3], 0, 0),  # slower
        ([0.9, "", 0.3], 1, 0),
        ([0.3, 0.1], 0, 0),
    ],
)
def test_falls_are_those_of_rows_within_a_million_frames(tmp_path, rates, falls, recoveries):
    folder = log(tmp_path / "run", [(250_000 * i, 3, rate) for i, rate in enumerate(rates, 1)])
    result = outcome(folder, 1.1, DECLARED)
    assert (result.falls, result.recoveries) == (falls, recoveries) and result.reached_at is None


def test_rows_of_fewer_than_three_episodes_are_no_falls(tmp_path):
    episodes = [(3, 0.9), (2, 0.0), (3, 1.0), (2, 1.0), (3, 0.3), (2, 1.0), (3, 0.0)]
    folder = log(tmp_path / "run", [(100_000 * i, e, rate) for i, (e, rate) in enumerate(episodes, 1)])
    assert outcome(folder, 0.9, DECLARED)[-3:-1] == (1, 0)


def test_the_falls_of_a_long_log_are_those_of_what_is_kept_of_it(tmp_path):
    """Rows of few episodes jump: single ones of a whole log are no falls."""
    rng = np.random.default_rng(0)
    solved = [rng.binomial(3, 0.93 if i % 8000 < 6000 else 0.05) / 3 for i in range(20_000)]
    folder = log(tmp_path / "run", [(800 * i, 3, rate) for i, rate in enumerate(solved, 1)])
    assert outcome(folder, 0.9, DECLARED)[-3:-1] == (2, 2)


def test_an_empty_log_has_no_outcome(tmp_path):
    assert outcome(log(tmp_path / "run", []), 0.9, DECLARED) == Outcome(0)


def test_a_log_that_cannot_be_read_is_named_and_not_taken_for_an_empty_one(table, tmp_path, capsys):
    folder = log(tmp_path / "runs" / "other-3", [(1, 2, 0.5)])
    (folder / "logs.csv").write_text("what,is,this\n1,2,3\n")
    assert reproduce.main([str(table), "--savedir", str(tmp_path / "runs"), "--list"]) == 2
    assert "other-3/logs.csv" in capsys.readouterr().err


def test_what_is_kept_of_a_run_says_the_same_and_plays(table, tmp_path, capfd):
    """A thinned log, metadata and weights; a kept run is not run again, wherever the first one lay."""
    path = tmp_path / "longer.ini"
    path.write_text(TABLE.replace("frames = 480", "frames = 2400"))
    runs, kept = tmp_path / "runs", tmp_path / "kept"
    assert reproduce.main([str(path), "--savedir", str(runs), "--keep", str(kept), "--only", "teacher"]) == 0
    assert sorted(p.name for p in kept.iterdir()) == ["teacher-1", "teacher-2"]
    assert sorted(p.name for p in (kept / "teacher-2").iterdir()) == ["logs.csv.gz", "meta.json"], "weights of the first alone"
    folder = kept / "teacher-1"
    assert sorted(p.name for p in folder.iterdir()) == ["logs.csv.gz", "meta.json", "model.tar"]
    whole = read_log(runs / "teacher-1", DECLARED)
    assert read_log(folder, DECLARED).columns.keys() == whole.columns.keys() and len(whole.frames) == 100
    for name, values in read_log(folder, DECLARED).columns.items():
        np.testing.assert_allclose(values, whole.columns[name], rtol=6e-4, err_msg=name)  # of four digits
    assert (folder / "model.tar").stat().st_size < 0.8 * (runs / "teacher-1" / "model.tar").stat().st_size
    meta = (folder / "meta.json").read_text()
    assert str(ROOT) not in meta and str(tmp_path) not in meta and str(runs).encode() not in (folder / "model.tar").read_bytes()
    assert json.loads(meta)["args"]["savedir"] == "kept"
    start, lay = json.loads(meta), str(runs / "teacher-1")
    words = ["/usr/bin/main.py", "--resume", lay, f"--savedir={runs}"]
    again = {"frames": 80, "args": start["args"] | {"resume": lay}, "command": words}
    (runs / "teacher-1" / "meta.json").write_text(json.dumps(start | {"resumed": [again]}))
    keep.keep(runs / "teacher-1", tmp_path / "tries" / "first-1", DECLARED)
    renamed = json.loads((tmp_path / "tries" / "first-1" / "meta.json").read_text())
    assert renamed["resumed"][0]["command"] == ["main.py", "--resume", "tries/first-1", "--savedir=tries"]
    assert renamed["resumed"][0]["args"]["resume"] == "tries/first-1"
    assert [renamed["xpid"], renamed["args"]["xpid"], renamed["args"]["savedir"]] == ["first-1", "first-1", "tries"]
    evaluate(*settings_module.parse(["--mode", "test", "--weight_path", str(folder / "model.tar"), "--num_episodes", "3"]))
    shutil.rmtree(runs)
    capfd.readouterr()
    assert reproduce.main([str(path), "--savedir", str(runs), "--keep", str(kept), "--only", "teacher"]) == 0
    assert "main.main" not in capfd.readouterr().out and not runs.exists()


def test_rows_are_run_once_and_judged(table, tmp_path, capfd):
    arguments = [str(table), "--savedir", str(tmp_path / "runs")]
    assert reproduce.main([*arguments, "--list"]) == 0
    assert capfd.readouterr().out.count("not started") == 3
    assert reproduce.main([*arguments, "--only", "other"]) == 0
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == [".latest", "latest", "other-3"]
    meta = json.loads((tmp_path / "runs" / "other-3" / "meta.json").read_text())
    assert meta["args"]["seed"] == 3 and meta["args"]["model"] == OTHER and meta["successful"] is True
    capfd.readouterr()
    assert reproduce.main(arguments) == 0
    out = capfd.readouterr().out
    assert out.count("-m main.main") == 2  # the finished one is not run again
    assert "teacher-1: finished" in out and "teacher-2: finished" in out and "other-3: finished" in out
    assert [row.split(":")[0] for row in out.splitlines()[-2:]] == ["teacher", "other"], "a verdict for each row"
    assert "by 0 of 1 finished runs" in out.splitlines()[-1] and "published: nowhere" in out.splitlines()[-1]


def test_a_thinned_log_keeps_sums_means_and_last_values(tmp_path):
    """Seven rows become three: of 2, 2 and 3 updates."""
    nan = math.nan
    columns = {
        "frames": [8, 16, 24, 32, 40, 48, 56],
        "level": [7, 7, 8, 8, 9, 9, 10],
        "episodes": [0, 4, 1, 3, 0, 0, 0],
        "success_rate": [nan, 0.5, 1.0, 0.0, nan, nan, nan],
        "total_loss": [1.0, 3.0, 5.0, nan, 2.0, 4.0, 9.0],
        "worth": [1.0, 4.0, 5.0, nan, 8.0, 2.0, nan],
        "new_states": [2, 1, 3, 0, 1, 3, 0],
    }
    columns = {name: np.array(values, float) for name, values in columns.items()}
    declared = DECLARED.columns | {"level": Column("level", "", "last")}
    declared |= {"worth": Column("worth", "", "new_states"), "new_states": Column("new_states", "", "sum")}
    run = Log("run", tmp_path, None, columns["frames"], columns, None, declared)
    thin = {name: values.tolist() for name, values in keep.thinned(run, 3).items()}
    assert thin.pop("success_rate")[:2] == [0.5, 0.25] and np.isnan(keep.thinned(run, 3)["success_rate"][2])
    assert thin == {
        "frames": [16, 32, 56],
        "level": [7, 8, 10],
        "episodes": [4, 4, 0],
        "total_loss": [2.0, 5.0, 5.0],
        "worth": [2.0, 5.0, 3.5],
        "new_states": [3, 3, 4],
    }


@pytest.mark.parametrize("listed", [True, False])
def test_what_playing_needs_is_kept_and_what_training_needs_is_not(listed):
    """Newer checkpoints list what only training needs; of older ones it is told by its name."""
    needed = {"format": "1", "flags": {}, "model_state_dict": {}, "frames": 3, "other_state_dict": {}}
    training = {"optimizer_state_dict": {}, "other_scheduler_state_dict": {}, "recent_returns": []}
    more = {"waiting": {}, "training_keys": [*training, "waiting"]} if listed else {}
    assert keep.playing({**needed, **training, **more, "source": {}, "other_ranks": []}) == needed


@pytest.mark.parametrize(
    "number, code, jobs", [(signal.SIGINT, 130, 2), *rarer([(signal.SIGINT, 130, 1), (signal.SIGHUP, 129, 1)])]
)
def test_a_stopped_table_goes_on_where_it_was(tmp_path, number, code, jobs):
    path = tmp_path / "table.ini"
    path.write_text(TABLE.replace("frames = 480", "frames = 48000").replace("seeds = 1 2", "seeds = 1 2 4"))
    runs = tmp_path / "runs"
    args = [sys.executable, "-m", "main.reproduce", str(path), "--only", "teacher", "--savedir", str(runs)]
    args += ["--jobs", str(jobs)]
    first = subprocess.Popen(
        args, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # these tests may run under nohup
    )  # fmt: skip
    logs = [runs / f"teacher-{seed}" / "logs.csv" for seed in (1, 2)[:jobs]]
    deadline = time.monotonic() + 60
    while not all(log.exists() and log.read_text().count("\n") > 20 for log in logs) and time.monotonic() < deadline:
        time.sleep(0.05)
    first.send_signal(number)
    said = first.communicate(timeout=30)[1]
    assert first.returncode == code
    assert said.count("the same command goes on from here") == jobs
    for log in logs:
        assert 0 < outcome(log.parent, 0.9, DECLARED).frames < 48_000
        assert (log.parent / "model.tar").exists()
    assert len(list(runs.glob("teacher-*"))) == jobs
    (experiment,) = [e for e in read_table(path, command.check_run) if e.name == "teacher"]
    assert reproduce.command_line(experiment, 1, runs)[-2:] == ["--resume", str(runs / "teacher-1")]
    assert "--seed" in reproduce.command_line(experiment, 4, runs)


class Scripted:
    """In the place of a run: a Python program."""

    def __init__(self, monkeypatch, scripts: dict[str, str]):
        self._scripts = scripts
        monkeypatch.setattr(reproduce, "command_line", self._command)

    def _command(self, experiment, seed, savedir):
        return [sys.executable, "-c", self._scripts[f"{experiment.name}-{seed}"]]


WAIT = "import pathlib, time\nwhile not pathlib.Path({!r}).exists(): time.sleep(0.02)\n"
LINE = "7 frames, 5 frames/s, 0:00:01 left, return 1"


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failed_run_ends_the_table(tmp_path, monkeypatch, capfd, jobs):
    """The one beside it goes on to its end; none is started after it."""
    failed = tmp_path / "failed"
    fails = f"import pathlib, sys; pathlib.Path({str(failed)!r}).touch(); sys.exit(3)"
    goes_on = WAIT.format(str(failed)) + f"time.sleep(0.3); print({LINE!r}); print('a warning')"
    Scripted(monkeypatch, {"row-1": fails, "row-2": goes_on, "row-3": "print('never')"})
    experiment = Experiment("row", ["--env", "x"], 10, [1, 2, 2, 3], 0.9, "nowhere")
    assert reproduce.run_all([experiment], tmp_path, None, DECLARED, jobs) == 3
    said = capfd.readouterr()
    assert said.out.count(" -c ") == jobs and "never" not in said.out + said.err
    assert "the run row-1 ended with exit code 3; its cause stands above" in said.err
    assert ("those beside it, 1, go on" in said.err) == (jobs == 2) == ("row-2: not started" in said.out)


def test_runs_side_by_side_each_have_a_line_and_cores_of_their_own(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "amigo")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    given = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cores: given.append(set(cores)))
    flags = [tmp_path / name for name in ("a", "b", "c")]
    wait = [WAIT.format(str(flag)) for flag in flags]
    touch = [f"import pathlib; pathlib.Path({str(flag)!r}).touch()\nprint({LINE!r}, flush=True)\n" for flag in flags]
    # Each waits for what only the one beside it makes; the third begins when the first has ended.
    Scripted(monkeypatch, {"row-1": touch[0] + wait[1], "row-2": touch[1] + wait[0] + wait[2], "row-3": touch[2]})
    experiment = Experiment("row", ["--env", "x"], 10, [1, 2, 3], 0.9, "nowhere")
    assert reproduce.run_all([experiment], tmp_path, None, DECLARED, 2) == 0
    lines = {record.message: getattr(record, "progress", False) for record in caplog.records}
    assert {f"row-{seed}: {LINE}": True for seed in (1, 2, 3)}.items() <= lines.items()
    assert given == [{0}, {0, 1}, {1}, {0, 1}, {0}, {0, 1}], "the third has the place of the first"


def test_what_goes_wrong_here_ends_the_runs_that_go_on(tmp_path, monkeypatch):
    stopped = tmp_path / "stopped"
    ready = tmp_path / "ready"
    goes_on = f"""if True:
        import pathlib, signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: pathlib.Path({str(stopped)!r}).touch() or sys.exit(143))
        pathlib.Path({str(ready)!r}).touch()
        time.sleep(60)"""
    Scripted(monkeypatch, {"row-1": WAIT.format(str(ready)), "row-2": goes_on})
    monkeypatch.setattr(reproduce, "_finish", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        reproduce.run_all([Experiment("row", [], 10, [1, 2], 0.9, "nowhere")], tmp_path, None, DECLARED, 2)
    assert stopped.exists()


@pytest.mark.parametrize(
    "cores, threads, flags, expected",
    [
        (1, None, [""] * 3, 1),
        (2, None, [""] * 3, 1),
        (4, "1", [""] * 3, 2),
        (16, None, [""] * 3, 3),
        (16, "4", [""] * 9, 3),
        (16, "many", [""] * 9, 8),
        (16, None, ["", "--num_actor_processes 3"] * 9, 4),
        (16, None, ["--num_actor_processes 15", ""], 1),
        (4, None, ["--num_actor_processes 0"] * 9, 4),
        (8, None, [], 1),
    ],
)
def test_by_default_no_two_runs_share_a_core(monkeypatch, cores, threads, flags, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if threads:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    monkeypatch.setattr(preflight, "available_memory", lambda: 1 << 40)
    rows = [Experiment("row", ["--env", "x", *more.split()], 10, [1], 0.9, "") for more in flags]
    assert reproduce.most_jobs(rows) == expected
    monkeypatch.setattr(preflight, "available_memory", lambda: 1 << 20)
    assert reproduce.most_jobs(rows) == 1, "nor memory"


@pytest.mark.parametrize("number, places", [(16, 3), (5, 2), (3, 3), (2, 5)])
def test_places_share_the_cores(monkeypatch, number, places):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(10, 10 + number)))
    shares = programs.shares(places)
    assert set().union(*shares) == set(range(10, 10 + number)) and len(shares) == places and all(shares)
    assert sum(map(len, shares)) == max(number, places)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_line_of_progress_is_known_as_one(caplog):
    caplog.set_level("INFO", "amigo")
    learner = SimpleNamespace(frames=123_456, recent_returns=[0.5], motivation=SimpleNamespace(progress=lambda: ""))
    beside.Progress(learner, 10**9, live=False).line()
    assert beside.PROGRESS_LINE.match(caplog.records[0].message)


def test_an_entry_may_be_there_for_others_to_name(tmp_path):
    text = TABLE.replace("reach = 0.9", "reach = 0.9\nRecipe = --use_lstm %(rate)s\nrate = --learning_rate .002")
    (tmp_path / "table.ini").write_text(text.replace(f"flags = --model {OTHER}", f"flags = --model {OTHER} %(recipe)s"))
    teacher, other = read_table(tmp_path / "table.ini", command.check_run)
    assert "--use_lstm --learning_rate .002" in " ".join(other.arguments) and "--use_lstm" not in teacher.arguments


def test_frames_may_be_written_with_an_exponent(tmp_path):
    (tmp_path / "table.ini").write_text(TABLE.replace("frames = 480", "frames = 4.8e2"))
    assert {experiment.frames for experiment in read_table(tmp_path / "table.ini", command.check_run)} == {480}


@pytest.mark.parametrize(
    "text, word",
    [
        ("[a\n", "table.ini"),
        ("[a]\nenv = MiniGrid-Empty-5x5-v0\n", "lacks flags"),
        (TABLE.replace("Empty-5x5", "Emty-5x5"), "did you mean"),
        (TABLE.replace("--batch_size 4", "--batch_size 0"), "[teacher] --batch_size"),
        (TABLE.replace(OTHER, OTHER[:-2]), f"did you mean {OTHER}"),
        (
            TABLE.replace(f"--model {OTHER}", f"--modle {OTHER}"),
            "[other] no such flag: --modle; did you mean --mode or --model?",
        ),
        (TABLE.replace("frames = 480", "frames = 1e-6"), "[teacher] --total_frames: invalid whole number value"),
        (TABLE.replace("seeds = 1 2", "seeds = 1,2"), "[teacher] seeds = 1,2: write it as 1 2 3"),
        (TABLE.replace("seeds = 3", "seeds ="), "[other] seeds ="),
        (TABLE.replace("seeds = 3", "seeds = 3 4 3"), "[other] seeds = 3 4 3: write it as 1 2 3"),
        (TABLE.replace("--batch_size 4", "--batch_size 4 --seed=3"), "[teacher] flags: take --seed out; a row trains"),
        (TABLE.replace("--batch_size 4", "--mode test --xpid a"), "[teacher] flags: take --xpid and --mode out"),
        (TABLE.replace("--batch_size 4", "--disable_checkpoint"), "[teacher] flags: take --disable_checkpoint out"),
        (TABLE.replace("[other]", f"[{'o' * 254}]"), "--xpid must be a plain folder name"),
        (TABLE + "window_frame = 100000\n", "[other] window_frame is read by nothing, and no entry that is read names"),
        (TABLE + "contol = teacher\n", "did you mean control?"),
        (TABLE.replace("reach = 0.9", "reach = 0.9\nrecipe = --use_lstm"), "[DEFAULT] recipe is read by nothing"),
        (TABLE.replace("reach = 0.9", "reach = 0.9\nrecipe = %(recipe)s --use_lstm"), "[DEFAULT] recipe is read by nothing"),
        (TABLE.replace("reach = 0.9", "reach = 0.9\none = %(two)s\ntwo = %(one)s"), "[DEFAULT] one is read by nothing"),
        (TABLE.replace("nowhere", "%%(recipe)s\nrecipe = --use_lstm"), "[DEFAULT] recipe is read by nothing"),
        (
            TABLE.replace("nowhere", "nowhere\nrecipe = a").replace("nowhere", "%(recipe)s", 1) + "published = x\nrecipe = b\n",
            "[other] recipe is read by nothing",
        ),
        (TABLE.replace("seeds = 3", "seeds = 3 -1"), "[other] --seed"),
        (TABLE.replace("seeds = 3", f"seeds = 3 {2**63}"), "[other] --seed"),
        (TABLE.replace("--batch_size 4", "--batch_size 4 -h"), "[teacher] flags: take -h out"),
        (TABLE.replace("--batch_size 4", "--batch_size 4 -hall"), "[teacher] flags: take -h out"),
        (TABLE.replace("[other]", "[ ]"), "spaces at its ends"),
        (TABLE.replace("[other]", "[a|b]"), "or |"),
        (TABLE + "window_frames = 481\n", "[other] window_frames = 481: a run has 480 frames; give so many or fewer"),
        (TABLE.replace("reach = 0.9", "reach = high"), "[teacher] reach = high"),
        (TABLE.replace("reach = 0.9", "reach = 90"), "[teacher] reach = 90: write it as 0.9"),
        (TABLE.replace("reach = 0.9", "reach = nan"), "[teacher] reach = nan: write it as 0.9"),
        (TABLE.replace("reach = 0.9", "reach = 0.9\nwindow_frames = 0"), "[teacher] window_frames = 0: write it as 1000000"),
        (TABLE.replace("--batch_size 4", "--batch_size 4 '"), "[teacher] flags ="),
        ("[DEFAULT]\nframes = 480\n", "has no row"),
        (TABLE.replace("--batch_size 4", "%(recipe)s"), "table.ini: Bad value substitution: option 'flags'"),
    ],
)
def test_a_wrong_table_is_refused_before_anything_runs(tmp_path, text, word, capsys):
    path = tmp_path / "table.ini"
    path.write_text(text)
    assert reproduce.main([str(path), "--savedir", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert word in error and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_table_that_is_no_text_is_refused(tmp_path, capsys):
    (tmp_path / "table.ini").write_bytes(b"\xff\xfe[a]")
    assert reproduce.main([str(tmp_path / "table.ini")]) == 2
    assert "table.ini is no text in UTF-8; save it as that" in capsys.readouterr().err


def test_a_run_made_with_other_flags_than_its_rows_is_not_taken_for_it(table, tmp_path, capsys):
    """Neither as a finished one nor to be gone on with."""
    arguments = [str(table), "--savedir", str(tmp_path / "runs"), "--only", "other"]
    assert reproduce.main(arguments) == 0
    for old, new, named in (
        ("frames = 480", "frames = 960", "total_frames 480"),
        ("--batch_size 4", "--batch_size 4 --use_lstm", "use_lstm False"),
        ("--batch_size 4", "", "batch_size 4"),
        ("Empty-5x5", "Empty-6x6", "env MiniGrid-Empty-5x5-v0"),
    ):
        table.write_text(TABLE.replace(old, new))
        for more in ([], ["--list"]):
            assert reproduce.main([*arguments, *more]) == 2
            assert f"other-3 was made with {named}, and [other] has" in capsys.readouterr().err
        assert report.main([str(table), "--runs", str(tmp_path / "runs")]) == 2
        assert f"other-3 was made with {named}, and [other] has" in capsys.readouterr().err
    table.write_text(TABLE)
    assert reproduce.main(arguments) == 0


def test_folders_that_are_files_and_damaged_runs_are_named_before_anything_runs(table, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for flag in ("--savedir", "--keep"):
        assert reproduce.main([str(table), "--savedir", str(tmp_path / "runs"), flag, str(tmp_path / "file")]) == 2
        assert f"{flag} {tmp_path / 'file'}: {tmp_path / 'file'} is no folder" in capsys.readouterr().err
    folder = log(tmp_path / "runs" / "other-3", [(1, 2, 0.5)])
    (folder / "meta.json").write_text("{")
    assert reproduce.main([str(table), "--savedir", str(tmp_path / "runs"), "--list"]) == 2
    assert "meta.json is damaged" in capsys.readouterr().err
    (folder / "meta.json").unlink()
    (folder / "logs.csv").write_text("# _tick,_time,frames\n1,2,3\n")
    assert reproduce.main([str(table), "--savedir", str(tmp_path / "runs"), "--list"]) == 2
    assert "no column episodes" in capsys.readouterr().err


def test_a_missing_table_and_an_unknown_row_are_named(table, tmp_path, capsys):
    assert reproduce.main([str(tmp_path / "none.ini")]) == 2
    assert reproduce.main([str(table), "--only", "teachr"]) == 2
    errors = capsys.readouterr().err
    assert "no such table" in errors and "teachr: " in errors and "did you mean teacher" in errors


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/b", "..", ".", "-x", "latest", "x" * 300, "a\tb"])
def test_a_rows_name_is_a_plain_one(tmp_path, capsys, name):
    """Its runs are looked for, and kept, in folders of that name."""
    path = tmp_path / "table.ini"
    path.write_text(TABLE.replace("[teacher]", f"[{name}]"))
    folders = ["--savedir", str(tmp_path / "runs"), "--keep", str(tmp_path / "kept")]
    for more in ([], ["--list"]):
        assert reproduce.main([str(path), *folders, *more]) == 2
        errors = capsys.readouterr().err
        assert errors.count("\n") == 1 and "a row's name" in errors and "must be a plain folder name" in errors
    assert [p.name for p in tmp_path.iterdir()] == ["table.ini"]


@pytest.mark.parametrize("name", ["é", "a b", "a.b", "..a", "a-1"])
def test_other_names_of_rows_are_taken(tmp_path, name):
    path = tmp_path / "table.ini"
    path.write_text(TABLE.replace("[teacher]", f"[{name}]"), encoding="utf-8")
    assert name in [experiment.name for experiment in read_table(path, command.check_run)]


def test_a_table_that_was_edited_on_windows_is_read(tmp_path, table):
    before = read_table(table, command.check_run)
    table.write_bytes(TABLE.replace("\n", "\r\n").encode("utf-8-sig"))
    assert read_table(table, command.check_run) == before


def test_a_run_that_was_killed_while_it_started_is_begun_again(tmp_path, table):
    (experiment, _) = read_table(table, command.check_run)
    folder = tmp_path / "runs" / "teacher-1"
    folder.mkdir(parents=True)
    for name in ("logs.csv", "meta.json", "fields.csv"):
        (folder / name).write_text("")
    assert "--resume" not in reproduce.command_line(experiment, 1, tmp_path / "runs")
    (folder / "model-1.tar").write_text("")  # what the newest was before it was damaged, or deleted
    assert "--resume" in reproduce.command_line(experiment, 1, tmp_path / "runs")

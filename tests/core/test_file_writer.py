from __future__ import annotations

import contextlib
import csv
import json
import logging
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from torchbeast.core import rows
from torchbeast.core.file_writer import FileWriter

FIELDS = ["total_loss", "frames", "mean_episode_return", "policy_lag"]
HEADER = "# _tick,_time,total_loss,frames,mean_episode_return,policy_lag"


@pytest.fixture
def make(tmp_path):
    """A writer in tmp_path/runs that is closed at the end, as the logger is shared by all tests."""
    writers = []

    def make(xpid="first", *, args=None, fields=FIELDS) -> FileWriter:
        writers.append(FileWriter.create(tmp_path / "runs", xpid, args=args or {}, fields=fields))
        return writers[-1]

    yield make
    for writer in writers:
        writer.close(successful=False)


@pytest.fixture
def resume(tmp_path):
    writers = []

    def resume(frames, *, args=None, fields=FIELDS) -> FileWriter:
        writers.append(FileWriter.resume(tmp_path / "runs" / "first", args=args or {}, fields=fields, frames=frames))
        return writers[-1]

    yield resume
    for writer in writers:
        writer.close(successful=False)


def lines(writer: FileWriter) -> list[str]:
    return (writer.run_dir / "logs.csv").read_text().splitlines()


def column(writer: FileWriter, name: str) -> list[str]:
    header, *rows = lines(writer)
    index = header.removeprefix("# ").split(",").index(name)
    return [row.split(",")[index] for row in rows]


def meta(writer: FileWriter) -> dict:
    return json.loads((writer.run_dir / "meta.json").read_text())


def test_first_line_is_torchbeasts_and_is_there_at_once(make):
    assert (make().run_dir / "logs.csv").read_bytes() == HEADER.encode() + b"\n"


def test_fields_csv_names_the_columns(make):
    with open(make().run_dir / "fields.csv", newline="") as file:
        assert list(csv.reader(file)) == [["_tick", "_time", *FIELDS]]


@pytest.mark.parametrize(
    "value", [0.1, 1 / 3, 1e-300, -2.5e17, 7, -7, 2**62, math.inf, np.float32(0.1), np.int64(5), torch.tensor(0.3)]
)
def test_a_number_is_read_back_exactly(make, value):
    writer = make()
    writer.log({"policy_lag": value})
    writer.flush()
    assert float(column(writer, "policy_lag")[0]) == float(value)


def test_whole_numbers_stay_whole(make):
    writer = make()
    writer.log({"frames": np.int64(800), "policy_lag": True})
    writer.flush()
    assert (column(writer, "frames"), column(writer, "policy_lag")) == (["800"], ["1"])


def test_missing_values_are_empty(make):
    writer = make()
    writer.log({"frames": 800, "total_loss": None, "mean_episode_return": np.float32("nan")})
    writer.flush()
    tick, _, *values = lines(writer)[1].split(",")
    assert (tick, values) == ("0", ["", "800", "", ""])


def test_ticks_count_and_time_runs(make):
    writer = make()
    for _ in range(3):
        writer.log({})
    writer.flush()
    times = [float(value) for value in column(writer, "_time")]
    assert column(writer, "_tick") == ["0", "1", "2"]
    assert times == sorted(times) and abs(times[0] - os.stat(writer.run_dir).st_mtime) < 60


def test_unknown_field_is_named_and_nothing_is_written(make):
    writer = make()
    with pytest.raises(KeyError, match="frmaes"):
        writer.log({"frmaes": 1, "frames": 1})
    writer.flush()
    assert lines(writer) == [HEADER]


def test_only_numbers_are_taken(make):
    with pytest.raises(TypeError, match="'1,2'"):
        make().log({"frames": "1,2"})


@pytest.mark.parametrize("fields", [["loss"], ["frames", "frames"], ["frames", "_tick"]])
def test_unusable_fields_are_refused(make, fields):
    with pytest.raises(ValueError, match="fields must have frames"):
        make(fields=fields)


def test_rows_reach_the_file_with_time(make, monkeypatch):
    writer = make()
    writer.log({"frames": 1})
    assert lines(writer) == [HEADER]
    now = rows.time.monotonic() + rows.FLUSH_SECONDS
    monkeypatch.setattr(rows.time, "monotonic", lambda: now)
    monkeypatch.setattr(rows.time, "time", lambda: 5.0)  # the clock was set back
    writer.log({"frames": 2})
    assert column(writer, "frames") == ["1", "2"]


@pytest.mark.parametrize("left", ["logs.csv", "model.tar"])
def test_a_folder_with_a_run_is_refused_untouched(make, tmp_path, left):
    folder = tmp_path / "runs" / "first"
    folder.mkdir(parents=True)
    (folder / left).write_text("precious")
    with pytest.raises(FileExistsError, match=r"first.*--resume.*--xpid"):
        make()
    assert [path.name for path in folder.iterdir()] == [left] and (folder / left).read_text() == "precious"


STEPS = ["run_folder.claim", "run_folder.lock", "rows.columns", "provenance.metadata", "run_folder.write_metadata",
         "run_folder.point_latest_at", "Rows"]  # fmt: skip


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_a_start_that_is_killed_anywhere_can_be_made_again(make, tmp_path, step, when):
    """A process that dies before or after a step leaves a folder which the next one begins as if it were new."""
    code = f"""
import os, pathlib
from torchbeast.core import file_writer
from torchbeast.core.file_writer import FileWriter, provenance, rows, run_folder, Rows
step = {step}
def dies(*args, **more):
    if {when!r} == "after":
        step(*args, **more)
    os._exit(9)
*place, name = {step!r}.split(".")
setattr({step.rpartition(".")[0] or "file_writer"}, name, dies)
FileWriter.create(pathlib.Path({str(tmp_path / "runs")!r}), "first", args={{}}, fields={FIELDS!r})
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    writer = make()
    write_rows(writer, [100])
    assert lines(writer)[0] == HEADER and column(writer, "frames") == ["100"]
    assert meta(writer)["xpid"] == "first"
    assert (writer.run_dir / "fields.csv").read_text() == HEADER.removeprefix("# ") + "\n"


def test_an_empty_folder_is_used(make, tmp_path):
    (tmp_path / "runs" / "first").mkdir(parents=True)
    assert make().run_dir == tmp_path / "runs" / "first"


@pytest.mark.parametrize("xpid", ["", "..", "latest", ".latest", "a/b", "/tmp/x", "\udcff"])
def test_an_xpid_is_a_plain_name(make, tmp_path, xpid):
    with pytest.raises(ValueError, match="--xpid"):
        make(xpid)
    assert not list(tmp_path.iterdir())


def test_latest_is_a_relative_link_to_the_newest_run(make, resume, tmp_path):
    latest = tmp_path / "runs" / "latest"
    make("first")
    assert os.readlink(latest) == ".latest/first"
    make("second")
    assert os.readlink(latest) == ".latest/second"
    resume(0)
    assert os.readlink(latest) == ".latest/first"
    assert sorted(path.name for path in latest.parent.iterdir()) == [".latest", "first", "latest", "second"]


# Resuming


def write_rows(writer: FileWriter, frames: list[int]) -> None:
    for value in frames:
        writer.log({"frames": value, "total_loss": value / 3})
    writer.flush()


def test_resume_cuts_rows_after_the_checkpoint_and_counts_on(make, resume):
    writer = make()
    write_rows(writer, [100, 200, 300, 400])
    before = lines(writer)
    writer.close(successful=False)
    again = resume(200)
    write_rows(again, [301])
    assert lines(again)[:3] == before[:3]
    assert column(again, "frames") == ["100", "200", "301"]
    assert column(again, "_tick") == ["0", "1", "2"]
    assert [path.name for path in again.run_dir.glob(".*")] == [".lock"]


@pytest.mark.parametrize(
    "torn",
    ["1,1.5,.1,2,3,45", "1,1.5,.1,2\n", "1,1.5,.1,2,,,\n", "\0\0\n", "1,1.5,,,,\n", ",1.5,.1,2,,\n", "\n",
     "1" * 5000 + ",1.5,.1,200,,\n", "1" * 19 + ",1.5,.1,200,,\n", "\u0661,1.5,.1,200,,\n", "1,1.5,.1," + "2" * 5000 + ",,\n",
     "1,1.5,.1,nan,,\n", "1,1.5,.1,\u0662,,\n"],
)
@pytest.mark.parametrize("more", ["", "1,1.5,.1,200,,\n"])
def test_resume_cuts_torn_rows(make, resume, torn, more):
    writer = make()
    write_rows(writer, [100])
    writer.close(successful=False)
    with open(writer.run_dir / "logs.csv", "a") as file:
        file.write(torn + more)
    again = resume(1000)
    write_rows(again, [300])
    more = more and torn.endswith("\n")
    assert column(again, "frames") == ["100", *(["200"] if more else []), "300"]
    assert column(again, "_tick") == ["0", "1", "2"][: 3 if more else 2]


def test_rows_that_are_missing_before_the_checkpoint_are_told(make, resume, caplog):
    writer = make()
    write_rows(writer, [100, 200])
    writer.close(successful=False)
    resume(200).close(successful=False)
    assert "missing" not in caplog.text
    resume(300)
    assert "ends at 200 frames, the checkpoint is of 300" in caplog.text


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_log_that_was_edited_elsewhere_is_gone_on_with_as_it_was(make, resume, coding, end):
    writer = make()
    write_rows(writer, [100, 200, 300])
    writer.close(successful=False)
    log = writer.run_dir / "logs.csv"
    before = log.read_bytes()
    log.write_bytes(before.decode().replace("\n", end).encode(coding))
    resume(300).close(successful=False)
    assert log.read_bytes() == before
    log.write_bytes(before.decode().replace("\n", end).replace("total_loss", "loss").encode(coding))
    with pytest.raises(ValueError, match="other fields"):
        resume(300)


def test_rows_at_the_end_are_cut_without_room_for_another_log(make, resume, monkeypatch):
    """As on a disk that the run has nearly filled: the file stays the one that it is."""
    writer = make()
    write_rows(writer, [100, 200, 300])
    writer.close(successful=False)
    log = writer.run_dir / "logs.csv"
    with open(log, "a") as file:
        file.write("3,1.5")
    before = log.stat().st_ino
    assert column(resume(200), "frames") == ["100", "200"] and log.stat().st_ino == before


def test_resume_keeps_a_whole_last_row(make, resume):
    writer = make()
    write_rows(writer, [100, 200])
    writer.close(successful=False)
    assert column(resume(200), "frames") == ["100", "200"]


@pytest.mark.parametrize("content", ["", "# _tick,_ti", None])
def test_resume_repairs_a_missing_header(make, resume, content):
    writer = make()
    writer.close(successful=False)
    log = writer.run_dir / "logs.csv"
    log.unlink() if content is None else log.write_text(content)
    again = resume(0)
    write_rows(again, [100])
    assert lines(again)[0] == HEADER and column(again, "_tick") == ["0"]


def test_resume_refuses_other_fields_and_changes_nothing(make, resume):
    writer = make()
    write_rows(writer, [100])
    writer.close(successful=True)
    before = {path.name: path.read_bytes() for path in writer.run_dir.iterdir()}
    for other in (FIELDS[:-1], ["other", *FIELDS[1:]], [*FIELDS[1:], "more"]):
        with pytest.raises(ValueError, match=r"other fields.*--xpid"):
            resume(0, fields=other)
    assert {path.name: path.read_bytes() for path in writer.run_dir.iterdir()} == before


@pytest.mark.parametrize("header", ["# _tick,_time,frames,a,frames", "# _tick,frames,_time", "_tick,_time,frames", "# frames"])
def test_resume_refuses_a_header_that_no_run_wrote(make, resume, header):
    make().close(successful=False)
    log = make("second").run_dir.parent / "first" / "logs.csv"
    log.write_text(f"{header}\n0,1.5,2,3,4\n")
    with pytest.raises(ValueError, match="other fields"):
        resume(1000)
    assert log.read_text() == f"{header}\n0,1.5,2,3,4\n"


@pytest.mark.parametrize("fields", [[*FIELDS, "more"], ["less", FIELDS[2], *FIELDS[:2], "more", FIELDS[3]]])
def test_an_older_run_gets_the_columns_that_it_lacks(make, resume, fields, caplog):
    """Between and after its own, which may stand in another order now; its values stay as they were written."""
    writer = make()
    for value in (100, 200, 300):
        writer.log({"frames": value, "total_loss": value / 3, "policy_lag": 0.1})
    writer.close(successful=False)
    own = {name: column(writer, name) for name in ("_tick", "_time", *FIELDS)}
    again = resume(200, fields=fields)
    again.log({"frames": 250, "more": 7, "policy_lag": 1})
    again.flush()
    assert lines(again)[0].removeprefix("# ").split(",") == ["_tick", "_time", *fields]
    assert column(again, "more") == ["", "", "7"] and column(again, "_tick") == ["0", "1", "2"]
    for name in ("_time", *FIELDS):
        assert column(again, name)[:2] == own[name][:2], name
    with open(again.run_dir / "fields.csv", newline="") as file:
        assert list(csv.reader(file)) == [["_tick", "_time", *fields]]
    assert "more, which are younger than the run" in (again.run_dir / "out.log").read_text()
    again.close(successful=False)
    caplog.clear()
    assert column(resume(1000, fields=fields), "frames") == ["100", "200", "250"] and "younger" not in caplog.text


@pytest.mark.parametrize("name", ["logs.csv", "out.log", "meta.json", ".lock"])
@pytest.mark.parametrize("how", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("gone")], ids=["pipe", "folder", "link"])
def test_what_is_no_file_in_the_place_of_one_is_refused_and_nothing_is_written(make, resume, tmp_path, name, how):
    """A pipe would be waited for, for ever."""
    writer = make()
    writer.close(successful=False)
    run_dir = writer.run_dir
    with contextlib.suppress(FileNotFoundError):
        (run_dir / name).unlink()
    how(run_dir / name)
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path != run_dir / name}
    with pytest.raises(FileNotFoundError if name == "meta.json" else FileExistsError, match=name):
        resume(0)
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path != run_dir / name} == before
    new = tmp_path / "new"
    new.mkdir()
    how(new / name)
    with pytest.raises(FileExistsError, match=f"{name} is no ordinary file: remove it, or use another --xpid"):
        FileWriter.create(tmp_path, "new", args={}, fields=FIELDS)
    assert [path.name for path in new.iterdir()] == [name]


def test_resume_refuses_a_folder_without_a_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing_here"):
        FileWriter.resume(tmp_path / "nothing_here", args={}, fields=FIELDS, frames=0)
    assert not list(tmp_path.iterdir())


def test_a_crash_while_cutting_leaves_the_old_rows(make, resume, monkeypatch):
    writer = make()
    write_rows(writer, [100, 200])
    writer.close(successful=False)
    with open(writer.run_dir / "logs.csv", "a") as file:
        file.write("torn\n2,1.5,,50,,\n")  # so it is written anew
    before = lines(writer)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="power"):
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("power is gone")))
        resume(100)
    assert lines(writer) == before
    assert column(resume(100), "frames") == ["100", "50"]


def test_resume_is_noted_in_the_metadata(make, resume):
    make(args={"env": "A"}).close(successful=True)
    resume(100, args={"total_frames": 7}).close(successful=False)
    writer = resume(200, args={"total_frames": 8})
    content = meta(writer)
    assert content["args"] == {"env": "A"}
    assert [(entry["frames"], entry["args"]["total_frames"]) for entry in content["resumed"]] == [(100, 7), (200, 8)]
    assert content["date_end"] is None and content["successful"] is None


# meta.json


def test_the_metadata_is_there_at_once(make):
    content = meta(make(args={"savedir": Path("runs"), "seed": 3}))
    assert (content["xpid"], content["args"]) == ("first", {"savedir": "runs", "seed": 3})
    assert content["date_end"] is None and content["successful"] is None


@pytest.mark.parametrize("successful", [True, False])
def test_close_ends_the_metadata_once(make, successful):
    writer = make()
    writer.close(successful=successful)
    content = meta(writer)
    writer.close(successful=not successful)
    assert content["successful"] is successful and content["date_end"] >= content["date_start"]
    assert meta(writer) == content
    with pytest.raises(ValueError, match="closed"):
        writer.log({"frames": 1})


# out.log, TensorBoard, fork safety of the imports


def test_out_log_follows_the_logger_until_close(make, caplog):
    log = logging.getLogger("amigo")
    caplog.set_level(logging.ERROR, logger="amigo")  # what the writer finds is what it must leave
    before = (list(log.handlers), log.level)
    writer = make()
    log.info("goals moved to %s", "doors")
    log.debug("too small to be told")
    writer.close(successful=True)
    log.warning("after the end")
    text = (writer.run_dir / "out.log").read_text()
    assert re.fullmatch(r"\[INFO:\d+ \d{4}-\d\d-\d\d [\d:,]+\] goals moved to doors\n", text)
    assert (log.handlers, log.level) == before


def test_a_full_disk_does_not_leave_the_handler_behind(make, monkeypatch):
    writer = make()
    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        patch.setattr(os, "fsync", lambda *_: (_ for _ in ()).throw(OSError("disk is full")))
        writer.close(successful=True)
    assert writer._handler not in logging.getLogger("amigo").handlers


def test_tensorboard_is_imported_when_first_used_only():
    code = "import sys, torchbeast.core.file_writer; print([m for m in ('torch', 'tensorboard') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_scalars_are_events_and_a_resumed_run_hides_later_ones(make, resume):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = make()
    assert not (writer.run_dir / "tensorboard").exists()
    for step in (100, 200, 300):
        writer.scalars(step, {"speed": step / 10, "return": None, "loss": math.nan})
    writer.close(successful=False)
    again = resume(200)
    again.scalars(250, {"speed": torch.tensor(5.0)})
    again.close(successful=True)
    events = EventAccumulator(str(again.run_dir / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["speed"]
    assert [(event.step, event.value) for event in events.Scalars("speed")] == [(100, 10.0), (200, 20.0), (250, 5.0)]


def test_a_savedir_that_is_no_utf8_is_a_folder_like_others(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger("amigo"), "propagate", False)  # what pytest keeps of it could not be sent on
    savedir = Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff"))
    writer = FileWriter.create(savedir, "first", args={"savedir": str(savedir)}, fields=FIELDS)
    logging.getLogger("amigo").info("writing %s", writer.run_dir)
    write_rows(writer, [100])
    writer.close(successful=True)
    assert meta(writer)["args"]["savedir"] == str(savedir)
    assert "a\\udcff/first" in (writer.run_dir / "out.log").read_text()
    assert "Logging error" not in capsys.readouterr().err

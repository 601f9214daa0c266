"""All that a run writes, with a made-up disk and clock: when, under which name, and what becomes of it when the disk fails."""

from __future__ import annotations

import errno
import shutil
import types

import numpy as np
import pytest
import torch

from main.settings import FileSettings
from main.training import record as records
from main.training.learner import COLUMNS
from main.training.record import RETRY_SECONDS, Record, open_writer
from tests.helpers.agents import make_settings
from torchbeast.core.ranks import ALONE, Alone
from torchbeast.core.settings import UsageError

FULL = OSError(errno.ENOSPC, "No space left on device")


class Writer:
    """Stands for the log: notes what it is asked for, or fails as a full disk does."""

    def __init__(self, run_dir):
        self.run_dir = run_dir
        self.full = False
        self.calls: list[tuple] = []

    def _note(self, *call):
        if self.full:
            raise FULL
        self.calls.append(call)

    def log(self, row):
        self._note("log", row["frames"])

    def scalars(self, step, values):
        self.calls.append(("scalars", step, values))  # whatever becomes of these, nothing is raised

    def flush(self):
        self._note("flush")

    def look(self):
        return []

    def close(self, successful):
        self._note("close", successful)


class Files:
    """Stands for checkpoint files: notes what is saved and linked, or fails."""

    def __init__(self):
        self.full = False
        self.saved: list[int] = []
        self.linked: list[str] = []

    def save(self, path, state, *, keep):
        if self.full:
            raise FULL
        path.touch()
        self.saved.append(state["frames"])
        self.keep = keep

    def link(self, path, other):
        self.linked.append(other.name)


@pytest.fixture
def files(monkeypatch) -> Files:
    files = Files()
    monkeypatch.setattr(records, "checkpoint", files)
    return files


@pytest.fixture
def clock(monkeypatch):
    """`clock.now` is the time, in seconds."""
    clock = types.SimpleNamespace(now=1000.0)
    monkeypatch.setattr(records.time, "monotonic", lambda: clock.now)
    return clock


def make_record(tmp_path, frames: int = 0, **flags) -> tuple[Record, Writer]:
    writer = Writer(tmp_path)
    return Record(make_settings(**flags)[FileSettings], writer, frames, COLUMNS), writer


def batch(frame: int = 0) -> dict[str, torch.Tensor]:
    return {"frame": torch.full((3, 6, 5, 4, 3), frame, dtype=torch.uint8), "goal": torch.arange(18).view(3, 6)}


# -- a disk that fails -------------------------------------------------------------------------------------------------------


def test_rows_that_cannot_be_written_are_told_of_once_and_it_goes_on(tmp_path, caplog):
    record, writer = make_record(tmp_path)
    writer.full = True
    for frames in (24, 48, 72):
        record.row({"frames": frames}, batch())
        record.scalars({})
    failed = f"logging failed ({FULL}); it is tried again as long as the run lasts"
    assert [entry.message for entry in caplog.records] == [failed], "what else has worked says nothing of the log"
    writer.full = False
    record.row({"frames": 96}, batch())
    record.scalars({})
    assert writer.calls[-2:] == [("log", 96), ("scalars", 96, {"frames": 96})]


def test_a_fault_that_is_not_the_disks_is_not_hidden(tmp_path):
    record, writer = make_record(tmp_path)
    writer.log = lambda row: row["no such column"]
    with pytest.raises(KeyError):
        record.row({"frames": 24}, batch())


def test_a_checkpoint_that_cannot_be_written_is_told_of_each_time_and_tried_again(tmp_path, clock, files, caplog):
    record, writer = make_record(tmp_path, checkpoint_minutes=10.0, milestone_frames=1000)
    files.full = True
    assert record.due(0) and record.save({"frames": 1000}) is False
    for seconds in (1, RETRY_SECONDS - 2):
        clock.now += seconds
        assert not record.due(2000), "neither the clock nor the milestone may ask at once again"
    clock.now += 1
    assert record.due(2000) and record.save({"frames": 2000}) is False
    files.full = False
    clock.now += RETRY_SECONDS
    assert record.due(2000) and record.save({"frames": 2000}) is True and not record.due(2000)
    assert files.saved == [2000] and files.linked == ["milestone-000000002000.tar"]
    told = [entry.message for entry in caplog.records if entry.levelname == "WARNING"]
    failure = f"writing a checkpoint failed ({FULL}); it is tried again as long as the run lasts"
    assert told == [failure, failure]
    assert writer.calls == [("flush",)] * 3


def test_a_checkpoint_that_is_deleted_is_due_at_once_and_told_of_once(tmp_path, clock, files, caplog):
    record, _ = make_record(tmp_path, checkpoint_minutes=10.0)
    record.save({"frames": 24})
    record.look()
    assert not record.due(48)
    (tmp_path / "model.tar").unlink()
    clock.now += 1
    for _ in range(2):
        record.look()
        assert record.due(48)
    assert caplog.messages == [f"{tmp_path / 'model.tar'} was deleted; it is written again"]
    files.full = True
    record.save({"frames": 48})
    record.look()
    assert not record.due(72), "on a full disk it is not tried more often for that"


def test_the_log_reaches_the_disk_before_a_checkpoint_which_is_written_even_if_the_log_cannot_be(tmp_path, files, caplog):
    record, writer = make_record(tmp_path)
    order = []
    writer.flush = lambda: order.append("log")
    files.save = lambda *_, **__: order.append("checkpoint")
    assert record.save({"frames": 24})
    assert order == ["log", "checkpoint"]
    writer.flush = lambda: writer._note("flush")
    writer.full = True
    assert record.save({"frames": 48}) and order == ["log", "checkpoint", "checkpoint"]
    assert "writing the log failed" in caplog.text


def test_closing_on_a_full_disk(tmp_path, caplog):
    record, writer = make_record(tmp_path)
    writer.full = True
    record.close(True)
    assert "closing the log failed" in caplog.text


def test_a_disk_that_is_nearly_full_is_told_of_once(tmp_path, monkeypatch, caplog):
    record, writer = make_record(tmp_path)
    record.scalars({"frames_per_second": 5.0})
    assert not writer.calls, "there is no row yet"
    record.row({"frames": 24, "total_loss": 0.5}, batch())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=records.LOW_DISK_BYTES))
    record.scalars({"frames_per_second": 6.0})
    assert not caplog.records
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=records.LOW_DISK_BYTES - 1))
    for frames in (48, 72):
        record.row({"frames": frames, "total_loss": frames / 24}, batch())
    record.scalars({"frames_per_second": 7.0})
    record.scalars({"frames_per_second": 8.0})  # there is no row since
    assert [entry.message for entry in caplog.records] == [f"less than 200 MiB of disk are left in {tmp_path}: free some"]
    assert writer.calls[-1] == ("scalars", 72, {"frames": 72, "total_loss": 2.5, "frames_per_second": 7.0})


def test_a_warning_is_given_once(tmp_path, caplog):
    record, _ = make_record(tmp_path)
    for text in ("a", "b", "a"):
        record.warn_once(text)
    assert [entry.message for entry in caplog.records] == ["a", "b"]


# -- when --------------------------------------------------------------------------------------------------------------------


def test_checkpoints_are_due_at_once_and_then_by_the_clock(tmp_path, clock, files):
    record, _ = make_record(tmp_path, checkpoint_minutes=0.5, keep_checkpoints=4)
    assert record.due(0)
    clock.now += 100
    assert record.save({"frames": 24}) and files.keep == 4
    clock.now += 29.9
    assert not record.due(10**9)
    clock.now += 0.1
    assert record.due(24) and record.save({"frames": 48})
    assert not record.due(48) and files.saved == [24, 48] and files.linked == []


@pytest.mark.parametrize("begun, first", [(0, 1000), (999, 1000), (1000, 2000), (3456, 4000)])
def test_milestones_are_kept_at_the_first_checkpoint_after_each(tmp_path, clock, files, begun, first):
    record, _ = make_record(tmp_path, frames=begun, milestone_frames=1000)
    record.save({"frames": begun})
    assert not record.due(first - 1) and record.due(first) and not files.linked
    record.save({"frames": first + 20})
    assert files.linked == [f"milestone-{first + 20:012d}.tar"] and not record.due(first + 999) and record.due(first + 1000)
    record.save({"frames": first + 3500})  # several passed at once are one
    assert len(files.linked) == 2 and not record.due(first + 3999) and record.due(first + 4000)


def test_without_checkpoints_none_is_due(tmp_path, clock):
    record, _ = make_record(tmp_path, disable_checkpoint=True, milestone_frames=10)
    assert not record.saves and not record.due(10**9)


@pytest.mark.parametrize("begun, expected", [(0, [24, 120, 216]), (120, [216]), (100, [216]), (99, [120, 216])])
def test_environments_are_stored_at_the_first_update_at_or_after_each(tmp_path, begun, expected):
    """Every 100 frames, from 0 on; a run that is gone on with keeps to them."""
    record, _ = make_record(tmp_path, frames=begun, save_env=True, save_every=100)
    for frames in range(begun - begun % 24 + 24, 241, 24):
        record.row({"frames": frames}, batch(frames))
    stored = sorted((tmp_path / "environments").iterdir())
    assert [int(path.stem) for path in stored] == expected
    with np.load(stored[-1]) as arrays:
        assert arrays["frame"].shape == (4, 5, 4, 3) and (arrays["frame"] == 216).all()
        assert arrays["goal"].tolist() == [12, 13, 14, 15]  # the newest, of four of the environments


def test_environments_of_a_student_without_goals(tmp_path):
    record, _ = make_record(tmp_path, save_env=True)
    record.row({"frames": 24}, {"frame": batch()["frame"]})
    with np.load(tmp_path / "environments" / "000000000024.npz") as arrays:
        assert arrays.files == ["frame"]


def test_without_save_env_none_are_stored(tmp_path):
    record, _ = make_record(tmp_path)
    record.row({"frames": 24}, batch())
    assert list(tmp_path.iterdir()) == []


# -- the folder --------------------------------------------------------------------------------------------------------------


class Second(Alone):
    """Stands for the second of two ranks."""

    rank, size, alone = 1, 2, False


def test_a_free_name_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(records.time, "strftime", lambda form: {"%m%d-%H%M": "0102-0304"}[form])
    settings = make_settings(savedir=str(tmp_path), initials="ab", env="MiniGrid-Empty-5x5-v0")
    name = "MiniGrid-Empty-5x5-v0_ab_0102-0304"
    for expected in (name, f"{name}-2", f"{name}-3"):
        writer = open_writer(settings, COLUMNS, None, ALONE)
        assert writer.run_dir == tmp_path / expected
        writer.close(True)


def test_a_name_that_another_takes_at_the_same_moment_is_not_taken_twice(tmp_path, monkeypatch):
    """Jobs of an array start within the same minute."""
    monkeypatch.setattr(records.time, "strftime", lambda form: "0102-0304")
    settings = make_settings(savedir=str(tmp_path / "runs"), initials="ab", env="MiniGrid-Empty-5x5-v0")
    mkdir, taken = type(tmp_path).mkdir, []

    def slower(path, *args, **more):
        if path.parent == tmp_path / "runs" and not taken:
            taken.append(path.name)
            mkdir(path)  # by the other one
        return mkdir(path, *args, **more)

    monkeypatch.setattr(type(tmp_path), "mkdir", slower)
    writer = open_writer(settings, COLUMNS, None, ALONE)
    assert writer.run_dir.name == f"{taken[0]}-2"
    writer.close(True)


def test_a_task_of_a_namespace_gives_a_plain_name(tmp_path):
    writer = open_writer(make_settings(savedir=str(tmp_path), env="mine/MiniGrid-Empty-5x5-v0"), COLUMNS, None, ALONE)
    assert writer.run_dir.parent == tmp_path and writer.run_dir.name.startswith("mine_MiniGrid-Empty-5x5-v0_anonymous_")
    writer.close(True)


def test_the_folder_is_begun_once_and_gone_on_with_by_its_name(tmp_path):
    settings = make_settings(savedir=str(tmp_path), xpid="mine")
    writer = open_writer(settings, COLUMNS, None, ALONE)
    writer.log({"frames": 24})
    writer.close(True)
    with pytest.raises(UsageError, match="mine"):
        open_writer(settings, COLUMNS, None, ALONE)
    writer = open_writer(settings, COLUMNS, 24, ALONE)
    assert writer.run_dir == tmp_path / "mine" and writer.fields == tuple(column.name for column in COLUMNS)
    writer.close(True)


def test_what_the_system_refuses_comes_with_a_remedy(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "run")

    monkeypatch.setattr(records.FileWriter, "create", full)
    with pytest.raises(UsageError, match=r"^run: No space left on device; mend that, or use another --savedir or --xpid$"):
        open_writer(make_settings(savedir=str(tmp_path), xpid="run"), COLUMNS, None, ALONE)


def test_of_several_ranks_the_first_alone_writes(tmp_path):
    settings = make_settings(savedir=str(tmp_path), xpid="mine")
    writer = open_writer(settings, COLUMNS, None, Second())
    assert writer.run_dir == tmp_path / "mine" and list(tmp_path.iterdir()) == []

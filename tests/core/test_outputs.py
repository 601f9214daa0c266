"""Files that a command is asked to write: all of them or none."""

from __future__ import annotations

import os

import pytest

from torchbeast.core import outputs
from torchbeast.core.settings import UsageError


def contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def test_all_files_are_written_and_named(tmp_path, capsys):
    outputs.write({str(tmp_path / "a"): b"1", None: b"2", str(tmp_path / "b"): b"3"})
    assert contents(tmp_path) == {"a": "1", "b": "3"}
    assert capsys.readouterr().out.split() == [str(tmp_path / "a"), str(tmp_path / "b")]


def test_a_link_stays_and_the_file_that_it_names_is_written(tmp_path):
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    outputs.write({str(tmp_path / "link"): b"new"})
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == "new"


@pytest.mark.parametrize("bad", ["no/c", "d" * 253, "folder"])
def test_where_one_cannot_be_written_none_is(tmp_path, bad, capsys):
    (tmp_path / "folder").mkdir()
    (tmp_path / "a").write_text("old")
    with pytest.raises(UsageError, match=f"{bad} cannot be written: .*; give another file"):
        outputs.write({str(tmp_path / "a"): b"1", str(tmp_path / "b"): b"2", str(tmp_path / bad): b"3"})
    assert contents(tmp_path) == {"a": "old"} and capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("no/c", "its folder does not exist; make it first"),
        ("folder", "is a folder; give a file"),
        ("pipe", "is no ordinary file; give another"),
        ("d" * 300, "File name too long; give another file"),
    ],
)
def test_where_no_file_can_lie_is_told_before(tmp_path, name, told):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match=f"^--json .*{told}$"):
        outputs.must_be_writable("--json", tmp_path / name)
    outputs.must_be_writable("--json", tmp_path / "new")
    assert not (tmp_path / "new").exists()


RUNS = ("model.tar", "model-3.tar", "milestone-000000000100.tar", "model-best.tar", "logs.csv", "meta.json", ".lock")


@pytest.mark.parametrize("name", RUNS)
def test_the_files_of_a_run_are_not_written_over(tmp_path, name):
    run, other = tmp_path / "run", tmp_path / "other"
    run.mkdir()
    other.symlink_to("run")
    for folder in (run, other):
        outputs.must_be_writable("--json", folder / name)  # no run lies there
    (run / "meta.json").write_text("{}")
    for folder in (run, other):
        with pytest.raises(UsageError, match=f"^--json .*{name} is a file of a run, which is not written over; give another$"):
            outputs.must_be_writable("--json", folder / name)
        outputs.must_be_writable("--json", folder / "statistics.json")
    (tmp_path / "link").symlink_to(run / name)
    with pytest.raises(UsageError, match="link is a file of a run"):
        outputs.must_be_writable("--json", tmp_path / "link")


def test_a_file_of_a_run_that_lies_elsewhere_is_not_written_over(tmp_path):
    (tmp_path / "meta.json").write_text("{}")
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "big").write_text("")
    (tmp_path / "model.tar").symlink_to("disk/big")
    with pytest.raises(UsageError, match=r"model\.tar is a file of a run"):
        outputs.must_be_writable("--json", tmp_path / "model.tar")


def test_what_is_read_is_not_written_over(tmp_path):
    (tmp_path / "agent.tar").write_text("")
    (tmp_path / "other").symlink_to("agent.tar")
    for place in (tmp_path / "agent.tar", tmp_path / "other"):
        with pytest.raises(UsageError, match="is what is read, and is not written over; give another"):
            outputs.must_not_be_read("--json", place, ["a", tmp_path / "agent.tar"])
    outputs.must_not_be_read("--json", None, [tmp_path / "agent.tar"])
    outputs.must_not_be_read("--json", tmp_path / "b", [tmp_path / "agent.tar"])


@pytest.mark.parametrize("target", ["there", "gone/at/all"])
def test_links_in_a_circle_or_to_nothing_are_told_before(tmp_path, target):
    (tmp_path / "there").symlink_to(target)
    (tmp_path / "b").mkdir()
    for below in ("there", "there/a", "b/../there"):
        with pytest.raises(UsageError, match="there is a link to what is not there; choose another folder"):
            outputs.must_hold_folders("--savedir", tmp_path / below)
    with pytest.raises(UsageError, match="its folder does not exist"):
        outputs.must_be_writable("--out", tmp_path / "there" / "a.png")
    outputs.must_be_writable("--out", tmp_path / "there.png")
    outputs.must_be_different(json=tmp_path / "there", out=tmp_path / "b")


def test_a_folder_that_is_not_ones_own_is_told_of_before(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    for check, place in ((outputs.must_be_writable, "a"), (outputs.must_hold_folders, "a/b")):
        with pytest.raises(UsageError, match="cannot be written; "):
            check("--out", tmp_path / place)


def test_where_no_folder_can_be_made_is_told_before(tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("file", "file/a/b"):
        with pytest.raises(UsageError, match="file is no folder; choose another folder"):
            outputs.must_hold_folders("--savedir", tmp_path / name)
    with pytest.raises(UsageError, match="File name too long"):
        outputs.must_hold_folders("--savedir", tmp_path / ("d" * 300))
    outputs.must_hold_folders("--savedir", tmp_path / "a" / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_two_outputs_are_two_files(tmp_path):
    outputs.must_be_different(json=tmp_path / "a", out=tmp_path / "b", more=None)
    with pytest.raises(UsageError, match="--json and --out name the same file; give two"):
        outputs.must_be_different(json=tmp_path / "a", out=tmp_path / "b" / ".." / "a")

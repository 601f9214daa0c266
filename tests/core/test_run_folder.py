"""A run's folder: who may write there, what `latest` names, and that a file is the old one or the new one, nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from torchbeast.core import run_folder
from torchbeast.core.run_folder import replacing


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Replacing


@pytest.mark.parametrize("name", ["a.json", "a.MP4", "latest"])
@pytest.mark.parametrize("before", [None, "old"])
def test_a_file_is_replaced_when_the_block_ends(tmp_path, name, before):
    path = tmp_path / name
    if before is not None:
        path.write_text(before)
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path and temporary.name.endswith(path.suffix)
        assert path.read_text() == before if before else not path.exists()
    assert names(tmp_path) == [name] and path.read_text() == "new"


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("written", [True, False])
def test_after_an_error_the_old_file_is_there_and_nothing_else(tmp_path, error, written):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as temporary:
        if written:
            temporary.write_text("half")
        raise error
    assert names(tmp_path) == ["a.json"] and path.read_text() == "old"


def test_what_cannot_be_replaced_leaves_nothing(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError), replacing(tmp_path / "a") as temporary:
        temporary.write_text("new")
    assert names(tmp_path) == ["a"] and (tmp_path / "a").is_dir()


def test_what_killed_processes_left_is_removed_where_nobody_else_writes(tmp_path):
    code = f"""
import os, pathlib
from torchbeast.core.run_folder import replacing
with replacing(pathlib.Path({str(tmp_path / "logs.csv")!r})) as temporary:
    temporary.write_text("half")
    os._exit(1)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    (left,) = names(tmp_path)
    (tmp_path / "other.csv").write_text("")
    with replacing(tmp_path / "logs.csv") as temporary:
        temporary.write_text("new")
    assert names(tmp_path) == sorted([left, "logs.csv", "other.csv"])  # it may be another process's that writes now
    with replacing(tmp_path / "logs.csv", alone=True) as temporary:
        temporary.write_text("newer")
    assert names(tmp_path) == ["logs.csv", "other.csv"]


# The folder


@pytest.mark.parametrize("left", ["meta.json", "fields.csv", "logs.csv", "model.tar"])
def test_a_folder_is_claimed_once(tmp_path, left):
    (tmp_path / left).write_text("precious")
    with pytest.raises(FileExistsError, match=r"--resume.*--xpid"):
        run_folder.claim(tmp_path, "# frames\n")
    assert names(tmp_path) == [left] and (tmp_path / left).read_text() == "precious"


def test_a_locked_folder_is_refused_to_other_processes_until_it_is_closed(tmp_path):
    code = f"import pathlib; from torchbeast.core import run_folder; run_folder.lock(pathlib.Path({str(tmp_path)!r}))"

    def other() -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    with run_folder.lock(tmp_path):
        assert "another process is writing to" in other().stderr
    assert other().returncode == 0


def test_latest_is_a_relative_link_to_the_newest_run(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        run_folder.point_latest_at(tmp_path / name)
        assert os.readlink(tmp_path / "latest") == name
    assert names(tmp_path) == ["first", "latest", "second"]


def test_a_folder_named_latest_is_left_alone(tmp_path, caplog):
    (tmp_path / "latest").mkdir()
    (tmp_path / "first").mkdir()
    run_folder.point_latest_at(tmp_path / "first")
    assert not (tmp_path / "latest").is_symlink()
    assert "could not make the link" in caplog.text
    assert names(tmp_path) == ["first", "latest"]


def test_metadata_is_read_as_it_was_written(tmp_path):
    run_folder.write_metadata(tmp_path, {"xpid": "é", "resumed": []})
    assert run_folder.read_metadata(tmp_path) == {"xpid": "é", "resumed": []}
    assert names(tmp_path) == ["meta.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"resumed": 3}'])
def test_damaged_metadata_is_named(tmp_path, content):
    (tmp_path / "meta.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"meta\.json is damaged"):
        run_folder.read_metadata(tmp_path)

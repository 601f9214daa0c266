"""Files that a command is asked to write: all of them or none."""

from __future__ import annotations

import pytest

from main import outputs
from torchbeast.core.settings import UsageError


def contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def test_all_files_are_written_and_named(tmp_path, capsys):
    outputs.write({str(tmp_path / "a"): b"1", None: b"2", str(tmp_path / "b"): b"3"})
    assert contents(tmp_path) == {"a": "1", "b": "3"}
    assert capsys.readouterr().out.split() == [str(tmp_path / "a"), str(tmp_path / "b")]


@pytest.mark.parametrize("bad", ["no/c", "d" * 253, "folder"])
def test_where_one_cannot_be_written_none_is(tmp_path, bad, capsys):
    (tmp_path / "folder").mkdir()
    (tmp_path / "a").write_text("old")
    with pytest.raises(UsageError, match=f"{bad} cannot be written: .*; give another file"):
        outputs.write({str(tmp_path / "a"): b"1", str(tmp_path / "b"): b"2", str(tmp_path / bad): b"3"})
    assert contents(tmp_path) == {"a": "old"} and capsys.readouterr().out == ""

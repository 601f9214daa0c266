"""Checkpoints on disk: what is kept, what is left behind, what a failure may not harm."""

from __future__ import annotations

import os

import pytest

from torchbeast.core import checkpoint


def state(frames: int) -> dict:
    return {"model_state_dict": {}, "flags": {}, "frames": frames}


def frames(*paths) -> list[int]:
    return [checkpoint.load(path)["frames"] for path in paths]


def full_disk(descriptor):
    raise OSError("No space left on device")


def test_a_damaged_checkpoint_is_not_kept_in_place_of_a_good_one(tmp_path):
    path = tmp_path / "model.tar"
    for n in (1, 2):
        checkpoint.save(path, state(n), keep=2)
    path.write_bytes(b"damaged")
    checkpoint.save(path, state(3), keep=2)
    assert frames(path, tmp_path / "model-1.tar") == [3, 1]


def test_what_a_killed_save_left_is_removed(tmp_path):
    (tmp_path / ".model.tar.abc.tmp").write_bytes(b"half")
    checkpoint.save(tmp_path / "model.tar", {"model_state_dict": {}, "flags": {}})
    assert [p.name for p in tmp_path.iterdir()] == ["model.tar"]


def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.tar"
    checkpoint.save(path, {"model_state_dict": {}, "flags": {"a": 1}})
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(path, {})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_saves_that_fail_do_not_cost_the_ones_before(tmp_path, monkeypatch):
    path = tmp_path / "model.tar"
    for n in (1, 2, 3):
        checkpoint.save(path, state(n), keep=3)
    for _ in range(3):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
            patch.setattr("os.fsync", full_disk)
            checkpoint.save(path, state(4), keep=3)
    assert frames(path, tmp_path / "model-1.tar", tmp_path / "model-2.tar") == [3, 2, 1]


def test_linking_twice_leaves_nothing_behind(tmp_path):
    """os.replace does nothing where both names are one file's already."""
    path, other = tmp_path / "model.tar", tmp_path / "model-1.tar"
    checkpoint.save(path, state(1))
    for _ in range(2):
        checkpoint.link(path, other)
    assert os.path.samefile(path, other)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model-1.tar", "model.tar"]

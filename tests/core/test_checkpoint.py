"""Checkpoints on disk: what is kept, what is left behind, what a failure may not harm."""

from __future__ import annotations

import itertools
import os

import pytest
import torch

from torchbeast.core import checkpoint, run_folder


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


@pytest.mark.parametrize("function", ["load", "_check_sizes", "link"])
def test_one_that_is_deleted_while_the_next_is_written_does_not_matter(tmp_path, monkeypatch, function):
    """Before it is looked at, while it is read, and after that."""
    path = tmp_path / "model.tar"
    checkpoint.save(path, state(1), keep=2)
    reached = getattr(checkpoint, function)

    def delete(*args):
        path.unlink()
        return reached(*args)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, function, delete)
        checkpoint.save(path, state(2), keep=2)
    assert [p.name for p in tmp_path.iterdir()] == ["model.tar"] and frames(path) == [2]


def test_linking_twice_leaves_nothing_behind(tmp_path):
    """os.replace does nothing where both names are one file's already."""
    path, other = tmp_path / "model.tar", tmp_path / "model-1.tar"
    checkpoint.save(path, state(1))
    for _ in range(2):
        checkpoint.link(path, other)
    assert os.path.samefile(path, other)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model-1.tar", "model.tar"]


# What is kept


@pytest.mark.parametrize("keep", [1, 2, 3, 4])
def test_starts_that_learn_nothing_cost_no_earlier_checkpoint(tmp_path, keep):
    path = tmp_path / "model.tar"
    for n in (1, 2, 3, 4, 5):
        checkpoint.save(path, state(n), keep=keep)
    before = [5, 4, 3, 2][:keep]
    for incarnation in range(3):  # three crashes in a row
        checkpoint.save(path, state(5) | {"incarnation": incarnation}, keep=keep)
    kept = [path, *(checkpoint.earlier(path, n) for n in range(1, keep))]
    assert frames(*kept) == before and len(list(tmp_path.iterdir())) == keep
    assert checkpoint.load(path)["incarnation"] == 2
    checkpoint.save(path, state(6), keep=keep)
    assert frames(*kept) == [6, *before][:keep]


def older(before: tuple, new: int) -> tuple:
    """Of the frames of what lies there (None of what is damaged), the newest first: from the first one that is older."""
    while before and (before[0] is None or before[0] >= new):
        before = before[1:]
    return before


@pytest.mark.slow
def test_whatever_lies_there_what_is_kept_is_whole_and_older(tmp_path):
    """Every order of four checkpoints, equal, damaged and missing ones among them, and each number of them to keep."""
    path = tmp_path / "model.tar"
    whole = {n: tmp_path / f"{n}.whole" for n in range(4)}
    for n, place in whole.items():
        checkpoint.save(place, state(n))
    cases = 0
    for before in itertools.product([0, 1, 2, 3, None], repeat=3):
        for keep, new in itertools.product((1, 2, 3, 4), (1, 2)):
            for other in tmp_path.glob("*.tar"):
                other.unlink()
            places = [path, *(checkpoint.earlier(path, n) for n in (1, 2))]
            for place, n in zip(places, before):
                place.write_bytes(b"damaged" if n is None else whole[n].read_bytes())
            checkpoint.save(path, state(new), keep=keep)
            expected = [new, *older(before, new)[: keep - 1]]
            found = [path, *(checkpoint.earlier(path, n) for n in range(1, len(expected)))]
            assert [None if not place.is_file() else read(place) for place in found] == expected
            ahead = set(before[: len(before) - len(older(before, new))]) - {None, new}
            assert sorted(read(p) for p in tmp_path.glob("milestone-*")) == sorted(ahead)
            cases += 1
    assert cases == 1000


def read(path) -> int | None:
    try:
        return checkpoint.load(path)["frames"]
    except checkpoint.CheckpointError:
        return None


def test_one_from_which_the_run_has_gone_back_becomes_a_milestone(tmp_path, caplog):
    path = tmp_path / "model.tar"
    for n in (100, 200, 300):
        checkpoint.save(path, state(n), keep=3)
    checkpoint.save(path, state(150), keep=3)
    assert frames(path, tmp_path / "model-1.tar") == [150, 100]
    for n in (200, 300):
        assert frames(tmp_path / f"milestone-{n:012d}.tar") == [n] and f"milestone-{n:012d}.tar" in caplog.text


@pytest.mark.parametrize("value", ["1", -1, True, float("nan"), None])
def test_one_whose_frames_are_none_is_not_kept(tmp_path, value):
    path = tmp_path / "model.tar"
    checkpoint.save(path, state(1), keep=2)
    checkpoint.save(path, state(2), keep=2)
    torch.save(state(0) | {"frames": value}, path)
    checkpoint.save(path, state(3), keep=2)
    assert frames(path, tmp_path / "model-1.tar") == [3, 1]


def test_they_are_found_in_their_order_and_nothing_else_is(tmp_path, caplog):
    path = tmp_path / "model.tar"
    for n in (2, 10, 11):
        checkpoint.save(checkpoint.earlier(path, n), state(n))
    for name in ("model-0.tar", "model-x.tar", "model-01.tar", "model-1.tar.bak", "amodel-1.tar", "model-\u0661.tar"):
        (tmp_path / name).write_bytes(b"")
    assert checkpoint.kept(path) == 3
    assert checkpoint.load_newest(path)[1].name == "model-2.tar"


# Which one a user means


def runs(folder, *names: str) -> None:
    for n, name in enumerate(names, 1):
        (folder / name).mkdir(parents=True)
        checkpoint.save(folder / name / "model.tar", state(n))


def found(place) -> str:
    return str(checkpoint.find(place)[1])


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_pipe_or_a_folder_is_no_checkpoint(tmp_path, make):
    """It is there, so it is not told to be missing; a pipe is not waited for."""
    make(tmp_path / "model.tar")
    for place in (tmp_path, *([tmp_path / "model.tar"] if make is os.mkfifo else [])):
        with pytest.raises(checkpoint.CheckpointError, match="no ordinary file; give "):
            checkpoint.find(place)


def test_a_checkpoint_a_run_and_a_folder_of_runs_are_meant_by_their_own_name(tmp_path, caplog):
    caplog.set_level("INFO", "amigo")
    runs(tmp_path, "a", "b", "c")
    for place in ("a/model.tar", "a"):
        assert found(tmp_path / place) == str(tmp_path / "a/model.tar")
    assert caplog.text == ""
    with pytest.raises(checkpoint.CheckpointError, match=r"is a folder of runs: give one of them, as .*/a; there are a, b, c$"):
        found(tmp_path)
    run_folder.point_latest_at(tmp_path / "b")
    assert found(tmp_path) == str(tmp_path / "b/model.tar")
    assert f"{tmp_path} is a folder of runs: its latest one is b" in caplog.text
    assert found(tmp_path / "latest") == str(tmp_path / "latest/model.tar")
    (tmp_path / "b" / "model.tar").unlink()
    with pytest.raises(checkpoint.CheckpointError, match=r"there are a, c$"):
        found(tmp_path)


def test_an_only_run_is_the_one_that_is_meant(tmp_path, caplog):
    caplog.set_level("INFO", "amigo")
    runs(tmp_path, "a")
    (tmp_path / "empty").mkdir()
    assert found(tmp_path) == str(tmp_path / "a/model.tar") and "its only one is a" in caplog.text


def test_many_runs_are_named_in_part(tmp_path):
    runs(tmp_path, *(f"run-{i:02d}" for i in range(20)))
    with pytest.raises(checkpoint.CheckpointError, match=r"there are run-00, .*, run-11 and 8 others$"):
        found(tmp_path)


def test_the_newest_readable_one_of_a_run_counts(tmp_path, caplog):
    path = tmp_path / "a" / "model.tar"
    path.parent.mkdir()
    for n in (1, 2):
        checkpoint.save(path, state(n), keep=2)
    path.write_bytes(b"damaged")
    assert found(tmp_path / "a").endswith("model-1.tar") and "trying the one before" in caplog.text
    with pytest.raises(checkpoint.CheckpointError, match="not a readable checkpoint"):
        found(path)


@pytest.mark.parametrize("place", ["nothing", "empty", "nothing.tar"])
def test_where_there_is_none_the_remedy_is_named(tmp_path, place):
    (tmp_path / "empty").mkdir()
    with pytest.raises(checkpoint.CheckpointError, match="no such file; give "):
        found(tmp_path / place)

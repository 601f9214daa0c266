"""--mode test and test_render: what is asked for is done, or refused before minutes are spent on it."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest

from main import main as entry
from tests.helpers.playing import play, watch
from utils_folder import video


def test_what_is_said_and_written(trained, tmp_path, capsys):
    out = tmp_path / "a.json"
    assert play(trained / "model.tar", "--num_episodes", "3", "--json", str(out), "--seed", "7") == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{trained / 'model.tar'} on MiniGrid-Empty-5x5-v0: 3 episodes, sampled actions, seed 7\n")
    result = json.loads(out.read_text())
    assert list(result) == [
        "env", "weights", "model", "greedy", "seed", "episodes", "success_rate", "success_rate_interval",
        "mean_return", "mean_return_interval", "mean_steps", "mean_steps_interval",
    ]  # fmt: skip
    assert result["seed"] == 7 and result["weights"] == str(trained / "model.tar") and result["greedy"] is False


@pytest.mark.slow
def test_the_window_shows_the_same_pictures(trained, monkeypatch):
    shown = []

    class Window:
        def __init__(self, title):
            pass

        def show(self, picture, seconds):
            shown.append((picture.shape, seconds))

        def close(self):
            pass

    monkeypatch.setattr(video, "Window", Window)
    monkeypatch.setattr(video, "MAX_TILE", 20)
    more = ["--weight_path", str(trained / "model.tar"), "--seed", "9", "--video_episodes", "2"]
    assert entry.main(["--mode", "test_render", *more]) == 0
    _, episodes = watch(trained / "model.tar", 2, "--seed", "9")
    assert [seconds for _, seconds in shown] == [seen.seconds for episode in episodes for seen in episode]
    assert len({shape for shape, _ in shown}) == 1


def test_fewer_than_one_episode_is_refused(trained, tmp_path, capsys):
    path = tmp_path / "a.mp4"
    assert play(trained / "model.tar", "--record_video", "--video_path", str(path), "--video_episodes", "0") == 2
    assert "--video_episodes must be at least 1" in capsys.readouterr().err and not path.exists()


def test_outputs_that_cannot_be_written_are_refused_first(trained, tmp_path, capsys):
    assert play(trained / "model.tar", "--record_video", "--video_path", str(tmp_path / "a.avi")) == 2
    assert play(trained / "model.tar", "--record_video", "--video_path", str(tmp_path / "no" / "a.mp4")) == 2
    assert play(trained / "model.tar", "--json", str(tmp_path / "no" / "a.json")) == 2
    assert play(trained / "model.tar", "--json", str(tmp_path)) == 2
    assert play(trained / "model.tar", "--json", str(tmp_path / ("long" * 100))) == 2
    for more in (["--record_video"], ["--json", str(tmp_path / "a.json")]):
        assert entry.main(["--mode", "test_render", "--weight_path", str(trained / "model.tar"), *more]) == 2
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 7 and "episodes" not in said.out
    assert list(tmp_path.iterdir()) == []


def test_the_weights_are_not_written_over(trained, tmp_path, capsys):
    """Not where they lie alone in a folder, nor under a video's name."""
    for name in ("model.tar", "agent.mp4"):
        shutil.copy(trained / "model.tar", tmp_path / name)
    before = (tmp_path / "model.tar").read_bytes()
    video = ["--record_video", "--video_path", str(tmp_path / "agent.mp4")]
    for place, more in ((tmp_path, ["--json", str(tmp_path / "model.tar")]), (tmp_path / "agent.mp4", video)):
        assert play(place, "--num_episodes", "1", *more) == 2
        assert "is what is read, and is not written over" in capsys.readouterr().err
    assert before == (tmp_path / "model.tar").read_bytes() == (tmp_path / "agent.mp4").read_bytes()


def test_outputs_that_fail_in_the_end_are_named(trained, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(video.VideoWriter, "__enter__", full)
    for more in (["--json", str(tmp_path / "a.json")], ["--record_video", "--video_path", str(tmp_path / "a.GIF")]):
        assert play(trained / "model.tar", "--num_episodes", "2", *more) == 2
        error = capsys.readouterr().err
        assert "cannot be written: No space left on device" in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_window_needs_a_display(trained, monkeypatch, capsys):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert entry.main(["--mode", "test_render", "--weight_path", str(trained / "model.tar")]) == 2
    assert "display" in capsys.readouterr().err

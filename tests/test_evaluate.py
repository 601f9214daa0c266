"""Playing with trained agents: statistics, published checkpoints, files that are none."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from main import main as entry
from main.evaluate import Episodes, play, summarise
from utils_folder import checkpoint

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT.parent / "shared" / "reference"
TRAIN = [
    "--env",
    "MiniGrid-Empty-5x5-v0",
    "--num_actors",
    "4",
    "--batch_size",
    "4",
    "--unroll_length",
    "5",
    "--total_frames",
    "40",
    "--modify",
    "--state_embedding_dim",
    "16",
    "--xpid",
    "run",
    "--num_actor_processes",
    "0",
    "--seed",
    "3",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run's folder (of an agent that has learned nothing)."""
    savedir = tmp_path_factory.mktemp("runs")
    assert entry.main([*TRAIN, "--savedir", str(savedir)]) == 0
    return savedir / "run"


def test(weights: Path, *more: str) -> int:
    return entry.main(["--mode", "test", "--weight_path", str(weights), *more])


test.__test__ = False


@pytest.mark.slow
@pytest.mark.parametrize("env", ["KeyCorridorS3R3", "ObstructedMaze-1Dl"])
def test_published_checkpoints_play_as_published(tmp_path, env):
    weights = REFERENCE / f"{env}.tar"
    if not weights.exists():
        pytest.skip("the published checkpoints are not here")
    out = tmp_path / "result.json"
    assert test(weights, "--env", f"MiniGrid-{env}-v0", "--num_episodes", "300", "--json", str(out), "--seed", "1") == 0
    result = json.loads(out.read_text())
    assert result["episodes"] == 300 and result["success_rate"] >= 0.97 and result["mean_return"] >= 0.90


def test_a_published_checkpoint_is_read_its_own_way():
    weights = REFERENCE / "KeyCorridorS3R3.tar"
    if not weights.exists():
        pytest.skip("the published checkpoints are not here")
    assert checkpoint.is_published(checkpoint.load(weights))


def test_episodes_are_the_first_of_each_environment():
    """Two environments: the first ends at once and again and again, the second after six steps. One episode of each counts."""

    class Fake:
        def __init__(self):
            self.environment = type("E", (), {"num_envs": 2, "close": lambda self: None})()
            self.t = 0

        def start(self):
            pass

        def advance(self):
            self.t += 1
            late = self.t % 6 == 0
            return {
                "done": np.array([True, late]),
                "episode_return": np.array([self.t, 100 + self.t], np.float32),
                "episode_step": np.array([1, 6], np.int32),
            }

    episodes = play(iter([Fake(), Fake()]), 4)
    assert episodes.returns.tolist() == [1, 106, 1, 106] and episodes.steps.tolist() == [1, 6, 1, 6]


def test_intervals_against_their_formulas():
    returns = np.array([0, 0.5, 0.9, 0, 0.7, 0.8, 0, 0.6, 0.95, 0.3], np.float32)
    summary = summarise(Episodes(returns, np.arange(10, dtype=np.int32)))
    n, p, z = 10, 0.7, 1.959963984540054
    centre, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    wilson = [(centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)]
    assert summary["success_rate"] == 0.7 and np.allclose(summary["success_rate_interval"], wilson)
    half = 2.2621571628540993 * returns.std(ddof=1) / np.sqrt(10)
    assert np.allclose(summary["mean_return_interval"], [returns.mean() - half, returns.mean() + half], atol=1e-6)
    assert summary["mean_steps"] == 4.5
    constant = summarise(Episodes(np.ones(3, np.float32), np.ones(3, np.int32)))
    assert constant["mean_return_interval"] == [1, 1] and constant["success_rate_interval"][0] < 0.5


def test_the_agent_needs_no_flag_repeated_and_a_contradiction_is_named(trained, capfd):
    assert test(trained / "model.tar", "--num_episodes", "3") == 0
    assert "3 episodes" in capfd.readouterr().out
    assert test(trained / "model.tar", "--num_episodes", "3", "--model", "novelty_based", "--use_lstm") == 0
    errors = capfd.readouterr().err
    assert "--model novelty_based: the agent was trained with default" in errors and "--use_lstm" in errors


def test_a_seed_gives_the_same_episodes_and_greedy_differs(trained, tmp_path):
    results = []
    for i, more in enumerate((["--seed", "4"], ["--seed", "4"], ["--seed", "5"], ["--seed", "4", "--greedy"])):
        out = tmp_path / f"{i}.json"
        assert test(trained / "model.tar", "--num_episodes", "6", "--json", str(out), *more) == 0
        results.append({k: v for k, v in json.loads(out.read_text()).items() if k not in ("seed", "greedy")})
    assert results[0] == results[1] and results[0] != results[2] and results[0] != results[3]


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_video_plays_and_shows_every_state(trained, tmp_path, suffix, capsys):
    path = tmp_path / f"episode{suffix}"
    assert test(trained / "model.tar", "--num_episodes", "1", "--record_video", "--video_path", str(path), "--seed", "4") == 0
    steps = int(capsys.readouterr().out.split("one episode of ")[1].split()[0])
    pictures = iio.imread(path)
    assert len(pictures) == steps + 1 or suffix == ".gif"  # a gif merges equal pictures
    assert pictures.shape[-1] == 3 and pictures.std() > 10


def test_outputs_that_cannot_be_written_are_refused_first(trained, tmp_path, capsys):
    assert test(trained / "model.tar", "--record_video", "--video_path", str(tmp_path / "a.avi")) == 2
    assert test(trained / "model.tar", "--record_video", "--video_path", str(tmp_path / "no" / "a.mp4")) == 2
    assert test(trained / "model.tar", "--json", str(tmp_path / "no" / "a.json")) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3
    assert list(tmp_path.iterdir()) == []


def test_a_window_needs_a_display(trained, monkeypatch, capsys):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert entry.main(["--mode", "test_render", "--weight_path", str(trained / "model.tar")]) == 2
    assert "display" in capsys.readouterr().err


class Malicious:
    """Unpickling it would create a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("kind", ["missing", "folder", "empty", "text", "truncated", "pickle", "malicious", "list", "foreign"])
def test_what_is_no_checkpoint_gets_one_line_and_code_two(trained, tmp_path, kind, capsys):
    path, trap = tmp_path / "x.tar", tmp_path / "trap"
    whole = (trained / "model.tar").read_bytes()
    if kind == "folder":
        path.mkdir()
    elif kind == "malicious":
        torch.save({"model_state_dict": {}, "flags": Malicious(trap)}, path)
    elif kind == "list":
        torch.save([1, 2], path)
    elif kind == "foreign":
        torch.save({"state_dict": {}}, path)
    elif kind != "missing":
        contents = {
            "empty": b"",
            "text": b"hello",
            "truncated": whole[: len(whole) // 2],
            "pickle": pickle.dumps(Malicious(trap)),
        }
        path.write_bytes(contents[kind])
    assert test(path) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not trap.exists()


def test_an_agent_for_another_grid_is_refused(trained, capsys):
    assert test(trained / "model.tar", "--env", "MiniGrid-KeyCorridorS3R3-v0") == 2
    error = capsys.readouterr().err
    assert "25 cells" in error and "7x7" in error and len(error.splitlines()) == 1


def test_weights_that_do_not_fit_their_flags_are_refused(trained, tmp_path, capsys):
    state = checkpoint.load(trained / "model.tar")
    state["flags"]["state_embedding_dim"] = 17
    torch.save(state, tmp_path / "x.tar")
    assert test(tmp_path / "x.tar") == 2
    assert "do not fit" in capsys.readouterr().err


def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.tar"
    checkpoint.save(path, {"model_state_dict": {}, "flags": {"a": 1}})
    before = path.read_bytes()

    def fail(descriptor):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(path, {})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]

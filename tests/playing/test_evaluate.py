"""Playing with trained agents: statistics, published checkpoints, files that are none."""

from __future__ import annotations

import errno
import json
import pickle
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from main.evaluate import Agent, Episodes, play, report, summarise
from utils_folder.goals import cell_to_inner
from utils_folder.motivation import Task, make_motivation

from main import evaluate
from main import flags as flags_module
from main import main as entry
from tests.helpers.agents import make_flags
from torchbeast.core import checkpoint
from utils_folder import video

ROOT = Path(__file__).resolve().parents[2]
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


@pytest.fixture(scope="module")
def novelty(tmp_path_factory) -> Path:
    """A run's folder, of a variant without teacher and goals."""
    savedir = tmp_path_factory.mktemp("runs")
    more = ["--model", "novelty_based", "--novelty_coef", "5", "--savedir", str(savedir)]
    assert entry.main([*TRAIN, *more]) == 0
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
    one = summarise(Episodes(np.ones(1, np.float32), np.ones(1, np.int32)))
    assert one["mean_return_interval"] is one["mean_steps_interval"] is None, "one episode says nothing of its spread"
    flags = Namespace(weight_path="w", env="e", greedy=False, seed=1)
    assert report(flags, one).count("no interval from one episode") == 2


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


class Seen(NamedTuple):
    """A picture of a video: what was drawn, and for how long it is seen."""

    frame: np.ndarray
    goal: int | None
    probabilities: np.ndarray | None
    lines: dict[str, str]
    panel: video.Panel
    seconds: float

    @property
    def badges(self) -> list[str]:
        return [text for text, _ in self.panel.badges]


def watch(weights: Path, num_episodes: int, *more: str) -> tuple[Agent, list[list[Seen]]]:
    """The pictures of each episode, as --record_video would write them."""
    flags, given = flags_module.parse(["--mode", "test", "--weight_path", str(weights), "--seed", "4", *more])
    state = checkpoint.load(weights)
    agent = Agent(evaluate._with_agent_flags(flags, given, state), state)
    drawn, seen = [], []

    def render(frame, *, goal, probabilities, panel):
        drawn.append((frame.copy(), goal, probabilities, dict(panel.lines), panel))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video, "render", render)
        steps = evaluate.watch(agent, num_episodes, lambda picture, seconds: seen.append(Seen(*drawn[-1], seconds)))
    ends = np.cumsum([n + 1 for n in steps])
    assert len(seen) == len(drawn) == ends[-1]
    return agent, [seen[end - n - 1 : end] for n, end in zip(steps, ends)]


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_video_has_every_state_of_its_episodes(trained, tmp_path, monkeypatch, suffix, capsys):
    path = tmp_path / f"episodes{suffix}"
    more = ["--num_episodes", "1", "--record_video", "--video_episodes", "3", "--video_path", str(path), "--seed", "9"]
    monkeypatch.setattr(video, "MAX_TILE", 20)  # large ones are drawn slowly
    assert test(trained / "model.tar", *more) == 0
    _, episodes = watch(trained / "model.tar", 3, "--seed", "9")
    steps = [len(episode) - 1 for episode in episodes]
    assert f"3 episode(s), steps: {', '.join(map(str, steps))}\n" in capsys.readouterr().out
    pictures = iio.imread(path)
    assert pictures.shape[-1] == 3 and pictures.std() > 10
    assert pictures.shape[1] % 2 == pictures.shape[2] % 2 == 0
    if suffix == ".mp4":  # a gif merges equal pictures
        assert len(pictures) == sum(max(1, round(seen.seconds * video.FPS)) for episode in episodes for seen in episode)
    else:
        assert path.stat().st_size < 3000 * len(pictures)


def test_each_episode_is_counted_from_its_own_start_and_ends_with_its_outcome(trained):
    _, episodes = watch(trained / "model.tar", 8)
    outcomes = set()
    for *states, end in episodes:
        assert [int(seen.lines["step"]) for seen in (*states, end)] == list(range(len(states) + 1))
        assert {seen.lines["return"] for seen in states} == {"0.000"} and states[0].lines["goals reached"] == "0"
        assert not states[0].badges and states[0].lines["intrinsic reward"] == "0.000"
        np.testing.assert_array_equal(end.frame, states[-1].frame)
        assert end.goal == states[-1].goal and end.panel.bars == states[-1].panel.bars
        solved = float(end.lines["return"]) > 0
        assert end.badges[-1] == ("task solved" if solved else "time is up")
        assert solved or len(states) == 100
        assert end.seconds >= 2 and end.lines["extrinsic reward"] == end.lines["return"]
        assert not any(badge in seen.badges for seen in states for badge in ("task solved", "time is up"))
        outcomes.add(solved)
    assert outcomes == {True, False}


def test_an_episode_that_ends_early_and_unsolved_is_over():
    assert evaluate._outcome(evaluate.Arrival(step=7, total=-1.0), 100) == ("episode over", video.BAD)
    assert evaluate._outcome(evaluate.Arrival(step=100), 100) == ("time is up", video.BAD)
    assert evaluate._outcome(evaluate.Arrival(step=100, total=0.1), 100) == ("task solved", video.GOOD)


def test_value_probabilities_and_action_are_those_of_the_state_shown(trained):
    """Asked again, for each picture, the student says the same of it; and the action leads from it to the next picture."""
    agent, ((*states, _), *_) = watch(trained / "model.tar", 1)
    assert len({seen.lines["student's value"] for seen in states}) > 3
    turned = 0
    for seen, following in zip(states, [*states[1:], None]):
        inputs = {
            "frame": torch.from_numpy(seen.frame)[None, None],
            "carried_obj": torch.full((1, 1), 1, dtype=torch.uint8),
            "carried_col": torch.full((1, 1), 5, dtype=torch.uint8),
            "done": torch.zeros(1, 1, dtype=torch.bool),
            "goal": torch.tensor([[seen.goal]]),
        }
        with torch.no_grad():
            outputs, _ = agent._student(inputs, ())
        assert float(seen.lines["student's value"]) == pytest.approx(outputs["baseline"].item(), abs=6e-4)
        labels, shares = zip(*seen.panel.bars)
        assert labels == ("left", "right", "forward", "pickup", "drop", "toggle", "done")
        np.testing.assert_allclose(shares, outputs["policy_logits"].softmax(-1).flatten(), atol=1e-5)
        if following is not None and labels[seen.panel.chosen] in ("left", "right"):
            turned += 1
            x, y = np.argwhere(seen.frame[..., 0] == 10)[0]
            turn = -1 if labels[seen.panel.chosen] == "left" else 1
            assert following.frame[x, y, 2] == (seen.frame[x, y, 2] + turn) % 4
    assert turned > 3


def test_a_badge_and_the_intrinsic_reward_say_that_a_goal_was_reached(trained):
    """Reached, by the definition: the goal's cell is not what it was when the goal was proposed."""
    _, episodes = watch(trained / "model.tar", 8)
    count = 0
    for *states, _ in episodes:
        proposed, reached_before = 0, 0
        for t in range(1, len(states)):
            goal, then, now = states[t - 1].goal, states[proposed].frame, states[t].frame
            reached = (then.reshape(-1, 3)[goal] != now.reshape(-1, 3)[goal]).any()
            steps = t - proposed
            plural = "s" if steps > 1 else ""
            assert states[t].badges == ([f"goal reached in {steps} step{plural}"] if reached else [])
            bonus = 1 - 0.9 * steps / 100 if reached else 0
            assert float(states[t].lines["intrinsic reward"]) == pytest.approx(bonus, abs=6e-4)
            assert (states[t].seconds > 0.5) == reached
            reached_before += int(reached)
            assert int(states[t].lines["goals reached"]) == reached_before
            proposed = t if reached else proposed
        count += reached_before
    assert count > 0


@pytest.mark.parametrize("inner", [False, True])
def test_the_map_tints_the_cell_that_the_teacher_prefers(inner):
    """Column 7, row 2 of an 11 x 6 grid."""
    width, height, x, y = 11, 6, 7, 2
    flags = make_flags(inner=inner)
    motivation = make_motivation(flags, Task((width, height, 3), 7, 100))
    logits = np.zeros((1, motivation.teacher.num_goals), np.float32)
    preferred = x * height + y
    logits[0, cell_to_inner(preferred, height=height) if inner else preferred] = 9
    row = {"generator_logits": logits, "goal": np.array([8]), "reached": np.array([False]), "goal_step": np.array([3])}
    shown = motivation.shown(row)
    assert shown.goal == 8 and shown.probabilities.sum() == pytest.approx(1)
    assert dict(shown.notes)["goal's probability"] == f"{shown.probabilities[1, 2]:.3f}"
    assert (shown.probabilities[0] == 0).all() == inner
    frame = np.full((width, height, 3), (1, 0, 0), np.uint8)
    tint = video.render(frame, probabilities=shown.probabilities, tile_size=10)[..., 2].astype(int)
    tint = (tint - video.render(frame, tile_size=10)[..., 2]).reshape(height, 10, width, 10).mean((1, 3))
    assert np.unravel_index(tint.argmax(), tint.shape) == (y, x) and np.count_nonzero(tint > tint.max() / 2) == 1


def test_the_target_distance_is_the_checkpoints(trained, tmp_path):
    state = checkpoint.load(trained / "model.tar")
    state["difficulty"]["target"] = 23
    torch.save(state, tmp_path / "a.tar")
    _, ((first, *_),) = watch(tmp_path / "a.tar", 1)
    assert first.lines["target distance t*"] == "23"
    del state["difficulty"]  # as in a checkpoint of the published code
    torch.save(state, tmp_path / "b.tar")
    _, ((first, *_),) = watch(tmp_path / "b.tar", 1)
    assert first.lines["target distance t*"] == "not stored"


def test_without_a_teacher_the_video_shows_the_novelty_reward_and_no_map(novelty):
    """coef * max(N(s') - N(s), 0) on a first visit, with the coefficient of the training."""
    agent, ((*states, _),) = watch(novelty / "model.tar", 1)
    batch = {
        "frame": torch.from_numpy(np.stack([seen.frame for seen in states]))[:, None],
        "carried_obj": torch.full((len(states), 1), 1, dtype=torch.uint8),
        "carried_col": torch.full((len(states), 1), 5, dtype=torch.uint8),
    }
    with torch.no_grad():
        n = agent.motivation.novelty(batch)[:, 0].numpy()
    visits, rewarded = Counter(), 0
    for t, seen in enumerate(states):
        assert seen.goal is None and seen.probabilities is None and not seen.badges
        assert not {"goals reached", "target distance t*"} & seen.lines.keys()
        visits[seen.frame.tobytes()] += 1
        assert seen.lines["visits of this state"] == str(visits[seen.frame.tobytes()])
        gain = 5 * max(n[t] - n[t - 1], 0) if t and visits[seen.frame.tobytes()] == 1 else 0
        assert float(seen.lines["intrinsic reward"]) == pytest.approx(gain, abs=6e-4 + 1e-4 * gain)
        rewarded += gain > 0
    assert rewarded > 3


def test_a_video_says_where_novelty_is_unknown(novelty, tmp_path):
    _, ((first, *_),) = watch(novelty / "model.tar", 1)
    assert "novelty networks" not in first.lines
    state = checkpoint.load(novelty / "model.tar")
    torch.save({key: value for key, value in state.items() if "target" not in key}, tmp_path / "a.tar")
    _, ((first, *_),) = watch(tmp_path / "a.tar", 1)
    assert first.lines["novelty networks"] == "not stored"


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
    assert test(trained / "model.tar", "--record_video", "--video_path", str(path), "--video_episodes", "0") == 2
    assert "--video_episodes must be at least 1" in capsys.readouterr().err and not path.exists()


def test_outputs_that_cannot_be_written_are_refused_first(trained, tmp_path, capsys):
    assert test(trained / "model.tar", "--record_video", "--video_path", str(tmp_path / "a.avi")) == 2
    assert test(trained / "model.tar", "--record_video", "--video_path", str(tmp_path / "no" / "a.mp4")) == 2
    assert test(trained / "model.tar", "--json", str(tmp_path / "no" / "a.json")) == 2
    assert test(trained / "model.tar", "--json", str(tmp_path)) == 2
    assert test(trained / "model.tar", "--json", str(tmp_path / ("long" * 100))) == 2
    for more in (["--record_video"], ["--json", str(tmp_path / "a.json")]):
        assert entry.main(["--mode", "test_render", "--weight_path", str(trained / "model.tar"), *more]) == 2
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 7 and "episodes" not in said.out
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_fail_in_the_end_are_named(trained, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(video.VideoWriter, "__enter__", full)
    for more in (["--json", str(tmp_path / "a.json")], ["--record_video", "--video_path", str(tmp_path / "a.GIF")]):
        assert test(trained / "model.tar", "--num_episodes", "2", *more) == 2
        error = capsys.readouterr().err
        assert "cannot be written: No space left on device" in error and error.count("\n") == 1
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

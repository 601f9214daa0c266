"""How well an agent plays: which episodes count, and how sure one is of their means."""

from __future__ import annotations

import json

import numpy as np
import pytest

from main import settings as settings_module
from main.playing.score import Episodes, play, report, summarise
from tests.helpers import playing
from tests.helpers.playing import REFERENCE
from utils_folder.minigrid import survey


@pytest.mark.slow
@pytest.mark.parametrize("env", ["KeyCorridorS3R3", "ObstructedMaze-1Dl"])
def test_published_checkpoints_play_as_published(tmp_path, env):
    weights = REFERENCE / f"{env}.tar"
    if not weights.exists():
        pytest.skip("the published checkpoints are not here")
    out = tmp_path / "result.json"
    more = ["--env", f"MiniGrid-{env}-v0", "--num_episodes", "300", "--json", str(out), "--seed", "1"]
    assert playing.play(weights, *more) == 0
    result = json.loads(out.read_text())
    assert result["episodes"] == 300 and result["success_rate"] >= 0.97 and result["mean_return"] >= 0.90


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


POSSIBLE = {"max_steps": 10, "reward_range": (0.0, 1.0)}


@pytest.mark.parametrize("seed", range(20))
def test_intervals_end_where_what_is_possible_ends(seed):
    """Few episodes near either end, where Student's t goes beyond."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 6))
    for returns, steps in (
        ((rng.random(n) < 0.3) * 0.1, 10 - (rng.random(n) < 0.3)),
        (1 - 0.1 * (rng.random(n) < 0.3), 1 + (rng.random(n) < 0.3)),
    ):
        summary = summarise(Episodes(returns.astype(np.float32), steps.astype(np.int32)), **POSSIBLE)
        for name, least, most in (("success_rate", 0, 1), ("mean_return", 0, 1), ("mean_steps", 1, 10)):
            low, high = summary[f"{name}_interval"]
            assert least <= low <= summary[name] + 1e-7 and summary[name] - 1e-7 <= high <= most, (name, returns, steps)


def test_returns_beyond_a_step_s_reward_have_no_such_bound():
    """A task that pays several times in an episode, or takes away, though it says 0 to 1."""
    steps = np.array([4, 5], np.int32)
    low, high = summarise(Episodes(np.array([0.2, 5], np.float32), steps), **POSSIBLE)["mean_return_interval"]
    assert low == 0 and high > 5
    low, high = summarise(Episodes(np.array([-1, 1], np.float32), steps), **POSSIBLE)["mean_return_interval"]
    assert low < -1 and high == 1
    low, high = summarise(
        Episodes(np.array([-1, 1], np.float32), steps), max_steps=10, reward_range=(-1.0, 1.0)
    )["mean_return_interval"]  # fmt: skip
    assert (low, high) == (-1, 1)


def test_an_environment_says_what_it_pays():
    assert survey("MiniGrid-Empty-5x5-v0").reward_range == (0, 1)
    assert survey("MiniGrid-Dynamic-Obstacles-5x5-v0").reward_range == (-1, 1)


def test_intervals_against_their_formulas():
    returns = np.array([0, 0.5, 0.9, 0, 0.7, 0.8, 0, 0.6, 0.95, 0.3], np.float32)
    summary = summarise(Episodes(returns, np.arange(1, 11, dtype=np.int32)), **POSSIBLE)
    n, p, z = 10, 0.7, 1.959963984540054
    centre, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    wilson = [(centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)]
    assert summary["success_rate"] == 0.7 and np.allclose(summary["success_rate_interval"], wilson)
    half = 2.2621571628540993 * returns.std(ddof=1) / np.sqrt(10)
    assert np.allclose(summary["mean_return_interval"], [returns.mean() - half, returns.mean() + half], atol=1e-6)
    assert summary["mean_steps"] == 5.5
    constant = summarise(Episodes(np.ones(3, np.float32), np.ones(3, np.int32)), **POSSIBLE)
    assert constant["mean_return_interval"] == [1, 1] and constant["success_rate_interval"][0] < 0.5
    one = summarise(Episodes(np.ones(1, np.float32), np.ones(1, np.int32)), **POSSIBLE)
    assert one["mean_return_interval"] is one["mean_steps_interval"] is None, "one episode says nothing of its spread"
    settings = settings_module.make({"weight_path": "w", "env": "e", "greedy": False, "seed": 1})
    assert report(settings, one).count("no interval from one episode") == 2
    assert report(settings, one).startswith("w on e: 1 episodes, sampled actions, seed 1\n")


def test_a_seed_gives_the_same_episodes_and_greedy_differs(every_trained, tmp_path):
    results = []
    for i, more in enumerate((["--seed", "4"], ["--seed", "4"], ["--seed", "5"], ["--seed", "4", "--greedy"])):
        out = tmp_path / f"{i}.json"
        assert playing.play(every_trained / "model.tar", "--num_episodes", "6", "--json", str(out), *more) == 0
        results.append({k: v for k, v in json.loads(out.read_text()).items() if k not in ("seed", "greedy")})
    assert results[0] == results[1] and results[0] != results[2] and results[0] != results[3]

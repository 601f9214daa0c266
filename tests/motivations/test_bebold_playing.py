"""Playing with an agent that seeks novelty: what a video shows of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.playing import load, train, watch
from torchbeast.core import checkpoint


@pytest.fixture(scope="module")
def novelty(tmp_path_factory) -> Path:
    """A run's folder, of a variant without teacher and goals."""
    return train(tmp_path_factory.mktemp("runs"), "--model", "novelty_based", "--novelty_coef", "5")


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
        gain = float(5 * max(n[t] - n[t - 1], 0)) if t and visits[seen.frame.tobytes()] == 1 else 0
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


def test_how_novelty_is_judged_is_the_checkpoints(tmp_path):
    chosen = {"novelty_view": "partial", "novelty_output": "linear", "novelty_optimizer": "adam", "novelty_scale": 0.5}
    argv = [word for name, value in chosen.items() for word in (f"--{name}", str(value))]
    agent = load(train(tmp_path, "--model", "novelty_based", *argv) / "model.tar")
    assert {name: agent.settings.flat()[name] for name in chosen} == chosen

"""Motivations that judge states by the partial view, or have counted them in all of training: rollouts, updates, whole runs."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.agents import random_batch
from tests.helpers.learning import TASK, assert_goes_on_bit_for_bit, assert_updates_stay_finite, learner_settings, real_settings
from tests.helpers.runs import assert_trains_and_plays

VIEWS = ["rnd_view", "icm_view", "ride_view", "count_view", "novelty_view"]
LIFELONG = {"count_lifelong": True, "count_view": "partial"}
SHORT = {"env": "MiniGrid-LavaGapS5-v0", "env_args": '{"max_steps": 9}', "unroll_length": 9, "num_input_frames": 2}


@pytest.fixture(scope="module", autouse=True)
def _threads():
    torch.set_num_threads(1)


def of(flag: str) -> dict[str, str]:
    return {"model": {"novelty": "novelty_based"}.get(name := flag.removesuffix("_view"), name), flag: "partial"}


@pytest.mark.parametrize("flag", VIEWS)
def test_only_where_the_view_is_asked_for_rollouts_hold_it(flag):
    asked = of(flag)
    assert "view" in random_batch(TASK, learner_settings(**asked))
    assert "view" not in random_batch(TASK, learner_settings(**asked | {flag: "full"}))


@pytest.mark.parametrize(
    "flags",
    [*map(of, VIEWS), {"model": "count", **LIFELONG}, {"model": "ride", "ride_view": "partial", "also": "count"}],
    ids=str,
)
def test_on_real_rollouts_of_stacked_frames(flags, tmp_path):
    """With counts of grids beside counts of views, too: each has a field of its own."""
    settings = real_settings(**flags, **SHORT)
    assert_updates_stay_finite(settings, updates=6)
    assert_goes_on_bit_for_bit(settings, tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        "--model count --count_lifelong --count_view partial --count_reward always",
        "--model ride --ride_view partial --also count --count_lifelong",
        "--model rnd --rnd_view partial --also icm --icm_view partial --student_view partial",
    ],
)
def test_they_train_and_play(words, tmp_path, capsys):
    assert_trains_and_plays(tmp_path, capsys, *words.split())

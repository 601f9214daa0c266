"""Whole runs with flags of novelty's own."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.runs import assert_trains_and_plays


@pytest.fixture(scope="module", autouse=True)
def _threads():
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    "more",
    [
        ["--novelty_scale", "0.5", "--novelty_coef", "0.3", "--num_input_frames", "2"],
        ["--novelty_view", "partial", "--novelty_scale", "0.5"],  # NovelD
        ["--novelty_view", "partial", "--novelty_output", "linear"],
        ["--novelty_optimizer", "adam", "--novelty_learning_rate", "0.0005"],
    ],
    ids=" ".join,
)
def test_flags_train_together_with_evaluation(tmp_path, more, capsys):
    assert_trains_and_plays(tmp_path, capsys, "--model", "novelty_based", *more)

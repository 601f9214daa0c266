"""Motivations with a flag for the view that they judge states by: what rollouts hold, updates, whole runs."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.agents import random_batch
from tests.helpers.learning import TASK, assert_goes_on_bit_for_bit, assert_updates_stay_finite, learner_settings, real_settings
from tests.helpers.runs import assert_trains_and_plays
from torchbeast.core.settings import flags_of
from utils_folder.minigrid.view import FULL, PARTIAL, VIEWS
from utils_folder.motivations import MOTIVATIONS

FLAGS = [
    (model, name)
    for model, motivation in MOTIVATIONS.items()
    for name, about in flags_of(motivation.groups).items()
    if about.choices == VIEWS
]
SHORT = {"env": "MiniGrid-LavaGapS5-v0", "env_args": '{"max_steps": 9}', "unroll_length": 9, "num_input_frames": 2}


@pytest.fixture(scope="module", autouse=True)
def _threads():
    torch.set_num_threads(1)


def test_there_are_some():
    assert len(FLAGS) >= 5 and len(dict(FLAGS)) == len(FLAGS)


@pytest.mark.parametrize("model, flag", FLAGS)
def test_only_where_the_view_is_asked_for_rollouts_hold_it(model, flag):
    assert "view" in random_batch(TASK, learner_settings(model=model, **{flag: PARTIAL}))
    assert "view" not in random_batch(TASK, learner_settings(model=model, **{flag: FULL}))


@pytest.mark.parametrize("model, flag", FLAGS)
def test_on_real_rollouts_of_stacked_frames(model, flag, tmp_path):
    settings = real_settings(model=model, **{flag: PARTIAL}, **SHORT)
    assert_updates_stay_finite(settings, updates=6)
    assert_goes_on_bit_for_bit(settings, tmp_path)


@pytest.mark.parametrize("first, second", [*zip(FLAGS, FLAGS[1:] + FLAGS[:1])])
def test_one_judges_by_views_beside_one_that_judges_by_grids(first, second, tmp_path):
    (model, flag), (also, other) = first, second
    settings = real_settings(model=model, also=also, **{flag: PARTIAL, other: FULL}, **SHORT)
    assert_updates_stay_finite(settings, updates=3)
    assert_goes_on_bit_for_bit(settings, tmp_path)


@pytest.mark.parametrize("model, flag", FLAGS)
def test_they_train_and_play(model, flag, tmp_path, capsys):
    assert_trains_and_plays(tmp_path, capsys, "--model", model, f"--{flag}", PARTIAL, "--student_view", PARTIAL)

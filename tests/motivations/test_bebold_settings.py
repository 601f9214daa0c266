"""The flags of novelty."""

from __future__ import annotations

from main import settings as settings_module
from tests.helpers.bounds import assert_bounds
from torchbeast.core.settings import flags_of
from utils_folder.motivations.bebold import BeBold, NoveltySettings


def test_bounds_are_the_ones_that_are_expected():
    assert BeBold.groups == (NoveltySettings,)
    expected = {"novelty_coef", "novelty_scale", "novelty_learning_rate"}
    assert_bounds(BeBold.groups, at_least_one=set(), not_negative=expected, any_number=set())


def test_defaults():
    assert {name: about.default for name, about in flags_of(BeBold.groups).items()} == {
        "novelty_coef": 0.1, "novelty_scale": 1.0, "novelty_view": "full", "novelty_output": "relu",
        "novelty_optimizer": "rmsprop", "novelty_learning_rate": None,
    }  # fmt: skip


def test_a_rate_that_is_no_number_is_refused():
    settings = settings_module.parse(["--novelty_learning_rate=nan"])[0]
    assert settings_module.problems(settings) == ["--novelty_learning_rate must be a finite number, got nan"]


def test_what_the_agent_needs_again_when_it_plays():
    flags = flags_of(BeBold.groups)
    assert [name for name, about in flags.items() if not about.agent] == ["novelty_learning_rate"]
    assert not any(about.resumable for about in flags.values()) and all(about.experiment for about in flags.values())

"""The teacher's flags."""

from __future__ import annotations

import shlex

import pytest

from main import main as entry
from main import settings as settings_module
from tests.helpers.bounds import assert_bounds
from torchbeast.core.settings import UsageError, flags_of
from utils_folder import minigrid
from utils_folder.motivations.amigo import Amigo, TeacherSettings, WindowAmigo
from utils_folder.motivations.difficulty import MOST_STEPS
from utils_folder.motivations.rewards import GoalRewardSettings


def problems(text: str) -> list[str]:
    return settings_module.problems(settings_module.parse(shlex.split(text))[0])


def test_bounds_are_the_ones_that_are_expected():
    assert Amigo.groups == WindowAmigo.groups == (GoalRewardSettings, TeacherSettings)
    assert_bounds(
        Amigo.groups,
        at_least_one={"generator_batch_size", "generator_counts", "generator_start"},
        not_negative={
            "window", "generator_learning_rate", "generator_entropy_cost", "generator_reward_coef", "generator_maximum",
            "intrinsic_reward_coef",
        },
        any_number={"generator_reward_negative", "generator_threshold"},
        at_most=dict.fromkeys(("generator_start", "generator_maximum", "window"), MOST_STEPS),
    )  # fmt: skip


def test_all_problems_come_in_one_go_and_nothing_is_written(tmp_path, capsys):
    args = "--num_buffers 2 --unroll_length 0 --window -1 --discounting 1.5 --env MiniGrid-KeyCoridorS3R3-v0 --engine gym"
    assert entry.main([*shlex.split(args), "--savedir", str(tmp_path / "runs")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5 and all(line.startswith("error: ") for line in lines)
    for word in ("num_buffers", "unroll_length", "window", "discounting", "did you mean MiniGrid-KeyCorridorS3R3-v0"):
        assert sum(word in line for line in lines) == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("bad", ["--generator_start 0", "--generator_threshold nan", "--generator_reward_negative -inf"])
def test_values_out_of_range_are_refused(bad):
    name, value = bad.split()
    assert len(problems(f"{name}={value}")) == 1


def test_a_misspelled_model_is_answered_with_a_close_one():
    with pytest.raises(UsageError, match="did you mean window_adaptive"):
        settings_module.parse(["--model", "window_adaptve"])


def test_goals_inside_the_wall_need_an_inside(monkeypatch):
    assert Amigo.problems(settings_module.make({"inner": True}), 3, 3) == []
    survey = minigrid.survey
    monkeypatch.setattr(minigrid, "survey", lambda name, seed: survey(name, seed)._replace(size=(7, 2)))
    refused = ["--inner: a 7x2 grid has no cells inside its outer wall"]
    assert problems("--inner") == problems("--inner --model window_adaptive") == refused
    assert problems("") == problems("--inner --model novelty_based") == []


def test_what_the_agent_needs_again_when_it_plays():
    """How goals are proposed and judged is the checkpoint's; how the teacher learned does not matter then."""
    agent = {name for name, about in flags_of(Amigo.groups).items() if about.agent}
    slips = {"as_published", "published_slips"}
    assert agent == {"teacher", "inner", "modify", "no_boundary_awareness", "intrinsic_reward_coef"} | slips
    assert {name: about.published for name, about in flags_of(Amigo.groups).items() if about.published is not None} == {
        "as_published": True
    }
    assert not any(about.resumable for about in flags_of(Amigo.groups).values())
    assert all(about.experiment for about in flags_of(Amigo.groups).values())


# Flags that do nothing where they stand


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--window 3", {"window": "belongs to --model window_adaptive"}),
        ("--model window_adaptive --window 3 --window_rule tracking --generator_maximum 9", {}),
        ("--model window_adaptive --generator_maximum 9",
         {"generator_maximum": "belongs to --model default or --window_rule tracking"}),
        ("--window_rule tracking --generator_maximum 9", {"window_rule": "belongs to --model window_adaptive"}),
        ("--mode test --generator_counts 3 --restart_episode", {"generator_counts": "belongs to --mode train"}),
        ("--intrinsic_reward_coef 2 --modify --generator_counts 3", {}),
        ("--teacher uniform --modify --inner --no_boundary_awareness --intrinsic_reward_coef 2 --generator_counts 3",
         {"generator_counts": "not with --teacher uniform"}),
    ],
)  # fmt: skip
def test_what_does_nothing_is_told(words, told):
    assert settings_module.idle(*settings_module.parse(shlex.split(words))) == told


def test_what_a_teacher_learns_by_does_nothing_where_chance_proposes():
    own = flags_of([TeacherSettings])
    settings = settings_module.make({"teacher": "uniform"})
    idle = {name for name, why in settings_module.idle(settings, own).items() if why == "not with --teacher uniform"}
    learned = {name for name in own if name.startswith("generator_")}
    assert idle == learned and settings_module.idle(settings.replace(teacher="learned"), learned) == {}


def test_one_variants_flags_are_told_of_with_another():
    own = flags_of(Amigo.groups)
    settings = settings_module.make({"model": "novelty_based"})
    assert settings_module.idle(settings, own) == dict.fromkeys(own, "belongs to --model default or --model window_adaptive")

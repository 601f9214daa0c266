"""What is told of a teacher that has stopped teaching: each alarm provoked."""

from __future__ import annotations

import pytest
import torch

from main import main as entry
from tests.helpers.agents import make_motivation, make_settings
from tests.helpers.motivations.amigo import random_batch
from tests.helpers.program import command, rows
from utils_folder.motivations.alarms import TeacherAlarms
from utils_folder.motivations.base import Task
from utils_folder.motivations.difficulty import Threshold, Window


def difficulty(**more) -> Threshold:
    return Threshold(**{"threshold": -0.1, "counts": 10, "maximum": 100, "negative": -0.3, **more})


def only(alarms: TeacherAlarms, of: Threshold) -> str:
    (warning,) = alarms.warnings(of)
    return warning


def test_no_goal_reached_for_a_million_frames():
    alarms, never = TeacherAlarms(7), torch.zeros(1000, 500, dtype=torch.bool)
    of = difficulty()
    alarms.see(never, of)
    assert list(alarms.warnings(of)) == []
    alarms.see(never, of)
    assert "no goal has been reached" in only(alarms, of)
    never[3, 4] = True
    alarms.see(never, of)
    assert list(alarms.warnings(of)) == []


def test_t_star_that_does_not_move():
    alarms, reached, of = TeacherAlarms(7), torch.ones(1000, 1000, dtype=torch.bool), difficulty()
    for _ in range(10):
        assert list(alarms.warnings(of)) == []
        alarms.see(reached, of)
    assert "t* has not moved" in only(alarms, of)
    lowest = Window(threshold=-0.1, counts=10, window=5, negative=-0.3, target=20)  # the rule never goes below
    for at_limit in (difficulty(target=101), lowest):
        alarms = TeacherAlarms(at_limit.target)
        for _ in range(10):
            alarms.see(reached, at_limit)
        assert list(alarms.warnings(at_limit)) == []
    of.target = 8
    alarms.see(reached, of)
    assert list(alarms.warnings(of)) == []


def test_a_teacher_with_one_goal_only():
    alarms, of = TeacherAlarms(7), difficulty()
    for _ in range(99):
        alarms.see_proposals(0.001, 2.0)
    assert list(alarms.warnings(of)) == []
    alarms.see_proposals(0.001, 2.0)
    assert "one goal only" in only(alarms, of)
    alarms.see_proposals(0.5, 2.0)
    assert list(alarms.warnings(of)) == []


@pytest.mark.slow
def test_a_teacher_whose_logits_are_all_at_the_floor():
    """As a run with the document's window_adaptive flags ended: goals at random for good, after one goal only."""
    settings, task = make_settings(generator_batch_size=2), Task((5, 4, 3), 7, 100)
    motivation = make_motivation(settings, task)
    batch = random_batch(task, settings, p_done=0.5)
    motivation.learn(batch)
    assert not any("floor" in warning for warning in motivation.warnings()), "a new teacher's logits are near 0"
    with torch.no_grad():
        motivation.teacher.get_parameter("extract_representation.6.bias").fill_(-9.0)
    motivation.learn(batch)
    assert any("floor of its last ELU for 100 updates" in warning for warning in motivation.warnings())


def test_what_is_watched_is_the_teachers(tmp_path, monkeypatch):
    seen, highest = [], []
    note = lambda self, *about: [x.append(y) for x, y in zip((seen, highest), about)]  # noqa: E731
    monkeypatch.setattr(TeacherAlarms, "see_proposals", note)
    teacher = ("--modify", "--generator_batch_size", "3")
    assert entry.main(command(tmp_path, "--num_actor_processes", "0", "--seed", "1", "--total_frames", "960", *teacher)) == 0
    logged = [row["generator_entropy_loss"] for row in rows(tmp_path / "run") if row["generator_entropy_loss"] is not None]
    assert logged and -0.05 * seen[-1] == pytest.approx(logged[-1]) and 0 < seen[0] < 3.3  # log 25 = 3.2
    assert len(highest) == len(seen) and min(highest) > -1


def test_the_teachers_own_divergence_is_named():
    motivation = make_motivation(make_settings(num_actors=2), Task((5, 5, 3), 7, 100))
    motivation._optimizer.skipped = 1
    assert any("teacher update" in warning for warning in motivation.warnings())

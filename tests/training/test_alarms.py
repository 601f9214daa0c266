"""What is told of a student that does not learn, that falls, or whose value broke: each alarm provoked, and not too early."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from main import main as entry
from main.training.alarms import StudentAlarms
from tests.helpers.program import command
from torchbeast.core.optimizer import LearningSettings

T, B, ACTIONS = 20, 8, 7
SETTINGS = LearningSettings(unroll_length=T, batch_size=B, entropy_cost=0.0005, baseline_cost=0.5)


def alarms(settings: LearningSettings = SETTINGS, *, clipped: bool = True) -> StudentAlarms:
    return StudentAlarms(settings, num_actions=ACTIONS, num_buffers=80, clipped=clipped)


def row(frames: int, *, entropy: float = 1.0, error: float = 0.1, lag: float = 1.0) -> dict[str, float]:
    """Of rollouts of T steps, all with this entropy in nats and a value that is wrong by `error`."""
    return {
        "frames": frames, "policy_lag": lag, "entropy_loss": -0.0005 * T * entropy, "baseline_loss": 0.5 * T * 0.5 * error**2,
    }  # fmt: skip


def test_nothing_is_said_of_a_student_that_learns():
    watch = alarms()
    for frames in range(0, 5_000_000, 10_000):
        watch.see(row(frames, entropy=0.96 * math.log(ACTIONS), error=19.9, lag=20), ())
        assert list(watch.warnings()) == []


def test_a_million_frames_by_chance():
    watch, most = alarms(), math.log(ACTIONS)
    watch.see(row(500, entropy=0.5 * most), ())
    watch.see(row(1_000, entropy=0.975 * most), ())
    watch.see(row(1_000_999, entropy=most), ())
    assert list(watch.warnings()) == []
    watch.see(row(1_001_000, entropy=0.975 * most), ())
    (warning,) = watch.warnings()
    assert "has acted by chance for 1,000,000 frames" in warning and "beside --entropy_cost; lower that" in warning
    watch.see(row(1_001_160, entropy=0.965 * most), ())
    assert list(watch.warnings()) == []
    watch.see(row(1_001_320, entropy=most), ())
    watch.see(row(2_001_319, entropy=most), ())
    assert list(watch.warnings()) == []  # a million in a row


def test_a_value_that_exploded_is_told_once_each_time():
    watch, said = alarms(), set()
    for frames, error in ((0, 0.2), (160, 19.9), (320, 25), (480, 3e3), (640, 1), (100_480, 21), (100_640, 1), (300_000, 41.7)):
        watch.see(row(frames, error=error), ())
        said.update(watch.warnings())
    assert sorted(text.split(",", 1)[0] for text in said) == [
        "the student's value was wrong by 21 at frame 100",
        "the student's value was wrong by 25 at frame 320",
        "the student's value was wrong by 42 at frame 300",
    ]


def test_an_explosion_that_goes_on_is_one():
    watch, said = alarms(), set()
    for frames in range(0, 400_000, 10_000):
        watch.see(row(frames, error=30), ())
        said.update(watch.warnings())
    assert len(said) == 1


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_losses_that_are_not_finite(loss):
    watch = alarms()
    watch.see(row(0) | {"baseline_loss": loss, "entropy_loss": math.nan}, ())
    watch.see(row(5_000_000) | {"entropy_loss": math.nan}, ())
    assert len(list(watch.warnings())) == (loss == math.inf)


def test_what_a_loss_without_weight_cannot_tell():
    watch = alarms(LearningSettings(entropy_cost=0.0, baseline_cost=0.0))
    for frames in (0, 5_000_000):
        watch.see({"frames": frames, "policy_lag": 0.0, "entropy_loss": -0.0, "baseline_loss": 0.0}, ())
    assert list(watch.warnings()) == []


def test_values_of_rewards_without_a_bound_may_be_large():
    watch = alarms(clipped=False)
    watch.see(row(0, error=1e4), ())
    assert list(watch.warnings()) == []


def of_100(solved: int) -> list[float]:
    return [0.5] * solved + [0.0] * (100 - solved)


def test_a_fall_is_told_once_each_time():
    watch, said = alarms(), set()
    for frames, solved in ((0, 90), (900_000, 31), (1_000_000, 30), (1_100_000, 0), (1_200_000, 95), (1_300_000, 10)):
        watch.see(row(frames), of_100(solved))
        said.update(watch.warnings())
    assert sorted(text.split(":", 1)[0] for text in said) == [f"the student fell at frame 1,{n}00,000" for n in (0, 3)]
    assert all("it solved 90% of" in text and "--policy_clip .2 or a lower --learning_rate" in text for text in said)


def test_what_is_no_fall():
    watch = alarms()
    few = [0.5] * 99, [0.0] * 99  # too few to tell
    for frames, returns in enumerate([*few, of_100(89), of_100(0), of_100(90)]):
        watch.see(row(frames), returns)
    watch.see(row(1_000_005), of_100(0))  # too slow
    assert list(watch.warnings()) == []


def test_where_the_policy_is_bounded_already_a_fall_names_the_rate_alone():
    watch = alarms(replace(SETTINGS, policy_clip=0.2))
    for frames, solved in enumerate((100, 0)):
        watch.see(row(frames), of_100(solved))
    (warning,) = watch.warnings()
    assert "--policy_clip" not in warning and "; a lower --learning_rate makes that rarer" in warning


def test_old_rollouts():
    watch = alarms()
    for update in range(1000):
        watch.see(row(update * T * B, lag=21.9), ())
    assert list(watch.warnings()) == []
    for update in range(1000, 2000):
        watch.see(row(update * T * B, lag=22.5), ())
    (warning,) = watch.warnings()
    assert "more than 22 updates old" in warning


def test_a_run_that_earns_nothing_says_so(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("main.training.alarms.CHANCE_FRAMES", 200)
    flags = ("--num_actor_processes", "0", "--no_extrinsic_rewards", "--total_frames", "1200", "--entropy_cost", "1")
    assert entry.main(command(tmp_path, *flags)) == 0
    assert capfd.readouterr().err.count("the student has acted by chance for 200 frames") == 1


def test_a_run_whose_value_explodes_says_so(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("main.training.alarms.VALUE_ERROR", 0.001)
    assert entry.main(command(tmp_path, "--num_actor_processes", "0")) == 0
    assert capfd.readouterr().err.count("it has exploded") == 1


def test_a_run_that_falls_says_so(tmp_path, monkeypatch, capfd):
    """Every rate is made a fall."""
    monkeypatch.setattr("torchbeast.core.success.FALL_FROM", 2.0)
    monkeypatch.setattr("torchbeast.core.success.FALL_TO", 1.0)
    monkeypatch.setattr("torchbeast.core.success.FALL_FRAMES", math.inf)
    monkeypatch.setattr("main.training.alarms.RECENT_EPISODES", 1)
    assert entry.main(command(tmp_path, "--num_actor_processes", "0")) == 0
    assert capfd.readouterr().err.count("the student fell at frame") >= 1

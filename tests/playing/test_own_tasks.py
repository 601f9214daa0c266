"""Users' own tasks from the command line: trained, gone on with, played; agents that are played on what they do not know."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch

from main import main as entry
from tests.helpers.playing import TRAIN, play, train, watch
from torchbeast.core import checkpoint

pytestmark = pytest.mark.usefixtures("own_modules")
ARGS = '{"colour": "blue", "max_steps": 12, "size": 6}'


@pytest.fixture(scope="module")
def own(tmp_path_factory, own_modules):
    """The folder of a run on the page's example."""
    return train(tmp_path_factory.mktemp("runs"), "--env", "my_tasks:OneBall-v0", "--env_args", ARGS)


@pytest.fixture(scope="module")
def nine(tmp_path_factory, own_modules):
    return train(tmp_path_factory.mktemp("runs"), "--env", "odd_tasks:Nine-v0")


def test_a_run_takes_task_and_arguments_with_it(own, tmp_path, capsys):
    out = tmp_path / "a.json"
    assert play(own / "model.tar", "--num_episodes", "5", "--json", str(out)) == 0
    assert f"on my_tasks:OneBall-v0 {ARGS}: 5 episodes" in capsys.readouterr().out
    result = json.loads(out.read_text())
    assert result["env"] == "my_tasks:OneBall-v0" and result["env_args"] == json.loads(ARGS)
    assert result["mean_steps"] <= 12
    run = shutil.copytree(own, tmp_path / "run")
    assert entry.main(["--resume", str(run), "--total_frames", "60"]) == 0
    capsys.readouterr()
    assert play(own / "model.tar", "--env", "my_tasks:OneBall-v0", "--env_args", '{"size": 6}', "--num_episodes", "2") == 0
    assert 'OneBall-v0 {"size": 6}: 2' in capsys.readouterr().out


def test_a_run_without_a_name_gets_a_plain_one(tmp_path):
    words = "--num_actors 4 --batch_size 4 --unroll_length 5 --total_frames 20 --num_actor_processes 0".split()
    assert entry.main(["--env", "odd_tasks:ours/Room-v1", *words, "--savedir", str(tmp_path)]) == 0
    (name,) = {path.name for path in tmp_path.iterdir()} - {"latest", ".latest"}
    assert name.startswith("ours_Room-v1_anonymous_")


def test_a_foreign_checkpoints_module_is_imported_only_if_it_is_named(own, tmp_path, capsys, own_modules):
    (own_modules / "foreign_tasks.py").write_text("raise RuntimeError('imported')")
    state = checkpoint.load(own / "model.tar")
    state["flags"]["env"] = "foreign_tasks:OneBall-v0"
    run = shutil.copytree(own, tmp_path / "run")
    torch.save(state, run / "model.tar")  # the metadata beside it names another
    (tmp_path / "alone").mkdir()
    torch.save(state, tmp_path / "alone/model.tar")
    for words in (
        ["--mode", "test", "--weight_path", str(run / "model.tar")],
        ["--mode", "test", "--weight_path", str(tmp_path / "alone/model.tar")],
        ["--resume", str(run), "--total_frames", "60"],
        ["--resume", str(tmp_path / "alone"), "--total_frames", "60"],
    ):
        assert entry.main(words) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "if you trust it, give --env foreign_tasks:OneBall-v0" in error
        assert "imported')" not in error and "foreign_tasks" not in sys.modules
    assert play(tmp_path / "alone/model.tar", "--env", "foreign_tasks:OneBall-v0") == 2
    assert "RuntimeError: imported" in capsys.readouterr().err, "it is imported where it is named"
    own_alone = tmp_path / "own.tar"
    shutil.copy(own / "model.tar", own_alone)
    assert play(own_alone, "--num_episodes", "2") == 2
    assert play(own_alone, "--num_episodes", "2", "--env", "my_tasks:OneBall-v0") == 0
    capsys.readouterr()
    assert play(tmp_path / "alone/model.tar", "--env", "MiniGrid-Empty-6x6-v0", "--num_episodes", "2") == 0
    assert "foreign_tasks" not in sys.modules


@pytest.mark.parametrize("name", ["Old", "FailingStep", "FailingLevel", "NotANumber", "NoLimit"])
@pytest.mark.parametrize("mode", ["train", "test"])
def test_what_cannot_be_played_is_refused_before_anything_is_written(own, tmp_path, name, mode, capsys):
    more = ["--savedir", str(tmp_path / "runs")] if mode == "train" else ["--weight_path", str(own / "model.tar")]
    assert entry.main(["--mode", mode, "--env", f"odd_tasks:{name}-v0", *more]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "reward"), [("Lately", "nan"), ("LatelyInfinite", "inf"), ("LatelyNone", "None")])
def test_a_reward_that_is_no_number_ends_training_and_playing_by_name(tmp_path, name, reward, capsys):
    run = train(tmp_path / "runs", "--env", "odd_tasks:Room-v0")
    capsys.readouterr()
    said = f"error: {name} pays a reward of {reward} at step 12 of an episode: rewards must be finite numbers\n"
    task = ["--env", f"odd_tasks:{name}-v0"]
    assert play(run / "model.tar", "--num_episodes", "3", "--json", str(tmp_path / "a.json"), *task) == 2
    assert capsys.readouterr().err == said
    assert not (tmp_path / "a.json").exists()
    assert entry.main([*TRAIN, "--savedir", str(tmp_path / "others"), *task, "--total_frames", "400"]) == 2
    assert capsys.readouterr().err.endswith(said)


def test_returns_that_are_no_numbers_are_named_and_not_written(tmp_path, capsys):
    run = train(tmp_path / "runs", "--env", "odd_tasks:LatelyHuge-v0")
    capsys.readouterr()
    assert play(run / "model.tar", "--num_episodes", "3", "--json", str(tmp_path / "a.json")) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "3 of 3 episodes a return that is no finite number" in error
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ("MiniGrid-KeyCorridorS3R3-v0", ("7x7 and 7 actions",)),
        ("MiniGrid-Dynamic-Obstacles-5x5-v0", ("5x5 and 3 actions",)),
        ("odd_tasks:Nine-v0", ("6x5 and 9 actions",)),
    ],
)
def test_an_agent_for_another_task_is_refused_by_its_name(trained, env, words, capsys):
    assert play(trained / "model.tar", "--env", env) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    its_own = ("5x5 (25 cells) with 7 actions (MiniGrid-Empty-5x5-v0)", "choose the agent's own --env")
    for word in (*words, *its_own, f"and {env} has"):
        assert word in error


def test_the_shape_counts_not_only_the_number_of_cells(nine, own_modules, capsys):
    room = ["--env", "odd_tasks:Nine-v0"]
    assert play(nine / "model.tar", *room, "--env_args", '{"width": 5, "height": 6}') == 2
    error = capsys.readouterr().err
    assert "6x5 (30 cells) with 9 actions" in error and '"width": 5} has 5x6 and 9 actions' in error


def test_weights_tell_their_task_where_the_name_does_not(trained, tmp_path, capsys):
    state = checkpoint.load(trained / "model.tar")
    state["flags"]["env"] = "Gone-v0"
    torch.save(state, tmp_path / "x.tar")
    assert play(tmp_path / "x.tar", "--env", "MiniGrid-Dynamic-Obstacles-5x5-v0") == 2
    assert "a grid of 25 cells with 7 actions (Gone-v0)" in capsys.readouterr().err
    assert play(tmp_path / "x.tar", "--env", "MiniGrid-Empty-5x5-v0", "--num_episodes", "2") == 0


def test_an_agent_of_one_level_says_so_on_others(tmp_path, capfd):
    run = train(tmp_path, "--fix_seed", "--env_seed", "7")
    said = "trained on one level only and plays others here: --fix_seed --env_seed 7 plays its own"
    for more, expected in ((), True), (("--fix_seed",), True), (("--fix_seed", "--env_seed", "7"), False):
        capfd.readouterr()
        assert play(run / "model.tar", "--num_episodes", "2", *more) == 0
        assert (said in capfd.readouterr().err) == expected, more


def test_missions_that_differ_are_said_to_be_unseen(tmp_path, trained, capfd):
    said = "the mission differs by episode ('go to the"
    run = train(tmp_path, "--env", "MiniGrid-GoToDoor-5x5-v0")
    assert capfd.readouterr().err.count(said) == 1
    assert play(run / "model.tar", "--num_episodes", "2") == 0
    assert capfd.readouterr().err.count(said) == 1
    assert play(trained / "model.tar", "--num_episodes", "2") == 0
    assert "mission" not in capfd.readouterr().err


def test_the_video_shows_the_tasks_own_actions(nine, tmp_path):
    _, ((first, *_),) = watch(nine / "model.tar", 1)
    assert [label for label, _ in first.panel.bars][6:] == ["done", "wave", "whistle"]
    assert sum(share for _, share in first.panel.bars) == pytest.approx(1, abs=1e-5)
    three = train(tmp_path, "--env", "MiniGrid-Dynamic-Obstacles-5x5-v0")
    _, ((first, *_),) = watch(three / "model.tar", 1)
    assert [label for label, _ in first.panel.bars] == ["left", "right", "forward"]

"""The command line: the reference's flags and defaults, the document's commands, and what is refused."""

from __future__ import annotations

import shlex

import pytest
from main.flags import UsageError

from main import flags as flags_module
from main import main as entry
from utils_folder import minigrid

REFERENCE_DEFAULTS = {
    "env": "MiniGrid-Empty-8x8-v0", "mode": "train", "xpid": None, "window": 50, "disable_checkpoint": False,
    "savedir": "./experimentsMinigrid", "total_frames": 600_000_000, "num_actors": 4, "num_buffers": None, "num_threads": 4,
    "disable_cuda": False, "entropy_cost": 0.0005, "generator_counts": 10, "generator_reward_coef": 1.0, "inner": False,
    "use_lstm": False, "num_lstm_layers": 1, "no_extrinsic_rewards": False, "restart_episode": False,
    "no_boundary_awareness": False, "save_env": False, "save_every": 50_000, "record_video": False,
    "generator_entropy_cost": 0.05, "baseline_cost": 0.5, "discounting": 0.99, "learning_rate": 0.001,
    "generator_learning_rate": 0.002, "alpha": 0.99, "momentum": 0, "epsilon": 0.01, "batch_size": 8,
    "generator_batch_size": 32, "unroll_length": 100, "goal_dim": 10, "state_embedding_dim": 256,
    "generator_reward_negative": -0.1, "generator_threshold": -0.5, "generator_maximum": 100, "fix_seed": False,
    "env_seed": 1, "num_input_frames": 1, "disable_use_embedding": False, "intrinsic_reward_coef": 1.0, "modify": False,
    "initials": "anonymous", "weight_path": "model.tar", "video_path": "minigrid_video.mp4",
}  # fmt: skip

DOCUMENT_COMMANDS = [
    """--env MiniGrid-KeyCorridorS3R3-v0 --num_actors 40 --modify --generator_batch_size 150 --generator_entropy_cost .05
    --generator_threshold -.1 --total_frames 100000000 --generator_reward_negative -.3 --savedir ./experimentMinigrid
    --model default""",
    """--env MiniGrid-KeyCorridorS3R3-v0 --num_actors 40 --modify --generator_batch_size 150 --generator_entropy_cost .05
    --generator_threshold -.5 --total_frames 100000000 --generator_reward_negative -.3 --savedir ./experimentMinigrid
    --model window_addaptive --window 50""",
    """--env MiniGrid-KeyCorridorS3R3-v0 --num_actors 10 --modify --total_frames 100000000
    --savedir ./experimentMinigrid --model novelty_based""",
    """--env MiniGrid-KeyCorridorS3R3-v0 --mode test --weight_path path_to_saved_weights --record_video
    --video_path path_to_video.mp4""",
]


def parsed(text: str = ""):
    return flags_module.parse(shlex.split(text))[0]


def test_the_references_flags_have_its_defaults():
    flags = vars(parsed())
    assert {name: flags[name] for name in REFERENCE_DEFAULTS} == REFERENCE_DEFAULTS
    assert flags["model"] == "default"


@pytest.mark.parametrize("command", DOCUMENT_COMMANDS)
def test_the_documents_commands_parse_and_pass(command):
    flags = parsed(command)
    flags_module.check(flags)
    assert flags.env == "MiniGrid-KeyCorridorS3R3-v0"


def test_the_documents_spelling_means_window_adaptive():
    assert parsed("--model window_addaptive").model == "window_adaptive"


def test_an_unknown_model_is_answered_with_a_close_one():
    with pytest.raises(UsageError, match="did you mean window_adaptive"):
        parsed("--model window_adaptve")


def test_every_flag_is_explained_in_help(capsys):
    with pytest.raises(SystemExit) as exit_info:
        flags_module.parse(["--help"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    for name, flag in flags_module.BY_NAME.items():
        assert f"--{name}" in text and flag.meaning


def test_all_problems_come_in_one_go_and_nothing_is_written(tmp_path, capsys):
    args = "--num_buffers 2 --unroll_length 0 --window -1 --discounting 1.5 --env MiniGrid-KeyCoridorS3R3-v0 --engine gym"
    assert entry.main([*shlex.split(args), "--savedir", str(tmp_path / "runs")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5 and all(line.startswith("error: ") for line in lines)
    for word in ("num_buffers", "unroll_length", "window", "discounting", "did you mean MiniGrid-KeyCorridorS3R3-v0"):
        assert sum(word in line for line in lines) == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", flags_module.AT_LEAST_ONE)
def test_counts_must_be_at_least_one(name):
    assert any(f"--{name} " in line for line in flags_module.problems(parsed(f"--{name} 0")))
    assert flags_module.problems(parsed(f"--{name} 1")) == []


@pytest.mark.parametrize("name", flags_module.NOT_NEGATIVE)
def test_what_must_not_be_negative(name):
    assert any(f"--{name} " in line for line in flags_module.problems(parsed(f"--{name} -1")))
    assert flags_module.problems(parsed(f"--{name} 0")) == []


@pytest.mark.parametrize(
    "bad",
    ["--alpha 0", "--epsilon 0", "--checkpoint_minutes 0", "--seed -1", "--generator_start 0", "--num_actor_processes 5",
     "--num_actor_processes -1", "--discounting -0.1", "--learning_rate nan", "--discounting nan"],
)  # fmt: skip
def test_values_out_of_range_are_refused(bad):
    assert len(flags_module.problems(parsed(bad))) == 1


def test_a_grid_too_large_is_refused(monkeypatch):
    monkeypatch.setattr(minigrid, "grid_size", lambda name: (33, 20))
    assert "33x20" in flags_module.problems(parsed())[0]


def test_the_compiled_engine_refuses_what_it_cannot_play():
    assert "--engine gym" in flags_module.problems(parsed("--env MiniGrid-Dynamic-Obstacles-5x5-v0 --engine compiled"))[0]
    assert flags_module.problems(parsed("--env MiniGrid-Dynamic-Obstacles-5x5-v0")) == []


@pytest.mark.parametrize(("actors", "processes"), [(40, 1), (40, 3), (5, 2), (4, 0)])
def test_environments_are_spread_over_processes_and_buffers_suffice(actors, processes):
    flags = parsed(f"--num_actors {actors} --num_actor_processes {processes} --batch_size 8")
    hosted = flags_module.hosted(flags)
    assert sum(hosted) == actors and len(hosted) == max(1, processes) and max(hosted) - min(hosted) <= 1
    assert flags_module.num_buffers(flags) >= max(2 * actors, 8, max(hosted) + 7)


def test_arguments_that_are_no_flags_end_with_code_two(capsys):
    for words, told in (
        (["--no_such_flag"], "no such flag: --no_such_flag; --help lists them"),
        (["--modle=default"], "no such flag: --modle=default; did you mean --mode or --model?"),
        (["--total_frames", "1e6"], "--total_frames: invalid int value: '1e6'; see python -m main.main --help"),
        (["--mode", "play"], "--mode: invalid choice: 'play'"),
        (["--env"], "--env: expected one argument"),
    ):
        assert entry.main(words) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {told}") and error.count("\n") == 1

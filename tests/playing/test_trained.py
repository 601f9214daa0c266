"""A trained agent: its checkpoint decides what it is; files that are none, and agents for another task, are refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from main import settings as settings_module
from main.playing import trained as trained_module
from main.settings import RunSettings
from tests.helpers.playing import REFERENCE, load, play
from torchbeast.core import checkpoint
from utils_folder.motivations import MOTIVATIONS


def test_a_published_checkpoint_is_read_its_own_way():
    weights = REFERENCE / "KeyCorridorS3R3.tar"
    if not weights.exists():
        pytest.skip("the published checkpoints are not here")
    assert checkpoint.is_published(checkpoint.load(weights))


def test_the_agent_needs_no_flag_repeated_and_a_contradiction_is_named(every_trained, capfd):
    weights = every_trained / "model.tar"
    model = load(weights).settings[RunSettings].model
    other = next((name for name in MOTIVATIONS if name != model), model)
    assert play(weights, "--num_episodes", "3") == 0
    said = capfd.readouterr()
    assert "3 episodes" in said.out and said.err == ""
    assert play(weights, "--num_episodes", "3", "--model", other, "--use_lstm", "--seed", "5") == 0
    errors = capfd.readouterr().err
    assert other == model or f"--model {other}: the agent was trained with {model}, which is used\n" in errors
    assert "--use_lstm True: the agent was trained with False, which is used\n" in errors
    assert errors.count("\n") == 1 + (other != model)


def test_the_checkpoint_decides_what_the_agent_is_and_the_command_line_how_it_plays(every_trained):
    """Whatever flag is changed: those marked `agent` are the checkpoint's, all others but env and seed the command line's."""
    state = checkpoint.load(every_trained / "model.tar")
    settings = load(every_trained / "model.tar", "--num_episodes", "7").settings.flat()
    for name, about in settings_module.flags().items():
        if about.agent:
            assert settings[name] == state["flags"][name], name
        elif name not in ("env", "seed", "mode", "weight_path", "num_episodes"):
            assert settings[name] == about.default, name
    assert settings["env"] == "MiniGrid-Empty-5x5-v0" and settings["seed"] == 4 and settings["num_episodes"] == 7
    assert {name for name, about in settings_module.flags().items() if about.agent} >= {
        "model", "num_input_frames", "student_network", "state_embedding_dim", "use_lstm", "num_lstm_layers",
        "disable_use_embedding",
    }  # fmt: skip


@pytest.mark.parametrize("name", [name for name, about in settings_module.flags().items() if about.published is not None])
def test_what_published_checkpoints_imply_is_taken_from_no_other(trained, tmp_path, name):
    about = settings_module.flags()[name]
    state = checkpoint.load(trained / "model.tar")
    del state["flags"][name]
    torch.save(state, tmp_path / "ours.tar")
    assert load(tmp_path / "ours.tar").settings.flat()[name] == about.default
    del state["format"]
    torch.save(state, tmp_path / "published.tar")
    assert load(tmp_path / "published.tar").settings.flat()[name] == about.published != about.default


def test_without_a_seed_one_is_drawn(trained):
    settings, given = settings_module.parse(["--mode", "test", "--weight_path", str(trained / "model.tar")])
    assert settings[RunSettings].seed is None
    seeds = {trained_module.load(settings, given).settings[RunSettings].seed for _ in range(3)}
    assert len(seeds) == 3 and all(0 <= seed < 2**31 for seed in seeds)


class Malicious:
    """Unpickling it would create a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("kind", ["missing", "folder", "empty", "text", "truncated", "pickle", "malicious", "list", "foreign"])
def test_what_is_no_checkpoint_gets_one_line_and_code_two(trained, tmp_path, kind, capsys):
    path, trap = tmp_path / "x.tar", tmp_path / "trap"
    whole = (trained / "model.tar").read_bytes()
    if kind == "folder":
        path.mkdir()
    elif kind == "malicious":
        torch.save({"model_state_dict": {}, "flags": Malicious(trap)}, path)
    elif kind == "list":
        torch.save([1, 2], path)
    elif kind == "foreign":
        torch.save({"state_dict": {}}, path)
    elif kind != "missing":
        contents = {
            "empty": b"",
            "text": b"hello",
            "truncated": whole[: len(whole) // 2],
            "pickle": pickle.dumps(Malicious(trap)),
        }
        path.write_bytes(contents[kind])
    assert play(path) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not trap.exists()


def test_an_agent_for_another_grid_is_refused(trained, capsys):
    assert play(trained / "model.tar", "--env", "MiniGrid-KeyCorridorS3R3-v0") == 2
    error = capsys.readouterr().err
    assert "25 cells" in error and "7x7" in error and len(error.splitlines()) == 1


def test_weights_that_do_not_fit_their_flags_are_refused(trained, tmp_path, capsys):
    state = checkpoint.load(trained / "model.tar")
    state["flags"]["state_embedding_dim"] = 17
    torch.save(state, tmp_path / "x.tar")
    assert play(tmp_path / "x.tar") == 2
    assert "do not fit" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["run/model.tar", "run", "latest", "latest/model.tar", "."])
def test_an_agent_is_named_by_its_checkpoint_its_run_or_the_folder_of_runs(trained, place, capfd):
    assert play(trained.parent / place, "--num_episodes", "1") == 0
    said = capfd.readouterr()
    assert ("is a folder of runs: its only one is run" in said.err) == (place == ".")
    assert said.out.startswith(str(trained.parent)) and "/model.tar on MiniGrid-Empty-5x5-v0: 1 episodes" in said.out


@pytest.mark.slow
@pytest.mark.parametrize("size", [1e9, 9e14])
def test_weights_that_are_finite_but_play_nothing_are_refused(every_trained, tmp_path, size, capfd):
    """Each table of weights that playing uses: its networks would answer with NaN, and that with "success rate 0.000"."""
    state = checkpoint.load(every_trained / "model.tar")
    training = state["training_keys"]
    tables = [key for key in state if key.endswith("model_state_dict") and key not in training]
    assert "model_state_dict" in tables
    for key in tables:
        signs = torch.Generator().manual_seed(0)
        enormous = {name: size * torch.randn(value.shape, generator=signs).sign() for name, value in state[key].items()}
        weights = tmp_path / "model.tar"
        torch.save(state | {key: enormous}, weights)
        for more in ((), ("--greedy",)):
            assert play(weights, "--num_episodes", "2", *more) == 2
            said = capfd.readouterr()
            assert said.out == "" and said.err.count("error: ") == said.err.count("\n") == 1 and "give another" in said.err

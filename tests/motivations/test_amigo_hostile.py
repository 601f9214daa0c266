"""Damaged checkpoints of an agent that has a teacher: a clear line each, nothing overwritten."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from main import main as entry
from tests.helpers.damage import changed, contents, unended
from tests.helpers.program import command
from torchbeast.core import checkpoint


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    more = ["--total_frames", "96", "--num_actor_processes", "0", "--keep_checkpoints", "1"]
    assert entry.main(command(folder, "--modify", "--generator_batch_size", "3", *more)) == 0
    return unended(folder / "run")


@pytest.fixture
def run(whole_run, tmp_path) -> Path:
    return Path(shutil.copytree(whole_run, tmp_path / "runs" / "run"))


def teacher_of_another_shape(path, trap):
    state = checkpoint.load(path)
    state["generator_model_state_dict"]["baseline_teacher.weight"] = torch.zeros(1, 7)
    torch.save(state, path)


DAMAGED = {
    "no teacher": changed(generator_model_state_dict=None),
    "a teacher of another shape": teacher_of_another_shape,
    "t* is text": changed(difficulty={"target": "seven", "count": 0}),
}
RESUME_ONLY = {
    "no waiting goals": changed(generator_batch=None),
    "waiting goals are a list": changed(generator_batch=[1, 2]),
    "a damaged optimiser of the teacher": changed(generator_model_optimizer_state_dict={"state": {}, "param_groups": []}),
    "no curriculum": changed(curriculum=None),
}


@pytest.mark.parametrize("damage", [*DAMAGED, *RESUME_ONLY])
def test_a_checkpoint_that_cannot_be_gone_on_from(run, tmp_path, damage, capfd):
    (DAMAGED | RESUME_ONLY)[damage](run / "model.tar", tmp_path / "trap")
    before = contents(run)
    assert entry.main(["--resume", str(run)]) == 2
    errors = capfd.readouterr().err
    assert "error: " in errors and "Traceback" not in errors
    assert contents(run) == before


@pytest.mark.parametrize("damage", list(DAMAGED))
def test_a_checkpoint_that_cannot_be_played_with(run, tmp_path, damage, capfd):
    DAMAGED[damage](run / "model.tar", tmp_path / "trap")
    before = contents(run)
    assert entry.main(["--mode", "test", "--weight_path", str(run / "model.tar")]) == 2
    errors = capfd.readouterr().err
    assert "error: --weight_path" in errors and errors.count("\n") == 1
    assert contents(run) == before

"""A checkpoint of version 1.0 is gone on with: it lacks what is younger than that version, and nothing else follows from it."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from main import main as entry
from main.training.learner import Learner
from tests.helpers.marks import some
from tests.helpers.program import command, rows
from torchbeast.core import run_folder
from utils_folder.motivations import MOTIVATIONS

YOUNGER = {"training_keys", "frames_per_update", "at_end", "truncated"}
YOUNGER_FLAGS = {
    "student_network", "env_args", "bootstrap_time_limit", "evaluate_minutes", "video_minutes", "max_grad_norm", "also",
    "reward_mixing", "intrinsic_discounting", "policy_clip",
}  # fmt: skip


def without(tree, keys):
    """Nested dicts and lists without these keys."""
    if isinstance(tree, dict):
        return {key: without(value, keys) for key, value in tree.items() if key not in keys}
    return [without(value, keys) for value in tree] if isinstance(tree, list) else tree


@pytest.mark.parametrize("model", some(MOTIVATIONS))  # the others are younger themselves
def test_a_run_of_version_1_goes_on_as_if_it_had_not_been_interrupted(tmp_path, model, monkeypatch):
    args = ("--num_actor_processes", "0", "--seed", "3", "--model", model, "--total_frames", "480")
    assert entry.main(command(tmp_path / "whole", *args)) == 0
    learn = Learner.learn

    def learn_until_interrupted(self, *given):
        stats = learn(self, *given)
        if self.frames == 240:
            os.kill(os.getpid(), signal.SIGTERM)
        return stats

    with monkeypatch.context() as patched:
        patched.setattr(Learner, "learn", learn_until_interrupted)
        entry.main(command(tmp_path / "cut", *args))
    checkpoint = tmp_path / "cut" / "run" / "model.tar"
    state = torch.load(checkpoint, weights_only=True)
    older = without(state, YOUNGER) | {"flags": without(state["flags"], YOUNGER_FLAGS)}
    for rule in (value for name, value in older.items() if name.endswith("optimizer_state_dict")):
        rule["param_groups"][0]["foreach"] = True
        rule["state"] = {i: kept for i, kept in rule["state"].items() if any(v.any() for n, v in kept.items() if n != "step")}
    assert len(older["optimizer_state_dict"]["state"]) < len(state["optimizer_state_dict"]["state"])  # what learns nothing
    assert older.keys() < state.keys() and "truncated" not in older["source"]["rollouts"]
    torch.save(older, checkpoint)
    meta = run_folder.read_metadata(checkpoint.parent)
    run_folder.write_metadata(checkpoint.parent, meta | {"args": without(meta["args"], YOUNGER_FLAGS)})
    assert entry.main(["--resume", str(checkpoint)]) == 0
    assert rows(tmp_path / "cut" / "run") == rows(tmp_path / "whole" / "run")

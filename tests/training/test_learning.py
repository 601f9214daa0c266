"""Every variant really learns a small task."""

from __future__ import annotations

import json

import pytest

from main import main as entry
from tests.helpers.program import COMMON

VARIANTS = {
    "default": [],
    "window_adaptive": ["--generator_start", "7", "--window", "5", "--window_rule", "tracking"],
    "novelty_based": [],
}


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["0", "2"])
@pytest.mark.parametrize("model", list(VARIANTS))
def test_a_small_task_is_learned(tmp_path, model, processes):
    args = [*COMMON, "--savedir", str(tmp_path), "--model", model, "--num_actor_processes", processes, *VARIANTS[model]]
    weights = ["--weight_path", str(tmp_path / "run" / "model.tar"), "--env", "MiniGrid-Empty-Random-5x5-v0"]
    assert entry.main([*args, "--total_frames", "320", "--xpid", "untrained"]) == 0
    assert entry.main(args) == 0
    steps = {}
    for name in ("untrained", "run"):
        weights[1] = str(tmp_path / name / "model.tar")
        out = tmp_path / f"{name}.json"
        assert entry.main(["--mode", "test", *weights, "--num_episodes", "200", "--seed", "1", "--json", str(out)]) == 0
        result = json.loads(out.read_text())
        steps[name] = result["mean_steps"]
    assert result["success_rate"] > 0.9 and result["mean_return"] > 0.75
    assert steps["run"] < steps["untrained"] / 2

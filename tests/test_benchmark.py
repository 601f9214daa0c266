"""The benchmark runs, counts operations right, and writes what it prints."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from main import benchmark
from tests.plain_networks import PlainStudent


@pytest.mark.parametrize("grid", [(7, 7), (11, 6), (16, 16)])
def test_operations_are_those_of_the_plain_student(grid):
    """Counted by hooks on its convolutions and linear layers: multiply and add are two."""
    student = PlainStudent((*grid, 3), 7, goal_conditioned=True)
    counted = []

    def count(module, inputs, output):
        per_output = module.in_features if isinstance(module, nn.Linear) else module.in_channels * 9
        counted.append(2 * per_output * output.numel())

    for module in student.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.register_forward_hook(count)
    frame = torch.ones(1, 1, *grid, 3, dtype=torch.uint8)
    carried = torch.zeros(1, 1, dtype=torch.uint8)
    goal = torch.zeros(1, 1, dtype=torch.int64)
    student({"frame": frame, "carried_obj": carried, "carried_col": carried, "goal": goal})
    assert sum(counted) == benchmark.forward_flops(*grid)


def test_the_whole_program_is_really_run(monkeypatch):
    monkeypatch.setattr(benchmark, "WARM_UP_SECONDS", 1.0)
    assert benchmark.whole_program(1.5) > 1000


def test_a_run_that_ends_early_is_named():
    with pytest.raises(RuntimeError, match="unknown environment"):
        benchmark.whole_program(1, "--env", "MiniGrid-Nowhere-v0")


def test_the_figures_printed_are_those_written(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(benchmark, "PART_SECONDS", 0.01)
    monkeypatch.setattr(benchmark.rate, "__defaults__", (0.01,))
    monkeypatch.setattr(benchmark, "whole_program", lambda seconds, *more: 100.0 if more else 1234.0)
    out = tmp_path / "figures.json"
    assert benchmark.main(["--json", str(out)]) == 0
    figures, text = json.loads(out.read_text()), capsys.readouterr().out
    assert figures["ratio"] == 12.34 and "12.3x" in text and "| 1,234 |" in text
    assert all(part["rate"] > 0 for part in figures["parts"]) and len(figures["by_grid"]) == 4
    share = 1234 * figures["flops_per_frame"] / (figures["cores"] * figures["peak_gflops_one_core"] * 1e9)
    assert figures["parts"][4]["share"] == pytest.approx(share)

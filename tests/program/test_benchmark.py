"""The benchmark runs, counts operations right, and writes what it prints."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from main import benchmark
from main.analysis import paired, scaling
from tests.helpers.marks import rarer
from tests.helpers.plain_networks import PlainStudent
from tests.helpers.runs import rows
from torchbeast.core.ranks import ALONE
from torchbeast.core.settings import UsageError

pytestmark = pytest.mark.slow


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
    monkeypatch.setattr(paired, "WARM_UP_SECONDS", 1.0)
    assert benchmark.whole_program(1.5) > 1000


def test_a_run_that_ends_early_is_named():
    with pytest.raises(RuntimeError, match="unknown environment"):
        benchmark.whole_program(1, "--env", "MiniGrid-Nowhere-v0")


def test_the_figures_printed_are_those_written(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(benchmark, "PART_SECONDS", 0.01)
    monkeypatch.setattr(benchmark.rate, "__defaults__", (0.01,))
    monkeypatch.setattr(benchmark, "whole_program", lambda seconds, *more: 100.0 if more else 1234.0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(benchmark, "learning_on", lambda device, batch_size: 1e4 * batch_size + (device.type == "cuda"))
    out = tmp_path / "figures.json"
    assert benchmark.main(["--json", str(out)]) == 0
    figures, text = json.loads(out.read_text()), capsys.readouterr().out
    assert figures["ratio"] == 12.34 and "12.3x" in text and "| 1,234 |" in text
    assert "| 8 | 80,001 |" in text and "| 128 | 1,280,001 |" in text
    assert all(part["rate"] > 0 for part in figures["parts"]) and len(figures["by_grid"]) == 4
    share = 1234 * figures["flops_per_frame"] / (figures["cores"] * figures["peak_gflops_one_core"] * 1e9)
    assert figures["parts"][4]["share"] == pytest.approx(share)


def test_learning_is_measured_of_batches_of_any_size(monkeypatch):
    monkeypatch.setattr(benchmark.rate, "__defaults__", (0.01,))
    monkeypatch.setattr(benchmark.Parts, "learning", lambda parts: parts.update().args[2])
    assert benchmark.learning_on(torch.device("cpu"), 64) == list(range(64))


def test_scaling_is_measured_with_two_ranks_and_predicted_for_more(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setattr(benchmark, "STRETCHES", 1)
    out = tmp_path / "figures.json"
    assert benchmark.main(["--scaling", "--json", str(out)]) == 0
    figures, text = json.loads(out.read_text()), capsys.readouterr().out
    two = figures["two"]
    assert 0 < two["short"] < two["update"] and two["row"] > 0 and two["all_reduce"] > 0
    assert figures["bytes"] == 4 * sum(p.numel() for p in benchmark.learner_of(ALONE)[0].student.parameters())
    shares = [figures["predicted"][str(n)]["10 Gbit/s"] for n in scaling.RANKS]
    assert all(1 > a > b > 0 for a, b in zip(shares, shares[1:]))
    assert text.count("%") == 1 + 3 * len(scaling.RANKS) and f"{figures['bytes']:,} bytes" in text


def test_the_ring_by_hand():
    """Three ranks, 6 MB, 1 GB/s, 1 ms a message: four messages of 2 MB to reduce, two of 6 MB to gather."""
    link = scaling.Link(latency=1e-3, bandwidth=1e9)
    assert scaling.all_reduce_seconds(6_000_000, 3, link) == pytest.approx(4 * (1e-3 + 2e-3))
    assert scaling.all_gather_seconds(6_000_000, 3, link) == pytest.approx(2 * (1e-3 + 6e-3))
    short, long = (scaling.all_reduce_seconds(size, 2, link) for size in (0, 500_000))
    assert scaling.Link.fit(short, long, 500_000) == pytest.approx(link)
    assert link.over(0.5e9) == pytest.approx((1e-3 + scaling.WIRE_SECONDS, 0.5e9)) and link.over(2e9).bandwidth == 1e9
    assert scaling.efficiency(1.0, 0, 1, link) == 1 and 0.98 < scaling.efficiency(1.0, 6_000_000, 3, link) < 0.99


def test_two_checkouts_take_turns():
    order = []

    def stretch(name, rates):
        return lambda: order.append(name) or rates.pop(0)

    ratio = paired.compare("acting", stretch("ours", [2.0, 6.0, 9.0]), stretch("theirs", [1.0, 2.0, 3.0]), pairs=3)
    assert order == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert ratio.ratios == [2.0, 3.0, 3.0] and (ratio.ours, ratio.theirs) == (6.0, 2.0)
    assert "3.00 times as fast" in str(ratio) and "all 2.00 to 3.00" in str(ratio)


@pytest.mark.parametrize("work", ["learning", *rarer(["acting"])])
def test_parts_of_two_checkouts_are_measured(work, monkeypatch, capfd):
    """The other one is this one, going on from a kept agent."""
    monkeypatch.setattr(benchmark, "PART_SECONDS", 0.15)
    agent = str(benchmark.ROOT / "results" / "maze-default-1")
    words = ["--against", str(benchmark.ROOT), "--work", work, "--pairs", "2", "--agent", agent]
    assert benchmark.main([*words, "--", "--env", "MiniGrid-ObstructedMaze-1Dl-v0"]) == 0
    assert f"{work}: " in (out := capfd.readouterr().out) and " times as fast" in out


@pytest.mark.soak
def test_whole_programs_go_on_from_an_agent(monkeypatch):
    monkeypatch.setattr(paired, "WARM_UP_SECONDS", 1.0)
    agent = torch.load(benchmark.ROOT / "results" / "keycorridor-default-1" / "model.tar", weights_only=True)
    logs, watched = [], paired._watched

    def kept(tree, words, run_dir, seconds):
        began = watched(tree, words, run_dir, seconds)
        logs.append(rows(run_dir))
        return began

    monkeypatch.setattr(paired, "_watched", kept)
    assert paired.whole_program(3.0, benchmark.DOCUMENT, benchmark.ROOT, agent) > 1000
    rates = [row["success_rate"] for row in logs[1][len(logs[0]) + 100 :] if row.get("episodes")]
    assert len(rates) > 10 and sum(rates) / len(rates) > 0.9  # it still can what it could


IDLE = [
    ("--scaling --seconds 3", "--seconds (not with --scaling)"),
    ("--pairs 2 --work acting --agent no", "--work (belongs to --against), --pairs (belongs to --against), "
     "--agent (belongs to --against)"),
    ("-- --env X", "--env X (belongs to --against)"),
    (f"--against {benchmark.ROOT} --scaling", "--scaling (not with --against)"),
    (f"--against {benchmark.ROOT} --work acting --seconds 3", "--seconds (belongs to --work program)"),
    (f"--against {benchmark.ROOT} --seconds 3 --pairs 1", None),
    ("--seconds 3", None),
    ("--scaling", None),
]  # fmt: skip


@pytest.mark.parametrize(("words", "told"), IDLE)
def test_what_does_nothing_where_it_stands_is_told(monkeypatch, caplog, words, told):
    done = []
    for name in ("measure", "measure_scaling", "against"):
        monkeypatch.setattr(benchmark, name, lambda *_, name=name: done.append(name) or {})
    monkeypatch.setattr(benchmark, "report", lambda _: "")
    monkeypatch.setattr(benchmark.scaling, "report", lambda _: "")
    assert benchmark.main(words.split()) == 0 and len(done) == 1
    assert [r.getMessage() for r in caplog.records] == ([] if told is None else [f"without effect here: {told}"])


@pytest.mark.parametrize("flag, text", [("--against", "no checkout"), ("--agent", "--agent: /nowhere")])
def test_what_cannot_be_compared_is_refused(flag, text, capfd):
    assert benchmark.main(["--against", str(benchmark.ROOT), flag, "/nowhere"]) == 2
    assert text in capfd.readouterr().err


def test_an_agent_of_another_task_is_refused(monkeypatch, capfd):
    monkeypatch.setattr(paired, "compare_part", lambda *_, **__: pytest.fail("measured"))
    agent = str(benchmark.ROOT / "results" / "maze-default-1")
    assert benchmark.main(["--against", str(benchmark.ROOT), "--work", "acting", "--agent", agent]) == 2
    assert "trained on MiniGrid-ObstructedMaze-1Dl-v0, and what is measured plays MiniGrid-KeyC" in capfd.readouterr().err


def test_a_process_that_ends_early_is_named():
    about = {"env": "MiniGrid-Nowhere-v0", "num_envs": 4, "batch": 800, "agent": None, "pairs": 1, "seconds": 0.1}
    with pytest.raises(UsageError, match="ended early"):
        paired.compare_part("acting", [benchmark.ROOT] * 2, benchmark.DOCUMENT, **about)

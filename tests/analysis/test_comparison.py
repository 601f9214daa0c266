"""Rows beside their controls: the test against all splits counted by hand, who is compared, and what a table may name."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from main import command, report
from main.analysis import comparison, table
from torchbeast.core.settings import UsageError

TABLE = """[DEFAULT]
env = MiniGrid-Empty-5x5-v0
flags = --num_actors 4
frames = 2000000
reach = 0.9
published = none
[plain]
seeds = 1 2 3 4 5
[other]
seeds = 1 2 3 4 5
control = plain
[short]
seeds = 1 2 3 4
control = plain
"""


@pytest.mark.parametrize("sizes", [(5, 5), (5, 6), (3, 4)])
def test_the_p_value_is_the_share_of_splits_with_as_large_a_difference(sizes):
    rng = np.random.default_rng(1)
    ours, control = rng.random(sizes[0]) + 0.3, rng.random(sizes[1])
    everything, size = np.concatenate([ours, control]), len(ours)
    seen, as_far = ours.mean() - control.mean(), []
    for chosen in itertools.combinations(range(len(everything)), size):
        difference = everything[list(chosen)].mean() - np.delete(everything, chosen).mean()
        as_far.append(abs(difference) >= abs(seen) - 1e-9)
    found = comparison.compare(list(ours), list(control))
    assert found.value == pytest.approx(seen, abs=1e-8) and found.p == pytest.approx(np.mean(as_far))
    assert found.low < found.value < found.high


def test_groups_that_are_apart_and_groups_that_are_the_same():
    apart = comparison.compare([1.0] * 5, [0.0] * 5)
    assert (apart.value, apart.low, apart.high) == (1.0, 1.0, 1.0) and apart.p == pytest.approx(2 / 252)
    same = comparison.compare([0.5, 0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5, 0.5])
    assert (same.value, same.p) == (0.0, 1.0)
    assert comparison.compare([0.1 + 0.2] * 5, [0.3] * 5).p == 1.0  # apart by rounding
    assert comparison.compare([1, 1, 1, 1, 0.9865], [0.9865, 1, 0.9865, 1, 0.9865]).p == pytest.approx(132 / 252)
    assert comparison._cells(comparison.compare([1.0] * 10, [0.0] * 10)) == ("+1.00 (+1.00 to +1.00)", "< 0.001")


def run(folder, rates):
    """A finished run of two million frames, with these success rates in its quarters."""
    folder.mkdir(parents=True)
    lines = [f"{(i + 1) * 500_000},4,{rate},{rate}" for i, rate in enumerate(rates)]
    (folder / "logs.csv").write_text("\n".join(["frames,episodes,success_rate,mean_episode_return", *lines]) + "\n")
    flags = {"env": "MiniGrid-Empty-5x5-v0", "num_actors": 4, "total_frames": 2_000_000}
    (folder / "meta.json").write_text(json.dumps({"successful": True, "args": flags, "versions": {}}))


def test_a_row_is_compared_with_its_control_where_five_runs_of_each_are_finished(tmp_path, capsys):
    (tmp_path / "table.ini").write_text(TABLE)
    for seed in range(1, 6):
        run(tmp_path / f"plain-{seed}", (0.0, 0.0, 0.5, 0.5))
        run(tmp_path / f"other-{seed}", (1.0, 0.0, 1.0, 1.0))
        if seed < 5:
            run(tmp_path / f"short-{seed}", (1.0, 1.0, 1.0, 1.0))
    rows = table.read_table(tmp_path / "table.ini", command.check_run)
    assert [row.control for row in rows] == [None, "plain", "plain"]
    found = comparison.rows(rows, tmp_path, command.declared())
    half, one = "+0.50 (+0.50 to +0.50)", "+1.00 (+1.00 to +1.00)"
    assert found == [["other", "plain", half, "0.008", half, "0.008", one, "0.008"]]
    assert table.log_rows(rows, tmp_path, command.declared())[1][:5] == [
        "other", "5", "1.00 (1.00 to 1.00)", "1.000 (1.000 to 1.000)", "0.75 (0.75 to 0.75)"
    ]  # fmt: skip

    page = tmp_path / "page.md"
    more = ["--runs", str(tmp_path), "--into", str(page)]
    places = {name: f"<!-- {name} table -->\n<!-- end -->\n" for name in ("log", "agent", "comparison")}
    page.write_text(places["log"])
    assert report.main([str(tmp_path / "table.ini"), *more]) == 2
    assert "the file needs one <!-- comparison table -->" in capsys.readouterr().err and page.read_text() == places["log"]
    page.write_text(places["log"] + places["comparison"])  # no run has weights: there is no table of agents
    assert report.main([str(tmp_path / "table.ini"), *more]) == 0
    page.write_text(page.read_text() + "<!-- agent table -->\nold\n<!-- end -->\n")
    assert report.main([str(tmp_path / "table.ini"), *more]) == 0
    assert page.read_text().endswith("<!-- agent table -->\nNo row yet.\n<!-- end -->\n")
    written = page.read_bytes()
    assert b"| other | plain | +0.50" in written and b"| short | plain" not in written
    page.write_bytes(written.replace(b"\n", b"\r\n").replace(b"+0.50", b"+0.60"))  # as an editor on Windows may leave it
    assert report.main([str(tmp_path / "table.ini"), *more]) == 0
    assert page.read_bytes() == written.replace(b"\n", b"\r\n")


@pytest.mark.parametrize("more", ["frames = 3000000", "env = MiniGrid-Empty-6x6-v0", "window_frames = 100000"])
def test_a_control_must_be_of_the_same_task_and_length(tmp_path, more):
    (tmp_path / "table.ini").write_text(TABLE + more + "\n")
    with pytest.raises(UsageError, match=r"\[short\] control = plain: it must be of the same env, frames and window_frames"):
        table.read_table(tmp_path / "table.ini", command.check_run)


@pytest.mark.parametrize("control", ["nobody", "other"])
def test_a_control_must_be_another_row(tmp_path, control):
    (tmp_path / "table.ini").write_text(TABLE.replace("control = plain", f"control = {control}"))
    with pytest.raises(UsageError, match=rf"\[(other|short)\] control = {control}: it must be another row of"):
        table.read_table(tmp_path / "table.ini", command.check_run)

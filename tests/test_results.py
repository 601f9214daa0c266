"""What is shipped in results/: belongs to the table, is small, plays, and says what the README says of it."""

from __future__ import annotations

import json
import re

import pytest

from main import flags as flags_module
from main import report, reproduce
from main.flags import UsageError
from utils_folder import checkpoint

from .test_train import ROOT

RESULTS = ROOT / "results"
TABLE = RESULTS / "experiments.ini"
RUNS = sorted(path.parent for path in RESULTS.glob("*/meta.json"))


def readme_table(name: str) -> list[list[str]]:
    block = re.search(rf"<!-- {name} table -->\n(.*?)\n<!-- end -->", (ROOT / "README.md").read_text(), re.DOTALL)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in block[1].splitlines()]


def numbers(row: list[str]) -> list[float]:
    return [float(number) for cell in row[1:] for number in re.findall(r"-?\d+(?:\.\d+)?", cell)]


def test_results_are_there_and_small():
    assert RUNS
    assert sum(path.stat().st_size for path in RESULTS.rglob("*")) < 30e6
    for run in RUNS:
        assert sorted(path.name for path in run.iterdir() if path.suffix in (".csv", ".json", ".tar")) == [
            "logs.csv", "meta.json", "model.tar",
        ]  # fmt: skip
        assert (run / "logs.csv").stat().st_size < 300_000, run


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_a_shipped_run_is_a_finished_one_of_the_table(run):
    """Metadata, weights and log agree with the row's own flags, each of them."""
    experiments = {experiment.name: experiment for experiment in reproduce.read_table(TABLE)}
    name, seed = run.name.rsplit("-", 1)
    wanted, given = flags_module.parse(experiments[name].arguments)
    meta = json.loads((run / "meta.json").read_text())
    assert meta["successful"] is True and meta["args"]["seed"] == int(seed) and int(seed) in experiments[name].seeds
    for arguments in meta["args"], checkpoint.load(run / "model.tar")["flags"]:
        assert {flag: arguments[flag] for flag in given} == {flag: getattr(wanted, flag) for flag in given}
    assert reproduce.outcome(run, experiments[name].reach).frames >= experiments[name].frames


def test_the_readmes_table_of_runs_is_that_of_the_logs():
    rows = report.log_rows(reproduce.read_table(TABLE), RESULTS)
    assert readme_table("log") == [list(report.LOG_HEAD), ["---"] * len(report.LOG_HEAD), *rows]


@pytest.mark.slow
def test_the_readmes_table_of_agents_is_what_they_do():
    """100 episodes each. Another processor may round otherwise, and an episode go another way: not more than a few."""
    stated = {row[0]: row for row in readme_table("agent")[2:]}
    rows = report.agent_rows(reproduce.read_table(TABLE), RESULTS)
    assert stated.keys() == {row[0] for row in rows} == {run.name for run in RUNS}
    for row in rows:
        success, *others = numbers(row)
        assert success == pytest.approx(numbers(stated[row[0]])[0], abs=0.04), row
        assert others[:5] == pytest.approx(numbers(stated[row[0]])[1:6], abs=0.06), row


def test_a_report_goes_between_its_marks(tmp_path, capsys):
    text = "a\n<!-- log table -->\nold\n<!-- end -->\nb\n<!-- agent table -->\nold\n<!-- end -->\nc\n"
    assert report.put_in(text, {"log": "| 1 |", "agent": "| 2 |"}) == (
        "a\n<!-- log table -->\n| 1 |\n<!-- end -->\nb\n<!-- agent table -->\n| 2 |\n<!-- end -->\nc\n"
    )
    with pytest.raises(UsageError, match="agent table"):
        report.put_in(text.replace("agent", "other"), {"log": "| 1 |", "agent": "| 2 |"})
    assert report.main([str(TABLE), "--runs", str(tmp_path), "--into", str(tmp_path / "none.md")]) == 2
    assert "none.md" in capsys.readouterr().err


def test_means_over_runs_have_intervals_where_there_are_several():
    results = [reproduce.Outcome(30, 0.9, 0.8, 14_000_000, 1, 0, 0.5), reproduce.Outcome(30, 0.5, None, None, 0, 0, 1.25)]
    assert report._cells(results[:1]) == ["0.90", "0.800", "14.0", "1 (back 0)", "0.5"]
    success, returns, *others = report._cells(results)
    assert success.startswith("0.70 (0.50 to 0.90") and returns.startswith("0.400 (")
    assert others == ["14.0, –", "1 (back 0), 0", "0.5, 1.2"]

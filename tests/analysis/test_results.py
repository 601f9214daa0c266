"""What is shipped in results/: belongs to the table, is small, plays, and says what its page says of it."""

from __future__ import annotations

import csv
import gzip
import json
import re

import numpy as np
import pytest

from main import command, plot, report
from main import settings as settings_module
from main.analysis import comparison, table
from tests.helpers.program import ROOT
from torchbeast.core import checkpoint
from torchbeast.core.settings import UsageError

RESULTS = ROOT / "results"
TABLE = RESULTS / "experiments.ini"
EXPERIMENTS = table.read_table(TABLE, command.check_run)
NAMES = ("teacher", "fast", "hard", "stability", "document", "field")
PAGES = {"README.md": TABLE} | {f"{name}.md": RESULTS / f"{name}.ini" for name in NAMES}
ALL = {row.name: row for path in sorted(RESULTS.glob("*.ini")) for row in table.read_table(path, command.check_run)}
RUNS = sorted(path.parent for path in RESULTS.glob("*/meta.json"))
OF_THE_PAGE = [run for run in RUNS if run.name.rsplit("-", 1)[0] in {row.name for row in EXPERIMENTS}]


def test_rows_of_one_name_are_the_same_runs():
    for path in sorted(RESULTS.glob("*.ini")):
        for row in table.read_table(path, command.check_run):
            assert row._replace(published="", control=None) == ALL[row.name]._replace(published="", control=None)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def page_table(name: str, page: str = "README.md") -> list[list[str]]:
    block = re.search(rf"<!-- {name} table -->\n(.*?)\n<!-- end -->", (RESULTS / page).read_text(), re.DOTALL)
    return [cells(line) for line in block[1].splitlines()] if block else []


def numbers(row: list[str]) -> list[float]:
    return [float(number) for cell in row[1:] for number in re.findall(r"-?\d+(?:\.\d+)?", cell)]


def test_results_are_there_and_small():
    assert RUNS
    shipped = [path for path in RESULTS.rglob("*") if path.is_file() and not path.name.startswith("curriculum.")]
    assert sum(path.stat().st_size for path in shipped) < 40e6
    ends, agents = {}, set()  # a task, a motivation and its view: how runs of a row end, and of which there are weights
    for run in RUNS:
        name, _ = run.name.rsplit("-", 1)
        files = sorted(path.name for path in run.iterdir() if path.suffix in (".csv", ".gz", ".json", ".tar"))
        assert files in (["logs.csv.gz", "meta.json"], ["logs.csv.gz", "meta.json", "model.tar"])
        flags = json.loads((run / "meta.json").read_text())["args"]
        kind = (ALL[name].env, flags["model"], flags.get("student_view") or "full")
        success = table.of_run(ALL[name], run, command.declared()).success
        if ALL[name].frames >= 4e6:
            ends.setdefault(kind, {}).setdefault(name, []).append(success)
        if "model.tar" in files and success >= 0.1:
            agents.add(kind)
        assert (run / "logs.csv.gz").stat().st_size < 100_000, run
    learned = {kind for kind, rows in ends.items() if max(map(np.mean, rows.values())) >= 0.5}
    assert len(learned) > 5 and learned <= agents, "what learns a task plays it"


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_a_shipped_run_is_a_finished_one_of_a_table(run):
    """Metadata, weights and log agree with the row's own flags, each of them."""
    name, seed = run.name.rsplit("-", 1)
    row, meta, weights = ALL[name], json.loads((run / "meta.json").read_text()), run / "model.tar"
    _, wanted = settings_module.parse(row.arguments)
    assert meta["successful"] is True and meta["args"]["seed"] == int(seed) and int(seed) in row.seeds
    for arguments in [meta["args"], *([checkpoint.load(weights)["flags"]] if weights.exists() else [])]:
        assert {flag: arguments[flag] for flag in wanted} == wanted
    assert table.outcome(run, row.reach, command.declared()).frames >= row.frames


@pytest.mark.parametrize("page", PAGES)
def test_a_pages_table_of_runs_is_that_of_the_logs(page):
    experiments = table.read_table(PAGES[page], command.check_run)
    rows = table.log_rows(experiments, RESULTS, command.declared())
    assert page_table("log", page) == [list(table.LOG_HEAD), ["---"] * len(table.LOG_HEAD), *rows]
    rows = comparison.rows(experiments, RESULTS, command.declared())
    assert page_table("comparison", page) == ([list(comparison.HEAD), ["---"] * len(comparison.HEAD), *rows] if rows else [])


def test_the_table_of_motivations_says_what_the_runs_came_to():
    """All runs with the same flags are in a cell together, whatever their rows are called."""
    section = (RESULTS / "README.md").read_text().split("## Motivations by task")[1].split("\n## ")[0]
    said = re.findall(r"\| ([^|]*) \((\d+) runs?, ((?:`[^`]+`(?: and )?)+)\)", section)
    assert len(said) == len(re.findall(r"\d\.\d\d", section)) > 9
    for success, count, names in said:
        names = re.findall(r"`([^`]+)`", names)
        alike = [row for row in ALL.values() if row.arguments == ALL[names[0]].arguments]
        runs = {row.name: table.finished(row, RESULTS) for row in alike}
        assert names == sorted(name for name, folders in runs.items() if folders)
        found = [table.of_run(ALL[name], folder, command.declared()).success for name in names for folder in runs[name]]
        assert [count, success] == [str(len(found)), f"{np.mean(found):.2f}"], names


def test_the_first_pages_short_table_is_part_of_it():
    lines = [cells(line) for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| ")]
    head, _, *rows = [row for row in lines if len(row) == 5]
    stated = {row[0]: row for row in page_table("log")}
    named = {"keycorridor-default", "keycorridor-as-published", "keycorridor-window", "keycorridor-novelty"}
    assert named <= {row[1] for row in rows}
    assert [head[1:], *(row[1:] for row in rows)] == [stated[row[1]][:4] for row in [head, *rows]]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_a_pages_table_of_agents_is_what_they_do(page):
    """100 episodes each. Another processor may round otherwise, and an episode go another way: not more than a few."""
    stated = {row[0]: row for row in page_table("agent", page)[2:]}
    rows = report.agent_rows(table.read_table(PAGES[page], command.check_run), RESULTS)
    assert stated.keys() == {row[0] for row in rows}
    for row in rows:
        (success, *others, steps), (*stated_rates, stated_steps) = numbers(row), numbers(stated[row[0]])
        assert success == pytest.approx(stated_rates[0], abs=0.04), row
        assert others == pytest.approx(stated_rates[1:], abs=0.06), row
        assert steps == pytest.approx(stated_steps, abs=12), row


def test_a_report_goes_between_its_marks(tmp_path, capsys):
    text = "a\n<!-- log table -->\nold\n<!-- end -->\nb\n<!-- agent table -->\nold\n<!-- end -->\nc\n"
    assert table.put_in(text, {"log": "| 1 |", "agent": "| 2 |"}) == (
        "a\n<!-- log table -->\n| 1 |\n<!-- end -->\nb\n<!-- agent table -->\n| 2 |\n<!-- end -->\nc\n"
    )
    with pytest.raises(UsageError, match="agent table"):
        table.put_in(text.replace("agent", "other"), {"log": "| 1 |", "agent": "| 2 |"})
    both = {"log": "| 1 |", "agent": "| 2 |"}
    for empty in (
        text.replace("old\n", ""),
        "<!-- agent table -->\n<!-- end -->\nPROSE\n<!-- log table -->\nold\n<!-- end -->\n",
    ):
        filled = table.put_in(empty, both)
        assert filled == table.put_in(filled, both) and "| 1 |" in filled and "| 2 |" in filled
        assert [line for line in filled.splitlines() if "|" not in line] == [x for x in empty.splitlines() if x != "old"]


def test_a_report_that_cannot_be_made_leaves_the_file_as_it_was(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "TABLES", {"log": report.TABLES["log"]})
    (tmp_path / "readme.md").write_text("no marks\n")
    for more, word in (
        (["--runs", str(tmp_path), "--into", str(tmp_path / "readme.md")], "no finished run"),
        (["--runs", str(RESULTS), "--into", str(tmp_path / "none.md")], "none.md cannot be read"),
        (["--runs", str(RESULTS), "--into", str(tmp_path / "readme.md")], "the file needs one <!-- log table -->"),
    ):
        assert report.main([str(TABLE), *more]) == 2
        error = capsys.readouterr().err
        assert word in error and error.count("\n") == 1
    assert (tmp_path / "readme.md").read_text() == "no marks\n"
    (tmp_path / "readme.md").write_text("<!-- log table -->\n<!-- end -->\n")
    assert report.main([str(TABLE), "--runs", str(RESULTS), "--into", str(tmp_path / "readme.md")]) == 0
    assert "keycorridor-default" in (tmp_path / "readme.md").read_text()


def test_means_over_two_or_three_runs_come_with_the_runs_and_those_over_more_with_an_interval():
    results = [table.Outcome(30, 0.9, 0.8, 0.4, 14_000_000, 1, 0, 0.5), table.Outcome(30, 0.5, None, 0.1, None, 0, 0, 1.25)]
    assert table._cells(results[:1]) == ["0.90", "0.800", "0.40", "14.0", "1 (back 0)", "0.5"]
    success, returns, area, *others = table._cells(results)
    assert success == "0.70 (0.90, 0.50)" and returns == "0.400 (0.800, 0.000)" and area == "0.25 (0.40, 0.10)"
    assert others == ["14.0, –", "1 (back 0), 0", "0.5, 1.2"]
    assert table._cells([*results, results[0]])[0] == "0.77 (0.90, 0.50, 0.90)"
    low, high = re.fullmatch(r"0.70 \((.*) to (.*)\)", table._cells(results * 2)[0]).groups()
    assert 0.5 <= float(low) < 0.7 < float(high) <= 0.9


def test_the_shipped_logs_hold_nineteen_falls_in_seven_runs():
    """Counted apart from production code, row by row of the files."""
    falls = {}
    for run in OF_THE_PAGE:
        high = None
        with gzip.open(run / "logs.csv.gz", "rt", newline="") as file:
            for row in csv.DictReader(file):
                if float(row["episodes"]) < 3:
                    continue
                frames, rate = int(row["frames"]), float(row["success_rate"])
                if rate >= 0.9:
                    high = frames
                elif rate <= 0.3 and high is not None and frames - high <= 1_000_000:
                    falls[run.name] = falls.get(run.name, 0) + 1
                    high = None
    assert (sum(falls.values()), len(falls)) == (19, 7) and falls["keycorridor-as-published-3"] == 4
    stated = {row[0]: row[6] for row in page_table("log")[2:]}
    counted = {name: [int(cell.split()[0]) for cell in cells.split(", ")] for name, cells in stated.items()}
    for run in OF_THE_PAGE:
        name, seed = run.name.rsplit("-", 1)
        assert counted[name][int(seed) - 1] == falls.get(run.name, 0), run.name


@pytest.mark.slow
def test_the_page_compares_like_with_like_and_says_what_the_curves_show(tmp_path):
    """Ours and the published curve, over the same windows: where each first is above 0.8, and where it ends."""
    groups = ("keycorridor-default", "keycorridor-default-clock", "keycorridor-as-published")
    runs = [str(RESULTS / f"{name}-{seed}") for name in groups for seed in (1, 2, 3)]
    out, numbers_of = tmp_path / "curves.svg", tmp_path / "curves.json"
    more = ["--by", "experiment", "--panels", "none", "--window", "200000", "--out", str(out), "--json", str(numbers_of)]
    assert plot.main([*runs, str(RESULTS / "published" / "published-KeyCorridorS3R3.csv"), *more]) == 0
    (panel,) = json.loads(numbers_of.read_text())["panels"]
    *ours, published = [(np.array(c["x"], float) / 1e6, np.array(c["value"], float)) for c in panel["curves"]]
    firsts, ends = [x[np.flatnonzero(y > 0.8)[0]] for x, y in ours], [y[-1] for _, y in ours]
    page = " ".join((RESULTS / "README.md").read_text().split())
    for text in [f"{first:.1f}" for first in firsts] + [", ".join(f"{end:.2f}" for end in ends[:2]) + f" and {ends[2]:.2f}"]:
        assert text in page
    x, y = published
    first, stays = x[np.flatnonzero(y > 0.8)[0]], x[np.flatnonzero(y <= 0.8)[-1] + 1]
    assert f"the published one after {first:.0f} million, and stays from {stays:.0f} million on" in page
    first, stays = x[np.flatnonzero(y > 0.9)[0]], x[np.flatnonzero(y <= 0.9)[-1] + 1]
    assert f"above 0.9 after {first:.0f} million and stays from {stays:.0f} million on" in page

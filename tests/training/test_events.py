"""TensorBoard's events: means over the time since the last point, so that nothing that happened is left out."""

from __future__ import annotations

import csv
import math

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from main import command as command_module
from main import main as entry
from main.training import beside
from tests.helpers.marks import some
from tests.helpers.program import command
from torchbeast.core import checkpoint
from utils_folder.motivations import MOTIVATIONS

COLUMNS = command_module.declared().columns


def points(run, name: str) -> list[tuple[int, float]]:
    found = EventAccumulator(str(run / "tensorboard")).Reload()
    return [(event.step, event.value) for event in found.Scalars(name)] if name in found.Tags()["scalars"] else []


def rows(run) -> list[dict[str, float]]:
    with open(run / "logs.csv", newline="") as file:
        return [{name: float(cell or "nan") for name, cell in row.items()} for row in csv.DictReader(file)]


def joined(name: str, some: list[dict[str, float]]) -> float:
    """Slowly, by what the column declares."""
    some = [row for row in some if not math.isnan(row[name])]
    if COLUMNS[name].join in ("last", "sum"):
        return some[-1][name] if COLUMNS[name].join == "last" else sum(row[name] for row in some)
    weights = [1 if COLUMNS[name].join == "mean" else row[COLUMNS[name].join] for row in some]
    return sum(w * row[name] for w, row in zip(weights, some)) / sum(weights)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 0.2, 1000.0])
@pytest.mark.parametrize("model", some(MOTIVATIONS))
def test_each_point_is_of_all_rows_since_the_last(tmp_path, monkeypatch, model, seconds):
    monkeypatch.setattr(beside, "SCALARS_SECONDS", seconds)
    args = ("--model", model, "--num_actor_processes", "0", "--seed", "2", "--env", "MiniGrid-Empty-Random-5x5-v0")
    assert entry.main(command(tmp_path, *args, "--total_frames", "2400")) == 0
    run, table = tmp_path / "run", rows(tmp_path / "run")
    ends = [int(value) for _, value in points(run, "frames")]
    assert ends[-1] == table[-1]["frames"], "the last rows of a run count too"
    assert len(ends) == {0.0: len(table), 1000.0: 2}.get(seconds, len(ends))
    for name in table[0].keys() - {"# _tick", "_time"}:
        expected, begin = [], 0
        for end in ends:
            some = [row for row in table if begin < row["frames"] <= end]
            if any(not math.isnan(row[name]) for row in some):
                expected.append((end, joined(name, some)))
            begin = end
        assert points(run, name) == [(end, pytest.approx(value, rel=1e-5, abs=1e-9)) for end, value in expected], name
    assert points(run, "mean_episode_return")


def test_the_table_of_runs_has_what_defines_the_experiment_and_its_success(tmp_path):
    args = ("--num_actor_processes", "0", "--seed", "2", "--env", "MiniGrid-Empty-Random-5x5-v0", "--total_frames", "2400")
    assert entry.main(command(tmp_path, *args)) == 0
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    content = {tag: found.SummaryMetadata(tag).plugin_data.content for tag in found.Tags()["tensors"] if "hparams" in tag}
    start = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG]).hparams
    assert start["seed"].number_value == 2 and start["use_lstm"].bool_value is False
    assert start["env"].string_value == "MiniGrid-Empty-Random-5x5-v0" and start["env_args"].string_value == "unset"
    assert not start.keys() & {"xpid", "savedir", "checkpoint_minutes", "weight_path"}
    table = metadata.parse_experiment_plugin_data(content[metadata.EXPERIMENT_TAG])
    assert {info.name for info in table.hparam_infos} == start.keys()
    assert [info.name.tag for info in table.metric_infos] == ["final_success"]
    (last,) = points(tmp_path / "run", "final_success")
    returns = checkpoint.load(tmp_path / "run" / "model.tar")["recent_returns"]
    assert last == (2400, pytest.approx(sum(r > 0 for r in returns) / len(returns)))


def test_a_run_without_an_episode_has_no_success(tmp_path):
    assert entry.main(command(tmp_path, "--num_actor_processes", "0", "--total_frames", "24")) == 0
    assert points(tmp_path / "run", "frames") and not points(tmp_path / "run", "final_success")

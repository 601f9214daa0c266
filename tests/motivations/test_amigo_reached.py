"""Goals that the student reached, and those that the exchange of levels at an episode's end reached: logged apart."""

from __future__ import annotations

import csv

import pytest
import torch

from main import main as entry
from main.training.learner import Learner
from tests.helpers.program import command
from utils_folder.motivations.amigo import Amigo


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--modify"], ["--modify", "--restart_episode"], ["--no_boundary_awareness", "--modify"]])
def test_each_way_is_logged_apart(tmp_path, monkeypatch, more):
    """Whether a step ended the episode by itself is asked of the environment, before a goal can end it."""
    expected = []
    learn = Learner.learn

    def see(self, batch, seen):
        reached, own_end = batch["reached"][1:], batch["done"][1:].clone()
        if "--restart_episode" in more:  # Empty ends by itself only when it is solved or the limit is there
            own_end &= (batch["reward"][1:] > 0) | (batch["episode_step"][1:] == 4 * 5 * 5)
        expected.append([(reached & kind).float().mean().item() for kind in (~own_end, own_end)])
        return learn(self, batch, seen)

    monkeypatch.setattr(Learner, "learn", see)
    args = ("--num_actor_processes", "0", "--seed", "1", "--env", "MiniGrid-Empty-Random-5x5-v0", "--total_frames", "4800")
    assert entry.main(command(tmp_path, *args, *more)) == 0
    with open(tmp_path / "run" / "logs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    logged = [[float(row[f"goals_reached_{kind}"]) for kind in ("inside", "at_end")] for row in rows]
    assert logged == [pytest.approx(row) for row in expected]
    assert all(float(row["goals_reached"]) == pytest.approx(sum(parts)) for row, parts in zip(rows, logged))
    inside, at_end = (sum(parts) for parts in zip(*logged))
    assert inside > 0 and (at_end == 0) == ("--no_boundary_awareness" in more)


def test_the_field_that_tells_is_there_only_where_it_is_needed(tmp_path, monkeypatch):
    fields = []
    learn = Amigo.learn
    monkeypatch.setattr(Amigo, "learn", lambda self, batch: fields.append("restarted" in batch) or learn(self, batch))
    for name, more in (("plain", []), ("restart", ["--restart_episode"])):
        assert entry.main(command(tmp_path / name, "--num_actor_processes", "0", "--total_frames", "24", *more)) == 0
    assert fields == [False, True]


@pytest.mark.parametrize("more", [[], ["--restart_episode"]])
def test_a_run_of_a_version_without_these_counts_goes_on(tmp_path, more, caplog):
    """Its log gets the columns, once; its curriculum stays counted as it was."""
    args = ("--num_actor_processes", "0", "--seed", "1", "--env", "MiniGrid-Empty-Random-5x5-v0", "--modify", *more)
    assert entry.main(command(tmp_path, *args)) == 0
    run = tmp_path / "run"
    for file, mark in (("logs.csv", "# "), ("fields.csv", "")):
        lines = (run / file).read_text().splitlines()
        assert lines[0].removeprefix(mark).split(",")[-2:] == ["goals_reached_inside", "goals_reached_at_end"]
        (run / file).write_text("".join(",".join(line.split(",")[:-2]) + "\n" for line in lines))
    state = torch.load(run / "model.tar", weights_only=True)
    del state["curriculum"]["at_end"]
    if more:
        del state["source"]["actor"]["observed"]["restarted"], state["source"]["rollouts"]["restarted"]
    torch.save(state, run / "model.tar")
    assert entry.main(["--resume", str(run), "--total_frames", "960"]) == 0
    assert "goals_reached_inside, goals_reached_at_end, which are younger than the run" in (run / "out.log").read_text()
    with open(run / "logs.csv", newline="") as file:
        cells = [[row[f"goals_reached{kind}"] for kind in ("", "_inside", "_at_end")] for row in csv.DictReader(file)]
    assert len(cells) == 40 and all(whole and not (inside or at_end) for whole, inside, at_end in cells[:20])
    assert all(float(whole) == pytest.approx(float(inside) + float(at_end)) for whole, inside, at_end in cells[20:])
    assert "at_end" not in torch.load(run / "model.tar", weights_only=True)["curriculum"]

"""What a video shows of an agent of every variant; what it shows of a goal or of novelty is tested with those."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from gym_minigrid.minigrid import IDX_TO_COLOR, IDX_TO_OBJECT, OBJECT_TO_IDX
from torch import nn

from main.playing import film
from main.playing.trained import Trained
from main.training import recipe
from tests.helpers.marks import some
from tests.helpers.playing import load, play, train, watch
from tests.helpers.views import plain_cells_in_view, plain_seen_cells
from torchbeast.core import checkpoint
from utils_folder import video
from utils_folder.motivations import MOTIVATIONS

OUTCOMES = {"task solved", "time is up", "episode over"}


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_video_has_every_state_of_its_episodes(trained, tmp_path, monkeypatch, suffix, capsys):
    path = tmp_path / f"episodes{suffix}"
    more = ["--num_episodes", "1", "--record_video", "--video_episodes", "3", "--video_path", str(path), "--seed", "9"]
    monkeypatch.setattr(video, "MAX_TILE", 20)  # large ones are drawn slowly
    assert play(trained / "model.tar", *more) == 0
    _, episodes = watch(trained / "model.tar", 3, "--seed", "9")
    steps = [len(episode) - 1 for episode in episodes]
    assert f"3 episode(s), steps: {', '.join(map(str, steps))}\n" in capsys.readouterr().out
    pictures = iio.imread(path)
    assert pictures.shape[-1] == 3 and pictures.std() > 10
    assert pictures.shape[1] % 2 == pictures.shape[2] % 2 == 0
    if suffix == ".mp4":  # a gif merges equal pictures
        assert len(pictures) == sum(max(1, round(seen.seconds * video.FPS)) for episode in episodes for seen in episode)
    else:
        assert path.stat().st_size < 3000 * len(pictures)


def test_a_picture_of_every_variant_is_drawn(every_trained, monkeypatch):
    monkeypatch.setattr(video, "MAX_TILE", 20)
    pictures = []

    def show(picture, seconds):
        pictures.append(picture)
        if len(pictures) == 3:
            raise StopIteration

    with pytest.raises(StopIteration):
        film.watch(load(every_trained / "model.tar"), 1, show)
    assert len({picture.shape for picture in pictures}) == 1 and all(picture.std() > 10 for picture in pictures)
    assert any((pictures[0] != picture).any() for picture in pictures[1:])


@pytest.mark.slow
def test_each_episode_is_counted_from_its_own_start_and_ends_with_its_outcome(every_trained):
    _, episodes = watch(every_trained / "model.tar", 16)
    outcomes = set()
    for *states, end in episodes:
        assert [int(seen.lines["step"]) for seen in (*states, end)] == list(range(len(states) + 1))
        assert {seen.lines["return"] for seen in states} == {"0.000"}
        assert not states[0].badges and states[0].lines["intrinsic reward"] == "0.000"
        np.testing.assert_array_equal(end.frame, states[-1].frame)
        assert end.goal == states[-1].goal and end.panel.bars == states[-1].panel.bars
        solved = float(end.lines["return"]) > 0
        assert end.badges[-1] == ("task solved" if solved else "time is up")
        assert solved or len(states) == 100
        assert end.seconds >= 2 and end.lines["extrinsic reward"] == end.lines["return"]
        assert not any(badge in OUTCOMES for seen in states for badge in seen.badges)
        outcomes.add(solved)
    assert outcomes == {True, False}


def test_goals_reached_are_counted_where_there_are_goals_and_each_is_seen_longer(every_trained):
    _, episodes = watch(every_trained / "model.tar", 4)
    for *states, _ in episodes:
        reached = 0
        for seen in states:
            assert len(seen.badges) <= 1 and seen.seconds == (film.EVENT_SECONDS if seen.badges else 0)
            reached += len(seen.badges)
            assert seen.lines.get("goals reached") == (None if seen.goal is None else str(reached))


def test_the_lines_are_the_same_in_every_picture(every_trained):
    _, episodes = watch(every_trained / "model.tar", 2)
    labels = {tuple(seen.lines) for episode in episodes for seen in episode}
    assert len(labels) == 1
    (labels,) = labels
    assert labels[:2] == ("step", "return") and labels[-1] == "student's value"


def test_the_caption_says_which_episode_of_how_many_and_what_it_asks_for(every_trained):
    _, episodes = watch(every_trained / "model.tar", 2)
    assert [{seen.caption for seen in episode} for episode in episodes] == [
        {"episode 1 of 2: get to the green goal square"},
        {"episode 2 of 2: get to the green goal square"},
    ]


def test_each_episodes_mission_is_its_own(trained):
    _, episodes = watch(trained / "model.tar", 6, "--env", "MiniGrid-Fetch-5x5-N2-v0")
    missions = set()
    for episode in episodes:
        (caption,) = {seen.caption for seen in episode}
        there = {f"{IDX_TO_COLOR[colour]} {IDX_TO_OBJECT[kind]}" for kind, colour, _ in episode[0].frame.reshape(-1, 3)}
        *_, colour, kind = caption.split()
        assert f"{colour} {kind}" in there
        missions.add(f"{colour} {kind}")
    assert len(missions) > 2


def test_what_the_agent_carries_is_said(trained):
    _, episodes = watch(trained / "model.tar", 8, "--env", "MiniGrid-DoorKey-5x5-v0")
    carried = set()
    for *states, _ in episodes:
        for seen in states:
            key_lies = OBJECT_TO_IDX["key"] in seen.frame[..., 0]
            assert seen.lines["carries"] == ("nothing" if key_lies else "yellow key")
            carried.add(seen.lines["carries"])
    assert len(carried) == 2


@pytest.mark.parametrize("model", some(MOTIVATIONS))
def test_of_a_partial_view_the_cells_are_lit_and_it_is_said_whether_the_goal_is_among_them(tmp_path, model):
    """11 x 6 cells and a door that hides; a goal behind it is in view, as it is told to the student."""
    weights = train(tmp_path, "--model", model, "--student_view", "partial", "--env", "MiniGrid-ObstructedMaze-1Dl-v0")
    _, episodes = watch(weights / "model.tar", 1)
    said = Counter()
    for seen in episodes[0]:
        np.testing.assert_array_equal(seen.cells, plain_seen_cells(seen.frame))
        said[seen.lines.get("goal in view")] += 1
        if seen.goal is not None:
            ((x, y),) = np.argwhere(seen.frame[..., 0] == OBJECT_TO_IDX["agent"])
            pose = torch.tensor([[x, y, int(seen.frame[x, y, 2])]])
            inside = plain_cells_in_view(torch.tensor([seen.goal]), pose, height=6).item() < 49
            assert seen.lines["goal in view"] == ("yes" if inside else "no")
    assert set(said) == ({None} if seen.goal is None else {"yes", "no"})


def test_of_a_full_view_nothing_is_lit(trained):
    _, episodes = watch(trained / "model.tar", 1)
    assert all(seen.cells is None and "goal in view" not in seen.lines for seen in episodes[0])


@pytest.mark.parametrize("engine", ["auto", "compiled"])
def test_whatever_engine_is_asked_for_the_same_games_are_shown(trained, engine):
    """The compiled engine does not know missions, so another one plays what is shown."""
    task = ["--env", "MiniGrid-DoorKey-5x5-v0"]
    agent, episodes = watch(trained / "model.tar", 2, *task, "--engine", engine)
    actor = agent.actor(1, "video")
    row = actor.start()
    assert actor.environment.missions() == [""]
    for *states, _ in episodes:
        for seen in states:
            np.testing.assert_array_equal(seen.frame, row["frame"][0])
            row = actor.advance()


def test_an_episode_that_ends_early_and_unsolved_is_over():
    assert film._outcome(film.Arrival(step=7, total=-1.0), False) == ("episode over", video.BAD)
    assert film._outcome(film.Arrival(step=100), True) == ("time is up", video.BAD)
    assert film._outcome(film.Arrival(step=100, total=0.1), True) == ("task solved", video.GOOD)


def student_of(agent: Trained, weights: Path) -> nn.Module:
    student = recipe.Agent.make(agent.settings, recipe.probe(agent.settings)).student
    student.load_state_dict(checkpoint.load(weights)["model_state_dict"])
    return student


def test_value_probabilities_and_action_are_those_of_the_state_shown(every_trained):
    """Asked again, for each picture, the student says the same of it; and the action leads from it to the next picture."""
    agent, episodes = watch(every_trained / "model.tar", 3)
    student = student_of(agent, every_trained / "model.tar")
    turned, values = 0, set()
    for *states, _ in episodes:
        values |= {seen.lines["student's value"] for seen in states}
        for seen, following in zip(states, [*states[1:], None]):
            inputs = {
                "frame": torch.from_numpy(seen.frame)[None, None],
                "carried_obj": torch.full((1, 1), 1, dtype=torch.uint8),
                "carried_col": torch.full((1, 1), 5, dtype=torch.uint8),
                "done": torch.zeros(1, 1, dtype=torch.bool),
            }
            if seen.goal is not None:
                inputs["goal"] = torch.tensor([[seen.goal]])
            with torch.no_grad():
                outputs, _ = student(inputs, ())
            assert float(seen.lines["student's value"]) == pytest.approx(outputs["baseline"].item(), abs=6e-4)
            labels, shares = zip(*seen.panel.bars)
            assert labels == ("left", "right", "forward", "pickup", "drop", "toggle", "done")
            np.testing.assert_allclose(shares, outputs["policy_logits"].softmax(-1).flatten(), atol=1e-5)
            if following is not None and labels[seen.panel.chosen] in ("left", "right"):
                turned += 1
                x, y = np.argwhere(seen.frame[..., 0] == 10)[0]
                turn = -1 if labels[seen.panel.chosen] == "left" else 1
                assert following.frame[x, y, 2] == (int(seen.frame[x, y, 2]) + turn) % 4
    assert len(values) > 3 and turned > 3

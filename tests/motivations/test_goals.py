"""Goals are cells g = x*H + y: one object on an asymmetric cell, and everyone must name the same cell. W=4, H=5."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gym_minigrid.minigrid import COLOR_TO_IDX, OBJECT_TO_IDX

from models.student import Student
from models.teacher import Teacher
from utils_folder.motivations.goals import (
    cell_contents,
    cell_to_inner,
    inner_to_cell,
    reached_by_change,
    reached_by_standing,
)

W, H = 4, 5
G = W * H
EMPTY = (OBJECT_TO_IDX["empty"], 0, 0)
BALL = (OBJECT_TO_IDX["ball"], COLOR_TO_IDX["blue"], 0)
CELLS = [(x, y) for x in range(W) for y in range(H)]
X, Y = 3, 1  # the mirrored index y*W + x is 7, the cell's is 16


def frame_with(contents=None, x=X, y=Y, E=1, k=1):
    """uint8 [E, W, H, 3k]: empty but for one cell of the newest frame."""
    frame = np.tile(np.array(EMPTY, np.uint8), (E, W, H, k))
    if contents is not None:
        frame[:, x, y, -3:] = contents
    return frame


# -- the same cell for teacher, student and reach test ----------------------------------------------------------------


@pytest.mark.parametrize("x, y", [(X, Y), (0, 4), (2, 3)])
def test_the_teachers_logit_is_the_cells(x, y):
    """Convolutions that look at their centre only: the one cell that is different has the one logit that is different."""
    torch.manual_seed(5)
    teacher = Teacher((W, H, 3))
    for parameter in teacher.extract_representation.parameters():
        if parameter.dim() == 4:
            centre = parameter.data[:, :, 1, 1].clone()
            parameter.data.zero_()
            parameter.data[:, :, 1, 1] = centre * 3
    with torch.no_grad():
        logits, _ = teacher(torch.from_numpy(np.concatenate([frame_with(), frame_with(BALL, x, y)])))
    assert logits.shape == (2, G)
    assert (logits[0] == logits[0, 0]).all()
    assert torch.nonzero(logits[0] != logits[1]).flatten().tolist() == [x * H + y]


def test_the_students_goal_channel_marks_the_cell():
    """Against convolutions over a map that is drawn by hand, as image[row y, column x]."""
    torch.manual_seed(6)
    student = Student((W, H, 3), 7, goal_conditioned=True)
    tables = (student.embed_object, student.embed_color, student.embed_contains)
    empty = torch.cat([table.weight[index] for table, index in zip(tables, EMPTY)])
    carried = torch.cat([student.embed_object.weight[1], student.embed_color.weight[5]])
    inputs = {
        "frame": torch.from_numpy(frame_with(E=G))[None],
        "carried_obj": torch.full((1, G), 1, dtype=torch.uint8),
        "carried_col": torch.full((1, G), 5, dtype=torch.uint8),
        "goal": torch.arange(G)[None],
    }
    weights = student.state_dict()
    with torch.no_grad():
        logits = student(inputs)[0]["policy_logits"][0]
        expected = []
        for x, y in CELLS:
            image = torch.zeros(1, 11, H, W)
            image[0, :10] = empty[:, None, None]
            image[0, 10, y, x] = 1.0
            for index in (0, 2, 4, 6, 8):
                kernel, bias = (weights[f"feat_extract.{index}.{part}"] for part in ("weight", "bias"))
                image = F.elu(F.conv2d(image, kernel, bias, stride=2, padding=1))
            expected.append(student.policy(student.fc(torch.cat([image.flatten(), carried]))))
    expected = torch.stack(expected)
    assert torch.allclose(logits, expected, atol=1e-5)
    assert torch.cdist(expected, expected).fill_diagonal_(1).min() > 1e-3  # each cell gives logits of its own


@pytest.mark.parametrize("x, y", CELLS)
def test_the_reach_test_looks_at_the_cell(x, y):
    before, after = frame_with(E=G), frame_with(BALL, x, y, E=G)
    reached = reached_by_change(after, before, np.arange(G))
    assert reached.dtype == np.bool_ and reached.shape == (G,)
    assert np.flatnonzero(reached).tolist() == [x * H + y]


@pytest.mark.parametrize("x, y", CELLS)
def test_the_standing_test_looks_at_the_cell(x, y):
    frame = frame_with((OBJECT_TO_IDX["agent"], COLOR_TO_IDX["red"], 2), x, y, E=G)
    reached = reached_by_standing(frame, np.arange(G))
    assert reached.dtype == np.bool_ and reached.shape == (G,)
    assert np.flatnonzero(reached).tolist() == [x * H + y]


# -- what counts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channel", [0, 1, 2])
@pytest.mark.parametrize("change", [1, -1])
def test_any_channel_counts_as_change(channel, change):
    before = frame_with((4, 3, 1))
    after = before.copy()
    after[0, X, Y, channel] += np.array(change).astype(np.uint8)
    assert reached_by_change(after, before, np.array([X * H + Y])).tolist() == [True]
    assert reached_by_change(before, before, np.array([X * H + Y])).tolist() == [False]


def test_environments_are_judged_one_by_one():
    frame, goal_frame = frame_with(E=3), frame_with(E=3)
    frame[1, 2, 4] = BALL
    goals = np.array([2 * H + 4, 2 * H + 4, 1 * H + 2])
    assert reached_by_change(frame, goal_frame, goals).tolist() == [False, True, False]
    frame[2, 1, 2] = OBJECT_TO_IDX["agent"], 0, 3
    assert reached_by_standing(frame, goals).tolist() == [False, False, True]


def test_the_newest_of_stacked_frames_counts():
    g, k = np.array([X * H + Y]), 3
    then = frame_with(k=k)
    older = then.copy()
    older[0, X, Y, :3] = BALL
    older[0, X, Y, 3:6] = OBJECT_TO_IDX["agent"], 0, 1
    newest = then.copy()
    newest[0, X, Y, 6:] = OBJECT_TO_IDX["agent"], 0, 1
    assert not reached_by_change(older, then, g)[0] and reached_by_change(newest, then, g)[0]
    assert not reached_by_standing(older, g)[0] and reached_by_standing(newest, g)[0]
    assert cell_contents(newest, g).tolist() == [[OBJECT_TO_IDX["agent"], 0, 1]]


def test_only_the_agent_stands():
    for kind in set(OBJECT_TO_IDX.values()) - {OBJECT_TO_IDX["agent"]}:
        # The agent's number in another channel is not the agent.
        assert not reached_by_standing(frame_with((kind, OBJECT_TO_IDX["agent"], 0)), np.array([X * H + Y]))[0]


# -- goals inside the outer wall ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("width, height", [(4, 5), (5, 4), (3, 3), (7, 3), (11, 6)])
def test_inner_goals_are_the_cells_inside_the_wall_in_order(width, height):
    inside = [x * height + y for x in range(1, width - 1) for y in range(1, height - 1)]
    indices = np.arange(len(inside))
    assert inner_to_cell(indices, height=height).tolist() == inside
    assert cell_to_inner(np.array(inside), height=height).tolist() == indices.tolist()
    tensors = torch.arange(len(inside))
    assert torch.equal(cell_to_inner(inner_to_cell(tensors, height=height), height=height), tensors)


def test_inner_logits_are_those_of_the_full_teacher():
    torch.manual_seed(7)
    inner, full = Teacher((W, H, 3), inner=True), Teacher((W, H, 3))
    full.extract_representation.load_state_dict(inner.extract_representation.state_dict())
    for name in ("embed_object", "embed_color", "embed_contains"):
        getattr(full, name).load_state_dict(getattr(inner, name).state_dict())
    frame = torch.from_numpy(frame_with(BALL))
    with torch.no_grad():
        logits, everywhere = inner(frame)[0], full(frame)[0]
    assert logits.shape == (1, (W - 2) * (H - 2))
    assert torch.allclose(logits, everywhere[:, inner_to_cell(torch.arange(6), height=H)], atol=1e-6)

"""Networks over the distinct rows of a batch: what they compute, and its gradients, are the plain networks'."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models import distinct as module
from models.distinct import LEAST_ROWS, distinct, over_distinct
from models.novelty import RandomNetwork
from models.student import Student
from models.teacher import Teacher
from tests.helpers.networks import GRIDS, A, assert_same, random_inputs, twins
from tests.helpers.plain_networks import PlainRandomNetwork, PlainStudent, PlainTeacher

T, B = 11, 7
COPIES = {"none": T * B, "some": 13, "only": 1}  # how many distinct rows there are


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def inputs_of(distinct_rows: int, width: int, height: int, k: int = 1) -> dict[str, torch.Tensor]:
    """Rows [T, B, ...] that are drawn from so many, every one of them used; `done` is each row's own."""
    pool = random_inputs(distinct_rows, 1, width, height, k)
    index = torch.cat([torch.arange(distinct_rows), torch.randint(distinct_rows, (T * B - distinct_rows,))])
    index = index[torch.randperm(T * B)]
    drawn = {name: value[index, 0].unflatten(0, (T, B)) for name, value in pool.items()}
    return drawn | {"done": torch.rand(T, B) < 0.3}


def taken(monkeypatch) -> list:
    """How many rows the networks are given from here on."""
    counts = []

    def counted(*columns):
        rows = distinct(*columns)
        counts.append(len(columns[0]) if rows is None else len(rows.first))
        return rows

    monkeypatch.setattr(module, "distinct", counted)
    return counts


@pytest.mark.parametrize("copies", COPIES)
@pytest.mark.parametrize("goal_conditioned, use_lstm", [(True, False), (False, False), (True, True)])
@pytest.mark.parametrize("width, height", GRIDS)
def test_a_student_of_rows_that_repeat_is_its_plain_twin(width, height, goal_conditioned, use_lstm, copies, monkeypatch):
    options = {"goal_conditioned": goal_conditioned, "use_lstm": use_lstm, "hidden_dim": 24}
    fast, plain = (network((width, height, 6), A, **options) for network in (Student, PlainStudent))
    twins(fast, plain)
    inputs, counts = inputs_of(COPIES[copies], width, height, 2), taken(monkeypatch)
    state = tuple(torch.randn_like(s) for s in fast.initial_state(B))
    (ours, _), (theirs, _) = fast(inputs, state), plain(inputs, state)
    assert counts == [COPIES[copies]]
    assert_same(fast, plain, list(ours.values()), list(theirs.values()))


@pytest.mark.parametrize("copies", COPIES)
@pytest.mark.parametrize("width, height", GRIDS)
def test_a_teacher_of_frames_that_repeat_is_its_plain_twin(width, height, copies, monkeypatch):
    fast, plain = Teacher((width, height, 3), inner=True), PlainTeacher((width, height, 3), inner=True)
    twins(fast, plain)
    frame, counts = inputs_of(COPIES[copies], width, height)["frame"].flatten(0, 1), taken(monkeypatch)
    ours = fast(frame)
    assert counts == [COPIES[copies]]
    assert_same(fast, plain, ours, plain(frame))


@pytest.mark.parametrize("copies", COPIES)
@pytest.mark.parametrize("width, height", GRIDS)
def test_a_random_network_of_rows_that_repeat_is_its_plain_twin(width, height, copies):
    fast, plain = RandomNetwork((width, height, 3)), PlainRandomNetwork((width, height, 3))
    twins(fast, plain)
    inputs = inputs_of(COPIES[copies], width, height)
    columns = [inputs[name].flatten(0, 1) for name in ("frame", "carried_obj", "carried_col")]
    names = ("frame", "carried_obj", "carried_col")
    ours = over_distinct(lambda *seen: fast(dict(zip(names, seen))), *columns).unflatten(0, (T, B))
    assert_same(fast, plain, [ours], [plain(inputs)])


def test_a_row_differs_by_any_of_its_columns():
    """One bit of each column in turn; columns of every dtype that the networks read."""
    count = 4 * LEAST_ROWS
    columns = [torch.zeros(count, 5, 3, dtype=torch.uint8), torch.zeros(count, dtype=torch.int64), torch.zeros(count, 2)]
    for i, column in enumerate(columns, 1):
        column.view(count, -1)[i, -1] = 1
    rows = distinct(*columns)
    assert rows.first.tolist() == [0, 1, 2, 3] and rows.group.tolist() == [0, 1, 2, 3] + [0] * (count - 4)


@pytest.mark.parametrize("worst", ["all equal", "full", "three of them"])
def test_rows_of_one_hash_are_compared(monkeypatch, worst):
    """With a hash that is the same of all rows, or of many, each row is still in the group of its equals."""
    pool = torch.randint(256, (40, 9), dtype=torch.uint8)
    rows = pool[torch.randint(40, (3 * LEAST_ROWS,))]
    asked = []

    def bad(words, factors):
        asked.append(len(words))
        some = words[:, 0]
        return {"all equal": some * 0, "full": some | np.uint64(2**64 - 1), "three of them": some % 3}[worst]

    monkeypatch.setattr(module, "_hashes", bad)
    first, group = distinct(rows)
    assert asked == [len(rows)]
    assert torch.equal(rows[first][group], rows)
    assert len(first) == len(torch.unique(rows, dim=0)) and (first.diff() > 0).all()


def test_nothing_is_done_where_nothing_is_gained(monkeypatch):
    assert distinct(torch.zeros(LEAST_ROWS - 1, 3)) is None
    assert distinct(torch.arange(2 * LEAST_ROWS)) is None
    assert distinct(torch.zeros(2 * LEAST_ROWS, 3, device="meta")) is None
    x = torch.arange(2 * LEAST_ROWS)
    assert over_distinct(lambda x: x, x) is x

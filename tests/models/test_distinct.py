"""Networks over the distinct rows of a batch: what they compute, and its gradients, are the plain networks'."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models import distinct as module
from models.distinct import LEAST_ROWS, MULTIPLE, Known, Rows, over_distinct
from models.grid import COLOURS, GridConvolutions
from models.novelty import RandomNetwork
from models.student import Student
from models.teacher import Teacher
from tests.helpers.networks import GRIDS, A, assert_same, random_inputs, twins
from tests.helpers.plain_networks import PlainRandomNetwork, PlainStudent, PlainTeacher

T, B = 11, 7
COPIES = {"none": T * B, "some": 13, "only": 1}  # how many distinct rows there are
COMPUTED = {"none": T * B, "some": MULTIPLE, "only": MULTIPLE}  # and how many are computed


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
    """How many rows the network's convolutions are given from here on."""
    counts, forward = [], GridConvolutions.forward
    monkeypatch.setattr(GridConvolutions, "forward", lambda *args: counts.append(len(args[1])) or forward(*args))
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
    assert counts == [COMPUTED[copies]]
    assert_same(fast, plain, list(ours.values()), list(theirs.values()))


@pytest.mark.parametrize("copies", COPIES)
@pytest.mark.parametrize("width, height", GRIDS)
def test_a_teacher_of_frames_that_repeat_is_its_plain_twin(width, height, copies, monkeypatch):
    fast, plain = Teacher((width, height, 3), inner=True), PlainTeacher((width, height, 3), inner=True)
    twins(fast, plain)
    frame, counts = inputs_of(COPIES[copies], width, height)["frame"].flatten(0, 1), taken(monkeypatch)
    ours = fast(frame)
    assert counts == [COMPUTED[copies]]
    assert_same(fast, plain, ours, plain(frame))


@pytest.mark.parametrize("copies", COPIES)
@pytest.mark.parametrize("width, height", GRIDS)
def test_a_random_network_of_rows_that_repeat_is_its_plain_twin(width, height, copies, monkeypatch):
    fast, plain = RandomNetwork((width, height, 3)), PlainRandomNetwork((width, height, 3))
    twins(fast, plain)
    inputs = inputs_of(COPIES[copies], width, height)
    names, counts = ("frame", "carried_obj", "carried_col"), taken(monkeypatch)
    columns = [inputs[name].flatten(0, 1) for name in names]
    pair = columns[1].long() * COLOURS + columns[2]
    ours = over_distinct(lambda *seen: fast(dict(zip(names, seen))), columns, columns[0], pair).unflatten(0, (T, B))
    assert counts == [COMPUTED[copies]]
    assert_same(fast, plain, [ours], [plain(inputs)])


def test_a_row_differs_by_any_of_its_bytes():
    """One bit of the frame or of the number beside it; frames of every length, so that none ends where a word does."""
    for size in range(1, 20):
        frame, others = np.zeros((4 * size + 6, size), np.uint8), np.zeros(4 * size + 6, np.int64)
        for i in range(size):
            frame[i + 1, i] = 128
        others[size + 1], others[size + 2] = 1, 2**62
        first, group = Rows(len(frame), size).find(frame, others)
        assert first.tolist() == list(range(size + 3)) and group.tolist() == [*range(size + 3), *[0] * (3 * size + 3)]


@pytest.mark.parametrize("worst", [0, 1, 2**63])
def test_rows_of_one_hash_are_compared(monkeypatch, worst):
    """With a hash that is the same of all rows, or of many, each row is still in the group of its equals."""
    asked = []
    monkeypatch.setattr(module, "_factors", lambda count: asked.append(count) or np.full(count, worst, np.uint64))
    random = np.random.default_rng(0)
    pool = random.integers(256, size=(40, 9), dtype=np.uint8)
    rows = pool[random.integers(40, size=3 * LEAST_ROWS)]
    first, group = Rows(len(rows), 9).find(rows, np.zeros(len(rows), np.int64))
    assert len(asked) == 1
    assert np.array_equal(rows[first][group], rows)
    assert len(first) == len(np.unique(rows, axis=0)) and (np.diff(first) > 0).all()


@pytest.mark.parametrize("worst", [None, 0])
@pytest.mark.parametrize("capacity", [10, 60, 200])
def test_rows_that_are_kept_are_found_and_the_others_are_new(monkeypatch, capacity, worst):
    if worst is not None:
        monkeypatch.setattr(module, "_factors", lambda count: np.full(count, worst, np.uint64))
    random = np.random.default_rng(0)
    frame, others = random.integers(256, size=(60, 13), dtype=np.uint8), random.integers(2**62, size=60)
    rows = Rows(60, 13)
    rows.find(frame, others)
    which = random.random(60) < 0.6
    rows.keep(which, capacity)
    kept, new = np.flatnonzero(which), np.flatnonzero(~which)
    assert rows.capacity == max(60, capacity) and rows.found == len(kept)
    assert all(map(np.array_equal, rows.content(), (frame[kept], others[kept])))
    order = random.permutation(60)
    first, group = rows.find(frame[order], others[order])
    assert set(order[first].tolist()) == set(new.tolist())
    assert group[np.argsort(order)][kept].tolist() == list(range(len(kept)))
    assert np.array_equal(rows.content()[0][group], frame[order])


@pytest.mark.parametrize("capacity", [40, 80, 4096])
def test_what_is_known_is_not_computed_again(capacity, monkeypatch):
    """Step by step as an actor asks, with room for one step, for some, and for all; results are the function's own."""
    monkeypatch.setattr(module, "MOST_KNOWN", capacity)
    random, asked, seen = np.random.default_rng(0), [], set()
    pool, numbers = random.integers(256, size=(60, 5, 3), dtype=np.uint8), random.integers(3, size=60)

    def rows(frame, number):
        return [frame[i].tobytes() + bytes([number[i]]) for i in range(len(frame))]

    def compute(frame, number, places):
        asked.extend(rows(frame[places], number[places]))
        return np.stack([frame[places].sum((1, 2)), number[places]], 1).astype(np.float32)

    known = Known(compute)
    for _ in range(20):
        index = random.integers(60, size=40)
        frame, number = pool[index], numbers[index]
        assert np.array_equal(known(frame, number, number), compute(frame, number, np.arange(40)))
        del asked[-40:]
        seen.update(rows(frame, number))
    assert set(asked) == seen
    assert (len(asked) == len(seen)) == (capacity == 4096)
    assert len(asked) < 20 * 40


def test_few_numbers_of_rows_are_computed():
    """oneDNN compiles each product once for each of them: of 808 rows there are 22 and not some hundreds."""
    counts = set()
    for distinct in range(1, 809):
        numbers = torch.arange(808) % distinct
        found = over_distinct(lambda x: counts.add(len(x)) or x, [numbers], torch.zeros(808, 1, dtype=torch.uint8), numbers)
        assert torch.equal(found, numbers)
    assert counts == {*range(MULTIPLE, int(0.9 * 808), MULTIPLE), 808}


def test_nothing_is_done_where_nothing_is_gained():
    """The function is given the very rows: few ones, ones of which nearly all are distinct, ones on another device."""
    few = torch.zeros(LEAST_ROWS - 1, 3, dtype=torch.uint8)
    numbers = torch.arange(2 * LEAST_ROWS)
    zeros = torch.zeros(2 * LEAST_ROWS, 3, dtype=torch.uint8)
    for frame, others in ((few, None), (zeros, numbers), (zeros.to("meta"), numbers.to("meta"))):
        assert over_distinct(lambda x: x, [frame], frame, others) is frame

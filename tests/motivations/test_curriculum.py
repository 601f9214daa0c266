"""Counts of goals over training, against a plain count of the same rollouts."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from tests.helpers.curriculum import TASK, B, T, batches, seen
from torchbeast.core import forms
from utils_folder.motivations import curriculum
from utils_folder.motivations.curriculum import MOMENTS, NAMES, NAMES_APART, Curriculum

PROPOSED, INSIDE, AT_END = range(3)


def plain_counts(rollouts) -> tuple[Counter, int]:
    """How often each (what, where or how far or what kind) was proposed and reached, entry by entry; and the steps."""
    counts: Counter = Counter()
    steps = 0
    for batch in rollouts:
        for t in range(1, T + 1):
            for b in range(B):
                done, reached = bool(batch["done"][t, b]), bool(batch["reached"][t, b])
                if not (done or reached):
                    continue
                at_end = done and not ("restarted" in batch and batch["restarted"][t, b])
                goal, frame = int(batch["goal"][t - 1, b]), batch["goal_frame"][t - 1, b][..., -3:]
                x, y = divmod(goal, frame.shape[1])
                ((agent_x, agent_y),) = (frame[..., 0] == 10).nonzero().tolist()
                about = [("cell", x, y), ("kind", int(frame[x, y, 0])), ("distance", abs(x - agent_x) + abs(y - agent_y))]
                for key in about:
                    counts[(PROPOSED, *key)] += 1
                    counts[(AT_END if at_end else INSIDE, *key)] += reached
                steps += int(batch["goal_step"][t, b]) * reached
    return +counts, steps


def as_counter(history: curriculum.History) -> Counter:
    counts: Counter = Counter()
    for name, values in (("cell", history.cells), ("kind", history.kinds), ("distance", history.distances)):
        for (row, *where), number in np.ndenumerate(values.sum(axis=0)):
            counts[(row, name, *where)] += int(number)
    return +counts


@pytest.mark.parametrize("shape", [(4, 5, 3), (4, 5, 6), (23, 11, 3), (16, 16, 3)], ids=str)
@pytest.mark.parametrize("restarts", [False, True])
def test_counts_are_those_of_a_plain_loop(shape, restarts):
    """Grids of 251 to 255 cells and of more too: cells, kinds and distances are counted in one row."""
    rollouts = batches(20, shape)
    for batch in rollouts if restarts else []:
        batch["restarted"] = batch["reached"] & (torch.rand(batch["reached"].shape) < 0.5)
        batch["done"] |= batch["restarted"]
    history = curriculum.history(seen(rollouts).state_dict())
    counts, steps = plain_counts(rollouts)
    assert sum(counts.values()) > 100
    assert as_counter(history) == counts
    assert history.steps.sum() == steps


def test_a_moment_has_its_own_frames_and_goals_and_the_target_at_its_end():
    rollouts = batches(5)
    history = curriculum.history(seen(rollouts, width=2 * T * B).state_dict())
    assert history.frames.tolist() == [12, 24, 30]
    assert history.target.tolist() == [8, 10, 11]
    for moment in range(3):
        one = history._replace(**{name: getattr(history, name)[[moment]] for name in ("cells", "kinds", "distances")})
        assert as_counter(one) == plain_counts(rollouts[2 * moment : 2 * moment + 2])[0]


def test_a_batch_larger_than_a_moment_steps_over_none():
    rollouts = batches(5)
    history = curriculum.history(seen(rollouts, width=T * B // 3).state_dict())
    assert history.frames.tolist() == [8, 16, 24, 30] and history.target.tolist() == [8, 9, 10, 11]
    assert (history.cells.sum(axis=(1, 2, 3)) > 0).all()
    assert as_counter(history) == plain_counts(rollouts)[0]


def test_a_long_run_takes_no_more_memory_and_loses_no_count():
    rollouts = batches(7)
    counts = Curriculum(TASK.frame_shape)
    counts._width = T * B
    for number in range(2 * MOMENTS + 3):
        counts.see(rollouts[number % len(rollouts)], target=number)
    history = curriculum.history(counts.state_dict())
    assert len(history.frames) == MOMENTS // 2 + 1
    assert history.frames[0] == 4 * T * B and history.frames[-1] == (2 * MOMENTS + 3) * T * B
    assert history.target[:2].tolist() == [3, 7] and history.target[-1] == 2 * MOMENTS + 2
    all_seen = [rollouts[number % len(rollouts)] for number in range(2 * MOMENTS + 3)]
    assert as_counter(history) == plain_counts(all_seen)[0]
    assert (history.example_goals[:, 0, 0] >= 0).all(), "each moment has an example"


def test_examples_are_goals_in_the_frames_they_were_proposed_in():
    (batch,) = batches(1)
    batch["done"][1:], batch["reached"][1:] = False, False
    batch["done"][1, 1], batch["reached"][3, 0] = True, True
    history = curriculum.history(seen([batch]).state_dict())
    both = curriculum.history(seen([{**batch, "done": batch["done"] | batch["reached"]}]).state_dict())
    assert both.example_goals[0, 1, 1] == 2
    first, second = history.example_goals[0].tolist()
    assert first == [batch["goal"][0, 1], 0, batch["goal_step"][1, 1]]
    assert second == [batch["goal"][2, 0], 1, batch["goal_step"][3, 0]]
    assert np.array_equal(history.example_frames[0], torch.stack([batch["goal_frame"][0, 1], batch["goal_frame"][2, 0]]))


def test_it_goes_on_from_its_state():
    rollouts = batches(6)
    whole = seen(rollouts, width=2 * T * B).state_dict()
    part = seen(rollouts[:3], width=2 * T * B).state_dict()
    resumed = Curriculum(TASK.frame_shape)
    resumed.load_state_dict(part)
    for number, batch in enumerate(rollouts[3:], 3):
        resumed.see(batch, target=number + 7)
    for name, values in resumed.state_dict().items():
        assert torch.equal(torch.as_tensor(values), torch.as_tensor(whole[name])), name


def test_a_run_counts_nothing_yet():
    history = curriculum.history(Curriculum(TASK.frame_shape).state_dict())
    assert len(history.frames) == 0 and history.cells.shape == (0, 3, 4, 5)


DAMAGE = {
    "no table": lambda state: [],
    "another size": lambda state: state | {"size": [4, 6]},
    "a size without end": lambda state: state | {"size": [10**6, 10**6]},
    "no width": lambda state: state | {"width": 0},
    "more moments than there are": lambda state: state | {"frames": 10**9},
    "counts that are negative": lambda state: state | {"counts": state["counts"] - 1},
    "more goals than frames": lambda state: state | {"counts": state["counts"] + 10**6},
    "counts of another type": lambda state: state | {"counts": state["counts"].double()},
    "unknown cells": lambda state: state | {"example_frames": state["example_frames"] + 100},
    "goals beyond the grid": lambda state: state | {"example_goals": state["example_goals"] + 100},
    "more reached at the end than reached": lambda state: state | {"at_end": state["at_end"] + 10**3},
    "fates that there are not": lambda state: state | {"example_goals": state["example_goals"] + torch.tensor([0, 3, 0])},
    "a table less": lambda state: {name: value for name, value in state.items() if name != "steps"},
}


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_a_damaged_history_is_refused_by_who_goes_on_with_it_and_who_shows_it(damage):
    state = DAMAGE[damage](seen(batches(5)).state_dict())
    with pytest.raises(forms.EntryError, match="curriculum"):
        Curriculum(TASK.frame_shape).load_state_dict(state)
    with pytest.raises(forms.EntryError, match="curriculum"):
        curriculum.history(state)


def older(state):
    """As a version wrote it that did not count apart what was reached at an episode's end."""
    return {name: value for name, value in state.items() if name != "at_end"}


def test_an_older_history_is_shown_as_it_was_counted_and_goes_on_so():
    rollouts = batches(6)
    whole, first = seen(rollouts).state_dict(), older(seen(rollouts[:3]).state_dict())
    apart, together = curriculum.history(whole), curriculum.history(older(whole))
    assert apart.names == NAMES_APART and together.names == NAMES
    assert apart.cells[:, AT_END].sum() > 0 < apart.cells[:, INSIDE].sum()
    for name in ("cells", "kinds", "distances"):
        both, three = getattr(together, name), getattr(apart, name)
        assert np.array_equal(both, np.stack([three[:, PROPOSED], three[:, INSIDE] + three[:, AT_END]], axis=1)), name
    resumed = Curriculum(TASK.frame_shape)
    for _ in range(2):  # a run loads its checkpoint twice
        resumed.load_state_dict(first)
    for number, batch in enumerate(rollouts[3:], 3):
        resumed.see(batch, target=number + 7)
    assert "at_end" not in resumed.state_dict()
    assert np.array_equal(curriculum.history(resumed.state_dict()).cells, together.cells)

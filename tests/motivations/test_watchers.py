"""What actors note, and whole transitions, on real environments: against lists that are kept by hand."""

from __future__ import annotations

import io
import tracemalloc
from collections import Counter

import numpy as np
import pytest
import torch

from main.training.recipe import make_environments
from models import distinct
from models.distinct import MULTIPLE
from tests.helpers.agents import assert_same_tree, make_settings, random_batch
from tests.helpers.learning import TASK, B, T, learner_settings
from torchbeast.core.environment import LAST
from torchbeast.core.forms import EntryError
from utils_folder.motivations import transitions, watchers
from utils_folder.motivations.watchers import EpisodicCounts, Streams, Watchers

SETTINGS = make_settings(env="MiniGrid-LavaGapS5-v0", env_args='{"max_steps": 9}')


@pytest.mark.parametrize("seen", ["frame", "view"])
@pytest.mark.parametrize("engine", ["compiled", "gym"])
def test_arrivals_are_of_the_episode_that_the_step_was_made_in(engine, seen):
    environment = make_environments(SETTINGS.replace(engine=engine), [1, 2, 3], views=seen == "view")
    shape = (7, 7, 3) if seen == "view" else environment.frame_shape
    counts = EpisodicCounts(3, shape, arrivals=seen)
    environment.keep_last(counts.last_fields)
    random, visited, ends, again = np.random.default_rng(0), [[], [], []], 0, 0
    out = environment.initial()
    counts.observe(out, environment)
    for t in range(150):
        for e in range(3):
            visited[e] += [out[seen][e].copy()]  # of this state's episode, this state included
        if t == 70:  # saved and loaded in the middle of episodes
            state, counts = counts.state_dict(), EpisodicCounts(3, shape, arrivals=seen)
            counts.load_state_dict(state)
        out = environment.step(random.integers(7, size=3))
        (arrivals,) = counts.observe(out, environment).values()
        for e in range(3):
            done = out["done"][e]
            arrived = out[LAST + seen if done else seen][e]
            assert arrivals[e] == 1 + sum(np.array_equal(frame, arrived) for frame in visited[e])
            ends, again = ends + done, again + (done and arrivals[e] > 1)
            visited[e] = [] if done else visited[e]
    assert ends > 30 and again > 3


class PlainCounts:
    """A dictionary of frames for each environment."""

    def __init__(self, num_envs, *, arrivals):
        self.arrivals, self.counts = arrivals, [Counter() for _ in range(num_envs)]

    def count(self, e, frame):
        self.counts[e][frame[..., -3:].tobytes()] += 1
        return self.counts[e][frame[..., -3:].tobytes()]

    def observe(self, out):
        row = []
        for e, counts in enumerate(self.counts):
            last = None
            if out["done"][e]:
                last = self.count(e, out["last_frame"][e])
                counts.clear()
            now = self.count(e, out["frame"][e])
            row.append(last if self.arrivals and out["done"][e] else now)
        return row

    def state_dict(self):
        name = "arrival_counts" if self.arrivals else "counts"
        return {name: [[(frame.hex(), n) for frame, n in counts.items()] for counts in self.counts]}


def wander(steps, *, frames, ends, shape=(4, 5, 6), num_envs=7):
    """Outputs of environments that show some of so many frames, the newest of which is stacked on an older one."""
    random = np.random.default_rng(0)
    pool = random.integers(2, size=(frames, *shape), dtype=np.uint8)
    pool[..., :3] = random.integers(2, size=pool[..., :3].shape)
    for t in range(steps):
        shown = {name: pool[random.integers(frames, size=num_envs)] for name in ("frame", "last_frame")}
        for old in shown.values():
            old[..., :3] = random.integers(2, size=old[..., :3].shape)
        yield shown | {"done": np.full(num_envs, t == 0) | (random.random(num_envs) < ends)}


GAMES = {
    "long episodes": {"frames": 3000, "ends": 0.002},
    "short ones": {"frames": 50, "ends": 0.1},
    "one state each": {"frames": 50, "ends": 1},
    "few states": {"frames": 2, "ends": 0.02},
}


@pytest.mark.parametrize("arrivals", [None, "frame"])
@pytest.mark.parametrize("hashed", ["well", "badly"])
@pytest.mark.parametrize("game", GAMES)
def test_counts_are_those_of_a_dictionary_for_each_environment(game, hashed, arrivals, monkeypatch):
    """Also saved and loaded, from the dictionaries' state too: that is how older checkpoints have been written."""
    if hashed == "badly":
        monkeypatch.setattr(distinct, "_factors", lambda count: np.zeros(count, np.uint64))
    monkeypatch.setattr(watchers, "LEAST_ROOM", 16)
    counts, plain = EpisodicCounts(7, (4, 5, 6), arrivals=arrivals), PlainCounts(7, arrivals=arrivals)
    highest = 0
    for t, out in enumerate(wander(1200 if hashed == "well" else 300, **GAMES[game])):
        (row,) = counts.observe(out, None).values()
        assert row.dtype == np.int32 and row.tolist() == plain.observe(out)
        highest = max(highest, row.max())
        if t % 100 == 99:
            state = plain.state_dict()
            assert counts.state_dict() == state
            if t % 200 == 99:
                counts = EpisodicCounts(7, (4, 5, 6), arrivals=arrivals)
            counts.load_state_dict(state)
    assert highest > (1 if GAMES[game]["ends"] < 1 else 0)


def test_counts_take_room_for_the_states_of_the_present_episodes_only():
    game, taken = wander(6000, frames=5000, ends=0.02, shape=(9, 9, 3)), []
    next(game)  # has the frames ready
    tracemalloc.start()
    counts = EpisodicCounts(7, (9, 9, 3))
    for t, out in enumerate(game):
        counts.observe(out, None)
        if t % 1000 == 998:
            taken.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert len(taken) == 6 and max(taken) < 2000 * 9 * 9 * 3  # of 42,000 states that have been visited; some 350 at a time


def test_counts_of_other_frames_are_refused():
    counts = EpisodicCounts(1, (4, 5, 6))
    for frame in ("00" * 59, "00" * 61, "0g" * 60, "00" * 120):
        with pytest.raises(EntryError, match=r"source/actor/motivation/counts.*60 bytes in hexadecimal"):
            counts.load_state_dict({"counts": [[(frame, 1)]]})


def test_streams_tell_what_goes_on_from_what():
    streams, others = Streams(3, torch.Generator().manual_seed(1)), Streams(3, torch.Generator().manual_seed(2))
    rows = [{name: values.copy() for name, values in streams.observe({}, None).items()} for _ in range(3)]
    assert [row["stream_clock"].tolist() for row in rows] == [[t] * 3 for t in range(3)]
    numbers = {*rows[0]["stream_id"].tolist(), *others.observe({}, None)["stream_id"].tolist()}
    assert len(numbers) == 6 and np.array_equal(rows[0]["stream_id"], rows[2]["stream_id"])
    file = io.BytesIO()
    torch.save(streams.state_dict(), file)
    file.seek(0)
    others.load_state_dict(torch.load(file, weights_only=True))
    assert_same_tree(others.state_dict(), streams.state_dict())
    assert others.observe({}, None)["stream_clock"].tolist() == [3] * 3
    with pytest.raises(EntryError, match="source/actor/motivation/stream_clock"):
        others.load_state_dict({**streams.state_dict(), "stream_clock": torch.tensor([0, -1, 2])})


def test_several_watchers_are_one():
    environment = make_environments(SETTINGS, [1, 2], views=True)

    def make():
        shapes = {None: environment.frame_shape, "frame": environment.frame_shape, "view": (7, 7, 3)}
        counts = [EpisodicCounts(2, shape, arrivals=arrivals) for arrivals, shape in shapes.items()]
        return Watchers(*counts, Streams(2, torch.Generator().manual_seed(1)))

    watchers, other = make(), make()
    assert watchers.last_fields == ("frame", "view")
    environment.keep_last(watchers.last_fields)
    row = watchers.observe(environment.initial(), environment)
    assert set(row) == {"visits", "arrivals", "view_arrivals", "stream_id", "stream_clock"}
    other.load_state_dict(watchers.state_dict())
    assert_same_tree(other.state_dict(), watchers.state_dict())
    for wrong in ({"more": 1}, {"counts": None}):
        with pytest.raises(EntryError):
            other.load_state_dict({**watchers.state_dict(), **wrong})


@pytest.mark.parametrize("view", ["full", "partial"])
def test_a_transition_ends_in_the_last_state_of_its_episode(view):
    settings, states = learner_settings(student_view=view), transitions.States(TASK, view)
    batch = random_batch(TASK, settings) | {LAST + name: random_batch(TASK, settings)[name] for name in states.reads}
    batch["done"][1, 0], batch["done"][2, 0] = True, False
    before, after = states.before(batch), states.after(batch)
    frame, shape = ("view", (7, 7, 3)) if view == "partial" else ("frame", TASK.frame_shape)
    for name, field in zip(("frame", "carried_obj", "carried_col"), (frame, "carried_obj", "carried_col"), strict=True):
        for t in range(T):
            for b in range(B):
                source = LAST + field if batch["done"][t + 1, b] else field
                assert torch.equal(before[name][t, b], batch[field][t, b])
                assert torch.equal(after[name][t, b], batch[source][t + 1, b])
    wanted = {LAST + frame: shape, LAST + "carried_obj": (), LAST + "carried_col": ()}
    wanted |= {"view": shape} if view == "partial" else {}
    assert {name: field.shape for name, field in states.transition_fields.items()} == wanted


def test_of_states_is_what_is_computed_of_each_by_itself():
    states = transitions.States(TASK, "full").before(random_batch(TASK, learner_settings(unroll_length=60, batch_size=4)))
    states = {name: values[[0, 1, 2] * 20] for name, values in states.items()}  # 12 distinct ones of 240
    calls = []

    def compute(some):
        calls.append(len(some["frame"]))
        return torch.stack([some["frame"].flatten(1).float().sum(1), some["carried_obj"] * 7.0 + some["carried_col"]], 1)

    found = transitions.of_states(compute, states)
    assert found.shape == (60, 4, 2) and calls == [MULTIPLE]
    assert torch.equal(found[..., 0], states["frame"].float().sum((2, 3, 4)))
    assert torch.equal(found[..., 1], states["carried_obj"] * 7.0 + states["carried_col"])

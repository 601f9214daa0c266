"""Rollouts: poison that shows what nobody wrote, the overlap by one row, the LSTM's state, copies, shared memory.

T=3, E=2, W=4, H=5, A=7.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from main.training.actor import Actor
from models.student import Student
from torchbeast.core.environment import Environment
from torchbeast.core.rollouts import POISON, Field, Rollouts, agent_fields, shared_array
from torchbeast.core.sampling import torch_generator
from torchbeast.core.weights import Reader, SharedWeights
from utils_folder.motivations.base import MotivationActor

T, E, W, H, A = 3, 2, 4, 5, 7
LAYERS, HIDDEN, SLOTS = 2, 6, 9

FIELDS = {
    **agent_fields((W, H, 3), A),
    "carried_obj": Field((), np.uint8),
    "carried_col": Field((), np.uint8),
    "goal": Field((), np.int64),
    "core_state_0": Field((LAYERS, HIDDEN), np.float32, per_row=False),
    "core_state_1": Field((LAYERS, HIDDEN), np.float32, per_row=False),
}


class Counting(Environment):
    """Episodes of 4 and 5 steps; every number tells of its environment and of the steps since the start."""

    num_envs, frame_shape, num_actions, max_steps = E, (W, H, 3), A, 5

    def __init__(self):
        self.steps = 0
        self.out = {
            "frame": np.ones((E, W, H, 3), np.uint8),
            "reward": np.zeros(E, np.float32),
            "done": np.ones(E, np.bool_),
            "truncated": np.zeros(E, np.bool_),
            "episode_return": np.zeros(E, np.float32),
            "episode_step": np.zeros(E, np.int32),
            "carried_obj": np.ones(E, np.uint8),
            "carried_col": np.full(E, 5, np.uint8),
        }
        self.actions = []

    def initial(self):
        return self.out

    def step(self, actions):
        self.actions.append(actions.copy())
        self.steps += 1
        for e in range(E):
            self.out["frame"][e, e + 1, e + 2] = 1 + self.steps % 9, e, self.steps % 4
            self.out["reward"][e] = self.steps + e / 8
            self.out["done"][e] = self.steps % (4 + e) == 0
            self.out["episode_return"][e] = 100 * self.steps + e
            self.out["episode_step"][e] = self.steps
        return self.out

    def restart(self, where):
        raise NotImplementedError

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        return self.out


class Goals(MotivationActor):
    """Goals that tell of the environment and of the step, in an array that is overwritten."""

    def __init__(self):
        self.row = {"goal": np.zeros(E, np.int64)}

    def observe(self, out, environment):
        self.row["goal"][:] = (environment.steps * 2 + np.arange(E)) % (W * H)
        return self.row


def make_student():
    torch.manual_seed(9)
    return Student(
        (W, H, 3), A, goal_conditioned=True, hidden_dim=HIDDEN, use_lstm=True, num_lstm_layers=LAYERS
    )  # fmt: skip


@pytest.fixture
def actor():
    student = make_student()
    return Actor(Counting(), Reader(make_student(), SharedWeights(student)), Goals(), torch_generator(0, "test"))


@pytest.fixture
def rollouts():
    return Rollouts(FIELDS, unroll_length=T, num_buffers=SLOTS)


def is_poison(array):
    return (np.ascontiguousarray(array).view(np.uint8) == POISON).reshape(*array.shape, -1).all(-1)


# -- the blocks -------------------------------------------------------------------------------------------------------


def test_shapes_and_dtypes(rollouts):
    for name, field in FIELDS.items():
        rows = (T + 1,) if field.per_row else ()
        assert rollouts.arrays[name].shape == (*rows, SLOTS, *field.shape)
        assert rollouts.arrays[name].dtype == field.dtype
    assert rollouts.nbytes == sum(array.nbytes for array in rollouts.arrays.values())
    assert rollouts.arrays["frame"].nbytes == (T + 1) * SLOTS * W * H * 3


def test_poison_everywhere_at_the_start(rollouts):
    for name, array in rollouts.arrays.items():
        assert is_poison(array).all(), name
    assert np.isnan(rollouts.arrays["reward"]).all()
    assert (rollouts.arrays["action"] == -1).all()
    assert (rollouts.arrays["frame"] == 255).all()


def test_agent_fields_are_the_ones_of_the_contract():
    dtypes = {name: (field.shape, np.dtype(field.dtype)) for name, field in agent_fields((W, H, 3), A).items()}
    assert dtypes == {
        "frame": ((W, H, 3), np.dtype(np.uint8)),
        "reward": ((), np.dtype(np.float32)),
        "done": ((), np.dtype(np.bool_)),
        "truncated": ((), np.dtype(np.bool_)),
        "episode_return": ((), np.dtype(np.float32)),
        "episode_step": ((), np.dtype(np.int32)),
        "action": ((), np.dtype(np.int64)),
        "policy_logits": ((A,), np.dtype(np.float32)),
        "baseline": ((), np.dtype(np.float32)),
        "policy_version": ((), np.dtype(np.int64)),
    }


def test_shared_array_is_zeroed_and_may_be_empty():
    array = shared_array((3, 2), np.int32)
    assert array.shape == (3, 2) and array.dtype == np.int32 and not array.any() and array.flags.writeable
    assert shared_array((0, 4), np.float32).shape == (0, 4)


# -- what an actor writes ---------------------------------------------------------------------------------------------


def test_a_fill_leaves_no_poison_and_touches_no_other_slot(actor, rollouts):
    slots = np.array([7, 2])
    assert actor.fill(rollouts, slots) is True
    others = [slot for slot in range(SLOTS) if slot not in slots]
    for name, array in rollouts.arrays.items():
        columns = array.swapaxes(0, 1) if FIELDS[name].per_row else array
        assert not is_poison(columns[slots]).any(), name
        assert is_poison(columns[others]).all(), name


@pytest.mark.parametrize(
    "slots, as_slice", [([3, 4, 5], True), ([4], True), ([0, 2, 3], False), ([5, 4, 3], False), ([3, 3, 5], False)]
)
def test_the_place_of_slots_is_theirs(slots, as_slice):
    place = Rollouts.place(np.array(slots))
    assert isinstance(place, slice) == as_slice
    assert np.arange(SLOTS)[place].tolist() == slots


def test_a_field_that_nobody_writes_shows():
    """The poison does what it is there for: a row without a field is refused."""
    rollouts = Rollouts({"reward": Field((), np.float32), "extra": Field((), np.int32)}, unroll_length=T, num_buffers=SLOTS)
    with pytest.raises(KeyError):
        rollouts.write(0, np.arange(E), {"reward": np.zeros(E, np.float32)})
    assert is_poison(rollouts.arrays["extra"]).all()


def test_rollouts_overlap_by_one_row(actor, rollouts):
    slots = np.array([[3, 0], [1, 8], [5, 2]])  # three rollouts of each environment
    for each in slots:
        actor.fill(rollouts, each)
    for before, after in zip(slots, slots[1:]):
        for name, array in rollouts.arrays.items():
            if FIELDS[name].per_row:
                np.testing.assert_array_equal(array[T, before], array[0, after], err_msg=name)
    assert actor.environment.steps == 3 * T  # T frames a rollout: each transition once
    steps = rollouts.arrays["episode_step"]
    for e in range(E):
        assert [steps[1:, slot].tolist() for slot in slots[:, e]] == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
        assert steps[0, slots[0, e]] == 0
        assert (rollouts.arrays["reward"][1:, slots[1, e]] == np.array([4, 5, 6]) + e / 8).all()
        assert rollouts.arrays["goal"][:, slots[1, e]].tolist() == [6 + e, 8 + e, 10 + e, 12 + e]


def test_actions_are_stored_beside_what_they_caused(actor, rollouts):
    slots = np.array([[3, 0], [1, 8]])
    for each in slots:
        actor.fill(rollouts, each)
    for i, each in enumerate(slots):
        for t in range(1, T + 1):
            taken = actor.environment.actions[i * T + t - 1]
            assert rollouts.arrays["action"][t, each].tolist() == taken.tolist()
    assert (rollouts.arrays["action"][0, slots[0]] == 0).all()
    assert (rollouts.arrays["policy_logits"][0, slots[0]] == 0).all()


def test_rollouts_carry_the_lstms_state_on_arrival(actor, rollouts):
    """The network, stepped by hand over the rows that were written, with its state zeroed where done."""
    student = make_student()
    slots = np.array([[3, 0], [1, 8], [5, 2], [6, 7]])
    for each in slots:
        actor.fill(rollouts, each)
    h = c = torch.zeros(LAYERS, E, HIDDEN)
    seen_done = False
    for i, each in enumerate(slots):
        for stored, state in (("core_state_0", h), ("core_state_1", c)):
            expected = state.transpose(0, 1).numpy()  # [E, layers, hidden]
            np.testing.assert_allclose(rollouts.arrays[stored][each], expected, atol=1e-5)
            assert i == 0 or np.abs(expected).min(axis=(1, 2)).max() > 0
        batch = rollouts.batch(each.tolist())
        for t in range(T):
            inputs = {name: batch[name][t : t + 1] for name in ("frame", "carried_obj", "carried_col", "done", "goal")}
            keep = (~inputs["done"][0]).float()[None, :, None]
            seen_done |= bool(i > 0 and inputs["done"].any())
            # The state is zeroed here, by hand, so that the network has nothing left to zero.
            inputs["done"] = torch.zeros_like(inputs["done"])
            with torch.no_grad():
                outputs, (h, c) = student(inputs, (h * keep, c * keep))
            np.testing.assert_allclose(batch["policy_logits"][t + 1], outputs["policy_logits"][0], atol=1e-5)
            np.testing.assert_allclose(batch["baseline"][t + 1], outputs["baseline"][0], atol=1e-5)
    assert seen_done


def test_the_learners_pass_over_a_rollout_repeats_the_actors(actor, rollouts):
    """[T+1, B] at once from the stored state: the same logits, shifted by the row convention."""
    student = make_student()
    for each in ([3, 0], [1, 8], [5, 2]):
        actor.fill(rollouts, np.array(each))
    batch = rollouts.batch([8, 2, 5])
    state = tuple(batch[f"core_state_{i}"].transpose(0, 1).contiguous() for i in range(2))
    with torch.no_grad():
        outputs, _ = student(batch, state)
    torch.testing.assert_close(outputs["policy_logits"][:-1], batch["policy_logits"][1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs["baseline"][:-1], batch["baseline"][1:], rtol=1e-4, atol=1e-5)


def test_a_fill_that_is_stopped_says_so(actor, rollouts):
    answers = iter([False, True])
    assert actor.fill(rollouts, np.array([0, 1]), lambda: next(answers)) is False
    assert actor.environment.steps == 1


# -- batches ----------------------------------------------------------------------------------------------------------


def test_a_batch_is_a_selection_of_columns(rollouts):
    rng = np.random.default_rng(1)
    for array in rollouts.arrays.values():
        array[...] = rng.integers(0, 2, array.shape)
    slots = [7, 0, 4, 7]
    batch = rollouts.batch(slots)
    assert batch.keys() == FIELDS.keys()
    for name, tensor in batch.items():
        array, field = rollouts.arrays[name], FIELDS[name]
        rows = (T + 1,) if field.per_row else ()
        assert tensor.shape == (*rows, len(slots), *field.shape)
        assert tensor.numpy().dtype == field.dtype
        for b, slot in enumerate(slots):
            if field.per_row:
                np.testing.assert_array_equal(tensor[:, b], array[:, slot])
            else:
                np.testing.assert_array_equal(tensor[b], array[slot])


def test_a_batch_is_a_copy(rollouts):
    batch = rollouts.batch([2, 5, 1])
    for tensor in batch.values():
        tensor.zero_()
    for name, array in rollouts.arrays.items():
        assert is_poison(array).all(), name
    batch = rollouts.batch([2, 5, 1])
    for array in rollouts.arrays.values():
        array.view(np.uint8).fill(0)
    assert torch.isnan(batch["reward"]).all() and (batch["frame"] == 255).all()


def test_memory_is_shared_across_a_fork(rollouts):
    child = os.fork()
    if child == 0:  # writes, and ends without any of pytest's doings
        try:
            for name, array in rollouts.arrays.items():
                (array[:, 4] if FIELDS[name].per_row else array[4:5])[...] = 1
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    batch = rollouts.batch([4, 3])
    assert (batch["reward"][:, 0] == 1).all() and torch.isnan(batch["reward"][:, 1]).all()
    assert (batch["frame"][:, 0] == 1).all() and (batch["core_state_1"][0] == 1).all()

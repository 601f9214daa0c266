"""The networks against their plain twins, against published checkpoints, and the meaning of a goal index."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from models.grid import MAX_SIDE, _gradient_of_rows, elu_of_rows
from models.linear import ONEDNN_FROM, elu_, linear
from models.novelty import RandomNetwork
from models.student import Student
from models.teacher import Teacher
from tests.helpers.agents import random_frames
from tests.helpers.networks import GRIDS, A, assert_same, random_inputs, twins
from tests.helpers.plain_networks import PlainRandomNetwork, PlainStudent, PlainTeacher

WALL, BALL = 2, 6
CHECKPOINTS = Path(__file__).resolve().parents[3] / "shared" / "reference"


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


STUDENTS = [
    dict(k=k, goal_conditioned=goal, use_lstm=False, num_lstm_layers=1, use_embedding=embedding)
    for k in (1, 2)
    for goal in (True, False)
    for embedding in (True, False)
] + [
    dict(k=1, goal_conditioned=True, use_lstm=True, num_lstm_layers=1, use_embedding=True),
    dict(k=2, goal_conditioned=False, use_lstm=True, num_lstm_layers=2, use_embedding=True),
    dict(k=1, goal_conditioned=True, use_lstm=False, num_lstm_layers=1, use_embedding=True, intrinsic_value=True),
    dict(k=1, goal_conditioned=False, use_lstm=True, num_lstm_layers=1, use_embedding=True, intrinsic_value=True),
]


def make_students(width: int, height: int, *, k: int, **options) -> tuple[Student, PlainStudent]:
    fast = Student((width, height, 3 * k), A, hidden_dim=24, **options)
    plain = PlainStudent((width, height, 3 * k), A, hidden_dim=24, **options)
    twins(fast, plain)
    return fast, plain


@pytest.mark.parametrize("options", STUDENTS, ids=lambda o: "-".join(f"{key}={value}" for key, value in o.items()))
@pytest.mark.parametrize("width, height", GRIDS)
def test_student_is_its_plain_twin(width, height, options):
    T, B = 3, 2
    fast, plain = make_students(width, height, **options)
    inputs = random_inputs(T, B, width, height, options["k"])
    state = tuple(torch.randn_like(s) for s in fast.initial_state(B))
    ours, our_state = fast(inputs, state)
    theirs, their_state = plain(inputs, state)
    assert ours["policy_logits"].shape == (T, B, A) and ours["baseline"].shape == (T, B)
    assert ours.keys() == theirs.keys() and ("intrinsic_baseline" in ours) == options.get("intrinsic_value", False)
    assert_same(fast, plain, [*(ours[name] for name in theirs), *our_state], [*theirs.values(), *their_state])


@pytest.mark.parametrize("use_embedding", [True, False])
@pytest.mark.parametrize("inner, mirrored", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("width, height", GRIDS)
@pytest.mark.parametrize("k", [1, 2])
def test_teacher_is_its_plain_twin(width, height, k, inner, mirrored, use_embedding):
    options = dict(inner=inner, mirrored=mirrored, use_embedding=use_embedding)
    fast, plain = Teacher((width, height, 3 * k), **options), PlainTeacher((width, height, 3 * k), **options)
    twins(fast, plain)
    frame = random_frames(5, width, height, 3 * k)
    assert_same(fast, plain, fast(frame), plain(frame))


@pytest.mark.parametrize("use_embedding", [True, False])
@pytest.mark.parametrize("width, height", GRIDS)
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("output", ["relu", "linear"])
def test_random_network_is_its_plain_twin(width, height, k, use_embedding, output):
    shape = (width, height, 3 * k)
    options = dict(use_embedding=use_embedding, output=output)
    fast, plain = RandomNetwork(shape, **options), PlainRandomNetwork(shape, **options)
    twins(fast, plain)
    inputs = random_inputs(3, 2, width, height, k)
    ours, theirs = fast(inputs), plain(inputs)
    assert ours.shape == (3, 2, 128)
    assert_same(fast, plain, [ours], [theirs])
    row = {name: value[1] for name, value in inputs.items()}
    torch.testing.assert_close(fast(row), theirs[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width, height", [(1, 1), (1, 4), (2, 2), (3, 3), (32, 31), (17, 32), (4, 8), (5, 13)])
def test_unusual_grids(width, height):
    fast, plain = make_students(width, height, k=1, goal_conditioned=True)
    inputs = random_inputs(2, 1, width, height)
    (ours, _), (theirs, _) = fast(inputs), plain(inputs)
    assert_same(fast, plain, list(ours.values()), list(theirs.values()))
    fast, plain = Teacher((width, height, 3)), PlainTeacher((width, height, 3))
    twins(fast, plain)
    assert_same(fast, plain, fast(inputs["frame"][0]), plain(inputs["frame"][0]))


@pytest.mark.parametrize("use_lstm", [False, True])
def test_unroll_equals_single_steps(use_lstm):
    T, B, width, height = 4, 3, 6, 9
    student = Student((width, height, 3), A, goal_conditioned=True, use_lstm=use_lstm, num_lstm_layers=2)
    inputs = random_inputs(T, B, width, height)
    inputs["done"][2] = torch.tensor([True, False, False])
    state = tuple(torch.randn_like(s) for s in student.initial_state(B))
    unrolled, last_state = student(inputs, state)
    for t in range(T):
        step, state = student({name: value[t : t + 1] for name, value in inputs.items()}, state)
        for name, value in step.items():
            torch.testing.assert_close(value[0], unrolled[name][t], rtol=1e-4, atol=1e-5)
    for one, other in zip(state, last_state):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_done_forgets_the_lstm_state():
    student = Student((4, 5, 3), A, goal_conditioned=True, use_lstm=True)
    inputs = random_inputs(1, 2, 4, 5)
    inputs["done"] = torch.tensor([[True, False]])
    zero = student.initial_state(2)
    some = tuple(torch.ones_like(s) for s in zero)
    (fresh, _), (kept, _) = student(inputs, zero), student(inputs, some)
    assert torch.equal(fresh["policy_logits"][0, 0], kept["policy_logits"][0, 0])
    assert not torch.equal(fresh["policy_logits"][0, 1], kept["policy_logits"][0, 1])


@pytest.mark.parametrize("use_lstm", [False, True])
def test_composed_weights_give_the_same_in_inference(use_lstm):
    student = Student((11, 6, 3), A, goal_conditioned=True, use_lstm=use_lstm)
    teacher = Teacher((11, 6, 3))
    inputs = random_inputs(1, 5, 11, 6)
    expected, _ = student(inputs, student.initial_state(5))
    logits, value = teacher(inputs["frame"][0])
    with torch.inference_mode():
        weights, teacher_weights = student.compose(), teacher.compose()
        for _ in range(2):  # the composed weights must survive a forward pass
            outputs, _ = student(inputs, student.initial_state(5), weights)
            for name in expected:
                torch.testing.assert_close(outputs[name], expected[name], rtol=1e-4, atol=1e-5)
            ours = teacher(inputs["frame"][0], teacher_weights)
            torch.testing.assert_close(ours, (logits, value), rtol=1e-4, atol=1e-5)


def set_centre_tap(conv: torch.nn.Conv2d, channel: int) -> None:
    """Let the convolution's filter 0 copy one input channel, every other weight zero."""
    with torch.no_grad():
        conv.weight.zero_()
        conv.bias.zero_()
        conv.weight[0, channel, 1, 1] = 1.0


def object_teacher(width: int, height: int, mirrored: bool) -> Teacher:
    """A teacher whose map is 1 where a ball lies, else 0."""
    teacher = Teacher((width, height, 3), mirrored=mirrored)
    with torch.no_grad():
        teacher.embed_object.weight.zero_()
        teacher.embed_object.weight[BALL, 3] = 1.0
    for index, conv in enumerate(teacher.extract_representation.convolutions()):
        set_centre_tap(conv, 3 if index == 0 else 0)
    return teacher


@pytest.mark.parametrize("x, y", [(1, 3), (4, 0), (0, 5)])
def test_a_goal_index_names_one_cell_everywhere(x, y):
    """The teacher's logit for a ball's cell, and the student's goal channel for that index, touch the same cell."""
    width, height = 5, 6
    frame = torch.zeros(1, width, height, 3, dtype=torch.uint8)
    frame[..., 0] = WALL
    frame[0, x, y, 0] = BALL
    logits, _ = object_teacher(width, height, mirrored=False)(frame)
    assert logits.argmax(1).item() == x * height + y
    mirrored, _ = object_teacher(width, height, mirrored=True)(frame)
    assert mirrored.argmax(1).item() == y * width + x

    # A student whose goal channel cancels "ball": only with the goal on the ball's cell the frame looks like walls.
    student = Student((width, height, 3), A, goal_conditioned=True)
    with torch.no_grad():
        student.embed_object.weight.zero_()
        student.embed_object.weight[BALL, 3] = 1.0
        student.feat_extract.convolutions()[0].weight[:, -1] = -student.feat_extract.convolutions()[0].weight[:, 3]

    def logits_with(goal: int, frame: torch.Tensor) -> torch.Tensor:
        carried = torch.tensor([[1]], dtype=torch.uint8)
        inputs = {"frame": frame[None], "carried_obj": carried, "carried_col": carried, "goal": torch.tensor([[goal]])}
        return student(inputs)[0]["policy_logits"]

    every = torch.stack([logits_with(goal, frame) for goal in range(width * height)])
    walls_and_goal_nowhere = student_without_goal(student, width, height)
    distance = (every - walls_and_goal_nowhere).abs().amax(dim=(1, 2, 3))
    assert (distance < 1e-5).nonzero().flatten().tolist() == [x * height + y]


def student_without_goal(student: Student, width: int, height: int) -> torch.Tensor:
    """Policy logits for a grid of walls, from a student of the same weights without the goal channel."""
    state = student.state_dict()
    state.pop("embed_goal.weight")
    state["feat_extract.0.weight"] = state["feat_extract.0.weight"][:, :-1]
    other = Student((width, height, 3), A, goal_conditioned=False)
    other.load_state_dict(state)
    frame = torch.zeros(1, 1, width, height, 3, dtype=torch.uint8)
    frame[..., 0] = WALL
    carried = torch.tensor([[1]], dtype=torch.uint8)
    return other({"frame": frame, "carried_obj": carried, "carried_col": carried})[0]["policy_logits"]


@pytest.mark.parametrize("name, width, height", [("KeyCorridorS3R3", 7, 7), ("ObstructedMaze-1Dl", 11, 6)])
def test_published_checkpoints_load(name, width, height):
    """The student's part; the teacher's is loaded by who owns it, in tests/motivations."""
    path = CHECKPOINTS / f"{name}.tar"
    if not path.exists():
        pytest.skip("no published checkpoints here")
    weights = torch.load(path, map_location="cpu", weights_only=True)["model_state_dict"]
    student, plain = (network((width, height, 3), A, goal_conditioned=True) for network in (Student, PlainStudent))
    student.load_state_dict(weights, strict=True)
    plain.load_state_dict(weights)
    inputs = random_inputs(2, 3, width, height)
    for ours, theirs in zip(student(inputs)[0].values(), plain(inputs)[0].values()):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_unused_embeddings_exist_and_stay_out():
    student = Student((4, 5, 3), A, goal_conditioned=True, goal_dim=3)
    assert student.embed_goal.weight.shape == student.embed_agent_loc.weight.shape == (21, 3)
    outputs, _ = student(random_inputs(2, 3, 4, 5))
    (outputs["policy_logits"].sum() + outputs["baseline"].sum()).backward()
    assert [name for name, p in student.named_parameters() if p.grad is None] == [
        "embed_goal.weight",
        "embed_agent_loc.weight",
    ]
    before = student.embed_goal.weight.detach().clone()
    torch.nn.utils.clip_grad_norm_(student.parameters(), 40.0)
    torch.optim.RMSprop(student.parameters(), lr=0.1).step()
    assert torch.equal(student.embed_goal.weight, before)
    assert "embed_goal.weight" not in Student((4, 5, 3), A, goal_conditioned=False).state_dict()


def test_initialisation():
    torch.manual_seed(3)
    student, teacher, rnd = Student((7, 7, 3), A, goal_conditioned=True), Teacher((7, 7, 3)), RandomNetwork((7, 7, 3))
    gains = {"feat_extract": 2**0.5, "fc": 2**0.5, "policy": 1.0, "baseline": 1.0, "baseline_teacher": 1.0}
    for module in (student, teacher, rnd):
        for name, parameter in module.named_parameters():
            gain = gains.get(name.split(".")[0])
            if gain and name.endswith("weight"):
                values = torch.linalg.svdvals(parameter.detach().flatten(1))
                torch.testing.assert_close(values, torch.full_like(values, gain), rtol=1e-4, atol=1e-4)
            elif gain:
                assert not parameter.any(), name
    assert teacher.extract_representation.convolutions()[0].bias.any()  # PyTorch's default
    torch.manual_seed(3)
    again = Student((7, 7, 3), A, goal_conditioned=True)
    assert all(torch.equal(a, b) for a, b in zip(student.state_dict().values(), again.state_dict().values()))


@pytest.mark.parametrize("make", [lambda s: Student(s, A, goal_conditioned=True), Teacher, RandomNetwork])
def test_impossible_frames_are_refused(make):
    for shape in ((MAX_SIDE + 1, 7, 3), (7, MAX_SIDE + 1, 3)):
        with pytest.raises(ValueError, match="32"):
            make(shape)
    with pytest.raises(ValueError, match="multiple of 3"):
        make((7, 7, 4))


@pytest.mark.parametrize("N, K, size_out", [(7, 5, 3), (301, 53, 64), (300, 64, 53)])
@pytest.mark.parametrize("activation", [None, "relu", "elu"])
@pytest.mark.parametrize("with_bias", [True, False])
def test_linear_is_torchs(N, K, size_out, activation, with_bias):
    """On both sides of the size from which oneDNN computes the product, forward and backward."""
    assert (N * K * size_out >= ONEDNN_FROM) == (N > 7)
    shapes = [(N, K), (size_out, K), (size_out,)]
    ours = [torch.randn(*shape, requires_grad=True) for shape in shapes]
    theirs = [tensor.detach().double().requires_grad_() for tensor in ours]
    if not with_bias:
        ours[2] = theirs[2] = None
    expected = F.linear(*theirs)
    expected = {None: lambda y: y, "relu": F.relu, "elu": F.elu}[activation](expected)
    actual = linear(*ours, activation)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-4)
    grad = torch.randn_like(actual)
    actual.backward(grad)
    expected.backward(grad.double())
    for one, other in zip(ours, theirs):
        if one is not None:
            torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(linear(*ours, activation), actual.detach())


def test_gradient_of_rows_without_the_compiled_loop():
    """What other devices compute (index_add_) is what the compiled loop does, and what autograd says."""
    rows = torch.randint(11, (6, 18), dtype=torch.int32)
    table = torch.randn(11, 3, requires_grad=True)
    grad = torch.randn(6, 3)
    outputs = F.elu(table[rows.long()].sum(1))
    assert (outputs > 0).any() and (outputs < 0).any()
    (expected,) = torch.autograd.grad(outputs, table, grad)
    (actual,) = torch.autograd.grad(elu_of_rows(rows, table), table, grad.clone())
    torch.testing.assert_close(actual, expected)
    with pytest.raises(ValueError, match="multiple of 9"):
        elu_of_rows(rows[:, 1:], table)

    torch.testing.assert_close(
        _gradient_of_rows(grad.as_subclass(Elsewhere), rows, outputs.detach(), table.shape).as_subclass(torch.Tensor), expected
    )


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_elu_is_torchs(size):
    """At both ends, on either side of every change of the exponent, and where there is no number."""
    special = torch.tensor([0.0, 1e-30, -1e-30, 1e-7, -1e-7, -200.0, 3e38, -3e38, math.inf, -math.inf, math.nan])
    for values in (special.repeat(size)[: 11 * size], torch.linspace(-20, 2, 997 * size)):
        expected = F.elu(values.double()).float()
        torch.testing.assert_close(elu_(values.clone()), expected, rtol=2e-7, atol=1e-30, equal_nan=True)


def test_everything_lives_on_the_networks_device():
    """On the meta device a tensor left on the CPU is an error, as it would be on a GPU."""
    width, height = 9, 6
    inputs = {name: value.to("meta") for name, value in random_inputs(3, 2, width, height, 2).items()}
    shape = (width, height, 6)
    student = Student(shape, A, goal_conditioned=True, use_lstm=True).to("meta")
    outputs, _ = student(inputs, student.initial_state(2))
    logits, value = Teacher(shape, inner=True).to("meta")(inputs["frame"][0])
    novelty = RandomNetwork(shape, use_embedding=False).to("meta")(inputs)
    sum(tensor.sum() for tensor in (*outputs.values(), logits, value, novelty)).backward()
    assert student.feat_extract.convolutions()[0].weight.grad.is_meta


class Elsewhere(torch.Tensor):
    is_cpu = False


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("goal_conditioned", [True, False])
def test_a_gpu_looks_up_the_rows_that_the_cpu_looks_up(k, goal_conditioned):
    """A goal that is no cell of the grid marks none, and not what lies outside of it either."""
    convolutions = Student((6, 7, 3 * k), A, goal_conditioned=goal_conditioned).feat_extract
    frame, goal = random_frames(43, 6, 7, 3 * k), torch.arange(43) if goal_conditioned else None
    rows = convolutions.rows(frame, goal)
    assert torch.equal(convolutions.rows(frame.as_subclass(Elsewhere), goal).as_subclass(torch.Tensor), rows)
    if goal_conditioned:
        unmarked = convolutions.rows(frame, torch.full_like(goal, 42))
        marked = (rows != unmarked).view(43, -1).any(1)
        assert marked[:42].all() and not marked[42]


@pytest.mark.parametrize("name, value", [("goal", 43), ("goal", -1), ("frame", 255)])
@pytest.mark.parametrize("grad", [True, False])
def test_what_is_no_cell_is_refused(name, value, grad):
    """Compiled code would read, or write, beyond its tables."""
    student, inputs = Student((6, 7, 3), A, goal_conditioned=True), random_inputs(1, 2, 6, 7)
    inputs[name].view(-1)[-1] = value
    with torch.set_grad_enabled(grad), pytest.raises(IndexError):
        student(inputs)

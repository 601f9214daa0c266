"""What acts: a forward pass without gradients, from composed weights, step by step; its twin is the plain network."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from models.acting import Forward
from models.student import Student
from tests.helpers.networks import GRIDS, A, random_inputs, twins
from tests.helpers.plain_networks import PlainStudent
from tests.helpers.program import ROOT

OPTIONS = [
    dict(goal_conditioned=True, use_lstm=False, hidden_dim=24, use_embedding=True),
    dict(goal_conditioned=False, use_lstm=False, hidden_dim=256, use_embedding=True),
    dict(goal_conditioned=True, use_lstm=True, hidden_dim=24, use_embedding=False),
    dict(goal_conditioned=False, use_lstm=True, hidden_dim=7, use_embedding=True),
    dict(goal_conditioned=True, use_lstm=False, hidden_dim=24, use_embedding=True, intrinsic_value=True),
    dict(goal_conditioned=True, use_lstm=True, hidden_dim=24, use_embedding=True, intrinsic_value=True),
]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(f"{key}={value}" for key, value in o.items()))
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("width, height", [*GRIDS, (1, 1), (2, 2), (32, 31)])
@torch.no_grad()
def test_acting_step_by_step_is_the_plain_student(width, height, k, options, monkeypatch):
    """Of five environments some stand still in each step, and one sees what another saw before."""
    B = 5
    fast, plain = (network((width, height, 3 * k), A, **options) for network in (Student, PlainStudent))
    twins(fast, plain)
    counts, forward = [], Forward.__call__
    monkeypatch.setattr(Forward, "__call__", lambda *args: counts.append(len(args[-1])) or forward(*args))
    weights, ours = fast.compose(), fast.initial_state(B)
    theirs = ours
    inputs = random_inputs(1, B, width, height, k)
    for step in range(4):
        new = random_inputs(1, B, width, height, k)
        for name in inputs.keys() - {"done"}:
            inputs[name][0, step % B] = new[name][0, 0]
            inputs[name][0, (step + 2) % B] = inputs[name][0, (step + 1) % B]
        inputs["done"] = new["done"]
        (actual, ours), (expected, theirs) = fast(inputs, ours, weights), plain(inputs, theirs)
        assert actual.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(actual[name], expected[name], rtol=1e-4, atol=2e-5)
    assert 4 < sum(counts) < 4 * B


@torch.no_grad()
def test_new_weights_forget_what_was_known():
    student = Student((7, 7, 3), A, goal_conditioned=True)
    inputs = random_inputs(1, 5, 7, 7)
    before, _ = student(inputs, (), student.compose())
    student.policy.bias += 1
    after, _ = student(inputs, (), student.compose())
    torch.testing.assert_close(after["policy_logits"], before["policy_logits"] + 1)


def test_actors_compute_with_one_thread_each():
    """Where nobody has said how many: a process a core would otherwise have as many threads as there are cores."""
    code = (
        "import scipy.linalg.cython_blas, models.acting; from threadpoolctl import threadpool_info; "
        "print(*(about['num_threads'] for about in threadpool_info() if about['internal_api'] == 'openblas'))"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"1"}

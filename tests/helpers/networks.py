"""Networks and their plain twins: random inputs, equal weights, and how outputs and gradients are compared."""

from __future__ import annotations

import torch

from tests.helpers.agents import random_frames

GRIDS = [(7, 7), (11, 6), (3, 5), (16, 16), (9, 20)]
A = 7


def random_inputs(T: int, B: int, width: int, height: int, k: int = 1) -> dict[str, torch.Tensor]:
    return {
        "frame": random_frames(T, B, width, height, 3 * k),
        "carried_obj": torch.randint(11, (T, B), dtype=torch.uint8),
        "carried_col": torch.randint(6, (T, B), dtype=torch.uint8),
        "done": torch.rand(T, B) < 0.3,
        "goal": torch.randint(width * height + 1, (T, B)),  # the last is none of the cells
    }


def randomise(module: torch.nn.Module) -> None:
    """Biases too: zero ones would hide a forgotten bias."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):
                parameter.uniform_(-0.5, 0.5)


def twins(fast: torch.nn.Module, plain: torch.nn.Module) -> None:
    """Give the plain twin the fast network's weights; their keys and shapes must agree."""
    randomise(fast)
    plain.load_state_dict(fast.state_dict(), strict=True)


def assert_same(fast, plain, fast_outputs, plain_outputs) -> None:
    """Equal outputs, and equal gradients of a random function of them for every parameter."""
    weights = [torch.randn_like(output) for output in plain_outputs]
    for ours, theirs in zip(fast_outputs, plain_outputs):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)
    for outputs in (fast_outputs, plain_outputs):
        sum((weight * output).sum() for weight, output in zip(weights, outputs)).backward()
    gradients = {name: parameter.grad for name, parameter in plain.named_parameters()}
    assert gradients.keys() == dict(fast.named_parameters()).keys()
    for name, parameter in fast.named_parameters():
        if gradients[name] is None:
            assert parameter.grad is None, name
        else:
            scale = gradients[name].abs().max().item()
            assert scale > 0, f"{name}: the plain twin's gradient is zero, the comparison is empty"
            torch.testing.assert_close(
                parameter.grad, gradients[name], rtol=1e-3, atol=1e-4 * scale, msg=lambda m, name=name: f"{name}: {m}"
            )

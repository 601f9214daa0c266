"""Matrix products, as fast as the machine has them: every layer of the networks comes down to one.

On a CPU, torch.nn.functional.linear goes to MKL, which reaches about 100 GFLOP/s on one AMD Zen 5 core; oneDNN's
product, which ships inside PyTorch and fuses bias and ReLU, reaches 220 there. Small products are left to MKL, whose
calls cost less; on Intel's own processors it is the faster one at all sizes (weight gradients in two thirds of the time and
less), and computes all. PyTorch offers oneDNN's only under a private name; where that is missing, all products are MKL's.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from torchbeast.core.compiled import compiled
from torchbeast.core.provenance import processor_name

HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
USES_ONEDNN = HAS_ONEDNN and not processor_name().startswith("Intel")
f32 = np.float32
ONEDNN_FROM = 500_000  # multiply-adds below which the fixed cost of oneDNN's call outweighs its speed


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False) -> Tensor:
    """x @ weight.T + bias, then ReLU if asked; not differentiable.

    Args:
        x: float32 [N, K]; weight: float32 [F, K]; bias: float32 [F]. Any strides.
    Returns: float32 [N, F].
    """
    if USES_ONEDNN and x.is_cpu and x.numel() * weight.shape[0] >= ONEDNN_FROM and x.dtype == torch.float32:
        if 1 not in weight.stride():  # oneDNN would take its reference implementation, a hundred times slower
            weight = weight.contiguous()
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "relu" if relu else "none", [], "")
    y = F.linear(x, weight, bias)
    return y.relu_() if relu else y


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """grad.T @ x, [F, K], of grad [N, F] and x [N, K]."""
    # oneDNN copies the first operand of a product into place: let that be the smaller one.
    return product(grad.t(), x.t()) if grad.shape[1] <= x.shape[1] else product(x.t(), grad.t()).t()


@compiled(nogil=True, inline="always")
def elu(x):
    """The exponential linear unit of a float32: x where it is positive, else e^x - 1, to a relative error of 1e-7.

    e^x = 2^n e^r with |r| <= ln(2) / 2, and for e^r the polynomial of Cephes' expf. Written so that loops over it are computed
    eight numbers at a time, in half the time of PyTorch's.
    """
    below = max(min(x, f32(0)), f32(-87))
    n = np.floor(below * f32(1.44269504) + f32(0.5))
    r = below - n * f32(0.693359375) + n * f32(2.12194440e-4)
    p = f32(1.9875691500e-4)
    p = p * r + f32(1.3981999507e-3)
    p = p * r + f32(8.3334519073e-3)
    p = p * r + f32(4.1665795894e-2)
    p = p * r + f32(1.6666665459e-1)
    p = p * r + f32(5.0000001201e-1)
    power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    return max(x, f32(0)) + ((p * r * r + r) * power + (power - f32(1)))


@compiled(nogil=True)
def _elu_all(values):
    flat = values.reshape(-1)
    for i in range(flat.shape[0]):
        flat[i] = elu(flat[i])


def elu_(y: Tensor) -> Tensor:
    """F.elu_ of a contiguous float32 tensor without gradient."""
    if not y.is_cpu:
        return F.elu_(y)
    _elu_all(y.numpy())
    return y


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    y = product(x, weight, bias, relu=activation == "relu")
    return elu_(y) if activation == "elu" else y


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, activation):
        y = _forward(x, weight, bias, activation)
        ctx.activation = activation
        ctx.save_for_backward(x, weight, y if activation else None)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, y = ctx.saved_tensors
        if ctx.activation == "relu":
            grad = torch.ops.aten.threshold_backward(grad, y, 0.0)
        elif ctx.activation == "elu":
            grad = torch.ops.aten.elu_backward(grad, 1.0, 1.0, 1.0, True, y)
        grad_x = product(grad, weight.t()) if ctx.needs_input_grad[0] else None
        return grad_x, weight_gradient(grad, x), grad.sum(0) if ctx.needs_input_grad[2] else None, None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None = None) -> Tensor:
    """activation(x @ weight.T + bias), differentiable once.

    Args:
        x: float32 [N, K]; weight: float32 [F, K]; bias: float32 [F].
        activation: "relu", "elu" or None.
    Returns: float32 [N, F].
    """
    if torch.is_grad_enabled():
        return _Linear.apply(x, weight, bias, activation)
    return _forward(x, weight, bias, activation)

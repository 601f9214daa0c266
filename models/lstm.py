"""An LSTM over steps after some of which its state begins anew, a matrix product a step.

torch.nn.LSTM cannot begin anew within a sequence; called step by step it spends most of its time on preparing its weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.linear import linear, product, weight_gradient


def recur(
    lstm: nn.LSTM, inputs: Tensor, keep: Tensor, state: tuple[Tensor, Tensor]
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The LSTM's outputs of T steps, and its state after them.

    Args:
        lstm: holds the weights, of one direction and without projection; they are those of the equations in torch.nn.LSTM.
        inputs: float32 [T, B, D].
        keep: float32 [T, B, 1], 0 where the state begins anew before the step, else 1.
        state: (h, c) before step 0, float32 [layers, B, H] each.
    Returns: (float32 [T, B, H], (h, c)).
    Source: Hochreiter and Schmidhuber 1997, with forget gates; the equations in torch.nn.LSTM.
    """
    last = []
    for layer in range(lstm.num_layers):
        w_in, w_hidden, b_in, b_hidden = lstm.all_weights[layer]
        gates = linear(inputs.flatten(0, 1), w_in, b_in + b_hidden).unflatten(0, inputs.shape[:2])
        inputs, *after = _Steps.apply(gates, w_hidden, keep, state[0][layer], state[1][layer])
        last.append(after)
    return inputs, tuple(torch.stack(column) for column in zip(*last))


class _Steps(torch.autograd.Function):
    """One layer, from what the inputs give to its gates, [T, B, 4H]: input, forget, cell, output."""

    @staticmethod
    def forward(ctx, gates, weight, keep, h, c):
        H, gates = c.shape[1], gates.clone()
        outputs, cells = (gates.new_empty(*gates.shape[:2], H) for _ in range(2))
        ctx.save_for_backward(gates, weight, keep, h, c, outputs, cells)
        for t, gate in enumerate(gates):
            gate += product(h * keep[t], weight)
            gate[:, : 2 * H].sigmoid_()
            gate[:, 2 * H : 3 * H].tanh_()
            gate[:, 3 * H :].sigmoid_()
            i, f, g, o = gate.split(H, 1)
            c = torch.addcmul(i * g, f, c * keep[t], out=cells[t])
            h = torch.mul(o, c.tanh(), out=outputs[t])
        return outputs, h.clone(), c.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_outputs, grad_h, grad_c):
        gates, weight, keep, h, c, outputs, cells = ctx.saved_tensors
        H, grads = c.shape[1], torch.empty_like(gates)
        h_before, c_before = (torch.cat([x[None], after[:-1]]) * keep for x, after in ((h, outputs), (c, cells)))
        for t in range(len(gates) - 1, -1, -1):
            i, f, g, o = gates[t].split(H, 1)
            tanh_c = cells[t].tanh()
            grad_h = grad_h + grad_outputs[t]
            grad_c = grad_c + grad_h * o * (1 - tanh_c * tanh_c)
            grads[t] = torch.cat([
                grad_c * g * i * (1 - i),
                grad_c * c_before[t] * f * (1 - f),
                grad_c * i * (1 - g * g),
                grad_h * tanh_c * o * (1 - o),
            ], dim=1)  # fmt: skip
            grad_h, grad_c = product(grads[t], weight.t()) * keep[t], grad_c * f * keep[t]
        return grads, weight_gradient(grads.flatten(0, 1), h_before.flatten(0, 1)), None, grad_h, grad_c

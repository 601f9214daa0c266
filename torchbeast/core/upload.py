"""Batches on their way to a GPU, and functions that it repeats by itself. On the CPU nothing is copied and nothing captured."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

ALIGNED = 16  # bytes: each tensor starts at a multiple
WARM_UPS = 3  # before a capture, as torch.cuda.graphs has it

Tensors = dict[str, Tensor]


def packed(tensors: Mapping[str, Tensor], *, pinned: bool = False) -> tuple[Tensor, Callable[[Tensor], Tensors]]:
    """All of them in one: (uint8 [bytes], what finds them again in it, or in a copy of it)."""
    starts, size = {}, 0
    for name, value in tensors.items():
        starts[name] = size
        size += -(-value.nbytes // ALIGNED) * ALIGNED

    def views(memory: Tensor) -> Tensors:
        parts = {name: memory[starts[name] : starts[name] + value.nbytes] for name, value in tensors.items()}
        return {name: part.view(tensors[name].dtype).view(tensors[name].shape) for name, part in parts.items()}

    memory = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
    for name, part in views(memory).items():
        part.copy_(tensors[name])
    return memory, views


def to_device(tensors: Mapping[str, Tensor], device: torch.device) -> Tensors:
    """The same on `device`: in one transfer, from pinned memory, which nobody waits for."""
    if device.type == "cpu":
        return dict(tensors)
    with _at(device):
        memory, views = packed(tensors, pinned=device.type == "cuda")
        return views(memory.to(device, non_blocking=True))


def _at(device: torch.device) -> contextlib.AbstractContextManager:
    """Makes it this thread's own: of several GPUs each thread begins with the first one."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The same of one tensor, wherever it is."""
    return tensor if tensor.device.type == device.type else to_device({"it": tensor}, device)["it"]


def numbers(scalars: Iterable[Tensor]) -> list[float]:
    """Their values, of a device in one transfer."""
    return torch.stack([scalar.detach() for scalar in scalars]).tolist()


class Captured:
    """A function of tensors that a GPU repeats as one graph of its work, without Python: each call's launch costs are gone.

    The function must do the same for all tensors of the same shapes and never wait for the GPU. What it returns, and what else
    it writes to, is written over by the next call.

    Source: CUDA graphs, torch.cuda.CUDAGraph.
    """

    def __init__(self, function: Callable[[Tensors], Tensor]):
        self._function = function
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, inputs: Tensors) -> Tensor:
        device = next(iter(inputs.values())).device
        if device.type != "cuda":
            return self._function(inputs)
        with _at(device):
            if self._graph is None:
                self._capture(inputs)
            torch._foreach_copy_(list(self._inputs.values()), [inputs[name] for name in self._inputs])
            self._graph.replay()
        return self._outputs

    def _capture(self, inputs: Tensors) -> None:
        self._inputs = {name: value.clone() for name, value in inputs.items()}
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                self._function(self._inputs)
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):  # another thread may send a batch meanwhile
            self._outputs = self._function(self._inputs)

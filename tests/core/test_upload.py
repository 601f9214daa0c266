"""What goes to a GPU, packed; a GPU itself is not needed."""

from __future__ import annotations

import torch

from torchbeast.core.upload import Captured, numbers, packed, to_device

TENSORS = {
    "frame": torch.arange(30, dtype=torch.uint8).view(2, 3, 5),
    "done": torch.tensor([[True, False, True]]),
    "goal": torch.tensor([2**40, -1]),
    "none": torch.zeros(0, 4),
    "reward": torch.tensor([[0.5], [-1e-30]]).t(),  # not contiguous
    "one": torch.tensor(7, dtype=torch.int32),
}


def same(ours: dict, theirs: dict) -> bool:
    return list(ours) == list(theirs) and all(
        ours[name].dtype == value.dtype and torch.equal(ours[name], value) for name, value in theirs.items()
    )


def test_tensors_packed_into_one_come_out_as_they_were():
    memory, views = packed(TENSORS)
    assert memory.dim() == 1 and memory.dtype == torch.uint8
    copy = memory.clone()
    memory.fill_(255)
    assert same(views(copy), TENSORS)


def test_on_another_device_they_have_shape_and_kind():
    there = to_device(TENSORS, torch.device("meta"))
    assert [(v.shape, v.dtype, v.device.type) for v in there.values()] == [(v.shape, v.dtype, "meta") for v in TENSORS.values()]


def test_on_the_cpu_nothing_is_copied():
    there = to_device(TENSORS, torch.device("cpu"))
    assert there is not TENSORS and all(there[name] is value for name, value in TENSORS.items())


def test_on_the_cpu_nothing_is_captured():
    captured = Captured(lambda told: told["x"] * 2)
    assert [captured({"x": torch.tensor(x)}).item() for x in (1.0, 4.0)] == [2.0, 8.0]


def test_numbers_of_scalars():
    x = torch.tensor(2.0, requires_grad=True)
    assert numbers([x * x, x.detach()]) == [4.0, 2.0]

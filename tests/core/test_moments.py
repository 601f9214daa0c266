"""Running mean and standard deviation, alone and over ranks."""

from __future__ import annotations

import math

import pytest
import torch

from tests.helpers.ranks import in_ranks
from torchbeast.core.forms import EntryError
from torchbeast.core.moments import Moments
from torchbeast.core.ranks import Ranks


def plain(values: list[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))


def chunks(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [1000 + 3 * torch.randn(size, generator=generator) for size in ((2, 3), (1,), (5, 4), (7,))]


def test_they_are_those_of_all_values_so_far():
    moments, seen = Moments(), []
    assert moments.std == 0
    for values in chunks(1):
        moments.update(values)
        seen += values.flatten().tolist()
        assert (moments.mean, moments.std) == pytest.approx(plain(seen), rel=1e-9) and moments.seen == len(seen)


def test_saved_and_loaded_they_go_on():
    moments, other = Moments(), Moments()
    moments.update(chunks(2)[0])
    other.load_state_dict(moments.state_dict())
    for each in (moments, other):
        each.update(chunks(2)[2])
    assert moments.state_dict() == other.state_dict()
    with pytest.raises(EntryError, match="returns/squares is"):
        other.load_state_dict({**moments.state_dict(), "squares": -1.0}, "returns")


def see(ranks: Ranks) -> dict:
    ranks.connect(torch.device("cpu"))
    moments = Moments(ranks)
    for values in chunks(ranks.rank):
        moments.update(values)
    return moments.state_dict()


def test_all_ranks_have_those_of_all_ranks_values(tmp_path):
    first, second = in_ranks(2, see, store=tmp_path / "store")
    assert first == second
    seen = [value for rank in (0, 1) for values in chunks(rank) for value in values.flatten().tolist()]
    mean, std = plain(seen)
    assert first["mean"] == pytest.approx(mean, rel=1e-9) and first["seen"] == len(seen)
    assert math.sqrt(first["squares"] / first["seen"]) == pytest.approx(std, rel=1e-9)

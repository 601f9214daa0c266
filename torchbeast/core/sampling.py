"""Random choices and where their randomness comes from."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def sample(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Draws from softmax(logits) over the last axis: float32 [..., A] -> int64 [...].

    The Gumbel-max trick: argmax(logits - log(Exponential(1))).
    """
    noise = torch.empty_like(logits).exponential_(generator=generator)
    return (logits - noise.log_()).argmax(dim=-1)


def derive_seed(seed: int, stream: str, index: int = 0) -> int:
    """A seed in [0, 2^31) for one user of randomness; different (stream, index) give independent ones."""
    key = [seed, len(stream), *stream.encode(), index]
    return int(np.random.SeedSequence(key).generate_state(1)[0] >> 1)


def torch_generator(seed: int, stream: str, index: int = 0) -> torch.Generator:
    """A generator on the CPU, seeded by `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, stream, index))

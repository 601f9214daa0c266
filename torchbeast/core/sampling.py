"""Random choices and where their randomness comes from."""

from __future__ import annotations

import numpy as np
import torch

from torchbeast.core.compiled import compiled


def sample(logits: np.ndarray, generator: torch.Generator) -> np.ndarray:
    """Draws from softmax(logits) of each row: float32 [N, A] -> int64 [N].

    The Gumbel-max trick: argmax(logits - log(Exponential(1))).
    """
    noise = torch.empty(logits.shape).exponential_(generator=generator)
    return _first_arrival(np.ascontiguousarray(logits), noise.numpy())


@compiled(nogil=True)
def _first_arrival(logits, noise):
    """argmax of logits - log(noise) in each row."""
    chosen = np.zeros(len(logits), np.int64)
    for i in range(len(logits)):
        best = logits[i, 0] - np.log(noise[i, 0])
        for j in range(1, logits.shape[1]):
            score = logits[i, j] - np.log(noise[i, j])
            if score > best:
                best, chosen[i] = score, j
    return chosen


def derive_seed(seed: int, stream: str, index: int = 0) -> int:
    """A seed in [0, 2^31) for one user of randomness; different (stream, index) give independent ones."""
    key = [seed, len(stream), *stream.encode(), index]
    return int(np.random.SeedSequence(key).generate_state(1)[0] >> 1)


def torch_generator(seed: int, stream: str, index: int = 0) -> torch.Generator:
    """A generator on the CPU, seeded by `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, stream, index))

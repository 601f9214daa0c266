"""What the state is worth in which an episode ran out of time: --bootstrap_time_limit."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from main.training.sight import Sight
from torchbeast.core.environment import LAST


def reads(sight: Sight) -> set[str]:
    """What `last_values` needs of a batch, as far as it is there."""
    return {"reward", "done", "truncated", "goal", *(LAST + name for name in sight.fields)}


@torch.no_grad()
def last_values(
    student: nn.Module, batch: dict[str, Tensor], inputs: dict[str, Tensor], core_state: tuple[Tensor, ...], sight: Sight
) -> Tensor:
    """V of the last state of each episode that ran out of time, at the step that led there; 0 elsewhere.

    That state still had the goal, and the memory, of the episode that ended. It takes the place of the next episode's first
    state in a copy of its rollout, so that what came before it is what it was.

    Args:
        student: as StudentNetwork has it.
        batch: rollouts [T+1, B, ...] with `truncated` and the `last_` fields of `sight.fields`.
        inputs: what the student sees in states 0..T.
        core_state: its memory before them.
        sight: what it sees of a state.
    Returns: float32 [T, B], for t = 1..T.
    Source: Pardo et al. (arXiv 1712.00378), partial-episode bootstrapping.
    """
    values = torch.zeros_like(batch["reward"][1:])
    t, b = (batch["truncated"][1:] & batch["done"][1:]).nonzero(as_tuple=True)
    if not len(t):
        return values
    copies = {name: value[:, b] for name, value in inputs.items()}
    place = t + 1, torch.arange(len(t), device=t.device)
    told = {name: batch[LAST + name][t + 1, b] for name in sight.fields}
    for name, value in sight.inputs(told, batch["goal"][t, b] if "goal" in copies else None).items():
        copies[name][place] = value
    copies["done"][place] = False
    if core_state:
        outputs, _ = student(copies, tuple(state[:, b] for state in core_state))
        values[t, b] = outputs["baseline"][place]
    else:  # without memory the state itself is enough
        outputs, _ = student({name: value[place][None] for name, value in copies.items()}, ())
        values[t, b] = outputs["baseline"][0]
    return values

"""Slow twins in float64 of what RND, ICM and RIDE compute of a batch, entry by entry; rollouts for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.helpers import agents
from tests.helpers.plain_networks import PlainRandomNetwork
from tests.helpers.twins import plain_twin
from torchbeast.core.environment import LAST
from torchbeast.core.settings import Settings
from utils_folder.motivations.base import Motivation, Task

STATE = ("frame", "carried_obj", "carried_col")


class PlainTwoLayers(nn.Module):
    """Linear, ReLU, linear."""

    use_embedding = True

    def __init__(self, size_in: int, size_out: int):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(size_in, 256), nn.ReLU(), nn.Linear(256, size_out))

    def forward(self, *parts: Tensor) -> Tensor:
        return self.fc(torch.cat(parts, dim=-1))


def seen(batch: dict[str, Tensor]) -> str:
    """The array that states are judged by."""
    return "view" if "last_view" in batch else "frame"


def random_batch(task: Task, settings: Settings) -> dict[str, Tensor]:
    """Rollouts in which some episodes end, one at the first step: [T+1, B, ...]."""
    batch = agents.random_batch(task, settings)
    batch["done"][1, 0], batch["done"][2, 0] = True, False
    for name in STATE[1:]:
        batch[LAST + name] = torch.randint(6, batch["done"].shape, dtype=torch.uint8)
    return batch


def plain_networks(motivation: Motivation, task: Task) -> dict[str, nn.Module]:
    """The twin of each of its networks, by what follows the variant's name in its own."""
    shape = (7, 7, 3) if "last_view" in motivation.rollout_fields else task.frame_shape
    makers = {
        "forward": lambda: PlainTwoLayers(128 + task.num_actions, 128),
        "inverse": lambda: PlainTwoLayers(256, task.num_actions),
    }
    found = {}
    for name, network in motivation.networks.items():
        kind = name.split("_", 1)[1]
        make = makers.get(kind, lambda: PlainRandomNetwork(shape, output="linear"))
        found[kind] = plain_twin(network, make())
    return found


def transition(batch: dict[str, Tensor], t: int, b: int) -> tuple[dict[str, Tensor], int, dict[str, Tensor]]:
    """(s, a, s') of step t of rollout b; s' is the episode's last state where it ends there."""
    ended = bool(batch["done"][t, b])
    fields = dict(zip(STATE, (seen(batch), *STATE[1:])))
    before = {name: batch[field][t - 1, b][None] for name, field in fields.items()}
    return before, int(batch["action"][t, b]), {name: batch[LAST * ended + field][t, b][None] for name, field in fields.items()}


def assert_same_loss(motivation: Motivation, plain: dict[str, nn.Module], loss: Tensor, expected: Tensor) -> None:
    """The loss and its gradient for every weight."""
    torch.testing.assert_close(loss.double(), expected, rtol=1e-3, atol=1e-5)
    loss.backward()
    expected.backward()
    for name, network in motivation.networks.items():
        theirs = dict(plain[name.split("_", 1)[1]].named_parameters())
        for which, value in network.named_parameters():
            if not value.requires_grad:
                continue
            wanted = theirs[which].grad
            assert wanted.abs().max() > 1e-6, f"{name}/{which} has no gradient: the comparison is empty"
            torch.testing.assert_close(
                value.grad.double(), wanted, rtol=0, atol=2e-3 * wanted.abs().max().item(), msg=f"{name}/{which}"
            )

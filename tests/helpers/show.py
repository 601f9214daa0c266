"""`python -m tests.helpers.show`: what an agent shows of its first state; with --keys FILE, what a checkpoint holds."""

from __future__ import annotations

import sys

import torch

from main import settings as settings_module
from main.playing import trained

if __name__ == "__main__":
    if sys.argv[1] == "--keys":
        state = torch.load(sys.argv[2], weights_only=True)
        for key, value in state.items():
            inside = value if isinstance(value, dict) else {}
            print(key, *(f"{name} {list(x.shape)}" for name, x in inside.items() if isinstance(x, torch.Tensor)), sep="\n")
    else:
        agent = trained.load(*settings_module.parse(["--mode", "test", *sys.argv[1:]]))
        for label, value in agent.motivation.shown(agent.actor(1, "video").start()).notes:
            print(label, value)

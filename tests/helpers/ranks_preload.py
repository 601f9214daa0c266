"""Imported once by the server that ranks are forked from: what takes long to load, and must start no thread."""

import numpy as np
import torch._dynamo
import torch.utils.tensorboard  # noqa: F401

import main.main  # noqa: F401
import tests.helpers.agents  # noqa: F401
from utils_folder import minigrid

_environment = minigrid.make_environments("MiniGrid-Empty-5x5-v0", [0])
_environment.initial()
_environment.step(np.zeros(1, np.int64))

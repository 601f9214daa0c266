"""Imported once by the server that ranks are forked from: what takes long to load."""

import numpy as np

import main.main  # noqa: F401
import tests.helpers  # noqa: F401
from utils_folder import env_utils

_environment = env_utils.make_environments("MiniGrid-Empty-5x5-v0", [0])
_environment.initial()
_environment.step(np.zeros(1, np.int64))

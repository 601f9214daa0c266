"""Trained agents to play with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.marks import some
from tests.helpers.playing import train
from utils_folder.motivations import MOTIVATIONS


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A run's folder."""
    return train(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session", params=some(MOTIVATIONS))
def every_trained(request, tmp_path_factory) -> Path:
    """A run's folder, of several variants in turn."""
    return train(tmp_path_factory.mktemp("runs"), "--model", request.param)

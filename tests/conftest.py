"""For all tests: modules of users' own tasks can be imported; a checkout that strangers may read."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.helpers import own_tasks
from tests.helpers.program import ROOT, for_strangers

ROOMS = ("torchbeast", "models", "utils_folder", "main", "results")


@pytest.fixture(scope="session")
def own_modules(tmp_path_factory):
    """The folder of my_tasks, odd_tasks and broken_tasks, in which Python looks for modules."""
    folder = tmp_path_factory.mktemp("modules")
    own_tasks.write(folder)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(scope="session")
def checkout_for_strangers(tmp_path_factory) -> Path:
    """A checkout that nobody may write to."""
    folder = for_strangers(tmp_path_factory.mktemp("checkout"))
    for room in ROOMS:
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__", "*.tar", "*.png", "*.svg"))
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode & 0o555)
    yield folder
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode | 0o700)

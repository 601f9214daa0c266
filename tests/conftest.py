"""For all tests: modules of users' own tasks can be imported."""

from __future__ import annotations

import sys

import pytest

from tests.helpers import own_tasks


@pytest.fixture(scope="session")
def own_modules(tmp_path_factory):
    """The folder of my_tasks, odd_tasks and broken_tasks, in which Python looks for modules."""
    folder = tmp_path_factory.mktemp("modules")
    own_tasks.write(folder)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))

"""Every variant really learns a small task, with the flags that it has by default."""

from __future__ import annotations

import pytest

from tests.helpers.marks import some
from tests.helpers.runs import assert_learns_a_small_task
from utils_folder.motivations import MOTIVATIONS


@pytest.mark.slow
@pytest.mark.parametrize("model", some(MOTIVATIONS))
def test_a_small_task_is_learned(tmp_path, model):
    assert_learns_a_small_task(tmp_path, "--model", model, "--num_actor_processes", "2")

"""What is freed stays with the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.helpers.program import ROOT

PAGES = """
import resource, threading
import torch
from torchbeast.core.memory import keep_freed

keep_freed()

def update():
    return [torch.ones(size) for size in (800_000, 200_000, 1_000_000)]

def look():
    for _ in range(3):
        update()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        update()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 20)

thread = threading.Thread(target=look)
thread.start()
thread.join()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_memory_that_has_been_freed_is_used_again():
    """Of an update with arrays of 8 MB, in a thread as the learner's, the system makes hardly a page: else some hundreds."""
    run = subprocess.run([sys.executable, "-c", PAGES], capture_output=True, text=True, check=True, cwd=ROOT)
    assert float(run.stdout) < 100

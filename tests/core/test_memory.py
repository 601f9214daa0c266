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
    return [torch.ones(1_000_000) for _ in range(10)]

def look():
    for _ in range(20):
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
    """Of an update with arrays of 40 MB, in a thread as the learner's, the system makes hardly a page: else some thousands."""
    run = subprocess.run([sys.executable, "-c", PAGES], capture_output=True, text=True, check=True, cwd=ROOT)
    assert float(run.stdout) < 100


COPIES = """
import gc, os
import torch
from torchbeast.core.memory import share_with_forks

gc.disable()
objects = [[] for _ in range(300_000)]
freed = [torch.ones(20_000) for _ in range(400)]
kept = torch.ones(10)
del freed
share_with_forks()
if os.fork() == 0:
    gc.collect()
    again = [torch.ones(20_000) for _ in range(100)]
    text = open("/proc/self/smaps_rollup").read()
    print(int(text.split("Private_Dirty:")[1].split()[0]) / 1024, flush=True)
    os._exit(0)
os.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_a_forked_process_copies_little():
    """Of 24 MB of objects, which its collector goes through, hardly a page becomes its own; 8 MB of arrays do."""
    run = subprocess.run([sys.executable, "-c", COPIES], capture_output=True, text=True, check=True, cwd=ROOT)
    assert 8 < float(run.stdout) < 16

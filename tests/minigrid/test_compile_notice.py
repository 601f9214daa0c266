"""The first start says that it compiles, and only that one: a start that finds Numba's cache says nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.program import ROOT

PROBE = """
import logging
from utils_folder import minigrid
logging.basicConfig(level=logging.INFO, format="%(message)s")
minigrid.probe("MiniGrid-KeyCorridorS3R3-v0", engine={engine!r})
"""


def said(cache: Path, engine: str = "auto") -> list[str]:
    """What a process says that probes the environment with this cache."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    program = [sys.executable, "-W", "ignore", "-c", PROBE.format(engine=engine)]
    done = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return [line for line in done.stderr.splitlines() if "compiling" in line]


@pytest.mark.soak
def test_it_is_said_when_it_compiles_and_not_when_it_loads(tmp_path):
    assert said(tmp_path) == ["compiling the environment engine: some 20 seconds, once on a machine"]
    assert said(tmp_path) == []
    for index in tmp_path.rglob("*.nbi"):  # what is lost is compiled again
        index.unlink()
    assert len(said(tmp_path)) == 1


@pytest.mark.slow
def test_nothing_is_said_where_nothing_compiles(tmp_path):
    assert said(tmp_path, "gym") == []
    assert not list(tmp_path.rglob("*.nbi"))

"""The rooms: imports go downward only, and nobody but the registry knows the variants' names."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from utils_folder.motivation import ALIASES, registry

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("torchbeast", "models", "utils_folder", "main")  # a room may import itself and those before it
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_downward(path):
    room = path.relative_to(ROOT).parts[0]
    above = ROOMS[ROOMS.index(room) + 1 :]
    assert not [name for name in imported(path) if name.split(".")[0] in above]
    if room == "torchbeast":
        assert not [name for name in imported(path) if name.split(".")[0] == "gym_minigrid"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_registry_knows_the_variants(path):
    if path.name in ("motivation.py", "flags.py"):  # the registry; the default of --model
        return
    names = {*registry(), *ALIASES} - {"default"}
    strings = {
        n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant) and isinstance(n.value, str)
    }
    assert not names & strings


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_star_imports_no_path_edits_no_globals(path):
    tree = ast.parse(path.read_text())
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.Global)]
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.names[0].name == "*"]
    assert "sys.path" not in path.read_text()

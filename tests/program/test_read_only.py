"""A checkout that nobody may write to, used by somebody who has no home: a container under a foreign user, a shared install."""

from __future__ import annotations

import pytest

from tests.helpers.marks import rarer
from tests.helpers.program import as_a_stranger, command, for_strangers, rows

pytestmark = pytest.mark.slow

COMMANDS = ("main", "main.main", "main.plot", "main.curriculum", "main.reproduce", "main.report", "main.benchmark", "main.thin")


@pytest.mark.parametrize("name", [*COMMANDS[::3], *rarer(name for name in COMMANDS if name not in COMMANDS[::3])])
def test_every_command_starts_there(checkout_for_strangers, tmp_path, name):
    temporary = for_strangers(tmp_path)
    done = as_a_stranger("-m", name, "--help", root=checkout_for_strangers, TMPDIR=str(temporary))
    assert done.returncode == 0 and done.stdout.startswith("usage: ")
    assert "Traceback" not in done.stderr and "gym" not in done.stderr.lower()  # nor its farewells
    assert not list(temporary.glob("amigo-*"))  # nothing is compiled for that


@pytest.mark.soak
def test_a_run_compiles_into_a_private_folder_and_says_so(checkout_for_strangers, tmp_path):
    folders = [tmp_path / name for name in ("runs", "temporary")]
    for folder in folders:
        folder.mkdir()
    runs, temporary = map(for_strangers, folders)
    compiled = []
    for attempt in ("first", "second"):
        arguments = command(runs, "--engine", "gym", "--num_actor_processes", "1", "--xpid", attempt, "--total_frames", "96")
        done = as_a_stranger("-m", "main.main", *arguments, root=checkout_for_strangers, TMPDIR=str(temporary))
        assert done.returncode == 0, done.stderr
        assert done.stderr.count(f"compiled code is kept in {temporary}/amigo-compiled-54321") == 1
        assert len(rows(runs / attempt)) == 4
        compiled.append({path: path.stat().st_mtime_ns for path in temporary.rglob("*.nbc")})
    assert compiled[0] and compiled[0] == compiled[1]

"""Paths that cannot be looked at: one line that names them and exit code 2, from every command that is given one."""

from __future__ import annotations

import importlib

import pytest

from tests.helpers.marks import rarer
from tests.helpers.program import as_a_stranger, for_strangers

pytestmark = pytest.mark.slow

COMMANDS = (
    "main.main --resume",
    "main.main --mode test --weight_path",
    "main.main --savedir",
    "main.plot --out OUT.png",
    "main.curriculum",
    "main.reproduce",
    "main.report",
    "main.thin --out OUT.csv",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_empty_path_is_none(tmp_path, monkeypatch, command, capsys):
    """As `--resume "$RUN"` gives it where RUN is not set: it would stand for the present folder."""
    monkeypatch.chdir(tmp_path)
    module, *words = command.replace("OUT", "out").split()
    main = importlib.import_module(module).main
    assert main([*words, ""]) == 2
    said = capsys.readouterr().err
    assert "is empty: give a path, or leave the flag out" in said and said.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [*COMMANDS[::2], *rarer(COMMANDS[1::2])])
@pytest.mark.parametrize("why", ["no right", *rarer(["too long", "a circle"])])
def test_what_cannot_be_reached_gets_one_line(checkout_for_strangers, tmp_path, command, why):
    locked = for_strangers(tmp_path) / "locked"
    (locked / "run").mkdir(parents=True)
    locked.chmod(0o700)
    (circle := tmp_path / "circle").symlink_to(circle)
    path = {"no right": locked / "run", "too long": "a" * 300, "a circle": circle}[why]
    words = [*command.replace("OUT", str(tmp_path / "out")).split(), str(path)]
    done = as_a_stranger("-W", "ignore", "-m", *words, root=checkout_for_strangers, TMPDIR=str(tmp_path))
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert str(locked if why == "no right" else path)[:50] in line

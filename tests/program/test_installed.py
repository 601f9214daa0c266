"""As pip and pipx install it: a wheel, built from a copy of the tree, in an environment of its own, used from another folder.

What it depends on is not downloaded anew: the new environment sees the packages of the one that runs the tests.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from main.amigo import COMMANDS
from tests.helpers.program import ROOT, SMALL

pytestmark = pytest.mark.slow

FOLDERS = ("main", "models", "utils_folder", "torchbeast")
METADATA = """
import importlib.metadata, json, pathlib, main
about = importlib.metadata.metadata("amigo")
print(json.dumps({"requires": about.get_all("Requires-Dist"), "python": about["Requires-Python"], "main": main.__file__}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    tree = tmp_path_factory.mktemp("tree")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tree / file)
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(tree), str(tree))
    (built,) = tree.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The bin folder of an environment with the wheel."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin/python"
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "tests_own.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip("--python", str(python), "install", "--no-deps", "--no-index", str(wheel))
    return environment / "bin"


def pip(*words: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def call(program: Path, *words: str, cwd: Path) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([program, *words], cwd=cwd, env=environment, capture_output=True, text=True)


def test_every_package_is_in_it(installed, wheel, tmp_path):
    listing = call(installed / "python", "-m", "zipfile", "-l", str(wheel), cwd=tmp_path).stdout
    packed = set(re.findall(r"^(\S+\.py) ", listing, re.MULTILINE))
    assert packed == {str(path.relative_to(ROOT)) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}


def test_it_asks_for_what_requirements_txt_pins(installed, tmp_path):
    about = json.loads(call(installed / "python", "-c", METADATA, cwd=tmp_path).stdout)
    lines = [line.partition("#")[0] for line in (ROOT / "requirements.txt").read_text().splitlines()]
    assert {squeezed(line) for line in about["requires"]} == {squeezed(line) for line in lines if line.strip()}
    assert Path(about["main"]).is_relative_to(installed.parent)
    assert about["python"] == "<3.15,>=3.10"


def squeezed(requirement: str) -> str:
    return re.sub(r"\s", "", requirement)


def test_amigo_lists_its_commands(installed, tmp_path):
    told = call(installed / "amigo", "--help", cwd=tmp_path)
    assert told.returncode == 0
    assert told.stdout.startswith("usage: amigo COMMAND ...")
    assert [name for name in COMMANDS if f"\n  {name} " in told.stdout] == list(COMMANDS)
    assert call(installed / "amigo", cwd=tmp_path).stdout == told.stdout
    assert not list(tmp_path.iterdir())


def test_a_command_is_called_as_it_was_typed(installed, tmp_path):
    assert call(installed / "amigo", "plot", "--help", cwd=tmp_path).stdout.startswith("usage: amigo plot ")
    wrong = call(installed / "amigo", "plot", "--nought", cwd=tmp_path)
    assert wrong.returncode == 2 and wrong.stderr.endswith("see amigo plot --help\n")
    wrong = call(installed / "amigo", "trian", cwd=tmp_path)
    assert wrong.returncode == 2 and "'trian'" in wrong.stderr and "see amigo --help" in wrong.stderr


def test_it_trains_and_plays(installed, tmp_path):
    trained = call(installed / "amigo", "train", *SMALL, "--savedir", "runs", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    played = call(installed / "amigo", "test", "--weight_path", "runs/run/model.tar", "--num_episodes", "2", cwd=tmp_path)
    assert played.returncode == 0, played.stderr
    assert "success" in played.stdout


def test_every_command_is_there():
    assert {about.module for about in COMMANDS.values()} == {
        f"main.{path.stem}" for path in (ROOT / "main").glob("*.py") if "def main(" in path.read_text() and path.stem != "amigo"
    }
    for about in COMMANDS.values():
        assert callable(importlib.import_module(about.module).main)

"""The rooms: imports go downward only and in no circle, and nobody knows of a variant what only its own file should."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from main import benchmark, curriculum, plot, report, reproduce, thin
from main import settings as settings_module
from main.training import learner
from main.training.recipe import Agent
from tests.helpers.program import ROOT
from torchbeast.core.environment import LAST
from torchbeast.core.settings import flags_of
from utils_folder.motivations import ALIASES, MOTIVATIONS
from utils_folder.motivations.base import Task

ROOMS = ("torchbeast", "models", "utils_folder", "main")  # a room may import itself and those before it
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
# Who may know a variant: its own file and what it shares with others beside it; the same in the tests; and the document's test.
OWN = ("utils_folder/motivations/", "tests/motivations/", "tests/helpers/motivations/", "tests/program/test_document.py")
LONGEST_FUNCTION, LONGEST_CLASS = 40, 180


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in SOURCES}


def imports(path: Path) -> Iterator[tuple[ast.AST, str]]:
    """(node, module of this program) of every import in the file, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            below = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in below]
        else:
            continue
        yield from ((node, name) for name in names)


def anywhere(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=name_of)


@anywhere(SOURCES)
def test_imports_go_downward(path):
    room = path.relative_to(ROOT).parts[0]
    above = ROOMS[ROOMS.index(room) + 1 :]
    named = {name for _, name in imports(path)}
    assert not [name for name in named if name.split(".")[0] in above]
    if room in ("torchbeast", "main"):  # gym says farewell on stderr where it is imported; `models` sees to it that it does not
        assert not [name for name in named if name.split(".")[0] in ("gym", "gym_minigrid")]


def test_nothing_imports_in_a_circle():
    arrows = {module: {name for _, name in imports(path) if name in MODULES} for module, path in MODULES.items()}
    # A package's __init__ is imported by whatever is in it; what it does is import them.
    for module, targets in arrows.items():
        package = module.rpartition(".")[0]
        targets.discard(module)
        targets.discard(package)
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way[way.index(module) :], module))
        if module not in done:
            for target in sorted(arrows[module]):
                visit(target, (*way, module))
            done.add(module)

    for module in sorted(arrows):
        visit(module, ())


@anywhere(SOURCES)
def test_no_import_of_this_program_stands_inside_a_function(path):
    tree = ast.parse(path.read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    inside = {node for function in functions for node in ast.walk(function)}
    late = [name for node, name in imports(path) if name.split(".")[0] in ROOMS]
    lines = {node.lineno for node in inside if isinstance(node, (ast.Import, ast.ImportFrom))}
    assert not [name for node, name in imports(path) if node.lineno in lines and name in late]


@anywhere(TESTS)
def test_no_test_imports_a_test(path):
    assert not [name for _, name in imports(path) if name.split(".")[-1].startswith("test_")]


@anywhere(SOURCES)
def test_no_star_imports_no_path_edits_no_globals(path):
    tree = ast.parse(path.read_text())
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.Global)]
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.names[0].name == "*"]
    assert "sys.path" not in path.read_text()


@anywhere(SOURCES)
def test_functions_and_classes_are_short(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            documented = ast.get_docstring(node) is not None and len(node.body) > 1
            size = node.end_lineno - node.body[documented].lineno + 1
            assert size <= LONGEST_FUNCTION, f"{node.name}: {size} lines"
        elif isinstance(node, ast.ClassDef):
            size = node.end_lineno - node.lineno + 1
            assert size <= LONGEST_CLASS, f"{node.name}: {size} lines"


@anywhere([path for path in SOURCES if "main" not in path.relative_to(ROOT).parts[:1] or path.parent.name != "main"])
def test_only_commands_can_be_run(path):
    assert "__main__" not in path.read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "main").glob("*.py")), ids=name_of)
def test_a_module_that_can_be_run_is_a_command_with_help(path):
    text = path.read_text()
    if "def main(" in text:
        assert 'if __name__ == "__main__"' in text and f"`python -m main.{path.stem}" in ast.get_docstring(ast.parse(text))
    elif path.stem not in ("__init__", "__main__"):
        assert "is no command" in text  # and says so, in place of a silent exit


@pytest.mark.slow
@pytest.mark.parametrize("module", sorted(name for name in MODULES if name.startswith("main.analysis")))
def test_reading_finished_runs_needs_nothing_of_training(module):
    """In a process of its own: what it imports, and what that imports."""
    rooms = ("main.settings", "main.training", "main.playing", "models", "utils_folder.motivations", "utils_folder.minigrid")
    program = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded, unwanted = done.stdout.split(), (*rooms, "numba", "gym", "gym_minigrid")
    assert module in loaded
    assert not [name for name in loaded if any(f"{name}.".startswith(f"{room}.") for room in unwanted)]


# What a variant declares, nobody else names


def agents() -> list[Agent]:
    torch.manual_seed(0)
    task = Task((6, 5, 3), 7, 50)
    return [Agent.make(settings_module.make({"model": name}), task) for name in MOTIVATIONS]


def base_names() -> set[str]:
    """Names that the interfaces themselves give meaning to, whoever uses them."""
    shared = {"goal"}  # what a goal-conditioned student reads
    shared |= {column.panel for motivation in MOTIVATIONS.values() for column in motivation.columns}
    generic = [group for group in settings_module.groups() if not any(group in m.groups for m in MOTIVATIONS.values())]
    return shared | {*flags_of(generic)} | {column.name for column in learner.COLUMNS} | {"default"}


def declared() -> dict[str, str]:
    """Everything that variants declare by name, and whose it is."""
    found: dict[str, str] = {}
    for agent in agents():
        motivation = agent.motivation
        model = settings_of(agent)
        fields = [name for name in motivation.rollout_fields if not name.startswith(LAST)]  # those are the environment's
        names = [*flags_of(motivation.groups), *(column.name for column in motivation.columns), *fields]
        names += [*motivation.state_dict(), *motivation.training_state_dict(), model]
        found |= dict.fromkeys(names, model)
    found |= ALIASES
    return {name: whose for name, whose in found.items() if name not in base_names()}


def settings_of(agent: Agent) -> str:
    return agent.settings[settings_module.RunSettings].model


DECLARED = declared()
COMMANDS = (benchmark, curriculum, plot, report, reproduce, thin)
COMMANDS_OWN = {flag for command in COMMANDS for flag in re.findall(r"--\w+", command.make_parser().format_help())}


def words_of(path: Path) -> set[str]:
    """The names that code takes up: whole strings, flags in longer ones, attributes and keywords of several words.

    Docstrings tell a reader something, and a command's own flags are its own: they are left out.
    """
    tree = ast.parse(path.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    left_out = {id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, documented) and ast.get_docstring(node)}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args]
    left_out |= {id(call.args[0]) for call in calls if ast.unparse(call.func).split(".")[-1] in ("add", "add_argument")}
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg}
    found = {name for name in names if "_" in name}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in left_out:
            words = [word.strip(",.:;'\"()") for word in node.value.split()]
            flags = {word.removeprefix("--") for word in words if word.startswith("--") and word not in COMMANDS_OWN}
            found |= {node.value} | flags | {word for word in words if "_" in word and not word.startswith("--")}
    return found


@anywhere([path for path in (*SOURCES, *TESTS) if not name_of(path).startswith(OWN)])
def test_nobody_knows_what_a_variant_declares(path):
    known = words_of(path) & DECLARED.keys()
    assert not known, {name: DECLARED[name] for name in known}


def test_what_variants_declare_is_found():
    """The test above looks for something, and would see it."""
    assert len(DECLARED) > 40
    for motivation in MOTIVATIONS.values():
        if motivation.groups:
            assert words_of(Path(inspect.getsourcefile(motivation))) & DECLARED.keys()

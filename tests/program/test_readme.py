"""The README says what the program does: its commands parse, its flags and columns are the program's.

`python -m tests.test_readme` prints the flag tables, to be pasted into the README.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from main import flags as flags_module
from main import plot
from main.learner import LOG_COLUMNS
from tests.helpers.program import scripts
from utils_folder.amigo import Amigo
from utils_folder.bebold import BeBold

README = Path(__file__).resolve().parents[2] / "README.md"


def flag_tables() -> str:
    """Every flag by group, as Markdown."""
    parts = []
    for title, flags in flags_module.GROUPS.items():
        rows = []
        for flag in flags:
            default = "" if flag.default is None else "off" if flag.default is False else flag.default
            rows.append(f"| `--{flag.name}` | {default} | {flag.meaning} |")
        parts.append("\n".join([f"**{title}**", "", "| flag | default | meaning |", "|---|---|---|", *rows]))
    return "\n\n".join(parts)


def commands(program: str = "main.main") -> list[str]:
    """The arguments of every `python -m PROGRAM`, with or without torchrun, in a code block."""
    blocks = re.findall(r"```bash\n(.*?)```", README.read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split(f" -m {program} ", 1)[1].split("#")[0] for line in lines if f" -m {program} " in line]


def test_there_are_the_documents_commands_and_more():
    assert len(commands()) >= 5


@pytest.mark.parametrize("command", commands())
def test_commands_parse_and_pass(command):
    flags, _ = flags_module.parse(shlex.split(command))
    if flags.resume is None:
        flags_module.check(flags)


def test_the_figures_commands_name_runs_and_figures_that_are_there():
    root = README.parent
    figures = [options for options in map(_plot_options, commands("main.plot")) if options.out.startswith("results/")]
    assert len(figures) >= 3
    for options in figures:
        assert all(any(root.glob(run)) for run in options.runs), options.runs
        assert (root / options.out).is_file(), options.out


def _plot_options(command: str):
    return plot.make_parser().parse_args(shlex.split(command))


@pytest.mark.parametrize("script", scripts(), ids=range(len(scripts())))
def test_job_scripts_are_shell_and_their_flags_parse(script, tmp_path):
    (tmp_path / "job").write_text(script)
    subprocess.run(["bash", "-n", tmp_path / "job"], check=True)
    lines = [line for line in script.replace("\\\n", " ").splitlines() if "--env" in line]
    assert lines
    for line in lines:
        flags, _ = flags_module.parse(shlex.split(line[line.index("--env") :].rstrip('"& ')))
        flags_module.check(flags)


def test_flag_tables_are_the_programs():
    assert flag_tables() in README.read_text()


def test_every_logged_column_is_explained():
    text = README.read_text()
    for column in (*LOG_COLUMNS, *Amigo.log_columns, *BeBold.log_columns, "_tick", "_time"):
        assert f"| `{column}` |" in text, column


def test_files_it_names_are_there():
    root = README.parent
    for path in re.findall(r"`((?:main|models|utils_folder|torchbeast|tests)/[\w/]+\.py)`", README.read_text()):
        assert (root / path).is_file(), path


if __name__ == "__main__":
    print(flag_tables())

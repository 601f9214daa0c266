"""The pages say what the program does: commands parse, links and files are there, flags and columns are the program's."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from main import plot, reproduce, thin
from main import settings as settings_module
from main.amigo import COMMANDS as COMMANDS_BY_NAME
from main.analysis.table import put_in
from main.settings import FileSettings, RunSettings
from main.training import recipe
from tests.helpers import pages
from tests.helpers.program import ROOT, scripts

FOLDERS = ("main", "models", "utils_folder", "torchbeast", "results", "tests")
IN_FOLDERS = [path for folder in FOLDERS for path in (ROOT / folder).rglob("README.md")]
PATHS = [ROOT / "README.md", *sorted({*IN_FOLDERS, *(ROOT / "results").glob("*.md")})]
PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in PATHS}
CHANGES = "CHANGELOG.md"
CODE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LANGUAGES = {"bash", "sh", "python", "bib"}
SCRIPTS = [script for page in PAGES for script in scripts(page)]


def prose(page: str) -> str:
    """A page without its code blocks."""
    return CODE.sub("", PAGES[page])


def in_text(page: str) -> list[str]:
    """What stands in the text as code."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(page))]


def command_lines(page: str) -> list[str]:
    """Every line of the page's ```bash blocks, and the commands in its text."""
    blocks = "\n".join(block for language, block in CODE.findall(PAGES[page]) if language == "bash")
    lines = [line for line in blocks.replace("\\\n", " ").splitlines() if line]
    return lines + [code for code in in_text(page) if re.match(r"(python -m|make|torchrun) ", code)]


COMMANDS = [(page, line) for page in PAGES for line in command_lines(page)]


def program_and_arguments(line: str) -> tuple[str, list[str]]:
    """("main.plot", [...]) of `python -m main.plot ...`, with or without torchrun; ("make", [...]) of a `make ...`."""
    words = shlex.split(line, comments=True)
    if words[0] == "OMP_NUM_THREADS=1":
        words = words[1:]
    if words[0] == "torchrun":
        given = get_args_parser().parse_args(words[1:])
        assert given.module
        return given.training_script, given.training_script_args
    if words[:2] == ["python", "-m"]:
        return words[2], words[3:]
    return words[0], words[1:]


def arguments_of(program: str, page: str) -> list[list[str]]:
    return [words for name, words in map(program_and_arguments, command_lines(page)) if name == program]


def check_training(words: list[str]) -> None:
    settings, _ = settings_module.parse(words)
    if settings[FileSettings].resume is None and settings[RunSettings].env != settings_module.LIST:
        settings_module.check(settings)


@pytest.mark.usefixtures("own_modules")
@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[f"{page} {line[:60]}" for page, line in COMMANDS])
def test_every_command_parses(page, line):
    program, words = program_and_arguments(line)
    if program == "make":
        target, *variables = words
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        for name, _, value in (variable.partition("=") for variable in variables):
            assert re.search(rf"^{name} [:?]?=", (ROOT / "Makefile").read_text(), re.MULTILINE)
            if target == "train" and name == "ARGS":
                check_training(shlex.split(value))
    elif program == "main.main":
        check_training(words)
    elif program == "tensorboard":
        assert words[0] == "--logdir" and len(words) == 2
    elif program.startswith("tests."):
        assert importlib.util.find_spec(program) and not words
    else:
        importlib.import_module(program).make_parser().parse_args(words)


@pytest.mark.parametrize("page", PAGES)
def test_every_code_block_names_its_language(page):
    assert {language for language, _ in CODE.findall(PAGES[page])} <= LANGUAGES
    assert "```" not in prose(page)


def test_the_documents_commands_and_more_are_on_the_first_page():
    commands = arguments_of("main.main", "README.md")
    assert len(commands) >= 5
    assert sum("--model" in words for words in commands) == 3


def test_every_command_is_in_the_table_of_commands():
    commands = [path.stem for path in (ROOT / "main").glob("*.py") if "def main(" in path.read_text()]
    assert len(commands) >= 6
    for command in commands:
        assert f"| `python -m main.{command}" in PAGES["main/README.md"]


@pytest.mark.parametrize("name", sorted({about.module for about in COMMANDS_BY_NAME.values()} - {"main.main"}))
def test_a_commands_help_shows_an_example_or_two_that_parse(name):
    """Those of main.main are tested with its flags."""
    parser = importlib.import_module(name).make_parser()
    assert 1 <= len(parser.examples) <= 2
    for example in parser.examples:
        parser.parse_args(shlex.split(example))
        assert f"\n  python -m {name} {example}\n" in parser.format_help()
    assert max(map(len, parser.format_help().splitlines())) <= 128


def test_the_figures_commands_name_runs_and_figures_that_are_there():
    figures = [plot.make_parser().parse_args(words) for page in PAGES for words in arguments_of("main.plot", page)]
    figures = [options for options in figures if options.out is not None and options.out.startswith("results/")]
    assert len(figures) >= 3
    for options in figures:
        assert all(any(ROOT.glob(run)) for run in options.runs), options.runs
        assert (ROOT / options.out).is_file(), options.out


def test_there_are_job_scripts_for_one_learner_and_for_several():
    assert len(SCRIPTS) >= 2


@pytest.mark.parametrize("script", SCRIPTS, ids=range(len(SCRIPTS)))
def test_job_scripts_are_shell_and_their_flags_parse(script, tmp_path):
    (tmp_path / "job").write_text(script)
    subprocess.run(["bash", "-n", tmp_path / "job"], check=True)
    lines = [line for line in script.replace("\\\n", " ").splitlines() if "--env" in line]
    assert lines
    for line in lines:
        check_training(shlex.split(line[line.index("--env") :].rstrip('"& ')))


def test_what_the_changelog_names_is_there():
    """Flags, commands and links; the first page names it."""
    assert f"]({CHANGES})" in PAGES["README.md"]
    text = (ROOT / CHANGES).read_text()
    named = set(re.findall(r"(?<![\w-])--(\w+)", text))
    commands = [plot, reproduce, thin]
    known = {*settings_module.flags(), *re.findall(r"--(\w+)", "".join(c.make_parser().format_help() for c in commands))}
    assert named and named <= known
    for module in re.findall(r"python -m ([\w.]+)", text):
        assert importlib.util.find_spec(module)
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert (ROOT / target).is_file()
    assert text.index("## Since 1.0") < text.index("22cffe7")


# The first page


def test_the_first_page_is_short_and_in_order():
    page = PAGES["README.md"]
    assert len(page.encode()) <= 12_000
    title, text = page.split("\n\n")[:2]
    assert title.startswith("# ") and text.count("\n") == 2, "what it is, in three lines"
    landmarks = (
        text, ".gif)", "make train", "make test", "By hand", "main.main --env", "main.main --resume",
        "--record_video", "figures/fast.svg)", "| keycorridor-default |", "## Where to go on", "](main/README.md) |",
        "## Citation", "## License",
    )  # fmt: skip
    places = [page.index(landmark) for landmark in landmarks]
    assert places == sorted(places)


def test_the_first_page_says_plainly_what_the_student_sees():
    (paragraph,) = [text for text in PAGES["README.md"].split("\n\n") if "mission text" in text]
    text = " ".join(paragraph.split())
    assert "sees the full grid, as in the published code, not MiniGrid's partial view of 7x7 cells" in text
    assert "does not see the mission text" in text


# What all pages have in common


def test_runs_lie_in_one_folder():
    """The document's, in every command and where main.reproduce puts them."""
    named = re.compile(r"(?<![\w/])(?:\./)?(experiment\w*)/|--(?:savedir|logdir) (?:\./)?([\w.]+)")
    found = {name for page in PAGES.values() for pair in named.findall(page) for name in pair if name}
    assert found - {"results"} == {reproduce.make_parser().parse_args(["a.ini"]).savedir.name} == {"experimentMinigrid"}


@pytest.mark.parametrize("page", [page for page in PAGES if page.endswith("/README.md")])
def test_a_page_starts_with_a_sentence_on_what_its_folder_is_for(page):
    title, sentence = PAGES[page].split("\n\n")[:2]
    assert title.startswith("# ") and "\n" not in title
    assert sentence.startswith("This folder holds ")


def links(page: str) -> list[tuple[Path, str]]:
    """(file, anchor) of every relative link and picture."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    split = [target.partition("#") for target in targets if "://" not in target]
    path = ROOT / page
    return [((path.parent / file).resolve() if file else path, anchor) for file, _, anchor in split]


def anchors(text: str) -> set[str]:
    """What GitHub makes of headings."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for file, anchor in links(page):
        assert file.is_file(), file
        assert not anchor or anchor in anchors(prose(str(file.relative_to(ROOT)))), (file, anchor)


def test_every_page_is_reached_from_the_first():
    reached, new = set(), {"README.md"}
    while new:
        reached |= new
        new = {str(file.relative_to(ROOT)) for page in new for file, _ in links(page) if file in PATHS} - reached
    assert reached == set(PAGES)


def named(page: str, folders: str) -> list[str]:
    """The paths in these folders that the page's text names."""
    return [code for code in in_text(page) if re.fullmatch(rf"(?:{folders})/[\w/.-]*", code)]


@pytest.mark.parametrize("page", PAGES)
def test_tests_and_results_that_it_names_are_there(page):
    for path in named(page, "tests|results"):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES)
def test_files_it_names_are_there(page):
    for path in named(page, "main|models|utils_folder|torchbeast"):
        assert (ROOT / path).exists(), path


def test_every_module_stands_on_a_page():
    pages_text = "".join(PAGES.values())
    modules = [path for folder in ("main", "models", "utils_folder", "torchbeast") for path in (ROOT / folder).rglob("*.py")]
    named_ones = [path for path in modules if path.stem not in ("__init__", "__main__")]
    assert not [path for path in named_ones if f"`{path.relative_to(ROOT)}`" not in pages_text]


# Tables made from the program


@pytest.mark.parametrize("name", list(pages.tables()))
def test_a_table_is_the_programs(name):
    page = pages.PAGE.read_text()
    assert put_in(page, {name: pages.tables()[name]}) == page, "python -m tests.helpers.pages writes it"


def test_every_flag_and_every_column_has_a_meaning():
    assert all(flag.meaning for flag in settings_module.flags().values())
    assert all(column.meaning for column in recipe.columns().values())

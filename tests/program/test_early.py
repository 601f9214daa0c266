"""What a command is to write, and what it is to measure, is looked at before it begins: nothing is compiled, played or read."""

from __future__ import annotations

import shlex

import pytest

from main import benchmark, curriculum, plot, report, reproduce
from main import main as entry
from main.training import recipe
from tests.helpers.damage import contents
from tests.helpers.program import ROOT
from torchbeast.core import checkpoint
from utils_folder import minigrid

TABLE = str(ROOT / "results" / "experiments.ini")
RUN = str(ROOT / "results" / "keycorridor-default-1")
TEST = f"--mode test --weight_path {RUN}"
WRONG = [
    (entry, f"{TEST} --record_video --video_path a.avi", "--video_path a.avi: choose a name that ends with .mp4 or .gif"),
    (entry, f"{TEST} --record_video --video_path no/a.mp4", "--video_path no/a.mp4: its folder does not exist"),
    (entry, f"{TEST} --record_video --video_path folder.mp4", "--video_path folder.mp4 is a folder"),
    (entry, f"{TEST} --json no/a.json", "--json no/a.json: its folder does not exist"),
    (entry, f"{TEST} --json a.gif --record_video --video_path a.gif", "--json and --video_path name the same file"),
    (entry, f"--mode test_render --weight_path {RUN} --json a.json", "--mode test_render shows episodes and writes nothing"),
    (entry, f"--mode test_render --weight_path {RUN}", "--mode test_render needs a display, and there is none"),
    (entry, "--xpid a/b", "--xpid must be a plain folder name"),
    (entry, "--xpid latest", "--xpid must be a plain folder name"),
    (entry, "--initials a/b", "--initials must be part of a plain folder name"),
    (entry, "--xpid kept --savedir runs", "runs/kept holds a run already: go on with it"),
    (entry, "--xpid taken --savedir runs", "runs/taken holds a run already: go on with it"),
    (entry, "--xpid file --savedir runs", "--xpid runs/file: "),
    (entry, "--savedir file/runs", "--savedir file/runs: "),
    (entry, "--savedir file --dry_run", "--savedir file: "),
    (benchmark, "--seconds -3", "--seconds: invalid positive number value: '-3'"),
    (benchmark, "--seconds nan", "--seconds: invalid positive number value: 'nan'"),
    (benchmark, "--json no/a.json", "--json no/a.json: its folder does not exist"),
    (benchmark, "--json folder.mp4 --scaling", "--json folder.mp4 is a folder"),
    (benchmark, "--pairs 0", "--pairs: invalid positive whole number value: '0'"),
    (reproduce, f"{TABLE} --jobs 0", "--jobs: invalid positive whole number value: '0'"),
    (plot, f"{RUN} --out a.gif", "--out a.gif: give a name that ends in .png, .svg or .pdf"),
    (plot, f"{RUN} --out no/a.png", "--out no/a.png: its folder does not exist"),
    (plot, f"{RUN} --out a.png --json a.png", "--out and --json name the same file"),
    (plot, f"{RUN} --json no/a.json", "--json no/a.json: its folder does not exist"),
    (curriculum, f"{RUN} --out no", "--out no: no such folder; make it first"),
    (report, f"{TABLE} --runs {ROOT}/results --into no/page.md", "--into no/page.md: its folder does not exist"),
    (reproduce, f"{TABLE} --savedir file/runs", "--savedir file/runs: "),
    (reproduce, f"{TABLE} --keep file", "--keep file: "),
]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder of its own, in a program that can neither make an environment nor read a checkpoint, nor measure."""
    monkeypatch.chdir(tmp_path)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "runs" / "taken").mkdir(parents=True)
    (tmp_path / "runs" / "taken" / "model.tar").write_text("")
    (tmp_path / "runs" / "kept").mkdir()
    (tmp_path / "runs" / "kept" / "logs.csv.gz").write_bytes(b"")
    (tmp_path / "runs" / "file").write_text("")

    def too_late(*_, **__):
        raise AssertionError("the work has begun")

    for module, name in (
        (recipe, "probe"), (minigrid, "probe"), (minigrid, "make_environments"), (checkpoint, "load"), (plot, "read_log"),
        (benchmark, "measure"), (benchmark, "measure_scaling"), (reproduce, "run_all"), (report, "agent_rows"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, too_late)
    return tmp_path


@pytest.mark.parametrize(("program", "words", "told"), WRONG, ids=[f"{one[0].__name__} {one[1]}" for one in WRONG])
def test_a_wrong_output_is_refused_before_the_work(folder, capsys, program, words, told):
    before = contents(folder)
    assert program.main(shlex.split(words)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {told}")
    assert contents(folder) == before


def test_a_row_that_is_not_there_is_named_with_those_near_it(capsys):
    assert reproduce.main([TABLE, "--list", "--only", "maze-defalt", "keycorridor-default", "xyz"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    near = "maze-default or maze-novelty or maze-window"
    assert first == f"error: --only maze-defalt: {TABLE} has no such row; did you mean {near}?"
    assert second.startswith(f"error: --only xyz: {TABLE} has no such row; there are keycorridor-default, ")


def test_jobs_do_nothing_in_a_list_which_is_told(caplog):
    assert reproduce.main([TABLE, "--list", "--only", "keycorridor-s4", "--jobs", "2"]) == 0
    assert [record.getMessage() for record in caplog.records] == ["without effect here: --jobs (not with --list)"]

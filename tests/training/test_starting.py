"""Runs begin and go on, whatever became of the start before: killed at once, crashed again and again, without a name."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from main import main as entry
from main import settings as settings_module
from main.training import resume
from main.training.learner import Learner
from tests.helpers.damage import contents
from tests.helpers.marks import rarer
from tests.helpers.program import ROOT, command, rows
from torchbeast.core import checkpoint
from torchbeast.core.settings import UsageError

pytestmark = pytest.mark.slow

INLINE = ("--num_actor_processes", "0", "--seed", "9")


def frames(run: Path) -> dict[str, int]:
    """Of each checkpoint in a run's folder, by its name."""
    return {path.name: checkpoint.load(path)["frames"] for path in run.glob("*.tar")}


# Killed while it starts

KILLED = """
import os, signal, sys
from main import main
from torchbeast.core import checkpoint, file_writer, run_folder
owner, name = {place}
before = getattr(owner, name)
def dies(*args, **more):
    if {after}:
        before(*args, **more)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(owner, name, dies)
main.main(sys.argv[1:])
"""
PLACES = {
    "before the folder is claimed": ('run_folder, "claim"', False),
    "after the folder is claimed": ('run_folder, "claim"', True),
    "after the metadata": ('run_folder, "write_metadata"', True),
    "before the first checkpoint": ('checkpoint, "save"', False),
    "within the first checkpoint": ('os, "fsync"', False),
}


@pytest.mark.parametrize("place", [*list(PLACES)[1::2], *rarer(list(PLACES)[::2])])
def test_a_run_that_is_killed_before_its_first_checkpoint_is_begun_by_the_same_command(tmp_path, place):
    where, after = PLACES[place]
    arguments = command(tmp_path, *INLINE, "--total_frames", "48")
    code = KILLED.format(place=where, after=after)
    killed = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert "model.tar" not in os.listdir(tmp_path / "run") if (tmp_path / "run").exists() else True
    assert entry.main(arguments) == 0
    assert [row["frames"] for row in rows(tmp_path / "run")] == [24, 48]
    assert json.loads((tmp_path / "run" / "meta.json").read_text())["successful"] is True
    assert not list((tmp_path / "run").glob(".model*"))


def test_crashes_in_a_row_cost_no_earlier_checkpoint(tmp_path, monkeypatch):
    """Each start writes a checkpoint; where nothing has been learned since, it takes the place of the one it came from."""
    every = ("--checkpoint_minutes", "0.000001", "--keep_checkpoints", "3")
    assert entry.main(command(tmp_path, *INLINE, *every, "--total_frames", "120")) == 0
    run = tmp_path / "run"
    before = frames(run)
    assert before == {"model.tar": 120, "model-1.tar": 96, "model-2.tar": 72}

    def crash(self, *given):
        raise RuntimeError("crashed")

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "learn", crash)
        for _ in range(3):
            with pytest.raises(RuntimeError, match="crashed"):
                entry.main(["--resume", str(run), "--total_frames", "240"])
            assert frames(run) == before
    assert checkpoint.load(run / "model.tar")["incarnation"] == 3
    assert entry.main(["--resume", str(run), "--checkpoint_minutes", "10"]) == 0
    assert frames(run) == {"model.tar": 240, "model-1.tar": 120, "model-2.tar": 96}


# From any checkpoint


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    more = ("--milestone_frames", "96", "--keep_checkpoints", "3", "--total_frames", "240")
    assert entry.main(command(folder, *INLINE, *more)) == 0
    return folder / "run"


@pytest.mark.parametrize("name", ["milestone-000000000096.tar", "milestone-000000000192.tar", "model-1.tar", "model.tar"])
def test_a_run_goes_on_from_any_checkpoint_that_it_has_kept(kept, tmp_path, name):
    """To the last bit as it was; and what was newer is still there."""
    run = tmp_path / "run"
    shutil.copytree(kept, run)
    assert entry.main(["--resume", str(run / name)]) == 0
    assert rows(run) == rows(kept)
    milestones = {"milestone-000000000096.tar": 96, "milestone-000000000192.tar": 192}
    assert frames(run).items() >= {"model.tar": 240, **milestones}.items()
    assert ("milestone-000000000240.tar" in frames(run)) == (name != "model.tar"), "from where the run went back"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("milestone-000000000077.tar", "no such file; there are milestone-000000000096.tar, milestone-000000000192.tar, model"),
        ("damaged.tar", "damaged.tar: not a readable checkpoint (damaged, cut short, or not one at all); give {run}/model.tar"),
        ("logs.csv", "logs.csv: not a readable checkpoint (damaged, cut short, or not one at all); give {run}/model.tar"),
        ("nothing", "nothing/model.tar: no such file; give the folder of a run"),
        ("../elsewhere.tar", "has no meta.json: it is no run's whole folder; give that"),
    ],
)
def test_what_is_no_checkpoint_of_the_run_is_refused(kept, tmp_path, name, words, capfd):
    run = tmp_path / "run"
    shutil.copytree(kept, run)
    (run / "damaged.tar").write_bytes((run / "model.tar").read_bytes()[:1000])
    shutil.copy(run / "model.tar", tmp_path / "elsewhere.tar")
    before = contents(tmp_path)
    assert entry.main(["--resume", str(run / name), "--total_frames", "480"]) == 2
    errors = capfd.readouterr().err
    assert words.format(run=run) in errors and "Traceback" not in errors and errors.count("error: ") == 1
    assert contents(tmp_path) == before


def test_where_the_only_checkpoint_is_damaged_that_is_said(kept, tmp_path, capfd):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.tar").write_bytes((kept / "model.tar").read_bytes()[:1000])
    shutil.copy(kept / "meta.json", tmp_path / "run")
    for place in ("run", "run/model.tar"):
        assert entry.main(["--resume", str(tmp_path / place)]) == 2
        assert capfd.readouterr().err.endswith("not one at all); no other checkpoint is beside it: start a new run\n")


def test_where_the_newest_are_damaged_milestones_are_named(kept, tmp_path, capfd):
    run = tmp_path / "run"
    shutil.copytree(kept, run)
    for path in run.glob("model*.tar"):
        path.write_bytes(b"")
    assert entry.main(["--resume", str(run)]) == 2
    assert f"; give {run}/milestone-000000000192.tar" in capfd.readouterr().err
    assert entry.main(["--resume", str(run / "milestone-000000000192.tar")]) == 0
    assert rows(run) == rows(kept)


# A nearly full disk


@pytest.mark.parametrize("more", [(), ("--dry_run",)])
def test_a_run_that_was_let_start_is_let_go_on(kept, tmp_path, monkeypatch, capfd, more):
    """At 240 of 300 frames, on a disk that has not the room for the whole once more."""
    run = tmp_path / "run"
    shutil.copytree(kept, run)
    seen = []
    monkeypatch.setattr("main.training.preflight.LOG_ROW_BYTES", 10 << 20)
    monkeypatch.setattr("main.training.run.DRY_RUN_SECONDS", 0.5)

    def usage(path):
        seen.append(path)
        return shutil._ntuple_diskusage(1 << 30, 0, (100 + 30 + 20) << 20)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert entry.main(["--resume", str(run), "--total_frames", "300", *more]) == 0
    assert seen
    assert entry.main(command(tmp_path / "new", "--total_frames", "600")) == 2
    assert "of disk for its log and checkpoints" in capfd.readouterr().err


# Names


def named(monkeypatch, run_id: str | None, *more: str) -> str:
    if run_id is None:
        monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    else:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", run_id)
    return resume.named(settings_module.parse(more)[0])[settings_module.FileSettings].xpid


def test_under_torchrun_its_run_id_names_the_run(monkeypatch):
    assert named(monkeypatch, "job-77") == "job-77"
    assert named(monkeypatch, "job-77", "--xpid", "mine") == "mine"


@pytest.mark.parametrize("run_id", [None, "none", "a/b", "..", "", "latest", "x" * 300, "\udcff"])
def test_what_is_no_name_is_refused(monkeypatch, run_id):
    with pytest.raises(UsageError, match=r"--rdzv_id") as error:
        named(monkeypatch, run_id)
    assert "--xpid" in str(error.value) and "\n" not in str(error.value)
    assert named(monkeypatch, run_id, "--xpid", "mine") == "mine"


def nameless(arguments: list[str]) -> list[str]:
    place = arguments.index("--xpid")
    return arguments[:place] + arguments[place + 2 :]


RESTARTED = """
import os, signal, sys
from main import main
from main.training.learner import Learner
from torchbeast.core import checkpoint
attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
def die(*args, **more):
    os.kill(os.getpid(), signal.SIGKILL)
learn = Learner.learn
if attempt == 0:
    checkpoint.save = die
if attempt == 1:
    Learner.learn = lambda self, *given: learn(self, *given) if self.frames < 192 else die()
sys.exit(main.main(sys.argv[1:]))
"""


@pytest.mark.soak
def test_torchrun_starts_a_run_without_a_name_again_and_goes_on(tmp_path):
    """Its first attempt is killed before the first checkpoint, its second after some updates."""
    (tmp_path / "restarted.py").write_text(RESTARTED)
    more = ("--num_actor_processes", "0", "--total_frames", "480", "--checkpoint_minutes", "0.000001")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--max-restarts", "2"]
    words = [*launch, str(tmp_path / "restarted.py"), *nameless(command(tmp_path / "runs", *more))]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    (run,) = (path.parent for path in (tmp_path / "runs").glob("*/meta.json") if not path.is_symlink())
    assert len(run.name) == 36, "--standalone draws a UUID"
    assert [row["frames"] for row in rows(run)] == list(range(48, 481, 48))
    assert len(json.loads((run / "meta.json").read_text())["resumed"]) == 1


BAD_NAMES = {"xpid": ["a/b", "..", "latest", "", "x" * 300, "a\nb", "\udcff"], "initials": ["a/b", "x" * 300, "a\nb", "\udcff"]}


@pytest.mark.parametrize(("flag", "name"), [(flag, name) for flag, names in BAD_NAMES.items() for name in names])
def test_a_name_that_no_folder_can_have_is_refused_in_the_name_of_its_own_flag(tmp_path, flag, name, capfd):
    assert entry.main([*nameless(command(tmp_path)), f"--{flag}", name]) == 2
    errors = capfd.readouterr().err
    assert errors.startswith(f"error: --{flag} must be ") and errors.count("\n") == 1 and len(errors) < 300
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_no_utf8_on_a_real_command_line(tmp_path):
    for flag in (b"--xpid", b"--initials"):
        words = [os.fsencode(word) for word in (sys.executable, "-m", "main.main", "--savedir", str(tmp_path))]
        done = subprocess.run([*words, flag, b"a\xff"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "'a\\udcff'" in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a\nb", "\udcff"])
def test_a_run_in_a_folder_that_can_name_none_is_not_gone_on_with(kept, tmp_path, name):
    """Its checkpoints would hold that name, and nothing would read them again."""
    run = shutil.copytree(kept, tmp_path / name)
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    words = [sys.executable, "-m", "main.main", "--resume", str(run), "--total_frames", "960"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True)
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1, ascii(done.stderr)
    assert b"must be a plain folder name" in done.stderr and b"rename it" in done.stderr
    assert before == {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("place", ["a\udcffb", *rarer(["a\u00a0b", "a\nb"])])
def test_a_run_whose_folder_is_no_text_is_gone_on_with_and_played(tmp_path, place):
    """In processes of their own: what they say of such a folder is no text either, which pytest-xdist could not pass on."""
    run = str(tmp_path / place / "run")
    for words in (
        command(tmp_path / place, "--num_actor_processes", "0"),
        ["--resume", run, "--total_frames", "960"],
        ["--mode", "test", "--weight_path", run, "--num_episodes", "1"],
    ):
        done = subprocess.run([sys.executable, "-m", "main.main", *words], cwd=ROOT, capture_output=True)
        assert done.returncode == 0, ascii(done.stderr)

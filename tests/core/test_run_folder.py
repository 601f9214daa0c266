"""A run's folder: who may write there, what `latest` names, and that a file is the old one or the new one, nothing else."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from torchbeast.core import run_folder
from torchbeast.core.run_folder import replacing


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Replacing


@pytest.mark.parametrize("name", ["a.json", "a.MP4", "latest"])
@pytest.mark.parametrize("before", [None, "old"])
def test_a_file_is_replaced_when_the_block_ends(tmp_path, name, before):
    path = tmp_path / name
    if before is not None:
        path.write_text(before)
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path and temporary.name.endswith(path.suffix)
        assert path.read_text() == before if before else not path.exists()
    assert names(tmp_path) == [name] and path.read_text() == "new"


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("written", [True, False])
def test_after_an_error_the_old_file_is_there_and_nothing_else(tmp_path, error, written):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as temporary:
        if written:
            temporary.write_text("half")
        raise error
    assert names(tmp_path) == ["a.json"] and path.read_text() == "old"


def test_what_cannot_be_replaced_leaves_nothing(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError), replacing(tmp_path / "a") as temporary:
        temporary.write_text("new")
    assert names(tmp_path) == ["a"] and (tmp_path / "a").is_dir()


def test_what_killed_processes_left_is_removed_where_nobody_else_writes(tmp_path):
    code = f"""
import os, pathlib
from torchbeast.core.run_folder import replacing
with replacing(pathlib.Path({str(tmp_path / "logs.csv")!r})) as temporary:
    temporary.write_text("half")
    os._exit(1)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    (left,) = names(tmp_path)
    (tmp_path / "other.csv").write_text("")
    with replacing(tmp_path / "logs.csv") as temporary:
        temporary.write_text("new")
    assert names(tmp_path) == sorted([left, "logs.csv", "other.csv"])  # it may be another process's that writes now
    with replacing(tmp_path / "logs.csv", alone=True) as temporary:
        temporary.write_text("newer")
    assert names(tmp_path) == ["logs.csv", "other.csv"]


# The folder


HEADER = "# _tick,_time,frames\n"
ROW = "0,1.5,24\n"
# What shows that a run lies there: a checkpoint, a row (a torn one too), or a log that is not ours.
TAKEN = {
    "model.tar": "", "model-1.tar": "", "milestone-000000000240.tar": "", "logs.csv": HEADER + ROW, "logs.csv ": HEADER + "0,1",
    "logs.csv  ": "precious", "logs.csv   ": "frames,loss\n",
}  # fmt: skip
# What a run leaves that is killed while it starts, and what has nothing to do with runs.
NOBODYS = {
    "meta.json": "{}", "fields.csv": "x", "logs.csv": "", "logs.csv ": HEADER, "logs.csv  ": HEADER[:12],
    "logs.csv   ": "\0\0\0", ".lock": "", ".model.tar.77.tmp.tar": "half", "out.log": "hello\n", "weights.tar": "",
    "model-1.tar.txt": "", "notes": "mine",
}  # fmt: skip


@pytest.mark.parametrize("left", list(TAKEN))
def test_a_folder_with_a_run_is_claimed_by_nobody_else(tmp_path, left):
    (tmp_path / left.strip()).write_text(TAKEN[left])
    with pytest.raises(FileExistsError, match=r"--resume.*--xpid"):
        run_folder.claim(tmp_path, HEADER)
    assert names(tmp_path) == [left.strip()] and (tmp_path / left.strip()).read_text() == TAKEN[left]


@pytest.mark.parametrize("left", list(NOBODYS))
def test_what_holds_no_row_and_no_checkpoint_is_nobodys(tmp_path, left):
    (tmp_path / left.strip()).write_text(NOBODYS[left])
    run_folder.claim(tmp_path, HEADER).close()
    assert (tmp_path / "logs.csv").read_text() == HEADER


CLAIM = """
import pathlib, sys, time
from torchbeast.core import run_folder
folder = pathlib.Path(sys.argv[1])
print("ready", flush=True)
for line in sys.stdin:  # a folder to claim, at the same time as others
    try:
        lock = run_folder.claim(folder / line.strip(), "# _tick,_time,frames\\n")
    except FileExistsError as error:
        print("another process" if "another process" in str(error) else str(error), flush=True)
    else:
        print("mine", flush=True)
"""


def test_a_first_line_that_is_being_written_is_no_row(tmp_path):
    """A process that asks for the folder of one that begins reads no line, then the whole line, never a part as a row."""
    log, done = tmp_path / "logs.csv", threading.Event()
    log.write_text(HEADER)

    def write():
        while not done.is_set():
            log.write_text(HEADER)  # empty, then whole

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert not any(run_folder.has_rows(log) for _ in range(10_000))
    finally:
        done.set()
        writer.join()


def test_of_those_who_begin_at_once_one_has_the_folder(tmp_path):
    """Whether it is empty or was left by a run that was killed; they begin within some microseconds."""
    processes = [
        subprocess.Popen([sys.executable, "-c", CLAIM, str(tmp_path)], stdin=-1, stdout=-1, text=True) for _ in range(4)
    ]
    try:
        assert [process.stdout.readline() for process in processes] == ["ready\n"] * 4
        for attempt in range(50):
            run_dir = tmp_path / str(attempt)
            run_dir.mkdir()
            if attempt % 2:
                (run_dir / "logs.csv").write_text(HEADER)
            for process in processes:
                process.stdin.write(f"{attempt}\n")
                process.stdin.flush()
            assert sorted(process.stdout.readline() for process in processes) == ["another process\n"] * 3 + ["mine\n"]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_without_locks_what_was_left_is_not_taken_for_nobodys(tmp_path, monkeypatch):
    def cannot(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_folder.fcntl, "lockf", cannot)
    run_folder.claim(tmp_path, HEADER).close()
    with pytest.raises(FileExistsError, match=r"without locks.*remove the folder.*--xpid"):
        run_folder.claim(tmp_path, HEADER)


@pytest.mark.parametrize(
    ("name", "plain"),
    [("a", True), ("a b", True), ("é-1", True), ("-", True), ("...", True), ("x" * 255, True), ("x" * 256, False),
     ("é" * 128, False), ("", False), (".", False), ("..", False), ("latest", False), ("a/b", False), ("/a", False),
     ("a/", False), ("a\nb", False), ("a\0", False), ("a\x7f", False), ("a\udcff", False)],
)  # fmt: skip
def test_names_of_runs_are_plain(tmp_path, name, plain):
    """As the file system has it, but for control characters and what is no UTF-8."""
    assert run_folder.is_plain(name) == plain
    if plain:
        (tmp_path / name).mkdir()
        assert run_folder.of(tmp_path, name) == tmp_path / name
    else:
        with pytest.raises(ValueError, match="--xpid must be a plain folder name") as error:
            run_folder.of(tmp_path, name)
        assert "\n" not in str(error.value) and len(str(error.value)) < 250 and str(error.value).isprintable()


def test_a_locked_folder_is_refused_to_other_processes_until_it_is_closed(tmp_path):
    code = f"import pathlib; from torchbeast.core import run_folder; run_folder.lock(pathlib.Path({str(tmp_path)!r}))"

    def other() -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    with run_folder.lock(tmp_path):
        assert "another process is writing to" in other().stderr
    assert other().returncode == 0


def test_latest_is_a_relative_link_to_the_newest_run(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        run_folder.point_latest_at(tmp_path / name)
        assert os.readlink(tmp_path / "latest") == f".latest/{name}"
        (tmp_path / name / "model.tar").write_text(name)
        assert (tmp_path / "latest" / "model.tar").read_text() == name
    assert names(tmp_path) == [".latest", "first", "latest", "second"]
    assert names(tmp_path / "first") == ["model.tar"], "nothing of it in the run's folder, which may be copied"


def test_latest_stands_for_the_run_s_own_folder(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        run_folder.write_metadata(tmp_path / name, {})
    run_folder.point_latest_at(tmp_path / "first")
    assert run_folder.own(tmp_path / "latest") == tmp_path / "first"
    assert run_folder.own(tmp_path / "latest" / "milestone-1.tar") == tmp_path / "first" / "milestone-1.tar"
    for name in ("first", "second", "none"):
        assert run_folder.own(tmp_path / name) == tmp_path / name
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert run_folder.own(moved / "latest") == moved / "first"
    (moved / "latest").unlink()
    (moved / "latest").symlink_to("first")  # as older versions left it
    assert run_folder.own(moved / "latest") / "meta.json" == moved / "latest" / "meta.json"


def test_tensorboard_finds_the_newest_run_once(tmp_path):
    from tensorboard.backend.event_processing.io_wrapper import GetLogdirSubdirectories

    for name in ("first", "second"):
        (tmp_path / name / "tensorboard").mkdir(parents=True)
        (tmp_path / name / "tensorboard" / "events.out.tfevents.1.machine.2.0").touch()
        run_folder.point_latest_at(tmp_path / name)
    found = sorted(Path(folder).relative_to(tmp_path).as_posix() for folder in GetLogdirSubdirectories(str(tmp_path)))
    assert found == ["first/tensorboard", "second/tensorboard"]


def test_a_folder_named_latest_is_left_alone(tmp_path, caplog):
    (tmp_path / "latest").mkdir()
    (tmp_path / "first").mkdir()
    run_folder.point_latest_at(tmp_path / "first")
    assert not (tmp_path / "latest").is_symlink()
    assert "could not make the link" in caplog.text
    assert names(tmp_path) == [".latest", "first", "latest"]


def test_metadata_is_read_as_it_was_written(tmp_path):
    run_folder.write_metadata(tmp_path, {"xpid": "é", "resumed": []})
    assert run_folder.read_metadata(tmp_path) == {"xpid": "é", "resumed": []}
    assert names(tmp_path) == ["meta.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"resumed": 3}'])
def test_damaged_metadata_is_named(tmp_path, content):
    (tmp_path / "meta.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"meta\.json is damaged"):
        run_folder.read_metadata(tmp_path)


def test_metadata_that_an_editor_has_marked_is_read(tmp_path):
    (tmp_path / "meta.json").write_text('{\r\n"resumed": []}\r\n', encoding="utf-8-sig")
    assert run_folder.read_metadata(tmp_path) == {"resumed": []}

"""What lies around a run fails, really: its console, its folder, its clock, the process that starts its actors; and signals
come at any moment."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from main.training.interrupt import EXIT_CODES
from tests.helpers.marks import rarer
from tests.helpers.program import ROOT, actor_pids, alive, children, command, rows, start
from torchbeast.core import checkpoint, run_folder

pytestmark = pytest.mark.slow

SHORT = ("--total_frames", "480", "--num_actor_processes", "1")
PLAYS = "import os, main.main as m; f = m.evaluate; m.evaluate = lambda *a: (os.write(2, b'plays\\n'), f(*a)); "
LINES = "import main.training.beside as b; b.LINE_SECONDS = b.SCALARS_SECONDS = b.LOOK_SECONDS = 0.1; "


@pytest.fixture(autouse=True)
def _hangups_count():
    """These tests may run under nohup, whose children ignore a hangup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def popen(arguments: list[str], before: str = "", **more) -> subprocess.Popen:
    """The program, with some lines of Python run before its own."""
    code = before + "import sys; from main.main import main; sys.exit(main())"
    args = [sys.executable, "-c", code, *arguments] if before else [sys.executable, "-m", "main.main", *arguments]
    return subprocess.Popen(args, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, **more)


def until(condition: Callable[[], object], seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(condition())


def log_of(run: Path) -> str:
    return (run / "out.log").read_text() if (run / "out.log").exists() else ""


def frames(run: Path) -> int:
    lines = (run / "logs.csv").read_text().splitlines() if (run / "logs.csv").exists() else []
    return len(lines)


def assert_whole(run: Path) -> None:
    """The log has no gap, from its first row to its last, and the checkpoint is where it ends."""
    table = rows(run)
    assert [row["frames"] for row in table] == list(range(24, 24 * len(table) + 1, 24))
    assert checkpoint.load(run / "model.tar")["frames"] == table[-1]["frames"]


# -- the console -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "console",
    ["2>&1 | head -1",
     *rarer(["2>/dev/full", "2>&-", "2>&- >&- <&-", ">/dev/full 2>&1", "2>&1 | true", "2> >(exec sleep 15)"])],
)  # fmt: skip
def test_a_console_that_fails_does_not_matter(tmp_path, console):
    code = LINES + "import sys; from main.main import main; sys.exit(main())"
    arguments = " ".join(command(tmp_path, "--total_frames", "4800", "--num_actor_processes", "1"))
    noise = "import logging; logging.getLogger('amigo').info('x' * 9000); "  # more than a pipe holds, with 20 of them
    script = f'{sys.executable} -c "{noise}{code}" {arguments} {console}; exit ${{PIPESTATUS[0]}}'
    assert subprocess.run(["bash", "-c", script], cwd=ROOT, stdout=subprocess.DEVNULL, timeout=60).returncode == 0
    assert_whole(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "meta.json").read_text())["successful"] is True


def test_a_pipe_that_nobody_reads_does_not_stop_a_run(tmp_path):
    """It holds 64 KiB, and then takes nothing more; so does a terminal after Ctrl-S."""
    noise = "import main.training.record as r; R = r.Record.row; " + (
        "r.Record.row = lambda s, row, batch: (r.logger.info('x' * 9000), R(s, row, batch))[1]; "
    )
    process = popen(command(tmp_path, *SHORT), before=noise, stderr=subprocess.PIPE)
    assert process.wait(60) == 0
    assert_whole(tmp_path / "run")
    assert log_of(tmp_path / "run").count("x" * 9000) == 20
    process.stderr.close()


@pytest.mark.parametrize("how", ["stopped", *rarer(["closed"])])
def test_a_terminal_that_goes_away_or_is_stopped_does_not_matter(tmp_path, how):
    ours, theirs = pty.openpty()
    process = popen(command(tmp_path, "--total_frames", "9600", "--num_actor_processes", "1"), LINES, stderr=theirs)
    os.close(theirs)
    os.read(ours, 1)  # and no more: it fills
    if how == "closed":
        os.close(ours)
    assert process.wait(60) == 0
    assert_whole(tmp_path / "run")


@pytest.mark.parametrize("sink, code", [("| true", 0), (">/dev/full", 1), (">&-", 0)])
def test_results_that_cannot_be_said_are_an_error_but_a_reader_may_leave(sink, code):
    script = f"{sys.executable} -m main.reproduce results/experiments.ini --list {sink}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    assert done.stderr == ("" if code == 0 else "error: what was said on stdout is lost in part (No space left on device)\n")


# -- signals -----------------------------------------------------------------------------------------------------------------


def test_a_hangup_ends_a_run_with_a_checkpoint(tmp_path):
    process = start(tmp_path, "--num_actor_processes", "2")
    process.send_signal(signal.SIGHUP)
    assert process.wait(15) == 129
    assert_whole(tmp_path / "run")


@pytest.mark.soak
def test_a_hangup_that_is_ignored_does_not(tmp_path):
    process = popen(
        command(tmp_path, "--total_frames", "100000000", "--num_actor_processes", "1"),
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    assert until(lambda: frames(tmp_path / "run") > 3)
    process.send_signal(signal.SIGHUP)
    before = frames(tmp_path / "run")
    assert until(lambda: frames(tmp_path / "run") > before)
    process.terminate()
    assert process.wait(15) == 143


@pytest.mark.parametrize("number", [signal.SIGINT, *rarer(number for number in EXIT_CODES if number != signal.SIGINT)])
@pytest.mark.parametrize("seconds", [0.15, 0.6, 1.2, 2.0, 2.8])
def test_a_signal_while_a_run_starts(tmp_path, number, seconds):
    """While it is imported, looks at the machine, makes its folder, starts its actors, or is at work."""
    process = popen(
        command(tmp_path, "--total_frames", "100000000", "--num_actor_processes", "2"), stderr=subprocess.PIPE, text=True
    )
    time.sleep(seconds)
    family = children(process.pid)
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == EXIT_CODES[number], errors
    assert "Traceback" not in errors
    assert until(lambda: not any(map(alive, family)), 5)
    run = tmp_path / "run"
    assert not run.exists() or (run / "model.tar").exists(), "a run that has begun has something to go on from"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    assert popen(command(folder, *SHORT), stderr=subprocess.DEVNULL).wait(60) == 0
    return folder / "run" / "model.tar"


@pytest.mark.parametrize("number", [signal.SIGTERM, *rarer(number for number in EXIT_CODES if number != signal.SIGTERM)])
def test_a_signal_while_an_agent_plays(trained, number):
    play = ["--mode", "test", "--weight_path", str(trained), "--num_episodes", "100000"]
    process = popen(play, PLAYS, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr.readline() == "plays\n"
    time.sleep(1)
    process.send_signal(number)
    out, errors = process.communicate(timeout=20)
    assert process.returncode == EXIT_CODES[number]
    assert errors.splitlines()[-1:] == [f"stopped by {signal.Signals(number).name}"] and not out


@pytest.mark.parametrize("program", [path.stem for path in (ROOT / "main").glob("*.py") if "def main(" in path.read_text()])
def test_a_signal_while_another_command_starts(program):
    words = ["report"] if program == "amigo" else []  # one that hands on to another
    process = subprocess.Popen([sys.executable, "-m", f"main.{program}", *words], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130 and "Traceback" not in errors


# -- the folder --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def running(tmp_path):
    """A run that looks after its folder often, and is ended at the test's end."""
    arguments = ("--total_frames", "100000000", "--num_actor_processes", "1", "--checkpoint_minutes", "0.01")
    process = popen(command(tmp_path, *arguments), LINES, stderr=subprocess.DEVNULL)
    run = tmp_path / "run"
    assert until(lambda: frames(run) > 3 and (run / "tensorboard").exists() and (run / "model.tar").exists())
    yield process
    process.kill()
    process.wait()


def ended(process: subprocess.Popen) -> int:
    process.terminate()
    return process.wait(15)


def at_once(process: subprocess.Popen, command: str, run: Path) -> None:
    """Does that while the run stands still: else it may put back what is deleted first while the rest is deleted. Not within a
    save, before which it has looked where its folder is: between two of them."""
    stamp = (run / "model.tar").stat().st_mtime_ns
    until(lambda: (run / "model.tar").stat().st_mtime_ns != stamp, 2)
    process.send_signal(signal.SIGSTOP)
    subprocess.run(["sh", "-c", command], check=True)
    process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("what", ["run", *rarer(["."])])
def test_a_folder_that_is_deleted_is_made_again_with_the_whole_log(tmp_path, running, what):
    at_once(running, f"rm -rf {(tmp_path / what).resolve()}", tmp_path / "run")
    run = tmp_path / "run"
    assert until(lambda: (run / "model.tar").exists() and (run / "tensorboard").exists())
    assert ended(running) == 143
    assert_whole(run)
    assert log_of(run).count("was deleted") == 1
    assert {path.name for path in run.iterdir()} > {"meta.json", "fields.csv", ".lock"}
    assert run_folder.own(tmp_path / "latest") == run


@pytest.mark.parametrize("what, where", [("run", "deep/down/there"), *rarer([("run", "elsewhere"), (".", "../other")])])
def test_a_folder_that_is_moved_is_followed(tmp_path, running, what, where):
    before, after = (tmp_path / what).resolve(), (tmp_path / where).resolve()
    after.parent.mkdir(parents=True, exist_ok=True)
    os.rename(before, after)
    run = after if what == "run" else after / "run"
    try:
        assert until(lambda: "was moved" in log_of(run))
        stamp = (run / "model.tar").stat().st_mtime_ns
        assert until(lambda: (run / "model.tar").stat().st_mtime_ns != stamp)
        assert ended(running) == 143
        assert_whole(run)
        assert log_of(run).count("was moved") == 1 and not before.exists()
    finally:
        if what == ".":
            os.rename(after, before)


def test_a_folder_that_another_run_has_taken_is_left_alone(tmp_path, running):
    (tmp_path / "another").mkdir()
    (tmp_path / "another" / "logs.csv").write_text("precious")
    at_once(running, f"rm -rf {tmp_path}/run && mv -T {tmp_path}/another {tmp_path}/run", tmp_path / "run")
    assert until(lambda: (tmp_path / "run-2" / "model.tar").exists())
    assert ended(running) == 143
    assert_whole(tmp_path / "run-2")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["logs.csv"]


@pytest.mark.parametrize(
    "name",
    ["logs.csv", *(pytest.param(name, marks=pytest.mark.soak)
                   for name in ("out.log", "meta.json", "fields.csv", "model.tar", "tensorboard", ".lock"))],
)  # fmt: skip
def test_what_is_deleted_of_it_is_put_back(tmp_path, running, name):
    path = tmp_path / "run" / name
    before = path.read_text()[:50] if path.is_file() and path.suffix != ".tar" else ""
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert until(path.exists)
    assert before == "" or path.read_text()[:50] == before
    assert ended(running) == 143
    assert_whole(tmp_path / "run")
    assert "Traceback" not in log_of(tmp_path / "run")


def test_the_log_replaced_by_an_editor_is_the_runs_own_again(tmp_path, running):
    log = tmp_path / "run" / "logs.csv"
    (tmp_path / "copy").write_text("what an editor saved")
    os.replace(tmp_path / "copy", log)
    assert until(lambda: log.read_text().startswith("# _tick"))
    assert ended(running) == 143
    assert_whole(tmp_path / "run")


def test_while_nothing_can_be_written_it_is_said_again_and_again_and_nothing_false_at_the_end(tmp_path):
    """The savedir becomes a file: no folder can be made there."""
    before = LINES + "import main.training.record as r; r.RETRY_SECONDS = 0.5; "
    arguments = command(tmp_path / "runs", "--total_frames", "100000000", "--num_actor_processes", "1")
    with open(tmp_path / "errors", "w") as errors:
        process = popen(arguments, before, stderr=errors)
    assert until(lambda: (tmp_path / "runs" / "run" / "model.tar").exists())
    at_once(process, f"rm -rf {tmp_path}/runs && touch {tmp_path}/runs", tmp_path / "runs" / "run")
    said = lambda text: (tmp_path / "errors").read_text().count(text)  # noqa: E731
    assert until(lambda: said("looking after the run's folder failed") >= 3)
    assert ended(process) == 1
    assert said("the last checkpoint could not be written; and there is none before it") == 1
    assert said("is still there") == said("Traceback") == 0


def test_a_savedir_that_is_no_utf8(tmp_path):
    """Such names are what other systems' disks are full of; TensorBoard cannot speak of them, the run can be there."""
    name = os.fsdecode(os.fsencode(tmp_path) + b"/d\xe9j\xe0")
    process = popen(command(name, *SHORT), LINES, stderr=subprocess.PIPE)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and b"Traceback" not in errors
    assert_whole(Path(name) / "run")


# -- the clock ---------------------------------------------------------------------------------------------------------------


def test_a_clock_that_is_set_back_delays_nothing(tmp_path):
    clock = (
        "import time; real = time.time; begin = time.monotonic(); "
        f"from pathlib import Path; flag = Path({str(tmp_path / 'back')!r}); "
        "time.time = lambda: real() - 7 * 86400 * flag.exists(); "
    )
    arguments = command(tmp_path, "--total_frames", "100000000", "--num_actor_processes", "1")
    process = popen(arguments, LINES + clock, stderr=subprocess.DEVNULL)
    run = tmp_path / "run"
    try:
        assert until(lambda: frames(run) > 3)
        (tmp_path / "back").touch()
        for _ in range(2):
            before, said = frames(run), len(log_of(run))
            assert until(lambda: frames(run) > before and len(log_of(run)) > said, 10)  # noqa: B023
    finally:
        assert ended(process) == 143


# -- the process that starts the actors --------------------------------------------------------------------------------------


def test_a_stopped_spawner_is_woken_and_hides_nothing(tmp_path):
    process = start(tmp_path, "--num_actor_processes", "2")
    run = tmp_path / "run"
    (spawner,) = children(process.pid)
    killed = actor_pids(process)[0]
    os.kill(spawner, signal.SIGSTOP)
    os.kill(killed, signal.SIGKILL)
    try:
        assert until(lambda: "was stopped by a signal; waking it" in log_of(run), 10)
        assert until(lambda: f"(process {killed}) was killed by signal 9; starting it again" in log_of(run), 10)
        before = frames(run)
        assert until(lambda: frames(run) > before)
    finally:
        assert ended(process) == 143
    assert_whole(run)


@pytest.mark.soak
def test_a_spawner_that_stays_stopped_ends_the_run_with_a_checkpoint_and_leaves_nobody(tmp_path):
    asleep = "import torchbeast.core.spawner as s; s.Spawner.wake = lambda self: False; "
    arguments = command(tmp_path, "--total_frames", "100000000", "--num_actor_processes", "2")
    process = popen(arguments, asleep, stderr=subprocess.PIPE, text=True)
    assert until(lambda: frames(tmp_path / "run") > 3)
    (spawner,) = children(process.pid)
    family = [spawner, *actor_pids(process)]
    for pid in family[:2]:
        os.kill(pid, signal.SIGSTOP)
    _, errors = process.communicate(timeout=40)
    assert process.returncode == 1
    assert re.search(r"error: the process that starts the actor processes (\(process \d+\) is stuck|does not answer)", errors)
    assert_whole(tmp_path / "run")
    assert until(lambda: not any(map(alive, family)), 5)


@pytest.mark.parametrize("number", [signal.SIGTERM, *rarer([signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])])
def test_a_signal_to_each_process_of_a_run_is_the_main_processs_to_handle(tmp_path, number):
    """As a batch system sends it to all that it finds in a job."""
    process = start(tmp_path, "--num_actor_processes", "2")
    for pid in [*actor_pids(process), *children(process.pid), process.pid]:
        os.kill(pid, number)
    assert process.wait(15) == EXIT_CODES[number], process.stderr.read()
    assert_whole(tmp_path / "run")


def test_a_killed_main_process_leaves_nobody_however_the_others_are_stuck(tmp_path):
    process = start(tmp_path, "--num_actor_processes", "2")
    family = [*children(process.pid), *actor_pids(process)]
    for pid in family:
        os.kill(pid, signal.SIGSTOP)
    process.kill()
    process.wait()
    assert until(lambda: not any(map(alive, family)), 5)


def test_when_no_batch_comes_it_is_said(tmp_path):
    """Every actor is stopped, and nobody may start any again."""
    before = LINES + (
        "import main.training.loop as l, main.training.sources as s; l.SILENCE_SECONDS = 1.0; "
        "s.ActorProcesses.supervise = lambda self: None; "
    )
    process = popen(command(tmp_path, "--total_frames", "100000000", "--num_actor_processes", "2"), before)
    run = tmp_path / "run"
    assert until(lambda: frames(run) > 3)
    for pid in actor_pids(process):
        os.kill(pid, signal.SIGSTOP)
    said = r"no batch has been learned for \d s: of 2 actor processes 2 have been started, \d have rollouts .* 2 are stopped"
    assert until(lambda: len(re.findall(said, log_of(run))) >= 3)
    assert ended(process) == 143


def test_when_this_process_itself_gets_nowhere_it_is_said(tmp_path):
    before = LINES + (
        "import time, main.training.loop as l, main.training.actor as a; l.SILENCE_SECONDS = 0.5; A = a.Actor.fill; "
        "a.Actor.fill = lambda *args: (time.sleep(1.3), A(*args))[1]; "
    )
    process = popen(command(tmp_path, "--total_frames", "48", "--num_actor_processes", "0"), before, stderr=subprocess.PIPE)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and b"s: this process acts and learns in turn" in errors


def test_an_exception_of_any_size_is_cut(tmp_path):
    before = (
        "import main.training.actor as a, os; A = a.Actor.advance; "
        f"flag = {str(tmp_path / 'once')!r}\n"
        "def advance(self):\n"
        "    try: os.close(os.open(flag, os.O_CREAT | os.O_EXCL))\n"
        "    except FileExistsError: return A(self)\n"
        "    raise ValueError('begin' + 'x' * 50_000_000 + 'end')\n"
        "a.Actor.advance = advance\n"
    )
    process = popen(command(tmp_path, *SHORT), before, stderr=subprocess.PIPE, text=True)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and len(errors) < 50_000
    assert "begin" in errors and "xend; starting it again" in errors and "characters are left out here" in errors
    assert (tmp_path / "run" / "out.log").stat().st_size < 50_000


def test_a_process_that_the_system_refuses_to_start_is_started_later(tmp_path):
    """EAGAIN, as at a limit on processes; the others go on meanwhile."""
    before = (
        "import torchbeast.core.spawner as s, os; F = s.os.fork; "
        f"flag = {str(tmp_path / 'full')!r}\n"
        "def fork():\n"
        "    if os.path.exists(flag): raise BlockingIOError(11, 'Resource temporarily unavailable')\n"
        "    return F()\n"
        "s.os.fork = fork\n"
    )
    arguments = command(tmp_path, "--total_frames", "100000000", "--num_actor_processes", "2")
    process = popen(arguments, before, stderr=subprocess.DEVNULL)
    run = tmp_path / "run"
    try:
        assert until(lambda: frames(run) > 3)
        (tmp_path / "full").touch()
        os.kill(actor_pids(process)[0], signal.SIGKILL)
        assert until(lambda: "cannot be started (Resource temporarily unavailable), and is tried again" in log_of(run))
        time.sleep(2.5)
        known = frames(run)
        assert log_of(run).count("cannot be started") == 1 and until(lambda: frames(run) > known)
        (tmp_path / "full").unlink()
        assert until(lambda: len(actor_pids(process)) == 2)
        assert until(lambda: "has been started" in log_of(run))
    finally:
        assert ended(process) == 143
    assert_whole(run)

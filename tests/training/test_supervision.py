"""Runs under faults: killed, stopped and failing actors; a killed main process; signals."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from main import main as entry
from main.training import sources
from main.training.actor import Actor
from main.training.learner import Learner
from main.training.run import Run
from tests.helpers.marks import rarer
from tests.helpers.program import ROOT, actor_pids, alive, children, command, rows, start
from torchbeast.core import checkpoint
from torchbeast.core.rollouts import shared_array

pytestmark = pytest.mark.slow

NOTICED_SECONDS = 5.0


@pytest.fixture(autouse=True)
def _threads():
    torch.set_num_threads(1)


class Saboteur:
    """Kills, stops or breaks a random actor again and again while a run in this process goes on, and waits for its recovery."""

    def __init__(self, monkeypatch, faults: int, frames_after: int, seed: int = 0):
        self.noticed: list[tuple[str, float]] = []
        self.kill_times: list[float] = []
        self._faults = faults
        self._frames_after = frames_after
        self._random = random.Random(seed)
        self._broken = shared_array((1,), np.int64)  # process id of the actor whose next step fails
        advance, begin, execute = Actor.advance, sources.ActorProcesses.start, Run.execute

        def advance_or_fail(actor):
            if self._broken[0] == os.getpid():
                self._broken[0] = 0
                raise ZeroDivisionError("broken on purpose")
            return advance(actor)

        def begin_and_watch(source):
            begin(source)
            self.source = source
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()

        def execute_and_note(run):
            self.run = run
            return execute(run)

        monkeypatch.setattr(Run, "execute", execute_and_note)
        monkeypatch.setattr(Actor, "advance", advance_or_fail)
        monkeypatch.setattr(sources.ActorProcesses, "start", begin_and_watch)

    def _work(self):
        for n in range(self._faults):
            time.sleep(0.2 + self._random.random() * 0.3)
            fault = ("kill", "stop", "exception")[n % 3]
            before = sum(self.source._incarnations)
            pid = self._random.choice(self.source.pids)
            self.kill_times.append(time.time())
            began = time.monotonic()
            if fault == "exception":
                self._broken[0] = pid
            else:
                os.kill(pid, signal.SIGKILL if fault == "kill" else signal.SIGSTOP)
            while sum(self.source._incarnations) == before:
                if time.monotonic() - began > 20:
                    return
                time.sleep(0.01)
            self.noticed.append((fault, time.monotonic() - began))
        self.run._total_frames = self.run.learner.frames + self._frames_after


def sabotaged_run(tmp_path, monkeypatch, *, faults: int, frames_after: int, processes: int = 3) -> Saboteur:
    """A run under faults that reaches its last frame, some after the last fault; what must hold afterwards is asserted."""
    saboteur = Saboteur(monkeypatch, faults, frames_after)
    frames = 1_000_000_000  # until the saboteur is done
    args = ("--num_actor_processes", str(processes), "--max_actor_restarts", str(10 * faults), "--total_frames", str(frames))
    before = set(children(os.getpid()))  # of earlier tests, such as multiprocessing's servers
    assert entry.main(command(tmp_path, *args)) == 0
    saboteur._thread.join(1)
    assert len(saboteur.noticed) == faults
    assert max(seconds for _, seconds in saboteur.noticed) < NOTICED_SECONDS
    table = rows(tmp_path / "run")
    last = saboteur.run.learner.frames
    assert [row["frames"] for row in table] == list(range(24, last + 24, 24))
    exchange = saboteur.source._exchange
    assert sorted([*exchange._free, *exchange._full]) == list(range(saboteur.source._rollouts.num_buffers))
    assert set(children(os.getpid())) <= before
    assert not any(Path(f"/proc/{pid}").exists() for pid in saboteur.source.pids)
    return saboteur


def test_actors_that_die_stop_or_fail_are_started_again(tmp_path, monkeypatch, capfd):
    sabotaged_run(tmp_path, monkeypatch, faults=6, frames_after=2_400)
    errors = capfd.readouterr().err
    assert errors.count("was killed by signal 9; starting it again") == 4  # two killed, two stopped and then killed
    assert errors.count("took no step for") == 2
    assert errors.count("ZeroDivisionError: broken on purpose; starting it again") == 2


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_hundred_faults(tmp_path, monkeypatch):
    saboteur = sabotaged_run(tmp_path, monkeypatch, faults=100, frames_after=240_000)
    with open(tmp_path / "run" / "logs.csv") as file:
        file.readline()
        stamps = np.array([[float(x) for x in line.split(",")[1:3]] for line in file])
    last = saboteur.kill_times[-1] + 10  # until the restarted process is at work
    after = stamps[stamps[:, 0] > last]
    assert len(after) > 1000, "the run ended too soon after the last fault to tell its speed"
    rate = (after[-1, 1] - after[0, 1]) / (after[-1, 0] - after[0, 0])
    monkeypatch.undo()
    args = ("--num_actor_processes", "3", "--total_frames", "240000")
    assert entry.main(command(tmp_path / "calm", *args)) == 0
    calm = rows_with_time(tmp_path / "calm" / "run")
    calm_rate = (calm[-1, 1] - calm[len(calm) // 4, 1]) / (calm[-1, 0] - calm[len(calm) // 4, 0])
    print(f"frames/s after the last fault {rate:,.0f}, without any {calm_rate:,.0f}")
    assert rate > 0.95 * calm_rate


def rows_with_time(run_dir: Path) -> np.ndarray:
    """float64 [rows, 2]: seconds, frames."""
    with open(run_dir / "logs.csv") as file:
        file.readline()
        return np.array([[float(x) for x in line.split(",")[1:3]] for line in file])


def kill_and_resume(tmp_path: Path, name: str, seconds: float) -> None:
    """SIGKILL to the main process after a while: everything that must hold afterwards is asserted."""
    interval = 2.0
    folder = tmp_path / name
    process = start(folder, "--num_actor_processes", "2", "--checkpoint_minutes", str(interval / 60))
    family = [*children(process.pid), *actor_pids(process)]
    time.sleep(seconds)
    process.kill()
    process.wait()
    run = folder / "run"
    state, _ = checkpoint.load_newest(run / "model.tar")
    table = rows_with_time_of_whole_rows(run)
    lost = table[-1, 0] - table[table[:, 1] <= state["frames"]][-1:, 0] if state["frames"] else table[-1, 0] - table[0, 0]
    assert lost < interval + 0.5  # supervision looks every quarter of a second
    deadline = time.monotonic() + 5
    while any(alive(pid) for pid in family) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in family)
    assert entry.main(["--resume", str(run), "--total_frames", str(state["frames"] + 240)]) == 0
    after = rows(run)
    assert [row["frames"] for row in after] == list(range(24, state["frames"] + 241, 24))
    assert [row["_tick"] for row in after] == list(range(len(after)))


def rows_with_time_of_whole_rows(run_dir: Path) -> np.ndarray:
    lines = (run_dir / "logs.csv").read_text().split("\n")[1:-1]
    return np.array([[float(x) for x in line.split(",")[1:3]] for line in lines])


@pytest.mark.parametrize("seconds", [0.3, *rarer([4.7])])
def test_a_killed_main_process_leaves_a_run_that_resumes(tmp_path, seconds):
    kill_and_resume(tmp_path, "a", seconds)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_fifty_killed_main_processes(tmp_path):
    generator = random.Random(1)
    for n in range(50):
        kill_and_resume(tmp_path, str(n), generator.random() * 6)


def test_sigusr1_asks_to_be_requeued(tmp_path):
    process = start(tmp_path, "--num_actor_processes", "1")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(10) == 75
    assert checkpoint.load(tmp_path / "run" / "model.tar")["frames"] == rows(tmp_path / "run")[-1]["frames"]


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    process = start(tmp_path, "--num_actor_processes", "2")
    family = [*children(process.pid), *actor_pids(process)]
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    while process.poll() is None and time.monotonic() - began < 10:
        process.send_signal(signal.SIGINT)
        time.sleep(0.002)
    assert process.wait(5) == 130
    time.sleep(1)
    assert not any(alive(pid) for pid in family)


def test_a_second_run_on_the_same_folder_is_refused(tmp_path):
    process = start(tmp_path, "--num_actor_processes", "1")
    try:
        args = [*process.args[:3], "--resume", str(tmp_path / "run")]
        second = subprocess.run(args, capture_output=True, text=True, timeout=60, cwd=ROOT)
        assert second.returncode == 2 and "another process is writing" in second.stderr
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(15)
    whole = rows(tmp_path / "run")
    assert [row["frames"] for row in whole] == list(range(24, 24 * len(whole) + 1, 24))


@pytest.fixture
def folder(tmp_path) -> Path:
    """Where a test may mount a small disk, in a mount namespace of its own."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("this machine allows no mount namespaces")
    (tmp_path / "small").mkdir()
    return tmp_path / "small"


# The check before the start would refuse such a disk.
ALLOW_SMALL_DISKS = "import main.training.preflight as p; p.FREE_BYTES = p.LOG_ROW_BYTES = -10**6; "


def test_a_run_needs_no_dev_shm(folder, tmp_path):
    """With 64 KiB of /dev/shm, as some containers have hardly more, a run goes on as ever."""
    args = " ".join(command(tmp_path, "--num_actor_processes", "2"))
    python = Path(os.sys.executable)
    script = f"mount -t tmpfs -o size=64k tmpfs /dev/shm && {python} -m main.main {args}"
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert rows(tmp_path / "run")[-1]["frames"] == 480


@pytest.mark.soak
def test_a_full_disk_does_not_end_a_run(folder):
    """On 768 KiB of tmpfs the log and checkpoints soon fail; the run says so once, and goes on to its last frame."""
    arguments = command(folder, "--num_actor_processes", "1", "--total_frames", "48000", "--checkpoint_minutes", "0.02")
    code = ALLOW_SMALL_DISKS + "import sys; from main.main import main; sys.exit(main())"
    script = (
        f"mount -t tmpfs -o size=768k tmpfs {folder} && {os.sys.executable} -c '{code}' {' '.join(arguments)}; echo code $?"
    )
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, timeout=200)
    assert "No space left" in done.stderr and "the run goes on" in done.stderr
    assert "48,000 frames" in done.stderr


def test_a_full_disk_that_has_room_again_gets_checkpoints_again(folder, tmp_path):
    """Filled by another file, which is removed: the next checkpoint is written, and so are TensorBoard's events."""
    arguments = command(folder, "--num_actor_processes", "1", "--total_frames", "100000000", "--checkpoint_minutes", "0.01")
    code = ALLOW_SMALL_DISKS + (
        "import main.training.beside as b, main.training.record as r; b.SCALARS_SECONDS = r.RETRY_SECONDS = 0.5; "
        "import sys; from main.main import main; sys.exit(main())"
    )
    run, errors = folder / "run", tmp_path / "errors"
    script = f"""
        said() {{ for i in $(seq 300); do grep -q "$1" {errors} && return; sleep 0.1; done; echo not said: $1; }}
        mount -t tmpfs -o size=4m tmpfs {folder}
        {os.sys.executable} -c '{code}' {" ".join(arguments)} 2>{errors} &
        PID=$!
        while [ ! -e {run}/tensorboard ]; do sleep 0.1; done
        sleep 1; dd if=/dev/zero of={folder}/big bs=1k 2>/dev/null
        said "logging failed.*No space left"; said "writing a checkpoint failed.*No space left"
        rm {folder}/big
        said "logging works again"; said "writing a checkpoint works again"
        kill -TERM $PID; wait $PID; echo code $?
    """
    done = subprocess.run(["unshare", "-m", "bash", "-c", script], capture_output=True, text=True, timeout=200)
    assert done.stdout == "code 143\n", done.stdout + done.stderr + errors.read_text()


def test_a_slow_update_is_no_fault_of_the_actors(tmp_path, monkeypatch, capfd):
    learn = Learner.learn

    def slow_once(self, *given):
        if self.frames == 48:
            time.sleep(7)
        return learn(self, *given)

    monkeypatch.setattr(Learner, "learn", slow_once)
    assert entry.main(command(tmp_path, "--num_actor_processes", "2")) == 0
    errors = capfd.readouterr().err
    assert "starting it again" not in errors and "took no step" not in errors


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), *rarer([(signal.SIGTERM, 143), (signal.SIGUSR1, 75)])])
def test_a_signal_to_the_whole_group_is_the_main_processs_to_handle(tmp_path, number, code):
    """As a terminal's Ctrl-C, srun or systemd send it."""
    process = start(tmp_path, "--num_actor_processes", "2", own_group=True)
    os.killpg(process.pid, number)
    assert process.wait(15) == code, process.stderr.read()
    assert checkpoint.load(tmp_path / "run" / "model.tar")["frames"] == rows(tmp_path / "run")[-1]["frames"]

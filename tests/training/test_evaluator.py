"""--evaluate_minutes: figures and the best agent come out; training is the same whatever becomes of the process that plays."""

from __future__ import annotations

import csv
import errno
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from main import main as entry
from main import settings as settings_module
from main.training import evaluator, loop
from main.training.learner import Learner
from main.training.run import Run
from tests.helpers.marks import rarer
from tests.helpers.program import alive, children, command, rows, start
from tests.helpers.ranks import TWO, in_ranks
from torchbeast.core import checkpoint
from torchbeast.core.ranks import Ranks
from torchbeast.core.settings import Settings

pytestmark = pytest.mark.slow

INLINE = ("--num_actor_processes", "0", "--seed", "5")
SOON = ("--evaluate_minutes", "0.0001")
SUMMARY = {
    "episodes": 3, "success_rate": 0.5, "success_rate_interval": [0.2, 0.8], "mean_return": 0.25,
    "mean_return_interval": None, "mean_steps": 7.0, "mean_steps_interval": [6.0, 8.0],
}  # fmt: skip


def says(**figures) -> str:
    """A program that plays nothing and has these figures."""
    return f"print({json.dumps(SUMMARY | figures)!r})"


def table(run: Path) -> list[dict[str, str]]:
    with open(run / "evaluations.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def begun():
    """Processes that this one has begun since the test did, and that are alive; what other tests left does not count."""
    others = set(children(os.getpid()))
    return lambda: [pid for pid in children(os.getpid()) if pid not in others and not ended(pid)]


def ended(child: int) -> bool:
    """Whether it can be waited for: its first thread may be a zombie while others of its threads still end."""
    try:
        return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # it has been waited for
        return True


@pytest.fixture
def waited(monkeypatch, begun):
    """Training waits in each update for the process that plays, without telling anybody."""
    learn = Learner.learn

    def learn_and_wait(self, *given):
        row = learn(self, *given)
        while begun():
            time.sleep(0.005)
        return row

    monkeypatch.setattr(Learner, "learn", learn_and_wait)


def test_training_is_the_same_to_the_last_bit_and_the_best_agent_is_the_one_that_played(tmp_path, waited):
    more = (*INLINE, "--total_frames", "96", "--num_episodes", "4")
    assert entry.main(command(tmp_path / "without", *more)) == 0
    assert entry.main(command(tmp_path / "with", *more, *SOON)) == 0
    without, run = tmp_path / "without" / "run", tmp_path / "with" / "run"
    assert rows(run) == rows(without)
    a, b = (checkpoint.load(path / "model.tar") for path in (without, run))
    assert a.keys() == b.keys()
    assert all(torch.equal(value, b["model_state_dict"][name]) for name, value in a["model_state_dict"].items())
    found = table(run)
    assert found[0]["frames"] == "24"  # begun after the first update
    (best,) = [row for row in found if row["best"] == "1"][-1:]
    figures = tmp_path / "figures.json"
    seed = evaluator.derive_seed(5, "evaluation beside training", int(best["frames"]))
    words = ["--mode", "test", "--weight_path", str(run / "model-best.tar"), "--seed", str(seed), "--num_episodes", "4"]
    assert entry.main([*words, "--json", str(figures)]) == 0
    played = json.loads(figures.read_text())
    assert played["success_rate"] == float(best["success_rate"]) and played["mean_return"] == float(best["mean_return"])
    assert played["mean_steps_interval"] == [float(best["mean_steps_low"]), float(best["mean_steps_high"])]
    assert not (run / ".candidate.tar").exists()
    best = checkpoint.load(run / "model-best.tar")
    assert best["evaluation"]["episodes"] == 4 and "optimizer_state_dict" not in best


def test_figures_are_in_tensorboard_too(tmp_path, monkeypatch, waited):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr(evaluator, "PLAY", says())
    assert entry.main(command(tmp_path, *INLINE, *SOON)) == 0
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    names = ("success_rate_low", "mean_steps")
    found = {name: [event.value for event in events.Scalars(f"evaluation/{name}")] for name in names}
    assert found["mean_steps"] == [7.0] * len(table(tmp_path / "run"))
    assert found["success_rate_low"] == pytest.approx([0.2] * len(found["mean_steps"]))
    assert "evaluation/mean_return_low" not in events.Tags()["scalars"]


FAULTS = {
    "killed": ("import os; os.kill(os.getpid(), 9)", "killed by signal 9"),
    "stuck": ("import time; time.sleep(1000)", "it took more than"),
    "stopped": ("import os; os.kill(os.getpid(), 19)", "it took more than"),
    "failing": ("raise SystemExit('error: no luck')", "exit code 1: error: no luck"),
    "silent": ("pass", "gave no result"),
    "babbling": ("print('x' * 1000000)", "gave no result"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("processes", ["1", *rarer(["0"])])
def test_whatever_becomes_of_the_process_training_goes_on_and_it_is_told_once(
    tmp_path, monkeypatch, caplog, begun, fault, processes
):
    program, reason = FAULTS[fault]
    monkeypatch.setattr(evaluator, "PLAY", program)
    monkeypatch.setattr(evaluator, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(loop, "BESIDE_SECONDS", 0.02)
    slow = Learner.learn

    def learn(self, *given):
        time.sleep(0.05)
        return slow(self, *given)

    monkeypatch.setattr(Learner, "learn", learn)
    assert entry.main(command(tmp_path, "--num_actor_processes", processes, "--total_frames", "720", *SOON)) == 0
    told = [record.message for record in caplog.records if "evaluation" in record.message]
    assert len(told) == 1 and reason in told[0] and "training goes on" in told[0]
    assert rows(tmp_path / "run")[-1]["frames"] == 720
    assert not (tmp_path / "run" / ".candidate.tar").exists() and not (tmp_path / "run" / "evaluations.csv").exists()
    assert not begun()


def test_it_is_told_again_after_it_has_worked(tmp_path, monkeypatch, caplog, waited):
    programs = iter([FAULTS["killed"][0], FAULTS["silent"][0], says(), *[FAULTS["failing"][0]] * 100])
    start_playing = evaluator._Playing.__init__

    def start(self, *arguments):
        monkeypatch.setattr(evaluator, "PLAY", next(programs))
        start_playing(self, *arguments)

    monkeypatch.setattr(evaluator._Playing, "__init__", start)
    assert entry.main(command(tmp_path, *INLINE, *SOON)) == 0
    told = [record.message for record in caplog.records if "evaluat" in record.message]
    expected = ("killed by signal", "evaluated at", "work again", "no luck")
    assert all(part in text for part, text in zip(expected, told, strict=True))
    assert len(table(tmp_path / "run")) == 1


def test_no_process_can_be_had(tmp_path, monkeypatch, caplog):
    def refuse(*_, **__):
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(evaluator.subprocess, "Popen", refuse)
    assert entry.main(command(tmp_path, *INLINE, *SOON, "--disable_cuda")) == 0
    assert len([r for r in caplog.records if "Resource temporarily unavailable" in r.message]) == 1


@pytest.mark.parametrize("part", ["candidate", "best", "table"])
def test_a_full_disk(tmp_path, monkeypatch, caplog, waited, part):
    full = {"on": True}
    write, replacing = checkpoint.write, evaluator.replacing

    def no_room(path, *rest):
        if full["on"]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, *rest)

    def write_some(path, state):
        return no_room(path, state) if part in path.name else write(path, state)

    def no_table(path, **more):
        if full["on"]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return replacing(path, **more)

    monkeypatch.setattr(evaluator, "PLAY", says())
    if part == "table":
        monkeypatch.setattr(evaluator, "replacing", no_table)
    else:
        monkeypatch.setattr(checkpoint, "write", write_some)
    learn = Learner.learn

    def learn_then_room(self, *given):
        full["on"] = self.frames < 240
        return learn(self, *given)

    monkeypatch.setattr(Learner, "learn", learn_then_room)
    assert entry.main(command(tmp_path, *INLINE, *SOON)) == 0
    told = [record.message for record in caplog.records if "No space left" in record.message]
    assert len(told) == 1
    found = [int(row["frames"]) for row in table(tmp_path / "run")]
    assert found[-1] > 240 and (found[0] < 240) == (part != "candidate")  # rows wait until there is room
    assert checkpoint.load(tmp_path / "run" / "model-best.tar")["frames"] > 0


OTHER_ENDS = [(signal.SIGKILL, False), (signal.SIGTERM, False), (signal.SIGTERM, True)]


@pytest.mark.parametrize("number, stopped", [(signal.SIGKILL, True), *rarer(OTHER_ENDS)])
def test_it_ends_with_the_run(tmp_path, number, stopped):
    """Whatever ends the run, and in whatever state the process is."""
    process = start(tmp_path, "--num_actor_processes", "1", "--evaluate_minutes", "0.01", "--num_episodes", "1000000")
    try:
        deadline = time.monotonic() + 30
        while not (playing := [pid for pid in children(process.pid) if b"apart" in Path(f"/proc/{pid}/cmdline").read_bytes()]):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(1)  # it has asked to be ended
        if stopped:
            os.kill(playing[0], signal.SIGSTOP)
        process.send_signal(number)
        assert process.wait(timeout=30) == (143 if number == signal.SIGTERM else -9)
        deadline = time.monotonic() + 5
        while alive(playing[0]):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.kill()
        process.stderr.close()


def run_on(tmp_path: Path, frames: int, *more: str) -> list[dict[str, str]]:
    assert entry.main(["--resume", str(tmp_path / "run"), "--total_frames", str(frames), *more]) == 0
    return table(tmp_path / "run")


def test_a_run_that_goes_on_goes_on_with_its_table_and_its_best(tmp_path, monkeypatch, waited):
    run = tmp_path / "run"
    monkeypatch.setattr(evaluator, "PLAY", says(success_rate=0.5))
    assert entry.main(command(tmp_path, *INLINE, *SOON)) == 0
    first, best = table(run), (run / "model-best.tar").read_bytes()
    assert [row["best"] for row in first] == ["1"] + ["0"] * (len(first) - 1) and len(first) > 2
    monkeypatch.setattr(evaluator, "PLAY", says(success_rate=0.4))
    second = run_on(tmp_path, 600)
    assert second[: len(first)] == first and len(second) > len(first) and (run / "model-best.tar").read_bytes() == best
    assert {row["best"] for row in second[len(first) :]} == {"0"}
    monkeypatch.setattr(evaluator, "PLAY", says(success_rate=0.5, mean_return=0.26))
    third = run_on(tmp_path, 720)
    assert third[: len(second)] == second and third[len(second)]["best"] == "1"
    assert checkpoint.load(run / "model-best.tar")["frames"] == int(third[len(second)]["frames"])


def test_rows_after_the_checkpoint_go_also_while_nothing_is_played(tmp_path, monkeypatch, waited):
    monkeypatch.setattr(evaluator, "PLAY", says())
    assert entry.main(command(tmp_path, *INLINE, *SOON)) == 0
    text = (tmp_path / "run" / "evaluations.csv").read_text()
    later = text.splitlines()[-1].split(",", 1)[1]
    (tmp_path / "run" / "evaluations.csv").write_text(f"{text}100000,{later}\n")
    assert run_on(tmp_path, 504, "--evaluate_minutes", "1000")[-1]["frames"] != "100000"
    assert (tmp_path / "run" / "evaluations.csv").read_text() == text


def test_what_is_no_table_is_set_aside_and_a_damaged_best_is_replaced(tmp_path, monkeypatch, caplog, waited):
    monkeypatch.setattr(evaluator, "PLAY", says())
    assert entry.main(command(tmp_path, *INLINE, *SOON)) == 0
    (tmp_path / "run" / "evaluations.csv").write_text("frames;time\n1;2\n")
    (tmp_path / "run" / "model-best.tar").write_text("no agent")
    found = run_on(tmp_path, 600)
    assert int(found[0]["frames"]) > 480 and found[0]["best"] == "1"
    assert (tmp_path / "run" / "evaluations-before.csv").read_text().startswith("frames;time")
    assert sum("set aside" in r.message or "stays as" in r.message for r in caplog.records) == 1
    assert sum("model-best.tar" in r.message and "takes its place" in r.message for r in caplog.records) == 1
    checkpoint.load(tmp_path / "run" / "model-best.tar")


def test_the_best_agent_is_no_checkpoint_to_go_on_from_and_says_so(tmp_path, monkeypatch, capsys, waited):
    monkeypatch.setattr(evaluator, "PLAY", says())
    assert entry.main(command(tmp_path, *INLINE, *SOON)) == 0
    assert entry.main(["--resume", str(tmp_path / "run" / "model-best.tar")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "cannot be gone on from" in error and error.endswith(f"; give {tmp_path / 'run' / 'model.tar'}")


def ranks_with_it(ranks: Ranks, settings: Settings) -> tuple[int, int]:
    begun = []
    evaluator._Playing.__init__ = lambda self, words, seconds: begun.append(words)
    evaluator._Playing.over = lambda self: False
    evaluator._Playing.end = lambda self: None
    return Run(settings, None, ranks).execute(), len(begun)


def test_of_several_ranks_the_first_one_has_it_played(tmp_path):
    logs = []
    for name, more in (("without", ()), ("with", SOON)):
        settings, _ = settings_module.parse(command(tmp_path / name, *TWO, *INLINE, *more))
        results = in_ranks(2, ranks_with_it, settings, store=tmp_path / f"store {name}")
        assert [code for code, _ in results] == [0, 0]
        assert [count for _, count in results] == [len(more) // 2, 0]
        logs.append(rows(tmp_path / name / "run"))
    assert logs[0] == logs[1]


def test_the_task_and_the_level_are_the_runs_own(tmp_path, monkeypatch):
    words = []

    def popen(command, **_):
        words.extend(command[3:])
        return subprocess.Popen(["true"], stdin=subprocess.PIPE)

    class Stand:
        PIPE, TimeoutExpired, Popen = subprocess.PIPE, subprocess.TimeoutExpired, staticmethod(popen)

    monkeypatch.setattr(evaluator, "subprocess", Stand)
    assert entry.main(command(tmp_path, *INLINE, *SOON, "--fix_seed", "--env_seed", "7", "--engine", "gym", "--greedy")) == 0
    own = {"--env=MiniGrid-Empty-5x5-v0", "--engine=gym", "--fix_seed", "--env_seed=7", "--greedy", "--mode=test"}
    assert own <= set(words)

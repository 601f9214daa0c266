"""Every end of a run is one line with what comes next; a run that has ended already says so, and is left as it is."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal

import pytest

from main import main as entry
from main.training.learner import Learner
from tests.helpers.damage import contents, unended
from tests.helpers.program import command, rows
from torchbeast.core import checkpoint

INLINE = ("--num_actor_processes", "0", "--seed", "9")
CLOSING = re.compile(r"^(.*) at ([\d, of]+) frames, after \d+:\d\d:\d\d h, (.*), in (.*); next: (.*)$")


def closing(text: str) -> tuple[str, ...]:
    """(how, frames, success, folder, next command) of the last line that is none of an error."""
    lines = [line for line in text.splitlines() if not line.startswith("error: ")]
    found = CLOSING.match(lines[-1])
    assert found, lines[-1]
    assert sum(bool(CLOSING.match(line)) for line in lines) == 1
    return found.groups()


def follow(line: str, *more: str) -> int:
    """Does what a closing line says comes next."""
    words = shlex.split(line)
    assert words[:3] == ["python", "-m", "main.main"]
    return entry.main([*words[3:], *more])


def stopping_at(monkeypatch, frames: int, what) -> None:
    learn = Learner.learn

    def until(self, *given):
        stats = learn(self, *given)
        if self.frames == frames:
            what()
        return stats

    monkeypatch.setattr(Learner, "learn", until)


def test_a_finished_run_names_its_agent_and_how_to_play(tmp_path, capfd):
    assert entry.main(command(tmp_path / "a b", *INLINE)) == 0
    how, frames, success, folder, following = closing(capfd.readouterr().err)
    assert (how, frames, folder) == ("finished", "480", str(tmp_path / "a b" / "run"))
    assert success == "no episode ended" or re.fullmatch(r"return .* success .* \(last \d+ episodes\)", success)
    assert "finished at 480 frames" in (tmp_path / "a b" / "run" / "out.log").read_text().splitlines()[-1]
    assert follow(following, "--num_episodes", "2") == 0
    assert "2 episodes" in capfd.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_run_that_is_stopped_names_how_to_go_on(tmp_path, monkeypatch, capfd, number):
    before = signal.signal(number, signal.SIG_DFL)  # these tests may run under nohup
    try:
        with monkeypatch.context() as patch:
            stopping_at(patch, 240, lambda: os.kill(os.getpid(), number))
            assert entry.main(command(tmp_path, *INLINE)) not in (0, 1, 2)
    finally:
        signal.signal(number, before)
    how, frames, _, _, following = closing(capfd.readouterr().err)
    assert (how, frames) == (f"stopped by {number.name}", "240 of 480")
    assert follow(following) == 0
    assert closing(capfd.readouterr().err)[0] == "finished" and len(rows(tmp_path / "run")) == 20


def test_a_run_that_fails_does_too(tmp_path, monkeypatch, capfd):
    def fail():
        raise ZeroDivisionError("broken")

    with monkeypatch.context() as patch:
        stopping_at(patch, 240, fail)
        with pytest.raises(ZeroDivisionError):
            entry.main(command(tmp_path, *INLINE))
    how, frames, _, _, following = closing(capfd.readouterr().err)
    assert (how, frames) == ("ended by a failure", "240 of 480")
    assert follow(following) == 0 and rows(tmp_path / "run")[-1]["frames"] == 480


def test_without_a_checkpoint_nothing_comes_next(tmp_path, capfd):
    assert entry.main(command(tmp_path, *INLINE, "--disable_checkpoint")) == 0
    assert closing(capfd.readouterr().err)[-1] == "none, since it has left no checkpoint"


def test_a_finished_run_is_not_gone_on_with_in_silence_and_says_how(tmp_path, capfd):
    assert entry.main(command(tmp_path, *INLINE)) == 0
    run, before = tmp_path / "run", contents(tmp_path / "run")
    capfd.readouterr()
    for more in ([], ["--total_frames", "100"], ["--dry_run"]):
        assert entry.main(["--resume", str(run), *more]) == 0
        (line,) = capfd.readouterr().err.splitlines()[-1:]
        assert line.startswith(f"{run} is finished: it has learned from 480 frames") and "nothing was done" in line
        assert contents(run) == before
    _, resume, test = re.split("To go on: |; to see it play: ", line)
    assert follow(test, "--num_episodes", "2") == 0
    assert follow(resume) == 0 and rows(run)[-1]["frames"] == 960


def test_a_run_whose_end_was_not_noted_is_brought_to_it(tmp_path):
    """It was killed between its last checkpoint and its last line."""
    assert entry.main(command(tmp_path, *INLINE)) == 0
    assert entry.main(["--resume", str(unended(tmp_path / "run"))]) == 0
    assert json.loads((tmp_path / "run" / "meta.json").read_text())["successful"] is True
    assert checkpoint.load(tmp_path / "run" / "model.tar")["frames"] == 480


@pytest.mark.parametrize("place", ["run/model.tar", "run", "latest", "."])
def test_a_run_is_named_by_its_checkpoint_its_folder_or_the_folder_of_runs(tmp_path, place, capfd):
    for name in ("other", "run"):
        assert entry.main([*command(tmp_path, *INLINE, "--total_frames", "48"), "--xpid", name]) == 0
    assert entry.main(["--resume", str(tmp_path / place), "--total_frames", "96"]) == 0
    assert ("is a folder of runs: its latest one is run" in capfd.readouterr().err) == (place == ".")
    assert [rows(tmp_path / name)[-1]["frames"] for name in ("other", "run")] == [48, 96]

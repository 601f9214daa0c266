"""--video_minutes: a video in TensorBoard; and whatever becomes of it, training goes on with the same numbers."""

from __future__ import annotations

import io
import logging
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import imageio.v2 as imageio
import pytest
import torch

from main import main as entry
from main import settings as settings_module
from main.training import filming
from main.training.filming import Filming
from tests.helpers.program import alive, command, rows
from torchbeast.core import checkpoint

pytestmark = pytest.mark.slow

INLINE = ("--num_actor_processes", "0", "--seed", "3")


class Shown:
    """In the place of a Record, of a run that has saved a checkpoint."""

    def __init__(self, run_dir: Path, saved: int | None = 7):
        self.run_dir, self.saved = run_dir, saved
        self.animations, self.warnings = [], []

    def animate(self, name, animation, frames):
        self.animations.append((name, animation, frames))

    def warn_once(self, text):
        self.warnings.append(text)


def until(filming: Filming, done, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        filming()
        time.sleep(0.02)
    assert done()


def settings_of(*more: str):
    return settings_module.parse([*command(Path("."), "--video_minutes", "0.0001"), *more])[0]


@pytest.fixture
def run_dir(tmp_path):
    assert entry.main(command(tmp_path, *INLINE, "--total_frames", "48")) == 0
    return tmp_path / "run"


def test_the_newest_checkpoint_is_filmed_once(run_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(filming.tempfile, "tempdir", None)
    monkeypatch.setenv("RANK", "1")  # as torchrun starts a rank: what films is none
    record = Shown(run_dir)
    camera = Filming(settings_of(), record)
    until(camera, lambda: record.animations or record.warnings)
    ((name, animation, frames),) = record.animations
    assert (name, frames) == ("episode", 7) and not record.warnings
    pictures = imageio.mimread(io.BytesIO(animation.gif), format="gif")
    assert len(pictures) > 1 and pictures[0].shape[:2] == (animation.height, animation.width)
    time.sleep(0.05)
    camera()
    assert camera._process is None, "nothing new has been saved"
    record.saved = 9
    camera()
    process = camera._process
    camera.close()
    assert not alive(process.pid) and not list(tmp_path.glob("video-*"))


@pytest.mark.parametrize("script, word", [
    ("import sys; print('first'); sys.exit('what is wrong')", "what is wrong"),
    ("import sys; sys.exit(3)", "exit code 3"),
    ("import time; time.sleep(60)", "longer than 0 seconds"),
    ("pass", "No such file"),
    ("import sys; open(sys.argv[1], 'w')", "unpack"),
    ("import sys; open(sys.argv[1], 'w').write('GIF89a' + 60 * 'a')", "0 MiB"),
    (None, "Errno"),
])  # fmt: skip
def test_whatever_goes_wrong_is_said_and_tried_again(run_dir, monkeypatch, script, word):
    program = [sys.executable, "-c", script] if script else ["/nonexistent"]
    monkeypatch.setattr(filming, "command", lambda settings, weights, video: [*program, str(video)])
    monkeypatch.setattr(filming, "LONGEST_SECONDS", 0.2 if "sleep" in program[-1] else 60.0)
    monkeypatch.setattr(filming, "MOST_BYTES", 30)
    record = Shown(run_dir)
    camera = Filming(settings_of(), record)
    until(camera, lambda: record.warnings)
    assert word in record.warnings[0] and "training goes on" in record.warnings[0] and not record.animations
    assert camera._process is None and camera._folder is None
    record.saved = 8
    until(camera, lambda: len(record.warnings) == 2)
    camera.close()


def test_without_a_checkpoint_or_the_flag_nothing_is_started(run_dir, monkeypatch):
    monkeypatch.setattr(filming.subprocess, "Popen", lambda *_, **__: pytest.fail("started"))
    off = settings_module.parse(command(Path(".")))[0]
    for settings, saved in ((settings_of(), None), (off, 7)):
        camera = Filming(settings, Shown(run_dir, saved))
        time.sleep(0.05)
        camera()
        camera.close()


def test_the_runs_own_task_is_played():
    settings = settings_of("--fix_seed", "--env_seed", "5", "--env_args", '{"max_steps": 9}')
    played, _ = settings_module.parse(filming.command(settings, Path("a.tar"), Path("b.gif"))[3:])
    for name in ("env", "env_args", "engine", "fix_seed", "env_seed"):
        assert played.flat()[name] == settings.flat()[name]


def test_training_has_the_same_numbers_and_leaves_no_process(tmp_path, monkeypatch, caplog):
    started = []
    popen = filming.subprocess.Popen
    own = SimpleNamespace(**vars(filming.subprocess))
    own.Popen = lambda *args, **kwargs: started.append(popen(*args, **kwargs)) or started[-1]
    monkeypatch.setattr(filming, "subprocess", own)
    args = (*INLINE, "--total_frames", "2400")
    assert entry.main(command(tmp_path / "off", *args)) == 0
    with caplog.at_level(logging.WARNING, "amigo"):
        assert entry.main(command(tmp_path / "on", *args, "--video_minutes", "0.00001", "--checkpoint_minutes", "0.0001")) == 0
    assert started and not any(alive(process.pid) for process in started)
    assert not [record for record in caplog.records if "video" in record.message]
    assert rows(tmp_path / "off" / "run") == rows(tmp_path / "on" / "run")
    off, on = (checkpoint.load(tmp_path / name / "run" / "model.tar")["model_state_dict"] for name in ("off", "on"))
    assert all(torch.equal(value, on[name]) for name, value in off.items())


def test_it_needs_checkpoints(tmp_path, capsys):
    assert entry.main(command(tmp_path, "--video_minutes", "1", "--disable_checkpoint")) == 2
    assert "leave out one of the two" in capsys.readouterr().err and not list(tmp_path.iterdir())

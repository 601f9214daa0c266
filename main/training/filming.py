"""--video_minutes: the newest checkpoint's agent on video, for TensorBoard, played by a process beside training.

Training waits for it nowhere and depends on it in nothing: it has the lowest priority, no GPU, no console and no signal of the
run's, is the first that a machine without memory ends, and is ended itself if it takes too long.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from main.settings import FileSettings, RunSettings
from main.training.record import Record
from torchbeast.core import checkpoint, run_folder
from torchbeast.core.events import Animation
from torchbeast.core.settings import Settings
from utils_folder.minigrid import EnvironmentSettings

LONGEST_SECONDS = 600.0
MOST_BYTES = 20 << 20  # of a video: TensorBoard reads all of them into memory
NAME = "episode"  # in TensorBoard
OF_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_ERROR_FILE")


def command(settings: Settings, weights: Path, video: Path) -> list[str]:
    """Plays one episode of the run's own task with these weights, and films it."""
    own = settings[EnvironmentSettings]
    words = [sys.executable, "-m", "main.main", "--mode", "test", "--weight_path", str(weights), "--num_episodes", "1"]
    words += ["--env", settings[RunSettings].env, "--engine", own.engine, "--record_video", "--video_path", str(video)]
    words += [] if own.env_args is None else ["--env_args", own.env_args]
    return words + (["--fix_seed", "--env_seed", str(own.env_seed)] if own.fix_seed else [])


def environment() -> dict[str, str]:
    """As this process has it, without GPU and ranks."""
    kept = {name: value for name, value in os.environ.items() if name not in OF_RANKS}
    return kept | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


class Filming:
    """Called often; starts a process when it is time for a video, and shows the video when that has ended."""

    def __init__(self, settings: Settings, record: Record):
        self._settings = settings
        self._record = record
        self._seconds = 60 * (settings[FileSettings].video_minutes or 0)
        self._next = time.monotonic() + self._seconds
        self._shown: int | None = None  # frames of the checkpoint that was filmed last
        self._folder: tempfile.TemporaryDirectory | None = None
        self._process: subprocess.Popen | None = None

    def __call__(self) -> None:
        if not self._seconds:
            return
        try:
            if self._process is not None:
                self._look(self._process)
            elif time.monotonic() >= self._next and self._record.saved not in (None, self._shown):
                self._start()
        except (OSError, struct.error) as error:
            self._give_up(str(error))

    def close(self) -> None:
        """Ends the process, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            if process.poll() is None:
                with contextlib.suppress(OSError):
                    os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
        if self._folder is not None:
            with contextlib.suppress(OSError):
                self._folder.cleanup()
            self._folder = None

    def _start(self) -> None:
        self._next = time.monotonic() + self._seconds
        self._shown = self._record.saved
        self._folder = tempfile.TemporaryDirectory(prefix="video-")
        weights = self._path(run_folder.CHECKPOINT)
        checkpoint.link(self._record.run_dir / run_folder.CHECKPOINT, weights)  # there may soon be a newer one
        with open(self._path("said"), "w") as said:
            self._process = subprocess.Popen(
                command(self._settings, weights, self._path("video.gif")),
                stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment(), start_new_session=True,
            )  # fmt: skip
        self._started = time.monotonic()
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, self._process.pid, 19)
        with contextlib.suppress(OSError):
            Path(f"/proc/{self._process.pid}/oom_score_adj").write_text("1000")

    def _look(self, process: subprocess.Popen) -> None:
        code = process.poll()
        if code is None:
            if time.monotonic() - self._started > LONGEST_SECONDS:
                self._give_up(f"the episode took longer than {LONGEST_SECONDS:.0f} seconds")
            return
        if code:
            lines = self._path("said").read_text(errors="replace").splitlines()
            return self._give_up(lines[-1] if lines else f"exit code {code}")
        gif = self._path("video.gif").read_bytes()
        if len(gif) > MOST_BYTES:
            return self._give_up(f"it has {len(gif) >> 20} MiB, more than TensorBoard should hold")
        width, height = struct.unpack_from("<HH", gif, 6)
        self.close()
        self._record.animate(NAME, Animation(gif, width, height), self._shown)

    def _give_up(self, why: str) -> None:
        self.close()
        self._record.warn_once(f"--video_minutes: no video could be made ({why}); training goes on, and it is tried again")

    def _path(self, name: str) -> Path:
        return Path(self._folder.name) / name

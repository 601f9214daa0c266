"""Small trained agents, and what a video shows of them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from main import main as entry
from main import settings as settings_module
from main.playing import film, trained
from main.playing.trained import Trained
from tests.helpers.program import ROOT
from utils_folder import video

REFERENCE = ROOT.parent / "shared" / "reference"  # published checkpoints, where they are
TRAIN = shlex.split(
    "--env MiniGrid-Empty-5x5-v0 --num_actors 4 --batch_size 4 --unroll_length 5 --total_frames 40 "
    "--state_embedding_dim 16 --xpid run --num_actor_processes 0 --seed 3"
)


def train(savedir: Path, *more: str) -> Path:
    """The folder of a run of an agent that has learned nothing."""
    assert entry.main([*TRAIN, "--savedir", str(savedir), *more]) == 0
    return savedir / "run"


def play(weights: Path, *more: str) -> int:
    """The exit code of playing with these weights."""
    return entry.main(["--mode", "test", "--weight_path", str(weights), *more])


def load(weights: Path, *more: str) -> Trained:
    """The agent, as `play` has it."""
    return trained.load(*settings_module.parse(["--mode", "test", "--weight_path", str(weights), "--seed", "4", *more]))


class Seen(NamedTuple):
    """A picture of a video: what was drawn, and for how long it is seen."""

    frame: np.ndarray
    goal: int | None
    cells: np.ndarray | None
    probabilities: np.ndarray | None
    lines: dict[str, str]
    panel: video.Panel
    caption: str
    seconds: float

    @property
    def badges(self) -> list[str]:
        return [text for text, _ in self.panel.badges]


def watch(weights: Path, num_episodes: int, *more: str) -> tuple[Trained, list[list[Seen]]]:
    """The pictures of each episode, as --record_video would write them."""
    agent = load(weights, *more)
    drawn, seen = [], []

    def render(frame, *, goal, seen, probabilities, panel, caption):
        drawn.append((frame.copy(), goal, seen, probabilities, dict(panel.lines), panel, caption))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video, "render", render)
        steps = film.watch(agent, num_episodes, lambda picture, seconds: seen.append(Seen(*drawn[-1], seconds)))
    ends = np.cumsum([n + 1 for n in steps])
    assert len(seen) == len(drawn) == ends[-1]
    return agent, [seen[end - n - 1 : end] for n, end in zip(steps, ends)]

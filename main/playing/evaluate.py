"""--mode test and test_render: what they are asked for, in order."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from main.playing import film, score, trained
from main.settings import EvaluationSettings, RunSettings
from torchbeast.core import outputs, run_folder
from torchbeast.core.settings import Settings, UsageError
from utils_folder import video
from utils_folder.minigrid import EnvironmentSettings

logger = logging.getLogger("amigo")


def evaluate(settings: Settings, given: dict[str, Any]) -> None:
    """Plays with a trained agent. Raises UsageError for everything that cannot work, before anything is written."""
    _check_outputs(settings[RunSettings], settings[EvaluationSettings])
    window = _window(settings[EvaluationSettings].weight_path) if settings[RunSettings].mode == "test_render" else None
    agent = trained.load(settings, given)
    run, own = agent.settings[RunSettings], agent.settings[EvaluationSettings]
    for notice in agent.survey.notices(partial=agent.settings[EnvironmentSettings].student_is_partial):
        logger.info(notice)
    if window is not None:
        film.watch(agent, own.video_episodes, window.show)
        return window.close()
    summary = score.score(agent)
    print(score.report(agent.settings, summary))
    if own.json is not None:
        weights = str(Path(own.weight_path))
        env_args = agent.settings[EnvironmentSettings].env_args
        env = {"env": run.env} if env_args is None else {"env": run.env, "env_args": json.loads(env_args)}
        variant = {"model": run.model} if run.also is None else {"model": run.model, "also": run.also}
        about = {**env, "weights": weights, **variant, "greedy": own.greedy, "seed": run.seed}
        outputs.write({own.json: (json.dumps({**about, **summary}, indent=2, allow_nan=False) + "\n").encode()})
    if own.record_video:
        try:
            steps = film.record(agent, own.video_episodes, own.video_path)
        except OSError as error:
            raise UsageError(f"--video_path {own.video_path} cannot be written: {error.strerror}; give another file") from error
        print(f"recorded in {own.video_path}: {len(steps)} episode(s), steps: {', '.join(map(str, steps))}")


def _check_outputs(run: RunSettings, own: EvaluationSettings) -> None:
    """Refuses outputs that could not be written, before minutes are spent on them."""
    if run.mode == "test_render" and (own.json is not None or own.record_video):
        raise UsageError(
            "--mode test_render shows episodes and writes nothing: leave out --json and --record_video, or use test"
        )
    read = [own.weight_path, *run_folder.checkpoints(Path(own.weight_path))]
    if own.json is not None:
        outputs.must_be_writable("--json", own.json)
        outputs.must_not_be_read("--json", own.json, read)
    if own.record_video:
        outputs.must_be_writable("--video_path", own.video_path)
        outputs.must_not_be_read("--video_path", own.video_path, read)
        if Path(own.video_path).suffix.lower() not in video.VIDEO_SUFFIXES:
            raise UsageError(
                f"--video_path {own.video_path}: choose a name that ends with {' or '.join(video.VIDEO_SUFFIXES)}"
            )
        outputs.must_be_different(json=own.json, video_path=own.video_path)


def _window(title: str) -> video.Window:
    """Made before the agent is read and anything is compiled: there may be no display, or nothing that draws on it."""
    try:
        return video.Window(title)
    except RuntimeError as error:
        raise UsageError(str(error)) from None

"""TensorBoard events, written by whoever calls: TensorBoard's own writer has a thread, whose failures nobody can catch."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

logger = logging.getLogger("amigo")

_numbers = itertools.count()  # of the files of this process


class Histogram(NamedTuple):
    """How often whole numbers came.

    values, counts: int64 [N].
    meaning: what they are, shown beside them.
    """

    values: np.ndarray
    counts: np.ndarray
    meaning: str = ""


class Animation(NamedTuple):
    """A GIF file's content, and its size in pixels."""

    gif: bytes
    width: int
    height: int


class Events:
    """Event files in a folder, one after the other where one fails. Whatever goes wrong is told once, and tried again in a new
    file: nobody's training hangs on it.

    Args:
        purge_step: TensorBoard hides what files of before say of this step and later ones; None: of none.
        hparams: what TensorBoard's table of runs shows of this one, by name: numbers, booleans, texts.
        outcomes: the scalars that it shows beside them.
    """

    def __init__(self, purge_step: int | None, hparams: Mapping[str, Any] | None = None, outcomes: Sequence[str] = ()):
        self._purge_step = purge_step
        self._hparams = dict(hparams or {})
        self._outcomes = tuple(outcomes)
        self._file: EventFile | None = None
        self._failed = False

    def add(self, folder: Path, step: int, values: Mapping) -> None:
        """Adds scalars, histograms and animations at `step`; None and NaN are left out."""
        try:
            if self._file is not None and self._file.deleted:
                logger.warning("the file of TensorBoard events is gone from %s: a new one is begun", folder)
                self.close()
            if self._file is None:
                self._file = EventFile(folder, self._purge_step)
                self._purge_step = None
                self._file.add_hparams(self._hparams, self._outcomes)
            self._file.add(step, values)
            self._failed = False
        except Exception as error:
            self.close()
            if not self._failed:
                logger.warning("TensorBoard events cannot be written (%s: %s)", type(error).__name__, error)
            self._failed = True

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()


class EventFile:
    """An event file in `folder`, which is made if it is not there. Whatever is added is in the file at once.

    Args:
        purge_step: TensorBoard hides what earlier files say of this step and later ones; None: of none.
    Raises: OSError; or whatever a damaged installation of TensorBoard raises.
    """

    def __init__(self, folder: Path, purge_step: int | None):
        # Imported late: it is slow, and not everybody has it.
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.plugins.histogram import metadata as histograms
        from tensorboard.summary.writer.record_writer import RecordWriter
        from tensorboard.util import tensor_util

        self._Event, self._Summary = event_pb2.Event, summary_pb2.Summary
        self._histograms, self._make_tensor = histograms, tensor_util.make_tensor_proto
        folder.mkdir(exist_ok=True)
        stamp = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        self._path = folder / f"events.out.tfevents.{stamp}"
        self._file = open(self._path, "xb", buffering=0)  # noqa: SIM115
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        if purge_step is not None:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(step=purge_step, session_log=start)

    def add(self, step: int, values: Mapping[str, float | Histogram | Animation | None]) -> None:
        """Adds scalars, histograms and animations at `step`; None and NaN are left out."""
        shown = [self._value(name, value) for name, value in values.items() if value is not None]
        self._write(step=step, summary=self._Summary(value=[value for value in shown if value is not None]))

    def add_hparams(self, hparams: Mapping[str, bool | float | str], outcomes: Sequence[str]) -> None:
        """What the table of runs shows of this one, and of which scalars the last value."""
        if not hparams:
            return
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2, summary_v2

        types = {bool: api_pb2.DATA_TYPE_BOOL, str: api_pb2.DATA_TYPE_STRING}
        experiment = api_pb2.Experiment(
            hparam_infos=[
                api_pb2.HParamInfo(name=name, type=types.get(type(value), api_pb2.DATA_TYPE_FLOAT64))
                for name, value in hparams.items()
            ],
            metric_infos=[api_pb2.MetricInfo(name=api_pb2.MetricName(tag=name)) for name in outcomes],
        )
        about = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(experiment=experiment))
        table = self._Summary.Value(tag=metadata.EXPERIMENT_TAG, metadata=about, tensor=metadata.NULL_TENSOR)
        self._write(summary=self._Summary(value=[table]))
        self._write(summary=summary_v2.hparams_pb(dict(hparams)))

    def _value(self, name: str, value: float | Histogram | Animation) -> Any:
        """A Summary.Value; None of what is no number."""
        if isinstance(value, Animation):
            image = self._Summary.Image(
                encoded_image_string=value.gif, width=value.width, height=value.height, colorspace=3
            )
            return self._Summary.Value(tag=name, image=image)
        if isinstance(value, Histogram):
            buckets = np.stack([value.values - 0.5, value.values + 0.5, value.counts], axis=1)  # left, right, how many
            about = self._histograms.create_summary_metadata(display_name=name, description=value.meaning)
            return self._Summary.Value(tag=name, metadata=about, tensor=self._make_tensor(buckets))
        return None if math.isnan(value) else self._Summary.Value(tag=name, simple_value=float(value))

    @property
    def deleted(self) -> bool:
        """Whether the file is not where it was put: nobody will find what is added."""
        try:
            return not os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return True

    def close(self) -> None:
        self._file.close()

    def _write(self, **event) -> None:
        self._records.write(self._Event(wall_time=time.time(), **event).SerializeToString())

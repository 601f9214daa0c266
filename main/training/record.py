"""All that a run writes: rows, events, checkpoints, stored environments. The one place where a full disk is survived."""

from __future__ import annotations

import contextlib
import itertools
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from main import settings as settings_module
from main.settings import FileSettings, RunSettings
from main.training.sources import Batch
from torchbeast.core import checkpoint, outputs, run_folder
from torchbeast.core.columns import Column, Joiner
from torchbeast.core.events import Animation, Histogram
from torchbeast.core.file_writer import FileWriter, NoWriter
from torchbeast.core.ranks import Alone
from torchbeast.core.settings import Settings, UsageError

logger = logging.getLogger("amigo")

RETRY_SECONDS = 60.0  # after a checkpoint that could not be written; and until what lasts is told again
LOW_DISK_BYTES = 200 << 20
SAVED_ENVS = 4


def check_folder(files: FileSettings, *, begins: bool) -> None:
    """Raises: UsageError if the run's folder cannot be had, as far as a look shows. begins: it is not gone on with."""
    outputs.must_hold_folders("--savedir", files.savedir)
    if begins and files.xpid is not None:
        outputs.must_hold_folders("--xpid", Path(files.savedir) / files.xpid)
        try:
            run_folder.refuse_a_run(Path(files.savedir) / files.xpid)
        except OSError as error:
            raise _refused(error) from None


def _refused(error: OSError | ValueError) -> UsageError:
    """That the run's folder cannot be had, with what to do: those of `run_folder` say it, the system's do not."""
    if isinstance(error, OSError) and error.filename is not None:
        return UsageError(f"{error.filename}: {error.strerror}; mend that, or use another --savedir or --xpid")
    return UsageError(str(error))


def open_writer(settings: Settings, columns: Sequence[Column], frames: int | None, ranks: Alone) -> FileWriter | NoWriter:
    """The run's folder, claimed; of several ranks by the first. frames: where it goes on; None begins it.

    Raises: UsageError if it cannot be had.
    """
    files, names = settings[FileSettings], [column.name for column in columns]
    table = _table(settings)
    if not ranks.first:
        return NoWriter(Path(files.savedir) / files.xpid)
    try:
        if frames is not None:
            return FileWriter.resume(
                Path(files.savedir) / files.xpid, args=settings.flat(), fields=names, frames=frames, table=table
            )
        Path(files.savedir).mkdir(parents=True, exist_ok=True)
        settings = settings.replace(xpid=files.xpid or _free_name(settings))
        xpid = settings[FileSettings].xpid
        return FileWriter.create(Path(files.savedir), xpid, args=settings.flat(), fields=names, table=table)
    except (OSError, ValueError) as error:
        raise _refused(error) from None


def _table(settings: Settings) -> dict[str, bool | float | str]:
    """What defines the experiment, and the seed, as TensorBoard's table of runs takes it."""
    flags = settings_module.flags()
    values = {name: value for name, value in settings.flat().items() if flags[name].experiment or name == "seed"}
    return {name: value if isinstance(value, (bool, int, float)) else str(value or "unset") for name, value in values.items()}


def _free_name(settings: Settings) -> str:
    """ENV_INITIALS_MMDD-HHMM, with -2, -3, ... where that is taken; of ENV without its module.

    Its folder is made, so that nobody else takes it.

    Raises: ValueError if no folder can have that name.
    """
    files = settings[FileSettings]
    env = settings[RunSettings].env.rpartition(":")[2].replace("/", "_")
    name = f"{env}_{files.initials}_{time.strftime('%m%d-%H%M')}"
    for number in itertools.count(1):
        run_dir = run_folder.of(files.savedir, name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            run_dir.mkdir()
            return run_dir.name


class Record:
    """What one run leaves in its folder. Whatever the disk does, it goes on and tries again.

    Args:
        frames: learned so far.
        columns: of its rows.
        counted: what else TensorBoard shows of the time since the last point, by name.

    Attributes:
        saves: checkpoints are written.
        saved: frames of the newest one that this run has written; None before there is one.
    """

    def __init__(
        self, settings: FileSettings, writer: FileWriter | NoWriter, frames: int, columns: Sequence[Column],
        counted: Callable[[], Mapping[str, Histogram]] = dict,
    ):  # fmt: skip
        self._settings = settings
        self._counted = counted
        self._frames = frames
        self._writer = writer
        self.saves = not settings.disable_checkpoint
        self.saved: int | None = None
        self._since = Joiner(columns)  # the last point of TensorBoard's
        self._warned: set[str] = set()
        self._told: dict[str, float] = {}
        self._milestone = self._following(frames)
        self._next_save = time.monotonic()
        self._failed = False
        self._next_environments = (frames // settings.save_every + 1) * settings.save_every if frames else 0

    @property
    def run_dir(self) -> Path:
        """The folder. It may be moved at any time."""
        return self._writer.run_dir

    def row(self, row: dict[str, float], batch: Batch) -> None:
        """Writes a row of the log and, when they are due, the environments of the batch that it tells of."""
        self._since.add(row)
        self._frames = int(row["frames"])
        with self._disk_errors("logging"):
            self._writer.log(row)
            self._save_environments(batch, int(row["frames"]))

    def scalars(self, values: dict[str, float]) -> None:
        """Writes the rows since the last call, joined, and `values` to TensorBoard; looks whether the disk is nearly full."""
        with self._disk_errors("looking at the room on the disk"):
            if shutil.disk_usage(self.run_dir).free < LOW_DISK_BYTES:
                self.warn_once(f"less than {LOW_DISK_BYTES >> 20} MiB of disk are left in {self.run_dir}: free some")
        self._write_scalars(values)

    def evaluated(self, frames: int, values: dict[str, float | None]) -> None:
        """Writes the figures of an evaluation to TensorBoard."""
        self._writer.scalars(frames, values)

    def look(self) -> None:
        """Finds the folder again if it was moved, and puts back what was deleted; then a checkpoint is due at once."""
        with self._disk_errors("looking after the run's folder"):
            for event in self._writer.look() or self._gone():
                logger.warning(event)
                self._next_save = time.monotonic()

    def _gone(self) -> list[str]:
        """What to say of a checkpoint that was written, is not there, and is not due in any case."""
        waits = self.saved is not None and not self._failed and time.monotonic() < self._next_save
        path = self.run_dir / run_folder.CHECKPOINT
        return [f"{path} was deleted; it is written again"] if waits and not path.exists() else []

    def due(self, frames: int) -> bool:
        """Whether a checkpoint is to be written now; after one that could not be, not before RETRY_SECONDS are over."""
        if not self.saves:
            return False
        return time.monotonic() >= self._next_save or (self._milestone_due(frames) and not self._failed)

    def save(self, state: dict) -> bool:
        """Writes a checkpoint, and keeps it for good if a milestone has been passed. False if it could not be written.

        The log is brought to the disk before, so that no checkpoint is ahead of it.
        """
        self.look()
        with self._disk_errors("writing the log"):
            self._writer.flush()
        self._next_save, self._failed = time.monotonic() + RETRY_SECONDS, True
        with self._disk_errors("writing a checkpoint"):
            self._write(state)
            self._next_save, self._failed = time.monotonic() + 60 * self._settings.checkpoint_minutes, False
        return not self._failed

    def animate(self, name: str, animation: Animation, frames: int) -> None:
        """Shows it in TensorBoard, as that of so many frames."""
        self._writer.scalars(frames, {name: animation})

    def close(self, successful: bool, last: Mapping[str, float] | None = None) -> None:
        """Ends the log, and TensorBoard's with the rows since its last point and with `last`."""
        self.look()
        self._write_scalars({})
        if last:
            self._writer.scalars(self._frames, last)
        with self._disk_errors("closing the log"):
            self._writer.close(successful)

    def warn_once(self, warning: str) -> None:
        """A warning that a user must see, and need not see twice."""
        if warning not in self._warned:
            self._warned.add(warning)
            logger.warning(warning)

    def kept(self) -> str:
        """What can be gone on from, as a look at the folder shows."""
        try:
            state, path = checkpoint.load_newest(self.run_dir / run_folder.CHECKPOINT)
        except checkpoint.CheckpointError:
            return "and there is none before it"
        return f"{path}, of {state['frames']:,} frames, is still there"

    @contextlib.contextmanager
    def _disk_errors(self, what: str) -> Iterator[None]:
        """A full disk must not end a run of days: it goes on, and writes again as soon as it can. As long as it cannot, that is
        said again and again.

        what: one thing only: that another has worked does not say that it does.
        """
        try:
            yield
        except OSError as error:
            now = time.monotonic()
            if now - self._told.get(what, -RETRY_SECONDS) >= RETRY_SECONDS:
                self._told[what] = now
                logger.warning(f"{what} failed ({error}); it is tried again as long as the run lasts")
        else:
            if self._told and self._told.pop(what, None) is not None:
                logger.info(f"{what} works again")

    def _write_scalars(self, values: dict[str, float]) -> None:
        row = self._since.take()
        if row:
            self._writer.scalars(int(row["frames"]), {**row, **values, **self._counted()})

    def _write(self, state: dict) -> None:
        path = self.run_dir / run_folder.CHECKPOINT
        checkpoint.save(path, state, keep=self._settings.keep_checkpoints)
        self.saved = state["frames"]
        if self._milestone_due(state["frames"]):
            checkpoint.link(path, path.with_name(run_folder.milestone(state["frames"])))
            self._milestone = self._following(state["frames"])

    def _milestone_due(self, frames: int) -> bool:
        return self._milestone is not None and frames >= self._milestone

    def _following(self, frames: int) -> int | None:
        every = self._settings.milestone_frames
        return None if every is None else (frames // every + 1) * every

    def _save_environments(self, batch: Batch, frames: int) -> None:
        """--save_env: the newest frames and goals of some environments, every --save_every frames."""
        if not self._settings.save_env or frames < self._next_environments:
            return
        self._next_environments += self._settings.save_every
        folder = self.run_dir / run_folder.ENVIRONMENTS
        folder.mkdir(exist_ok=True)
        fields = {name: batch[name][-1, :SAVED_ENVS].numpy() for name in ("frame", "goal") if name in batch}
        np.savez_compressed(folder / f"{frames:012d}.npz", **fields)

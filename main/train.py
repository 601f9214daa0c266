"""Training: allocate, fork, start the learner, supervise, checkpoint, shut down."""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import logging
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from main import checkpoints, preflight
from main import flags as flags_module
from main.actor import Actor
from main.flags import UsageError
from main.learner import CHECK_UPDATES, LOG_COLUMNS, Learner, rollout_fields
from main.progress import Progress
from main.sources import ActorProcesses, ActorsFailed, InlineActor, Source
from torchbeast.core import checkpoint, run_folder
from torchbeast.core.exchange import Stopped
from torchbeast.core.file_writer import FileWriter, NoWriter
from torchbeast.core.optimizer import Diverged
from torchbeast.core.ranks import ALONE, Alone, RanksFailed
from torchbeast.core.rollouts import Rollouts, rollout_bytes
from torchbeast.core.sampling import derive_seed, torch_generator
from torchbeast.core.weights import Reader
from utils_folder import env_utils, minigrid_engine
from utils_folder.motivation import Task, make_motivation

logger = logging.getLogger("amigo")

SUPERVISE_SECONDS = 0.25
SCALARS_SECONDS = 10.0
DRY_RUN_SECONDS = 10.0
LOW_DISK_BYTES = 200 << 20
CHECKPOINT_COPIES = 6  # of the student's weights: student, teacher or predictor, their optimisers, waiting goals, and room
PREEMPTED = 75  # EX_TEMPFAIL: what a job script requeues on
SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: PREEMPTED}  # exit codes after a checkpoint
SAVED_ENVS = 4


class RunFailed(Exception):
    """The run ended because a part of it failed; the message is the cause."""


def train(flags: argparse.Namespace, given: dict[str, Any], ranks: Alone = ALONE) -> int:
    """Trains until total_frames, or a signal; leaves the run's folder. Returns the exit code: 0, or what the signal asks for.

    Raises: UsageError or RunFailed.
    """
    try:
        return _train(flags, given, ranks)
    except RanksFailed as error:
        raise RunFailed(str(error)) from None
    except BaseException as error:
        ranks.fail(error)
        raise


def _train(flags: argparse.Namespace, given: dict[str, Any], ranks: Alone) -> int:
    if not ranks.alone and flags.resume is None and not flags.dry_run:
        flags.resume = checkpoints.begun(flags, ranks)
    state = None
    if flags.resume is not None:
        flags, state = checkpoints.resumed(flags, given, ranks)
    flags_module.check(flags)
    if flags.seed is None:
        flags.seed = ranks.share(int.from_bytes(os.urandom(4), "little") >> 1)
    if flags.dry_run:
        return dry_run(flags, state, ranks)
    return Run(flags, state, ranks).execute()


def dry_run(flags: argparse.Namespace, state: dict | None, ranks: Alone = ALONE) -> int:
    """Checks the machine, measures the speed in a folder that is deleted again, and says how long the run would take."""
    done = 0 if state is None else state["frames"]
    with tempfile.TemporaryDirectory() as folder:
        probe = argparse.Namespace(**{**vars(flags), "savedir": folder, "xpid": "dry_run", "disable_checkpoint": True})
        preflight_only = argparse.Namespace(**{**vars(probe), "savedir": flags.savedir})
        run = Run(probe, None, ranks, checked=preflight_only)
        rates = []
        timer = threading.Timer(DRY_RUN_SECONDS, lambda: (rates.append(run.progress.rate()), run.stop()))
        timer.start()
        try:
            code = run.execute()
        finally:
            timer.cancel()
    if code:
        return code
    rate = rates[0] if rates else run.progress.rate()
    left = max(0, flags.total_frames - done)
    hours = left / rate / 3600 if rate else float("inf")
    logger.info(f"dry run: {rate:,.0f} frames/s; {left:,} frames would take {hours:.1f} hours; nothing was written")
    return 0


class Run:
    """One training run: everything it holds, in the order in which it is made."""

    def __init__(
        self,
        flags: argparse.Namespace,
        state: dict | None,
        ranks: Alone = ALONE,
        *,
        checked: argparse.Namespace | None = None,
    ):
        """`checked`: the flags that the machine is checked for, if not these."""
        self.flags = flags
        self.ranks = ranks
        # A run that has learned something goes on with fresh levels; one that has not begins as it would have.
        self._incarnation = 0 if state is None else state["incarnation"] + (state["frames"] > 0)
        self._failure: BaseException | None = None
        self._signal: int | None = None
        self._asked = False  # to stop, here
        self._over = False  # the last update has been made
        self._agreed_signal: int | None = None
        self._save_due = False
        self._learning = threading.Lock()
        self._batching = threading.Lock()

        torch.manual_seed(derive_seed(flags.seed, "networks"))
        self.task = Task.of(env_utils.probe(flags.env, engine=flags.engine, num_input_frames=flags.num_input_frames))
        self.motivation = make_motivation(flags, self.task, ranks)
        self.learner = Learner(flags, self.task, self.motivation, ranks)
        self._warned: set[str] = set()
        fields = rollout_fields(self.task, self.learner)
        size = {"unroll_length": flags.unroll_length, "num_buffers": flags_module.num_buffers(flags)}
        preflight.check(
            checked or flags,
            ranks,
            rollout_bytes=rollout_bytes(fields, **size),
            checkpoint_bytes=CHECKPOINT_COPIES * sum(p.numel() * 4 for p in self.learner.student.parameters()),
        )
        if state is not None:
            self._load(state)  # a checkpoint that does not fit must be found out before anything is started or written
        self.rollouts = Rollouts(fields, **size)
        self.source = self._start_actors()
        try:
            self.device = torch.device("cpu")
            if not flags.disable_cuda and torch.cuda.is_available():
                self.device = torch.device("cuda", ranks.local_rank)
            ranks.connect(self.device)
            self.learner.to(self.device)
            if state is not None:
                self._load(state, self.source)
            if not ranks.alone:
                compared = {name: value for name, value in vars(flags).items() if name != "savedir"}
                ranks.check_equal(json.dumps(compared, sort_keys=True).encode(), "the command line")
                self.learner.check_equal()
            self.writer = self._open_folder(state)
            ranks.share("the folder is there")
        except BaseException:
            self.source.close()
            raise
        self._checkpoints = checkpoints.Checkpoints(flags, self.writer.run_dir, self.learner.frames)
        every, done = flags.save_every, self.learner.frames
        self._next_save = (done // every + 1) * every if done else 0

    def _load(self, state: dict, source: Source | None = None) -> None:
        try:
            keys = self.motivation.waiting_keys
            state = checkpoint.for_rank(state, self.ranks.rank, self.ranks.size, waiting_keys=keys)
            self.learner.load_state_dict(state)
            if source is not None:
                source.load_state_dict(state["source"])
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, IndexError) as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UsageError(f"--resume: the checkpoint does not fit the run's own flags ({first})") from error

    def _open_folder(self, state: dict | None) -> FileWriter | NoWriter:
        fields = (*LOG_COLUMNS, *self.motivation.log_columns)
        flags = self.flags
        if not self.ranks.first:
            return NoWriter(Path(flags.savedir) / flags.xpid)
        if state is None:
            flags.xpid = flags.xpid or _free_name(flags)
        try:
            if state is not None:
                return FileWriter.resume(
                    Path(flags.savedir) / flags.xpid, args=vars(flags), fields=fields, frames=state["frames"]
                )
            return FileWriter.create(Path(flags.savedir), flags.xpid, args=vars(flags), fields=fields)
        except (OSError, ValueError) as error:
            raise UsageError(str(error)) from None

    def _start_actors(self) -> Source:
        """Everything after this may use CUDA."""
        hosted = flags_module.hosted(self.flags)
        if flags_module.processes(self.flags) == 0:
            return InlineActor(self._build_actor(0, hosted), self.rollouts)
        source = ActorProcesses(
            lambda i, n: self._build_actor(i, hosted, n), hosted, self.rollouts, max_restarts=self.flags.max_actor_restarts
        )
        source.start()
        return source

    def _build_actor(self, index: int, hosted: list[int], restarts: int = 0) -> Actor:
        """A resumed run and an actor that is started again take fresh seeds: the levels go on, they do not repeat."""
        flags = self.flags
        first = sum(hosted[:index])
        stream = f"{self._incarnation}.{restarts}" + ("" if self.ranks.first else f" rank {self.ranks.rank}")
        seeds = [derive_seed(flags.seed, f"environment {stream}", first + e) for e in range(hosted[index])]
        environment = env_utils.make_environments(
            flags.env,
            seeds,
            engine=flags.engine,
            num_input_frames=flags.num_input_frames,
            fixed_seed=flags.env_seed if flags.fix_seed else None,
        )
        generator = torch_generator(flags.seed, f"actor {stream}", index)
        student = Reader(copy.deepcopy(self.learner.student), self.learner.shared)
        return Actor(environment, student, self.motivation.actor(hosted[index], generator), generator)

    # -- running ------------------------------------------------------------------------------------------------------

    def execute(self) -> int:
        """Learns until all frames are learned or a signal comes; then, and on failure, ends everything that was started.

        Returns the exit code. Raises RunFailed with the cause.
        """
        previous = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        self._threads: list[threading.Thread] = []
        self.progress = Progress(self.learner, self.flags.total_frames, live=self.ranks.first)
        successful = ended = False
        try:
            self._announce()
            self._save_checkpoint()
            if isinstance(self.source, InlineActor):
                self._learn_inline()
            else:
                self._learn_in_threads()
            successful, ended = self._done(), True
        except (ActorsFailed, Diverged) as error:
            raise RunFailed(str(error)) from None
        finally:
            self.source.stop()
            for thread in self._threads:
                thread.join()
            self.source.close()
            # Ranks that fail go back to their last checkpoint together: they may be in the middle of an update.
            saved = self._save_checkpoint() if ended or self.ranks.alone else True
            with contextlib.suppress(RanksFailed):
                self._hear()
            self.progress.line()
            self.progress.close()
            self._close_writer(successful)
            for number, handler in previous.items():
                signal.signal(number, handler)
        self.ranks.close()
        if not saved:
            raise RunFailed("the last checkpoint could not be written; the one before is still there")
        number = self._signal if self.ranks.alone else self._agreed_signal
        return 0 if number is None else SIGNALS[number]

    def stop(self) -> None:
        """Ends the run as soon as the present update is done, on all ranks."""
        self._asked = True

    @property
    def _stopping(self) -> bool:
        """Whether no update is to be begun. Several ranks decide that together, at the end of one."""
        return self._over or (self._asked and self.ranks.alone)

    def _announce(self) -> None:
        if not self.ranks.first:
            return
        flags = self.flags
        where = f"{flags_module.processes(flags)} actor processes" if flags_module.processes(flags) else "this process"
        engine = env_utils.choose_engine(flags.env, flags.engine)
        ranks = "" if self.ranks.alone else f"{self.ranks.size} ranks, each: "
        logger.info(
            f"{flags.model} on {flags.env}: {ranks}{flags.num_actors} environments in {where}, {engine} engine, learning on "
            f"{self.device}, {self.rollouts.nbytes / 2**20:.0f} MiB of rollouts, seed {flags.seed}; "
            f"writing {self.writer.run_dir}"
        )
        if flags.engine == "auto" and engine == "gym":
            logger.warning(f"gym-minigrid itself plays {flags.env}: {minigrid_engine.playable(flags.env)}")
        if self.learner.frames:
            logger.info(f"resumed at {self.learner.frames:,} frames")

    def _on_signal(self, number: int, _frame: object) -> None:
        if self._signal is not None and number == signal.SIGINT:
            os._exit(SIGNALS[number])  # the second Ctrl-C: stop at once; the actors see that this process is gone
        self._signal = number
        self._asked = True

    def _done(self) -> bool:
        return self.learner.frames >= self.flags.total_frames

    def _learn_inline(self) -> None:
        while not self._done() and not self._stopping:
            self._learn_once()
            self._supervise()

    def _learn_in_threads(self) -> None:
        self._threads = [
            threading.Thread(target=self._learner_thread, name=f"learner {i}") for i in range(self.flags.num_threads)
        ]
        for thread in self._threads:
            thread.start()
        while (alive := [thread for thread in self._threads if thread.is_alive()]) and not self._stopping:
            alive[0].join(SUPERVISE_SECONDS)
            self._supervise()
            if self._failure is not None:
                raise self._failure
            if not self._stopping:
                self.source.supervise()
        if self._failure is not None:
            raise self._failure

    def _learner_thread(self) -> None:
        try:
            while not self._done() and not self._stopping:
                self._learn_once()
        except Stopped:
            return
        except BaseException as error:
            self._failure = error
            self.source.stop()

    def _learn_once(self) -> None:
        with self._batching:
            batch = self.source.get(self.flags.batch_size)
        with self._learning:
            if self._done() or self._over:
                return
            try:
                stats, save = self._agree(self.learner.learn(batch))
            except BaseException as error:  # in here still: nothing may be learned after half an update
                self._failure, self._over = error, True
                raise
            self._latest = stats
            with self._disk_errors("logging"):
                self.writer.log(stats)
                self._save_envs(batch)
            if save:
                self._save()

    def _agree(self, stats: dict[str, float]) -> tuple[dict[str, float], bool]:
        """After every update: the row of all ranks together, and whether they make a checkpoint now.

        If a rank has been asked to stop, this was the last update of all of them, and all end by that rank's signal.
        """
        if self.ranks.alone:
            return stats, False
        wishes = {"stop": self._asked, "save": self._save_due}
        stats, granted = self.learner.row_of_all(stats, wishes | {str(int(n)): self._signal == n for n in SIGNALS})
        if granted["stop"]:
            self._agreed_signal = next((n for n in SIGNALS if granted[str(int(n))]), None)
            self._over = True
        elif self.learner.updates % CHECK_UPDATES == 0:
            self.learner.check_equal()
        return stats, granted["save"] > 0

    # -- beside the learning ------------------------------------------------------------------------------------------

    _next_scalars = 0.0
    _latest: dict[str, float] | None = None

    def _supervise(self) -> None:
        """Progress, alarms, TensorBoard and checkpoints, each when its time has come; of several ranks, by the first."""
        if not self.ranks.first:
            return
        now = time.monotonic()
        self._hear()
        self.progress.update()
        for warning in self.learner.warnings():
            self._warn_once(warning)
        if now >= self._next_scalars and self._latest is not None:
            self._next_scalars = now + SCALARS_SECONDS
            with self._disk_errors("logging"):
                self._check_disk()
                self.writer.scalars(self.learner.frames, {**self._latest, "frames_per_second": self.progress.rate()})
        if self._checkpoints.due(self.learner.frames):
            if self.ranks.alone:
                self._save_checkpoint()
            else:
                self._save_due = True

    def _hear(self) -> None:
        """What other ranks warn of goes to this one's log too."""
        for text in self.ranks.news():
            logger.warning(text)

    def _warn_once(self, warning: str) -> None:
        if warning not in self._warned:
            self._warned.add(warning)
            logger.warning(warning)

    def _check_disk(self) -> None:
        if shutil.disk_usage(self.writer.run_dir).free < LOW_DISK_BYTES:
            self._warn_once(f"less than {LOW_DISK_BYTES >> 20} MiB of disk are left in {self.writer.run_dir}: free some")

    @contextlib.contextmanager
    def _disk_errors(self, what: str) -> Iterator[None]:
        """A full disk must not end a run of days: it goes on, and writes again as soon as it can."""
        try:
            yield
        except OSError as error:
            self._warn_once(f"{what} failed ({error}); the run goes on and tries again")

    def _close_writer(self, successful: bool) -> None:
        with self._disk_errors("closing the log"):
            self.writer.close(successful)

    def _save_checkpoint(self) -> bool:
        """Writes a checkpoint, and keeps it for good if a milestone has been passed. False if it could not be written."""
        with self._learning:
            return self._save()

    def _save(self) -> bool:
        """While nothing is learned: a checkpoint must not be ahead of the log. Of several ranks all are in here."""
        self._save_due = False
        if not self._checkpoints.enabled:
            return True
        state, saved = self._state(), False
        if not self.ranks.first:
            return True
        with self._disk_errors("writing the log"):
            self.writer.flush()
        with self._disk_errors("writing a checkpoint"):
            self._checkpoints.write(state)
            saved = True
        return saved

    def _state(self) -> dict:
        state = {
            **self.learner.state_dict(),
            "source": self.source.state_dict(),
            "incarnation": self._incarnation,
            "flags": vars(self.flags),
        }
        own = {key: state[key] for key in ("source", *self.motivation.waiting_keys)}
        others = self.ranks.collect(own)[1:]
        return state | {"other_ranks": others} if others else state

    def _save_envs(self, batch: dict[str, torch.Tensor]) -> None:
        """--save_env: the newest frames and goals of some environments, every --save_every frames."""
        if not self.flags.save_env or not self.ranks.first or self.learner.frames < self._next_save:
            return
        self._next_save += self.flags.save_every
        folder = self.writer.run_dir / run_folder.ENVIRONMENTS
        folder.mkdir(exist_ok=True)
        fields = {name: batch[name][-1, :SAVED_ENVS].numpy() for name in ("frame", "goal") if name in batch}
        np.savez_compressed(folder / f"{self.learner.frames:012d}.npz", **fields)


def _free_name(flags: argparse.Namespace) -> str:
    """ENV_INITIALS_MMDD-HHMM, with -2, -3, ... where that is taken."""
    name = f"{flags.env}_{flags.initials}_{time.strftime('%m%d-%H%M')}"
    number = 1
    while (Path(flags.savedir) / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return name if number == 1 else f"{name}-{number}"

"""Training: allocate, fork, start the learner, supervise, checkpoint, shut down."""

from __future__ import annotations

import argparse
import copy
import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from main import flags as flags_module
from main.actor import Actor
from main.flags import UsageError
from main.learner import LOG_COLUMNS, Learner, core_state_fields
from main.progress import Progress
from main.sources import ActorProcesses, InlineActor, Source
from torchbeast.core.exchange import ActorFailed, Stopped
from torchbeast.core.file_writer import FileWriter
from torchbeast.core.rollouts import Rollouts, agent_fields
from torchbeast.core.sampling import derive_seed, torch_generator
from torchbeast.core.weights import Reader
from utils_folder import checkpoint, env_utils
from utils_folder.motivation import Task, make_motivation

logger = logging.getLogger("amigo")

SUPERVISE_SECONDS = 0.25
TENSORBOARD_SECONDS = 10.0
SAVED_ENVS = 4
CHECKPOINT = "model.tar"


class RunFailed(Exception):
    """The run ended because a part of it failed; the message is the cause."""


def train(flags: argparse.Namespace, given: dict[str, Any]) -> None:
    """Trains until total_frames, or a signal; leaves the run's folder. Raises UsageError or RunFailed."""
    state = None
    if flags.resume is not None:
        flags, state = _resumed(flags, given)
    flags_module.check(flags)
    if flags.seed is None:
        flags.seed = int.from_bytes(os.urandom(4), "little") >> 1
    Run(flags, state).execute()


def _resumed(flags: argparse.Namespace, given: dict[str, Any]) -> tuple[argparse.Namespace, dict]:
    """The interrupted run's flags, with the resumable ones that were given, and its checkpoint."""
    run_dir = Path(flags.resume)
    try:
        state = checkpoint.load(run_dir / CHECKPOINT)
    except checkpoint.CheckpointError as error:
        raise UsageError(f"--resume: {error}") from None
    if checkpoint.is_published(state):
        raise UsageError(f"--resume: {run_dir / CHECKPOINT} was written by the published code, which saved too little to go on")
    stored = {**flags_module.defaults(), **state["flags"]}
    fixed = [k for k, v in given.items() if not flags_module.BY_NAME[k].resumable and v != stored[k]]
    if fixed:
        raise UsageError(
            "--resume goes on with the run's own flags; not with "
            + ", ".join(f"--{name} {given[name]} (the run has {stored[name]})" for name in fixed)
            + ": leave them out, or start a new run"
        )
    resumed = argparse.Namespace(**{**stored, **given})
    resumed.savedir, resumed.xpid = str(run_dir.resolve().parent), run_dir.resolve().name
    return resumed, state


class Run:
    """One training run: everything it holds, in the order in which it is made."""

    def __init__(self, flags: argparse.Namespace, state: dict | None):
        self.flags = flags
        self._incarnation = 0 if state is None else state["incarnation"] + 1
        self._failure: BaseException | None = None
        self._signal: int | None = None
        self._learning = threading.Lock()
        self._batching = threading.Lock()

        torch.manual_seed(derive_seed(flags.seed, "networks"))
        self.task = Task.of(env_utils.probe(flags.env, engine=flags.engine, num_input_frames=flags.num_input_frames))
        self.motivation = make_motivation(flags, self.task)
        self.learner = Learner(flags, self.task, self.motivation)
        self._warned: set[str] = set()
        self.rollouts = Rollouts(
            agent_fields(self.task.frame_shape, self.task.num_actions)
            | env_utils.CARRIED_FIELDS
            | core_state_fields(self.learner.student)
            | self.motivation.rollout_fields,
            unroll_length=flags.unroll_length,
            num_buffers=flags_module.num_buffers(flags),
        )
        self.writer = self._open_folder(state)
        self.source = self._start_actors()
        self.device = torch.device("cpu" if flags.disable_cuda or not torch.cuda.is_available() else "cuda")
        self.learner.to(self.device)
        if state is not None:
            self.learner.load_state_dict(state)
            self.source.load_state_dict(state["source"])
        self._next_save = self.learner.frames

    def _open_folder(self, state: dict | None) -> FileWriter:
        fields = (*LOG_COLUMNS, *self.motivation.log_columns)
        flags = self.flags
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
        source = ActorProcesses(lambda i: self._build_actor(i, hosted), hosted, self.rollouts)
        source.start()
        return source

    def _build_actor(self, index: int, hosted: list[int]) -> Actor:
        flags = self.flags
        first = sum(hosted[:index])
        stream = f"{self._incarnation}"
        seeds = [derive_seed(flags.seed, f"environment {stream}", first + e) for e in range(hosted[index])]
        environment = env_utils.make_environments(
            flags.env,
            seeds,
            engine=flags.engine,
            num_input_frames=flags.num_input_frames,
            fixed_seed=flags.env_seed if flags.fix_seed else None,
        )
        generator = torch_generator(flags.seed, f"actor {stream}", index)
        student = Reader(_fresh_copy(self.learner.student), self.learner.shared)
        return Actor(environment, student, self.motivation.actor(hosted[index], generator), generator)

    # -- running ------------------------------------------------------------------------------------------------------

    def execute(self) -> None:
        """Learns until all frames are learned or a signal comes; then, and on failure, ends everything that was started."""
        previous = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        self._threads = []
        self.progress = Progress(self.learner, self.flags.total_frames)
        successful = False
        try:
            self._announce()
            if isinstance(self.source, InlineActor):
                self._learn_inline()
            else:
                self._learn_in_threads()
            successful = self._done()
        except ActorFailed as error:
            raise RunFailed(f"an actor process failed:\n{error}") from None
        finally:
            self.source.stop()
            for thread in self._threads:
                thread.join()
            self.source.close()
            self._save_checkpoint()
            self.progress.line()
            self.progress.close()
            self.writer.close(successful)
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _announce(self) -> None:
        flags = self.flags
        where = f"{flags_module.processes(flags)} actor processes" if flags_module.processes(flags) else "this process"
        engine = env_utils.choose_engine(flags.env, flags.engine)
        logger.info(
            f"{flags.model} on {flags.env}: {flags.num_actors} environments in {where}, {engine} engine, learning on "
            f"{self.device}, {self.rollouts.nbytes / 2**20:.0f} MiB of rollouts, seed {flags.seed}; writing {self.writer.run_dir}"
        )
        if flags.engine == "auto" and engine == "gym":
            logger.warning(f"gym-minigrid itself plays {flags.env}: {env_utils.why_not_compiled(flags.env)}")
        if self.learner.frames:
            logger.info(f"resumed at {self.learner.frames:,} frames")

    def _on_signal(self, number: int, _frame: object) -> None:
        if self._signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # the second Ctrl-C: stop at once
        self._signal = number

    def _done(self) -> bool:
        return self.learner.frames >= self.flags.total_frames

    def _learn_inline(self) -> None:
        while not self._done() and self._signal is None:
            self._learn_once()
            self._supervise()

    def _learn_in_threads(self) -> None:
        threads = [threading.Thread(target=self._learner_thread, name=f"learner {i}") for i in range(self.flags.num_threads)]
        self._threads = threads
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads) and self._signal is None:
            threads[0].join(SUPERVISE_SECONDS)
            self._supervise()
            if self._failure is not None:
                raise self._failure
            cause = self.source.failure()
            if cause is not None:
                threads[0].join(1.0)  # the process may have sent its traceback, which says more
                raise self._failure or RunFailed(cause)
        if self._failure is not None:
            raise self._failure

    def _learner_thread(self) -> None:
        try:
            while not self._done():
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
            if self._done():
                return
            stats = self.learner.learn(batch)
            self._latest = stats
            self.writer.log(stats)
            self._save_envs(batch)

    # -- beside the learning ------------------------------------------------------------------------------------------

    _next_checkpoint: float | None = None
    _next_scalars = 0.0
    _latest: dict[str, float] | None = None

    def _supervise(self) -> None:
        """Progress, warnings, TensorBoard and checkpoints, each when its time has come."""
        now = time.monotonic()
        self.progress.update()
        for warning in self.motivation.warnings():
            if warning not in self._warned:
                self._warned.add(warning)
                logger.warning(warning)
        if now >= self._next_scalars and self._latest is not None:
            self._next_scalars = now + TENSORBOARD_SECONDS
            self.writer.scalars(self.learner.frames, {**self._latest, "frames_per_second": self.progress.rate()})
        if self._next_checkpoint is None:
            self._next_checkpoint = now + 60 * self.flags.checkpoint_minutes
        if now >= self._next_checkpoint:
            self._next_checkpoint = now + 60 * self.flags.checkpoint_minutes
            self._save_checkpoint()

    def _save_checkpoint(self) -> None:
        if self.flags.disable_checkpoint:
            return
        with self._learning:
            self.writer.flush()
            checkpoint.save(
                self.writer.run_dir / CHECKPOINT,
                {
                    **self.learner.state_dict(),
                    "source": self.source.state_dict(),
                    "incarnation": self._incarnation,
                    "flags": vars(self.flags),
                },
            )

    def _save_envs(self, batch: dict[str, torch.Tensor]) -> None:
        """--save_env: the newest frames and goals of some environments, every --save_every frames."""
        if not self.flags.save_env or self.learner.frames < self._next_save:
            return
        self._next_save += self.flags.save_every
        folder = self.writer.run_dir / "environments"
        folder.mkdir(exist_ok=True)
        fields = {name: batch[name][-1, :SAVED_ENVS].numpy() for name in ("frame", "goal") if name in batch}
        np.savez_compressed(folder / f"{self.learner.frames:012d}.npz", **fields)


def _fresh_copy(network: torch.nn.Module) -> torch.nn.Module:
    """A copy on the CPU that shares nothing with the original."""
    return copy.deepcopy(network).cpu()


def _free_name(flags: argparse.Namespace) -> str:
    """ENV_INITIALS_MMDD-HHMM, with -2, -3, ... where that is taken."""
    name = f"{flags.env}_{flags.initials}_{time.strftime('%m%d-%H%M')}"
    number = 1
    while (Path(flags.savedir) / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return name if number == 1 else f"{name}-{number}"

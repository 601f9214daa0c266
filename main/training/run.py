"""One training run: its parts in the order in which they are made, and its course."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
import threading
from pathlib import Path
from typing import Any

import torch

from main import settings as settings_module
from main.settings import FileSettings, RunSettings
from main.training import balance, ending, preflight, recipe, resume
from main.training.actor import Actor
from main.training.beside import Beside, Progress
from main.training.evaluator import Evaluator
from main.training.filming import Filming
from main.training.interrupt import EXIT_CODES, Interrupt
from main.training.lockstep import Lockstep
from main.training.loop import Loop
from main.training.processes import ProcessSettings
from main.training.record import Record, check_folder, open_writer
from main.training.sources import ActorProcesses, ActorsFailed, Batch, InlineActor, Source
from torchbeast.core import checkpoint, forms
from torchbeast.core.memory import keep_freed, share_with_forks
from torchbeast.core.optimizer import Diverged, LearningSettings
from torchbeast.core.ranks import ALONE, Alone, RanksFailed
from torchbeast.core.rollouts import Rollouts
from torchbeast.core.sampling import derive_seed, torch_generator
from torchbeast.core.settings import Settings, UsageError
from utils_folder import minigrid
from utils_folder.minigrid import EnvironmentSettings

logger = logging.getLogger("amigo")

DRY_RUN_SECONDS = 10.0


class RunFailed(Exception):
    """The run ended because a part of it failed; the message is the cause."""


def train(settings: Settings, given: dict[str, Any], ranks: Alone = ALONE) -> int:
    """Trains until total_frames, or a signal; leaves the run's folder. Returns the exit code: 0, or what the signal asks for.

    Raises: UsageError or RunFailed.
    """
    try:
        return _train(settings, given, ranks)
    except RanksFailed as error:
        raise RunFailed(str(error)) from None
    except BaseException as error:
        ranks.fail(error)
        raise


def _train(settings: Settings, given: dict[str, Any], ranks: Alone) -> int:
    run_dir, state = settings[FileSettings].resume, None
    if not ranks.alone and run_dir is None and not settings[FileSettings].dry_run:
        settings = resume.named(settings)
        run_dir = resume.begun(settings[FileSettings], ranks)
    if run_dir is not None:
        settings, state = resume.resumed(Path(run_dir), given, ranks)
        if ranks.share(ending.is_over(settings, state)):
            if ranks.first:
                logger.info(ending.over(settings, state))
            ranks.close()
            return 0
    settings_module.check(settings)
    if ranks.first:
        settings_module.warn_of_idle(settings, given)
        check_folder(settings[FileSettings], begins=state is None)
    if settings[RunSettings].seed is None:
        settings = settings.replace(seed=ranks.share(int.from_bytes(os.urandom(4), "little") >> 1))
    if settings[FileSettings].dry_run:
        return dry_run(settings, state, ranks)
    return Run(settings, state, ranks).execute()


def dry_run(settings: Settings, state: dict | None, ranks: Alone = ALONE) -> int:
    """Checks the machine, measures the speed in a folder that is deleted again, and says how long the run would take."""
    done = 0 if state is None else state["frames"]
    with tempfile.TemporaryDirectory() as folder:
        probe = settings.replace(savedir=folder, xpid="dry_run", resume=None, disable_checkpoint=True)
        run = Run(probe, None, ranks, checked=(settings, done))
        rates = []
        timer = threading.Timer(DRY_RUN_SECONDS, lambda: (rates.append(run.progress.rate()), run.interrupt.ask()))
        timer.start()
        try:
            code = run.execute()
        finally:
            timer.cancel()
    if code:
        return code
    rate = rates[0] if rates else run.progress.rate()
    left = max(0, settings[RunSettings].total_frames - done)
    hours = left / rate / 3600 if rate else float("inf")
    logger.info(f"dry run: {rate:,.0f} frames/s; {left:,} frames would take {hours:.1f} hours; nothing was written")
    return 0


class Run:
    """Everything that a run holds. Nothing is started or written before the machine and the checkpoint have been looked at.

    Args:
        state: the checkpoint to go on from; None begins.
        checked: settings and frames learned of the run that the machine is checked for, if it is not this one.
    """

    def __init__(self, settings: Settings, state: dict | None, ranks: Alone = ALONE, *, checked: tuple | None = None):
        self.settings = settings
        self.ranks = ranks
        self._tried_only = checked is not None
        self._total_frames = settings[RunSettings].total_frames
        # A run that has learned something goes on with fresh levels; one that has not begins as it would have.
        self._incarnation = 0 if state is None else state["incarnation"] + (state["frames"] > 0)
        self.interrupt = Interrupt()
        task = recipe.probe(settings)
        preflight.network(settings, task, None if state is None else state["model_state_dict"])
        torch.manual_seed(derive_seed(settings[RunSettings].seed, "networks"))
        self.agent = recipe.Agent.make(settings, task, ranks)
        self.learner = self.agent.learner(ranks)
        self.lockstep = Lockstep(self.learner, self.interrupt, ranks)
        size = {"rollout_bytes": self.agent.rollout_bytes, "checkpoint_bytes": self.agent.checkpoint_bytes}
        preflight.examine(*(checked or (settings, 0 if state is None else state["frames"])), ranks, **size)
        if state is not None:
            self._load(state)  # a checkpoint that does not fit must be found out before anything is started or written
        self.rollouts = self.agent.rollouts()
        self.source = self._start_actors()
        try:
            self._connect(state)
            self.interrupt.take()  # from here on a signal finds something to save
            writer = open_writer(settings, self.learner.columns, None if state is None else state["frames"], ranks)
            ranks.share("the folder is there")
        except BaseException:
            self.interrupt.leave()
            self.source.close()
            raise
        self.settings = settings.replace(xpid=writer.run_dir.name)  # it may have been free to choose
        files, counted = settings[FileSettings], self.agent.motivation.histograms
        self.record = Record(files, writer, self.learner.frames, self.learner.columns, counted)
        self.progress = Progress(self.learner, self._total_frames, live=ranks.first)
        self.loop = Loop(
            self.source,
            self._update,
            lambda: not (self._done() or self.lockstep.stopping),
            prepare=self.learner.seen,
            batch_size=settings[LearningSettings].batch_size,
            threads=0 if isinstance(self.source, InlineActor) else settings[ProcessSettings].num_threads,
        )

    def execute(self) -> int:
        """Learns until all frames are learned or a signal comes; then, and on failure, ends everything that was started.

        Returns the exit code. Raises RunFailed with the cause.
        """
        keep_freed()
        evaluator = Evaluator(self.settings, self.learner, self.loop)
        filming = Filming(self.settings, self.record)
        beside = Beside(self.learner, self.record, self.progress, filming, self.lockstep, self.ranks)
        successful = ended = False
        with self.interrupt:
            try:
                if self.ranks.first:
                    announce(self.settings, self._processes, self.device, self.rollouts, self.record.run_dir, self.ranks)
                    if self.learner.frames:
                        logger.info(f"resumed at {self.learner.frames:,} frames")
                self.save()
                self.loop.run(lambda: beside(self.save, lambda: evaluator(self.record)))
                successful, ended = self._done(), True
            except (ActorsFailed, Diverged) as error:
                raise RunFailed(str(error)) from None
            finally:
                self.loop.stop()
                self.source.close()
                evaluator.close(self.record.run_dir)
                filming.close()
                # Ranks that fail go back to their last checkpoint together: they may be in the middle of an update.
                saved = self.save() if ended or self.ranks.alone else True
                with contextlib.suppress(RanksFailed):
                    beside.hear()
                self.progress.line()
                self.progress.close()
                if self.ranks.first and not self._tried_only:
                    how = ending.how(successful, ended, self.lockstep.number)
                    logger.info(ending.closing(how, self.progress, self.record.run_dir, self.ranks))
                self.record.close(successful, self.progress.outcome())
        self.ranks.close()
        if not saved:
            raise RunFailed(f"the last checkpoint could not be written; {self.record.kept()}")
        number = self.lockstep.number
        return 0 if number is None else EXIT_CODES[number]

    def save(self) -> bool:
        """Writes a checkpoint while nothing is learned. False if it could not be written."""
        with self.loop.paused():
            return self._save()

    # -- the update ---------------------------------------------------------------------------------------------------

    def _done(self) -> bool:
        return self.learner.frames >= self._total_frames

    def _update(self, batch: Batch, seen: Batch) -> None:
        if self._done() or self.lockstep.over:
            return
        row, save = self.lockstep.agree(self.learner.learn(batch, seen))
        self.record.row(row, batch)
        if save:
            self._save()

    def _save(self) -> bool:
        """While nothing is learned: a checkpoint must not be ahead of the log. Of several ranks all are in here."""
        self.lockstep.save_due = False
        if not self.record.saves:
            return True
        state = self._state()
        return self.record.save(state) if self.ranks.first else True

    def _state(self) -> dict:
        state = {
            **self.learner.state_dict(),
            "source": self.source.state_dict(),
            "incarnation": self._incarnation,
            "flags": self.settings.flat(),
        }
        own = {key: state[key] for key in ("source", *self.agent.motivation.waiting_keys)}
        others = self.ranks.collect(own)[1:]
        return state | {"other_ranks": others} if others else state

    # -- the parts ----------------------------------------------------------------------------------------------------

    def _load(self, state: dict, source: Source | None = None) -> None:
        try:
            keys = self.agent.motivation.waiting_keys
            state = checkpoint.for_rank(state, self.ranks.rank, self.ranks.size, waiting_keys=keys)
            self.learner.load_state_dict(state)
            if source is not None:
                source.load_state_dict(state["source"])
        except forms.EntryError as error:
            raise UsageError(f"--resume: the checkpoint does not fit the run's own flags: {error}") from None
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, IndexError, OverflowError) as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UsageError(f"--resume: the checkpoint does not fit the run's own flags ({first})") from error

    def _start_actors(self) -> Source:
        """Everything after this may use CUDA."""
        self._processes = balance.choose(self.agent, self.learner)
        self._hosted = settings_module.spread(self.settings).hosted(self._processes)
        own = self.settings[ProcessSettings]
        if self._processes == 0:
            return InlineActor(self._make_actor(0), self.rollouts)
        share_with_forks()
        source = ActorProcesses(self._make_actor, self._hosted, self.rollouts, max_restarts=own.max_actor_restarts)
        try:
            source.start()
        except ActorsFailed as error:
            raise RunFailed(str(error)) from None
        return source

    def _make_actor(self, index: int, restarts: int = 0) -> Actor:
        """A resumed run and an actor that is started again take fresh seeds: the levels go on, they do not repeat."""
        seed, first = self.settings[RunSettings].seed, sum(self._hosted[:index])
        stream = f"{self._incarnation}.{restarts}" + ("" if self.ranks.first else f" rank {self.ranks.rank}")
        seeds = [derive_seed(seed, f"environment {stream}", first + e) for e in range(self._hosted[index])]
        return self.agent.actor(seeds, torch_generator(seed, f"actor {stream}", index))

    def _connect(self, state: dict | None) -> None:
        """To the device and the other ranks, with what has been learned so far."""
        self.device = recipe.device(self.settings, self.ranks)
        self.ranks.connect(self.device)
        self.learner.to(self.device)
        if state is not None:
            self._load(state, self.source)
        if not self.ranks.alone:
            compared = {name: value for name, value in self.settings.flat().items() if name != "savedir"}
            self.ranks.check_equal(json.dumps(compared, sort_keys=True).encode(), "the command line")
            self.learner.check_equal()


def announce(
    settings: Settings, count: int, device: torch.device, rollouts: Rollouts, run_dir: Path, ranks: Alone
) -> None:
    """Says what is run, where and by what. count: of actor processes."""
    run, processes = settings[RunSettings], settings[ProcessSettings]
    where = f"{count} actor processes" if count else "this process"
    own, task = settings[EnvironmentSettings], recipe.task_name(settings)
    engine = minigrid.choose_engine(task, own.engine)
    several = "" if ranks.alone else f"{ranks.size} ranks, each: "
    logger.info(
        f"{' and '.join(run.variants)} on {task}: {several}{processes.num_actors} environments in {where}, {engine} engine, "
        f"learning on {device}, {rollouts.nbytes / 2**20:.0f} MiB of rollouts, seed {run.seed}; writing {run_dir}"
    )
    if why := minigrid.why_not_first(task, own.engine):
        logger.warning(why)
    for notice in minigrid.survey(task, own.fixed_seed).notices(partial=own.student_is_partial):
        logger.info(notice)

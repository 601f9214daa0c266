"""Ranks in processes of their own, without torchrun: forked from a server that has imported everything once; their work."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from main import main as entry
from main import settings as settings_module
from main.training import loop
from main.training.recipe import Agent
from main.training.run import Run
from tests.helpers.program import command, rows
from torchbeast.core import checkpoint
from torchbeast.core.optimizer import LearningSettings
from torchbeast.core.ranks import Alone, Ranks
from torchbeast.core.settings import Settings
from utils_folder.motivations import MOTIVATIONS
from utils_folder.motivations.base import Task

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.helpers.ranks_preload"])
CPU = torch.device("cpu")
TWO = ("--num_actors", "3", "--batch_size", "2", "--total_frames", "480")  # an update of both is 2 x 2 rollouts of 6 steps

Batch = dict[str, torch.Tensor]


def _work(
    connection, rank: int, size: int, store: Path, seconds: float, work: Callable, arguments: bytes, stderr: str | None
) -> None:
    if stderr is not None:
        sys.stderr = open(stderr, "a", buffering=1)  # noqa: SIM115
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    try:
        ranks = Ranks(rank, size, dist.FileStore(str(store), -1), seconds=seconds)
        # Pickled by hand: multiprocessing would send tensors as shared memory that ends with their process.
        connection.send_bytes(pickle.dumps(work(ranks, *pickle.loads(arguments))))
    except BaseException as error:
        connection.send_bytes(pickle.dumps(error))
        os._exit(1)


def in_ranks(size: int, work: Callable, *arguments: Any, store: Path, seconds: float = 30.0, timeout: float = 90.0) -> list:
    """What `work(ranks, *arguments)` returns on each of `size` ranks; the exception if it raised one, None if the rank died.

    Args:
        work: a function of a module; it calls `ranks.connect` itself.
        store: a file through which the ranks meet.
        seconds: how long a rank waits for the others.
        timeout: how long this waits for all of them, which are killed then.
    """
    pipes, processes, packed = [], [], pickle.dumps(arguments)
    for rank in range(size):
        ours, theirs = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(
            target=_work, args=(theirs, rank, size, store, seconds, work, packed, os.environ.get("RANKS_STDERR"))
        )
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    try:
        return [_received(pipe, timeout) for pipe in pipes]
    finally:
        for process in processes:
            process.join(5)
            process.kill()
            process.join()


def _received(pipe, timeout: float) -> Any:
    if not pipe.poll(timeout):
        raise TimeoutError(f"a rank did not end within {timeout} s")
    try:
        return pickle.loads(pipe.recv_bytes())
    except EOFError:
        return None


# -- a learner's work --------------------------------------------------------------------------------------------------------


def half(batch: Batch, rank: int, B: int) -> Batch:
    """Rank `rank`'s B of 2B rollouts."""
    part = slice(rank * B, (rank + 1) * B)
    return {name: value[part] if value.shape[0] == 2 * B else value[:, part] for name, value in batch.items()}


def learn_all(ranks: Alone, settings: Settings, task: Task, batches: Sequence[Batch]) -> tuple[dict, list[dict]]:
    """(The learner's state, a row of the log per batch)."""
    torch.manual_seed(7)
    learner = Agent.make(settings, task, ranks).learner(ranks)
    stats = [learner.row_of_all(learner.learn(batch), {})[0] for batch in batches]
    return learner.state_dict(), stats


def learn_halves(ranks: Ranks, settings: Settings, task: Task, batches: Sequence[Batch]) -> tuple[dict, list[dict]]:
    ranks.connect(CPU)
    halves = [half(batch, ranks.rank, settings[LearningSettings].batch_size) for batch in batches]
    result = learn_all(ranks, settings, task, halves)
    ranks.close()
    return result


def shared(state: dict, model: str) -> dict:
    """What must be the same on every rank of a learner's state."""
    own = {"recent_returns", *MOTIVATIONS[model].waiting_keys, *MOTIVATIONS[model].own_keys}
    return {name: value for name, value in state.items() if name not in own}


# -- whole runs of two ranks -------------------------------------------------------------------------------------------------


def run_settings(folder: Path, *more: str) -> Settings:
    return settings_module.parse(command(folder, *TWO, "--seed", "4", *more))[0]


def run_to_the_end(ranks: Ranks, settings: Settings) -> tuple[int, dict]:
    """(Exit code, the learner's state)."""
    run = Run(settings, None, ranks)
    code = run.execute()
    return code, run.learner.state_dict()


def save_often(ranks: Ranks, settings: Settings) -> tuple[int, dict]:
    loop.BESIDE_SECONDS = 0.005
    return run_to_the_end(ranks, settings)


def signal_one(ranks: Ranks, settings: Settings, number: int, victim: int) -> tuple[int, int]:
    """A run whose rank `victim` gets the signal in its tenth update; (exit code, frames)."""
    run = Run(settings, None, ranks)
    learn = run.learner.learn
    if ranks.rank:  # nobody here has a batch in hand when the last update is over; on the first rank some have
        run.loop._number = min(run.loop._number, 1)

    def learn_and_signal(*given):
        time.sleep(0.02)
        if ranks.rank == victim and run.learner.updates == 9:
            os.kill(os.getpid(), number)
        return learn(*given)

    run.learner.learn = learn_and_signal
    code = run.execute()
    return code, run.learner.frames


def dispatch(ranks: Ranks, arguments: list[str]) -> int:
    return entry.run(arguments, ranks)


def whole_and_cut(tmp_path: Path, store: Path, *more: str) -> tuple[Path, Path]:
    """Folders of two runs of two ranks: one to its end, one interrupted by SIGTERM to rank 1 and gone on with."""
    flags = ["--num_actor_processes", "0", "--seed", "9", *TWO, *more]
    assert in_ranks(2, dispatch, command(tmp_path / "whole", *flags), store=store) == [0, 0]
    cut = tmp_path / "cut"
    # A run to 240 frames would have another schedule: so it is interrupted.
    settings, _ = settings_module.parse(command(cut, *flags))
    assert {code for code, _ in in_ranks(2, signal_one, settings, signal.SIGTERM, 1, store=store)} == {143}
    assert rows(cut / "run")[-1]["frames"] < 480
    assert in_ranks(2, dispatch, ["--resume", str(cut / "run")], store=store) == [0, 0]
    return tmp_path / "whole" / "run", cut / "run"


def two_then_one_then_two(tmp_path: Path, store: Path, *more: str) -> tuple[dict, dict, dict]:
    """Checkpoints of one run: of two ranks at 960 frames, gone on with by one to 972, and by two again to 1068."""
    base = command(tmp_path, "--num_actors", "3", "--batch_size", "2", "--seed", "2", *more)
    path = tmp_path / "run" / "model.tar"
    assert in_ranks(2, dispatch, [*base, "--total_frames", "960"], store=store) == [0, 0]
    two = checkpoint.load(path)
    assert entry.main(["--resume", str(tmp_path / "run"), "--total_frames", "972"]) == 0
    one = checkpoint.load(path)
    assert in_ranks(2, dispatch, ["--resume", str(tmp_path / "run"), "--total_frames", "1068"], store=store) == [0, 0]
    return two, one, checkpoint.load(path)


# -- what they have in common ------------------------------------------------------------------------------------------------


def flat_numbers(tree: Any, path: str = "") -> dict[str, torch.Tensor]:
    """Every number and tensor of nested dicts and lists by its path, in float64."""
    if isinstance(tree, dict):
        tree = tree.items()
    elif isinstance(tree, (list, tuple)):
        tree = enumerate(tree)
    elif isinstance(tree, (torch.Tensor, int, float)) and not isinstance(tree, bool):
        return {path: torch.as_tensor(tree).double()}
    else:
        return {}
    return {k: v for name, value in tree for k, v in flat_numbers(value, f"{path}/{name}").items()}


def assert_close(ours: Any, theirs: Any) -> None:
    """Ranks also keep an optimiser's state, of zeros, of the weights that no forward pass uses."""
    a, b = flat_numbers(ours), flat_numbers(theirs)
    assert a.keys() >= b.keys()
    assert all(name.startswith("/optimizer_state") and ("step" in name or not a[name].any()) for name in a.keys() - b.keys())
    for name in b:
        torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-5, equal_nan=True, msg=lambda m: f"{name}: {m}")  # noqa: B023


def assert_equal_trees(a: Any, b: Any) -> None:
    a, b = flat_numbers(a), flat_numbers(b)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)

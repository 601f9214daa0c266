"""Ranks in processes of their own, without torchrun: forked from a server that has imported everything once."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from torchbeast.core.ranks import Ranks

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.helpers.ranks_preload"])


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


CPU = torch.device("cpu")

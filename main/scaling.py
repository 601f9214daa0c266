"""What several learners reach: two ranks measured on this machine, more ranks predicted from that.

`python -m main.benchmark --scaling` runs it. The model of an update: its own computing, one all-reduce of the gradient and two
gatherings of short rows, each as a ring makes it. Not in it: waiting for the rank that is slowest just then.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from main.learner import Learner
from torchbeast.core.ranks import Alone, Ranks

RANKS = (2, 4, 8, 16, 32, 64)
NETWORKS = {"10 Gbit/s": 10e9 / 8, "100 Gbit/s": 100e9 / 8}  # bytes per second
WIRE_SECONDS = 10e-6  # what a switched network adds to a message: assumed
ROW = [0.0] * 60  # about what ranks tell each other after every update
STRETCHES = 40
CALLS = 5  # in a stretch: so many that a rank which comes late is not taken for a fast one
TIMEOUT_SECONDS = 300.0


class Link(NamedTuple):
    """A connection between ranks: seconds that any message takes, and bytes per second."""

    latency: float
    bandwidth: float

    @classmethod
    def fit(cls, short: float, long: float, size: int) -> Link:
        """From the seconds that two ranks' all-reduces of a few bytes and of `size` bytes take."""
        return cls(short / 2, size / max(long - short, 1e-9))

    def over(self, bandwidth: float) -> Link:
        """The same ranks on a network: no faster than here, where every byte is copied as often."""
        return Link(self.latency + WIRE_SECONDS, min(self.bandwidth, bandwidth))


def all_reduce_seconds(size: int, ranks: int, link: Link) -> float:
    """Of `size` bytes on a ring: 2 (N - 1) messages of size / N bytes one after the other."""
    return 2 * (ranks - 1) * (link.latency + size / ranks / link.bandwidth)


def all_gather_seconds(size: int, ranks: int, link: Link) -> float:
    """Of `size` bytes from each rank on a ring: N - 1 messages."""
    return (ranks - 1) * (link.latency + size / link.bandwidth)


def efficiency(compute: float, size: int, ranks: int, link: Link) -> float:
    """Computing's share of an update that computes for `compute` seconds and has a gradient of `size` bytes."""
    rows = all_gather_seconds(8 * len(ROW), ranks, link) + all_gather_seconds(8, ranks, link)
    return compute / (compute + all_reduce_seconds(size, ranks, link) + rows)


def best_seconds(work: Callable[[], Any], count: int = CALLS) -> float:
    """Seconds that `work` takes: the best of several stretches, since other programs can only slow one down.

    The number of calls is fixed: all ranks must make the same.
    """
    best = float("inf")
    for _ in range(STRETCHES):
        began = time.perf_counter()
        for _ in range(count):
            work()
        best = min(best, (time.perf_counter() - began) / count)
    return best


def times(learner: Learner, learn: Callable[[], Any], ranks: Alone) -> dict[str, float]:
    """Seconds of an update, and, of several ranks, of an all-reduce of the student's gradient, of one value, and of a row."""
    learn()  # makes gradients
    found = {"update": best_seconds(learn, 2)}
    if not ranks.alone:
        parameters = list(learner.student.parameters())
        found["all_reduce"] = best_seconds(lambda: ranks.average_gradients(parameters))
        found["short"] = best_seconds(lambda: ranks.average_gradients(parameters[-1:]))
        found["row"] = best_seconds(lambda: ranks.gather(ROW))
    return found


def _rank(rank: int, folder: str, make: Callable[[Alone], tuple[Learner, Callable]], connection: Connection) -> None:
    torch.set_num_threads(1)
    ranks = Ranks(rank, 2, dist.FileStore(f"{folder}/store", -1))
    learner, learn = make(ranks)
    ranks.connect(torch.device("cpu"))
    connection.send(times(learner, learn, ranks))
    ranks.close()


def of_two(make: Callable[[Alone], tuple[Learner, Callable]]) -> dict[str, float]:
    """`times` of rank 0 of two over the loopback interface. `make(ranks)`: a learner, and an update of it."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        ends, processes = [], []
        for rank in range(2):
            ours, theirs = context.Pipe(duplex=False)
            processes.append(context.Process(target=_rank, args=(rank, folder, make, theirs), daemon=True))
            processes[-1].start()
            theirs.close()
            ends.append(ours)
        try:
            if not ends[0].poll(TIMEOUT_SECONDS):
                raise RuntimeError("the two ranks to be measured do not answer")
            found = ends[0].recv()
            for process in processes:
                process.join(TIMEOUT_SECONDS)
        except EOFError:
            raise RuntimeError("a rank to be measured ended early: see above") from None
        finally:
            for process in processes:
                process.kill()
    return found


def measure(make: Callable[[Alone], tuple[Learner, Callable]], alone: Alone) -> dict[str, Any]:
    """Every figure of `report`."""
    learner, learn = make(alone)
    size = 4 * sum(parameter.numel() for parameter in learner.student.parameters())
    one, two = times(learner, learn, alone), of_two(make)
    link = Link.fit(two["short"], two["all_reduce"], size)
    links = {"loopback": link} | {name: link.over(bandwidth) for name, bandwidth in NETWORKS.items()}
    predicted = {n: {name: efficiency(one["update"], size, n, link) for name, link in links.items()} for n in RANKS}
    return {"bytes": size, "one": one, "two": two, "link": link._asdict(), "predicted": predicted}


def report(result: dict[str, Any]) -> str:
    """The figures as Markdown: what was measured, and what is predicted from it."""
    one, two, link = result["one"]["update"], result["two"], result["link"]
    lines = [
        "| measured, loopback, one core a rank | |",
        "|---|---|",
        f"| an update by one rank | {one * 1e3:.2f} ms |",
        f"| an update by two ranks, everything included | {two['update'] * 1e3:.2f} ms ({one / two['update']:.0%}) |",
        f"| all-reduce of the student's gradient, {result['bytes']:,} bytes | {two['all_reduce'] * 1e3:.3f} ms |",
        f"| all-reduce of one number | {two['short'] * 1e3:.3f} ms |",
        f"| gathering a row of the log | {two['row'] * 1e3:.3f} ms |",
        f"| from these: a message, a byte | {link['latency'] * 1e6:.0f} µs, {link['bandwidth'] / 1e9:.2f} GB/s |",
        "",
        "Predicted share of the time in which ranks compute:",
        "",
        "| ranks | " + " | ".join(next(iter(result["predicted"].values()))) + " |",
        "|---|" + "---|" * len(next(iter(result["predicted"].values()))),
    ]
    for ranks, row in result["predicted"].items():
        lines.append(f"| {ranks} | " + " | ".join(f"{share:.0%}" for share in row.values()) + " |")
    return "\n".join(lines)

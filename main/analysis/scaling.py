"""What several learners reach: two ranks measured on one machine, more ranks predicted from that.

The model of an update: its own computing, one all-reduce of the gradient and two gatherings of short rows, each as a ring makes
it. Not in it: waiting for the rank that is slowest just then.
"""

from __future__ import annotations

from typing import Any, NamedTuple

RANKS = (2, 4, 8, 16, 32, 64)
NETWORKS = {"10 Gbit/s": 10e9 / 8, "100 Gbit/s": 100e9 / 8}  # bytes per second
WIRE_SECONDS = 10e-6  # what a switched network adds to a message: assumed
ROW_VALUES = 60  # about what ranks tell each other after every update, float64


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
    rows = all_gather_seconds(8 * ROW_VALUES, ranks, link) + all_gather_seconds(8, ranks, link)
    return compute / (compute + all_reduce_seconds(size, ranks, link) + rows)


def predicted(size: int, one: dict[str, float], two: dict[str, float]) -> dict[str, Any]:
    """Every figure of `report`.

    Args:
        size: of the student's gradient, bytes.
        one: seconds of an "update" by one rank.
        two: by two ranks over the loopback interface: of an "update", and of an all-reduce of the student's gradient
            ("all_reduce"), of one value ("short"), and of the gathering of a "row".
    """
    link = Link.fit(two["short"], two["all_reduce"], size)
    links = {"loopback": link} | {name: link.over(bandwidth) for name, bandwidth in NETWORKS.items()}
    shares = {n: {name: efficiency(one["update"], size, n, link) for name, link in links.items()} for n in RANKS}
    return {"bytes": size, "one": one, "two": two, "link": link._asdict(), "predicted": shares}


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

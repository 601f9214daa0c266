"""What stands in a column of the log, and how rows of it are joined: declared once by who logs it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import NamedTuple

JOINS = ("mean", "sum", "last")


class Column(NamedTuple):
    """One column of logs.csv.

    name: as it stands in the first line.
    meaning: for the pages.
    join: what several rows, or ranks, become together: the "mean" of their values, their "sum", the "last" one (of ranks,
        which all have the same, any), or, by another column's name, the mean weighed by what each has there: how many
        episodes, or visits, its own value is the mean of.
    panel: a short name for the panel of a plot that shows it; "" if it is shown only when asked for.
    label: of that panel's axis.
    """

    name: str
    meaning: str
    join: str = "mean"
    panel: str = ""
    label: str = ""


def by_name(*declared: Iterable[Column]) -> dict[str, Column]:
    """The columns in order. Raises: ValueError where two differ under one name, or a join is none."""
    found: dict[str, Column] = {}
    for column in (column for columns in declared for column in columns):
        if found.setdefault(column.name, column) != column:
            raise ValueError(f"column {column.name} is declared twice, differently")
    for column in found.values():
        if column.join not in (*JOINS, *found):
            raise ValueError(f"column {column.name} is joined by {column.join}: that is none of {JOINS}, and no column")
    return found


class Joiner:
    """Joins rows that come one after the other, as their columns say, in memory that stays the same. Threads may share it."""

    def __init__(self, columns: Iterable[Column]):
        self._join = {column.name: column.join for column in columns}
        self._lock = threading.Lock()
        self._sums: dict[str, tuple[float, float]] = {}  # weighted values, and weights

    def add(self, row: Mapping[str, float]) -> None:
        """Absent values, None and NaN count for nothing."""
        with self._lock:
            for name, value in row.items():
                if value is None or value != value:
                    continue
                join = self._join[name]
                weight = row.get(join, 1)
                total, weights = self._sums.get(name, (0.0, 0.0)) if join != "last" else (0.0, 0.0)
                self._sums[name] = (total + weight * value, weights + weight)

    def take(self) -> dict[str, float]:
        """What the rows since the last call become together; {} of none."""
        with self._lock:
            sums, self._sums = self._sums, {}
        return {
            name: total if self._join[name] == "sum" else total / weight for name, (total, weight) in sums.items() if weight
        }

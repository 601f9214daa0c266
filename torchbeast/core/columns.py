"""What stands in a column of the log, and how rows of it are joined: declared once by who logs it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

JOINS = ("mean", "episodes", "sum", "last")


class Column(NamedTuple):
    """One column of logs.csv.

    name: as it stands in the first line.
    meaning: for the pages.
    join: what several rows, or ranks, become together: the "mean" of their values, the mean weighed by the "episodes" of
        each, their "sum", or the "last" one (of ranks, which all have the same, any).
    panel: a short name for the panel of a plot that shows it; "" if it is shown only when asked for.
    label: of that panel's axis.
    """

    name: str
    meaning: str
    join: str = "mean"
    panel: str = ""
    label: str = ""


def by_name(*declared: Iterable[Column]) -> dict[str, Column]:
    """The columns in order. Raises: ValueError where two differ under one name."""
    found: dict[str, Column] = {}
    for column in (column for columns in declared for column in columns):
        if found.setdefault(column.name, column) != column:
            raise ValueError(f"column {column.name} is declared twice, differently")
    return found

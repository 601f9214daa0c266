"""Rows that are joined one after the other, against joining them at once."""

from __future__ import annotations

import math

import pytest

from torchbeast.core.columns import Column, Joiner, by_name

COLUMNS = (
    Column("frames", "", "last"), Column("loss", ""), Column("rate", "", "episodes"), Column("episodes", "", "sum"),
    Column("level", "", "last"), Column("worth", "", "states"), Column("states", "", "sum"),
)  # fmt: skip
ROWS = [
    {"frames": 8, "loss": 1.0, "rate": math.nan, "episodes": 0, "level": 7},
    {"frames": 16, "loss": 4.0, "rate": 0.5, "episodes": 6, "level": 8, "worth": 3.0, "states": 5},
    {"frames": 24, "rate": 1.0, "episodes": 2, "level": 9, "worth": 0.5, "states": 1},
    {"frames": 32, "loss": None, "episodes": 0},
]


def test_each_column_is_joined_as_it_says():
    joiner = Joiner(COLUMNS)
    for row in ROWS:
        joiner.add(row)
    assert joiner.take() == {
        "frames": 32, "loss": 2.5, "rate": pytest.approx(5 / 8), "episodes": 8, "level": 9,
        "worth": pytest.approx(15.5 / 6), "states": 6,
    }  # fmt: skip


def test_what_was_taken_is_not_taken_again():
    joiner = Joiner(COLUMNS)
    assert joiner.take() == {}
    joiner.add(ROWS[1])
    joiner.take()
    joiner.add(ROWS[0])
    assert joiner.take() == {"frames": 8, "loss": 1.0, "episodes": 0, "level": 7}
    assert joiner.take() == {}


def test_columns_are_declared_once_and_joined_by_what_there_is():
    assert list(by_name(COLUMNS[:4], COLUMNS)) == [column.name for column in COLUMNS]
    with pytest.raises(ValueError, match="column loss is declared twice"):
        by_name(COLUMNS, [Column("loss", "another")])
    with pytest.raises(ValueError, match="column worth is joined by states"):
        by_name([column for column in COLUMNS if column.name != "states"])

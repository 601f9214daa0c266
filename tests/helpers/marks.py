"""Which tests run when: beside `slow` and `soak` (pyproject.toml), cases that others of their kind stand for."""

from __future__ import annotations

from collections.abc import Iterable

import pytest


def rarer(cases: Iterable) -> list:
    """These cases of a parametrized test run only when asked for (make soak)."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.soak) for case in cases]


def some(variants: Iterable[str]) -> list:
    """The first three of these and, when asked for, the others: for tests that take long, and seldom tell variants apart."""
    variants = list(variants)
    return [*variants[:3], *rarer(variants[3:])]

"""Which tests run when: beside `slow` and `soak` (pyproject.toml), cases that others of their kind stand for."""

from __future__ import annotations

from collections.abc import Iterable

import pytest


def rarer(cases: Iterable) -> list:
    """These cases of a parametrized test run only when asked for (make soak)."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.soak) for case in cases]

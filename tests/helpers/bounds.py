"""The bounds of a variant's flags: exactly those that are expected, and kept by the program."""

from __future__ import annotations

from main import settings as settings_module
from torchbeast.core.settings import flags_of


def assert_bounds(
    groups: tuple[type, ...],
    *,
    at_least_one: set[str],
    not_negative: set[str],
    any_number: set[str],
    at_most: dict[str, int] | None = None,
) -> None:
    """Of all numbers in these groups; `at_most` names those that have an upper bound too."""
    high = at_most or {}
    numbers = {name: about for name, about in flags_of(groups).items() if about.type in (int, float)}
    bounds = {name: (about.at_least, about.above, about.at_most) for name, about in numbers.items()}
    lowest = dict.fromkeys(at_least_one, 1) | dict.fromkeys(not_negative, 0)
    expected = {name: (low, None, high.get(name)) for name, low in lowest.items()}
    assert bounds == expected | dict.fromkeys(any_number, (None, None, None))
    for name, low, told in [
        *((name, 1, "must be at least 1") for name in at_least_one),
        *((name, 0, "must not be negative") for name in not_negative),
    ]:
        told = f"must be in [{low}, {high[name]:g}]" if name in high else told
        good, bad = numbers[name].type(low), numbers[name].type(low - 1)
        assert settings_module.problems(settings_module.make({name: bad})) == [f"--{name} {told}, got {bad}"]
        assert settings_module.problems(settings_module.make({name: good})) == []
    for name, most in high.items():
        assert settings_module.problems(settings_module.make({name: most})) == []
        assert len(settings_module.problems(settings_module.make({name: most + 1}))) == 1
    for name in any_number:
        assert settings_module.problems(settings_module.make({name: numbers[name].type(-1000)})) == []

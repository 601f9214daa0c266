"""Settings: a flag is one line, in a frozen dataclass beside its only user; all else is derived from that line.

A group is a frozen dataclass whose fields are made by `flag`:

    @dataclass(frozen=True)
    class CountSettings:
        title = "Counts"
        count_coef: float = flag(0.1, "scale of the reward for a first visit", at_least=0, agent=True)

A group may have an `example` of a command line, which --help shows. It may say where its flags do something at all, as
`needs = ("mode=train",)`; a flag may say so itself (`Flag.needs`).
From groups come the command line with its help, the checks with their remedies, the tables of the pages, and the flat dict that
is stored with a run. `Settings` is the frozen whole of one run; each part is given its own groups of it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import decimal
import difflib
import math
import os
import re
import sys
import textwrap
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

from torchbeast.core import forms, run_folder

LONGEST_TEXT = 4096  # of a flag in a file: what a path may have
HELP_WIDTH = 100
LONGEST = 300  # characters of what is said of a wrong command line, which may quote it
MOST_DIGITS = 4300  # of a whole number, as Python's int has it
BITS = 64  # that every number among the settings fits in
NEGATIVE = re.compile(r"-[\d.]|-inf|-nan", re.IGNORECASE)  # how one begins
TRAINING = ("mode=train",)  # what a group that only learning reads needs
Group = TypeVar("Group")


class UsageError(Exception):
    """A wrong input: its message names the remedy; the program ends with exit code 2."""


class Flag(NamedTuple):
    """What one flag is.

    name, type, default, meaning: as on the command line; a bool is a switch; a default of None means that it may be unset.
    choices: the only values; None where any will do.
    at_least, above, at_most: bounds, None where there is none.
    agent: the trained agent needs it again when it plays, so the checkpoint decides it.
    resumable: it may be given anew when a run goes on.
    experiment: it tells one experiment from another; runs that differ in other flags alone are seeds of one.
    published: the value that checkpoints of the published code imply, which do not store it; None if they imply none.
    canonical: turns a given value into the one meant; raises ValueError with the remedy.
    needs: it does something only where one of these holds: NAME, another flag is given or on, or NAME=VALUE, and does something
        itself; () where it always does; None: as its group has it (what an agent needs again is not bound to the group's).
    not_with: it does nothing where one of these holds.
    first: who starts wants to know of it.
    path: it is one of this machine's, which may hold any bytes.
    """

    name: str
    type: type
    default: Any
    meaning: str
    choices: tuple[str, ...] | None = None
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    agent: bool = False
    resumable: bool = False
    experiment: bool = True
    published: Any = None
    canonical: Callable[[Any], Any] = lambda value: value
    needs: tuple[str, ...] | None = None
    not_with: tuple[str, ...] = ()
    first: bool = False
    path: bool = False

    @property
    def explained(self) -> str:
        """The meaning, with the choices that it does not name."""
        missing = not all(choice in self.meaning for choice in self.choices or ())
        return f"{self.meaning}: {', '.join(self.choices)}" if missing else self.meaning

    def problem(self, value: Any) -> str | None:
        """Why this value cannot work; None if it can."""
        if value is None or isinstance(value, (bool, str)):
            return None
        if isinstance(value, float) and not math.isfinite(value):
            return f"--{self.name} must be a finite number, got {value}"
        if isinstance(value, float) and abs(value) > forms.LARGEST:  # networks are float32, and make squares and products
            return f"--{self.name} must lie between -{forms.LARGEST:g} and {forms.LARGEST:g}, got {value}"
        if isinstance(value, int) and value.bit_length() >= BITS:
            return f"--{self.name} must lie between -2^{BITS - 1} and 2^{BITS - 1}, got a number of {value.bit_length()} bits"
        low, high, above = self.at_least, self.at_most, self.above
        fits = (low is None or value >= low) and (above is None or value > above) and (high is None or value <= high)
        return None if fits else f"--{self.name} must {self._range()}, got {value}"

    def _range(self) -> str:
        above, low, high = self.above, self.at_least, self.at_most
        if above is not None:
            return f"be above {above:g}" if high is None else f"be in ({above:g}, {high:g}]"
        if low is None:
            return f"be at most {high:g}"
        if high is not None:
            return f"be in [{low:g}, {high:g}]"
        return "not be negative" if low == 0 else f"be at least {low:g}"

    def stored(self, value: Any) -> Any:
        """A value that comes from a file, after a look at its type and the choices. Raises: UsageError."""
        optional = value is None and self.default is None
        if self.type is float and type(value) is int and value.bit_length() < BITS:
            value = float(value)
        if not (type(value) is self.type or optional):
            raise UsageError(f"the checkpoint's flag {self.name} is {forms.shown(value)}, which is no {self.type.__name__}")
        if isinstance(value, str) and (len(value) > LONGEST_TEXT or not (_is_path if self.path else _is_text)(value)):
            raise UsageError(f"the checkpoint's flag {self.name} is {forms.shown(value)}, {len(value)} signs, which is no text")
        if isinstance(value, int) and value.bit_length() >= BITS:
            raise UsageError(f"the checkpoint's flag {self.name} is {forms.shown(value)}, which is no number of {BITS} bits")
        if value is not None and self.choices is not None and value not in self.choices:
            known = ", ".join(self.choices)
            raise UsageError(f"the checkpoint's flag {self.name} is {forms.shown(value)}, which is none of {known}")
        try:
            return self.given(value)
        except UsageError as error:
            raise UsageError(f"the checkpoint's flag {self.name} is {forms.shown(value)}: {error}") from None

    def given(self, value: Any) -> Any:
        """The value that is meant. Raises: UsageError."""
        try:
            return value if value is None else self.canonical(value)
        except ValueError as error:
            raise UsageError(str(error)) from None


def _is_text(value: str) -> bool:
    """Whether it is UTF-8 without control characters, as every name of a run is."""
    return run_folder.is_utf8(value) and not run_folder.CONTROL.search(value)


def _is_path(value: str) -> bool:
    """Whether a command line can hold it: bytes that are no UTF-8 are halves of surrogate pairs in it."""
    try:
        return b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


def flag(default: Any, meaning: str, *, experiment: bool | None = None, **about: Any) -> Any:
    """A field of a group; `about` as in Flag. A flag that may be given anew on resuming does not define an experiment."""
    about["experiment"] = not about.get("resumable", False) if experiment is None else experiment
    return dataclasses.field(default=default, metadata={"meaning": meaning, **about})


def flags_of(groups: Iterable[type]) -> dict[str, Flag]:
    """Every flag of these groups by its name, in their order."""
    found: dict[str, Flag] = {}
    for group in groups:
        types = typing.get_type_hints(group)
        for field in dataclasses.fields(group):
            if field.name in found:
                raise TypeError(f"two groups have a flag {field.name}: {group.__name__} is the second")
            kind = next(kind for kind in (*typing.get_args(types[field.name]), types[field.name]) if kind is not type(None))
            found[field.name] = Flag(field.name, kind, field.default, **field.metadata)
    return found


class Settings:
    """All groups of one run, each by its class, as `settings[CountSettings].count_coef`. `replace` makes another."""

    def __init__(self, groups: Iterable[Any]):
        self._groups = {type(group): group for group in groups}

    @classmethod
    def of(cls, groups: Sequence[type], values: Mapping[str, Any]) -> Settings:
        """The groups with these values by flag, and the defaults of all others."""
        names = {group: [field.name for field in dataclasses.fields(group)] for group in groups}
        return cls(group(**{name: values[name] for name in names[group] if name in values}) for group in groups)

    def __getitem__(self, group: type[Group]) -> Group:
        return self._groups[group]

    def __iter__(self) -> Iterator[type]:
        return iter(self._groups)

    def replace(self, **values: Any) -> Settings:
        """The same but for these flags. Raises: KeyError for a name that is none."""
        flat = self.flat()
        if unknown := values.keys() - flat.keys():
            raise KeyError(f"no such flags: {', '.join(sorted(unknown))}")
        return Settings.of(tuple(self._groups), {**flat, **values})

    def flat(self) -> dict[str, Any]:
        """Every value by its flag's name, as it is stored."""
        return {name: value for group in self._groups.values() for name, value in vars(group).items()}

    def problems(self) -> list[str]:
        """Every value that cannot work by itself, a line each, with the remedy."""
        flat = self.flat()
        found = (about.problem(flat[name]) for name, about in flags_of(self._groups).items())
        return [problem for problem in found if problem is not None]


def idle(
    settings: Settings, names: Iterable[str], users: Mapping[type, Sequence[str]] | None = None
) -> dict[str, str]:
    """Those of these flags that do nothing among these settings, and whose they are or what forbids them.

    users: by group, what uses it, as `Flag.needs` has it, where not everything does.
    """
    flat, flags, groups = settings.flat(), flags_of(settings), {name: group for group in settings for name in flags_of([group])}

    def why(name: str) -> str | None:
        about, group = flags[name], groups[name]
        own = () if about.agent else getattr(group, "needs", ())
        for wanted in ((users or {}).get(group, ()), own if about.needs is None else about.needs):
            if wanted and not any(map(holds, wanted)):
                return f"belongs to {' or '.join(f'--{one}' for one in wanted)}".replace("=", " ")
        against = next(filter(holds, about.not_with), None)
        return against and f"not with --{against}".replace("=", " ")

    def holds(condition: str) -> bool:
        name, equals, wanted = condition.partition("=")
        value = flat[name]
        met = str(value) == wanted if equals else value is not None and value is not False
        return met and why(name) is None

    return {name: reason for name in names if (reason := why(name))}


def not_empty(text: str) -> str:
    """A path, as it is. Raises: argparse.ArgumentTypeError for "", which an unset variable of the shell gives."""
    if not text:
        raise argparse.ArgumentTypeError("is empty: give a path, or leave the flag out")
    return text


def a_path(text: str) -> Path:
    """The path that is written there. Raises: as `not_empty`."""
    return Path(not_empty(text))


def whole_number(text: str) -> int:
    """The whole number that is written there: 100, 1e8 and 2.5e3 are some, 1.5 and 1e-3 are none. Raises: ValueError."""
    with contextlib.suppress(ValueError):
        return int(text)
    try:
        value = decimal.Decimal(text)
    except decimal.InvalidOperation:
        raise ValueError(text) from None
    if not value.is_finite() or value != value.to_integral_value() or value.adjusted() > MOST_DIGITS:
        raise ValueError(text)
    return int(value)


def positive_number(text: str) -> float:
    """The finite number above 0 that is written there. Raises: ValueError."""
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError(text)
    return value


def positive_whole_number(text: str) -> int:
    """The whole number above 0 that is written there, as `whole_number` has it. Raises: ValueError."""
    value = whole_number(text)
    if value < 1:
        raise ValueError(text)
    return value


# argparse says them: "invalid whole number value: '1.5'"
whole_number.__name__, positive_number.__name__ = "whole number", "positive number"
positive_whole_number.__name__ = "positive whole number"


class Parser(argparse.ArgumentParser):
    """Raises UsageError, one line, for what is no command line.

    Args:
        examples: command lines that its help shows; the description is then wrapped here.
    """

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any):
        self.examples = tuple(examples)
        if examples:
            kwargs["description"] = textwrap.fill(kwargs["description"], HELP_WIDTH)
            kwargs["formatter_class"] = argparse.RawDescriptionHelpFormatter
        super().__init__(*args, allow_abbrev=False, **kwargs)
        if examples:
            self.epilog = "\n".join(["examples:", *(f"  {self.prog} {example}" for example in examples)])

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """A negative number may be written in any way: argparse takes -1e-1 for a flag."""
        joined: list[str] = []
        for word in sys.argv[1:] if args is None else args:
            if joined and NEGATIVE.match(word) and joined[-1].startswith("--") and joined[-1] != "--" and "=" not in joined[-1]:
                joined[-1] += f"={word}"
            else:
                joined.append(word)
        return super().parse_known_args(joined, namespace)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message.removeprefix('argument ')[:LONGEST]}; see {self.prog} --help")


def make_parser(groups: Sequence[type], prog: str, description: str, *, whole: bool = True) -> Parser:
    """The command line. Flags that are not given are absent from its namespace.

    whole: its help has every flag; else those of them that are `first`, which --help shows.
    """

    def show(chosen: str | None) -> None:
        if chosen not in (None, "all"):
            raise UsageError(f"--help {chosen}: it is --help, or --help all")
        make_parser(groups, prog, description, whole=chosen == "all").print_help()
        parser.exit()

    every = sections(groups)
    rest = f"{sum(map(len, every.values()))} flags in all, {', '.join(every)}: {prog} --help all"
    parser = Parser(
        prog=prog,
        usage=f"{prog} [--FLAG X ...]",
        description=textwrap.fill(description, HELP_WIDTH),
        epilog=None if whole else textwrap.fill(rest, HELP_WIDTH),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        add_help=False,
    )
    parser.add_argument("-h", "--help", nargs="?", action=_calling(show), metavar="all", help="show this; all: every flag")
    examples = {group.title: group.example for group in reversed(groups) if hasattr(group, "example")}
    for title, flags in every.items():
        shown = whole or any(about.first for about in flags)
        example = f"example: {prog} {examples[title]}" if shown and title in examples else None
        section = parser.add_argument_group(title, example)
        for about in flags:
            default = "" if about.default in (None, False) else f" (default: {about.default})"
            text = (about.explained + default).replace("%", "%%") if whole or about.first else argparse.SUPPRESS
            if about.type is bool:
                section.add_argument(f"--{about.name}", action="store_true", help=text)
            else:
                kind = whole_number if about.type is int else not_empty if about.path else about.type
                section.add_argument(f"--{about.name}", type=kind, choices=about.choices, help=text, metavar="X")
    return parser


def _calling(call: Callable[[Any], None]) -> type[argparse.Action]:
    """An argument at which that is called with its value."""

    class Calling(argparse.Action):
        def __call__(self, parser: object, namespace: object, values: Any, option_string: object = None) -> None:
            call(values)

    return Calling


def sections(groups: Sequence[type]) -> dict[str, list[Flag]]:
    """Flags by the title of their group; groups may share one."""
    found: dict[str, list[Flag]] = {}
    for group in groups:
        found.setdefault(group.title, []).extend(flags_of([group]).values())
    return found


def parse(parser: Parser, groups: Sequence[type], argv: Sequence[str]) -> tuple[Settings, dict[str, Any]]:
    """The settings, defaults put in, and what was given by flag. Raises: UsageError."""
    known, others = parser.parse_known_args(argv)
    flags = flags_of(groups)
    if others:
        close = difflib.get_close_matches(others[0].partition("=")[0].lstrip("-"), flags, n=3)
        hint = f"did you mean {' or '.join(f'--{name}' for name in close)}?" if close else "--help lists them"
        raise UsageError(f"no such flag: {others[0]}; {hint}")
    given = {name: flags[name].given(value) for name, value in vars(known).items()}
    return Settings.of(groups, given), given


def stored(groups: Sequence[type], values: Mapping[str, Any]) -> dict[str, Any]:
    """The flags among values from a file, after a look at each (`Flag.stored`); others are left out. Raises: UsageError."""
    flags = flags_of(groups)
    return {name: flags[name].stored(value) for name, value in values.items() if name in flags}


def table(flags: Iterable[Flag]) -> str:
    """Markdown, as it stands in the pages."""
    rows = ("| flag | default | meaning |", "|---|---|---|")
    default = lambda about: "" if about.default is None else "off" if about.default is False else about.default  # noqa: E731
    return "\n".join([*rows, *(f"| `--{about.name}` | {default(about)} | {about.explained} |" for about in flags)])

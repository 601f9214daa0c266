"""Settings: one line a flag, and all that follows from it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import pytest

from torchbeast.core import forms, run_folder
from torchbeast.core.settings import (
    Flag,
    Settings,
    UsageError,
    flag,
    flags_of,
    idle,
    make_parser,
    parse,
    sections,
    stored,
    table,
)


def spelled(name: str) -> str:
    if name not in ("red", "green"):
        raise ValueError(f"unknown colour {name!r}: choose red or green")
    return name


@dataclass(frozen=True)
class Paint:
    title = "Paint"
    colour: str = flag("red", "what is painted with", canonical=lambda name: spelled(name.lower()), agent=True)
    coats: int = flag(2, "how often", at_least=1)
    thinner: float = flag(0.25, "share of 100%", at_least=0, at_most=1)
    primer: str | None = flag(None, "what goes under it")
    outdoors: bool = flag(False, "in the rain")


@dataclass(frozen=True)
class Brush:
    title = "Brush"
    width: float = flag(3.5, "of the brush, in cm", above=0, resumable=True)
    hair: str = flag("pig", "whose", choices=("pig", "ox"), resumable=True, experiment=True)
    bristles: int | None = flag(None, "how many", at_least=0, experiment=False)


@dataclass(frozen=True)
class More:
    title = "Paint"
    offset: float = flag(0.0, "by how much it may miss", above=-2, at_most=5)
    level: float | None = flag(None, "how high", at_most=7)
    shift: int = flag(0, "to where")


GROUPS = (Paint, Brush, More)
NAMES = ["colour", "coats", "thinner", "primer", "outdoors", "width", "hair", "bristles", "offset", "level", "shift"]


def parsed(*argv: str) -> tuple[Settings, dict]:
    return parse(make_parser(GROUPS, "paint", "Paints."), GROUPS, argv)


# What a flag is


def test_types_are_those_of_the_annotations():
    kinds = {name: about.type for name, about in flags_of(GROUPS).items()}
    assert kinds == {
        "colour": str, "coats": int, "thinner": float, "primer": str, "outdoors": bool, "width": float, "hair": str,
        "bristles": int, "offset": float, "level": float, "shift": int,
    }  # fmt: skip


def test_what_a_line_says_is_what_the_flag_is():
    assert flags_of([Brush])["width"]._replace(canonical=None) == Flag(
        "width", float, 3.5, "of the brush, in cm", above=0, resumable=True, experiment=False, canonical=None
    )
    paint = flags_of([Paint])
    assert [name for name, about in paint.items() if about.agent] == ["colour"]
    assert paint["thinner"].at_least == 0 and paint["thinner"].at_most == 1 and paint["thinner"].above is None
    assert flags_of([Brush])["hair"].choices == ("pig", "ox")


def test_what_may_be_given_anew_defines_no_experiment_unless_it_says_so():
    experiment = {name: about.experiment for name, about in flags_of([Paint, Brush]).items()}
    assert [name for name, tells in experiment.items() if not tells] == ["width", "bristles"]


def test_flags_come_in_the_order_of_their_groups():
    assert list(flags_of(GROUPS)) == NAMES
    assert list(flags_of([Brush, Paint])) == [*NAMES[5:8], *NAMES[:5]]


def test_two_groups_with_one_flag_are_refused():
    @dataclass(frozen=True)
    class Roller:
        title = "Roller"
        width: float = flag(1.0, "of the roller")

    with pytest.raises(TypeError, match="two groups have a flag width: Roller is the second"):
        flags_of([Brush, Roller])


def test_a_misspelled_property_is_refused():
    @dataclass(frozen=True)
    class Bad:
        title = "Bad"
        size: int = flag(1, "of it", at_leats=1)

    with pytest.raises(TypeError, match="at_leats"):
        flags_of([Bad])


# Bounds


@pytest.mark.parametrize(
    ("name", "good", "bad", "told"),
    [
        ("coats", [1, 10**9], [0, -3], "be at least 1"),
        ("thinner", [0.0, 0, 1.0, 0.5], [-1e-9, 1 + 1e-9], "be in [0, 1]"),
        ("width", [1e-300, 1e15], [0.0, -1.0], "be above 0"),
        ("bristles", [None, 0, 7], [-1], "not be negative"),
        ("offset", [-1.9, 0.0, 5.0], [-2.0, 5.1, -7.0], "be in (-2, 5]"),
        ("level", [None, 7.0, -100.0], [7.5], "be at most 7"),
        ("shift", [-(2**62), 0, 2**62], [], ""),
    ],
)
def test_bounds(name, good, bad, told):
    about = flags_of(GROUPS)[name]
    for value in good:
        assert about.problem(value) is None
        assert Settings.of(GROUPS, {name: value}).problems() == []
    for value in bad:
        assert about.problem(value) == f"--{name} must {told}, got {value}"
        assert Settings.of(GROUPS, {name: value}).problems() == [about.problem(value)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["thinner", "width", "offset", "level"])
def test_numbers_are_finite(name, value):
    assert flags_of(GROUPS)[name].problem(value) == f"--{name} must be a finite number, got {value}"


def test_every_problem_is_named_in_the_order_of_the_flags():
    settings = Settings.of(GROUPS, {"width": 0.0, "coats": 0, "offset": 6.0})
    assert [line.split()[0] for line in settings.problems()] == ["--coats", "--width", "--offset"]


# The frozen whole


def test_each_group_is_given_by_its_class():
    settings = Settings.of(GROUPS, {"coats": 4, "hair": "ox"})
    assert settings[Paint] == Paint(coats=4) and settings[Brush] == Brush(hair="ox") and settings[More] == More()
    with pytest.raises(KeyError):
        Settings.of([Paint], {})[Brush]


def test_flat_is_every_value_in_the_order_of_the_flags():
    flat = Settings.of(GROUPS, {"bristles": 9, "coats": 4}).flat()
    assert list(flat) == NAMES
    assert flat == {
        "colour": "red", "coats": 4, "thinner": 0.25, "primer": None, "outdoors": False, "width": 3.5, "hair": "pig",
        "bristles": 9, "offset": 0.0, "level": None, "shift": 0,
    }  # fmt: skip
    assert Settings.of(GROUPS, flat).flat() == flat
    flat["coats"] = 7
    assert Settings.of(GROUPS, {}).flat()["coats"] == 2


def test_replace_makes_another_and_leaves_the_first():
    first = Settings.of(GROUPS, {"coats": 4})
    second = first.replace(coats=5, hair="ox")
    assert first[Paint].coats == 4 and first[Brush].hair == "pig"
    assert second[Paint] == Paint(coats=5) and second[Brush] == Brush(hair="ox")
    assert {**first.flat(), "coats": 5, "hair": "ox"} == second.flat()
    assert first.replace() is not first and first.replace().flat() == first.flat()


def test_replace_refuses_what_is_no_flag():
    with pytest.raises(KeyError, match="no such flags: coat, hairs"):
        Settings.of(GROUPS, {}).replace(hairs="ox", coats=3, coat=3)


def test_settings_do_not_change():
    settings = Settings.of(GROUPS, {})
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings[Paint].coats = 3
    with pytest.raises(TypeError):
        settings[Paint] = Paint(coats=3)
    assert settings[Paint].coats == 2


# The command line


def test_values_have_their_types_and_what_was_given_is_told():
    settings, given = parsed("--coats", "4", "--thinner", "1", "--outdoors", "--bristles=7", "--primer", "chalk")
    assert given == {"coats": 4, "thinner": 1.0, "outdoors": True, "bristles": 7, "primer": "chalk"}
    assert {name: type(value) for name, value in given.items()} == {
        "coats": int, "thinner": float, "outdoors": bool, "bristles": int, "primer": str,
    }  # fmt: skip
    assert settings.flat() == {**Settings.of(GROUPS, {}).flat(), **given}


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e8", 10**8), ("3e7", 3 * 10**7), ("2.5E3", 2500), ("1e0", 1), ("10.0", 10), ("1_000", 1000), (f"{2**60}.0", 2**60)],
)
def test_a_whole_number_may_be_written_with_an_exponent(text, value):
    for name in ("coats", "bristles"):
        given = parsed(f"--{name}", text)[1][name]
        assert given == value and type(given) is int


@pytest.mark.parametrize("text", ["-1e-1", "-1E2", "-.5e-3", "-2.", "-7"])
def test_a_negative_number_may_be_written_in_any_way(text):
    for words in (["--width", text], [f"--width={text}"], ["--outdoors", "--width", text, "--coats", "3"]):
        assert parsed(*words)[1]["width"] == float(text)


@pytest.mark.parametrize("text", ["1.5", "1e-3", "1e", "nan", "inf", "", "1e999999999999999999999", "1e99999999", "0x10"])
def test_what_is_no_whole_number_is_refused_at_once(text):
    for name in ("coats", "bristles"):
        with pytest.raises(UsageError) as error:
            parsed(f"--{name}", text)
        assert str(error.value) == f"--{name}: invalid whole number value: {text!r}; see paint --help"


def test_what_is_not_given_is_the_default_and_not_told():
    settings, given = parsed()
    assert given == {} and settings.flat() == Settings.of(GROUPS, {}).flat()
    assert parsed("--coats", "2")[1] == {"coats": 2}, "given, though it is the default"


def test_a_value_is_the_one_that_is_meant():
    settings, given = parsed("--colour", "GREEN")
    assert settings[Paint].colour == given["colour"] == "green"
    with pytest.raises(UsageError, match="unknown colour 'blue': choose red or green"):
        parsed("--colour", "blue")


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--coats", "many"], "--coats: invalid whole number value: 'many'; see paint --help"),
        (["--coats", "1.5"], "--coats: invalid whole number value: '1.5'; see paint --help"),
        (["--coats", "nan"], "--coats: invalid whole number value: 'nan'; see paint --help"),
        (["--bristles", "None"], "--bristles: invalid whole number value: 'None'; see paint --help"),
        (["--width", "wide"], "--width: invalid float value: 'wide'; see paint --help"),
        (["--coats", "-1e-1"], "--coats: invalid whole number value: '-1e-1'; see paint --help"),
        (["--coats", "-0x1"], "--coats: invalid whole number value: '-0x1'; see paint --help"),
        (["--coats", "-inf"], "--coats: invalid whole number value: '-inf'; see paint --help"),
        (["--outdoors", "-1"], "--outdoors: ignored explicit argument '-1'; see paint --help"),
        (["--coats"], "--coats: expected one argument; see paint --help"),
        (["--outdoors=yes"], "--outdoors: ignored explicit argument 'yes'; see paint --help"),
        (["--coat", "3"], "no such flag: --coat; did you mean --coats?"),
        (["--with=3"], "no such flag: --with; did you mean --width?"),
        (["--zzz"], "no such flag: --zzz; --help lists them"),
        (["word"], "no such flag: word; --help lists them"),
    ],
)
def test_what_is_no_command_line_gets_one_line(argv, told):
    with pytest.raises(UsageError) as error:
        parsed(*argv)
    assert str(error.value) == told.replace("no such flag: --with;", "no such flag: --with=3;")


def test_only_choices_are_accepted():
    assert parsed("--hair", "ox")[0][Brush].hair == "ox"
    with pytest.raises(UsageError, match=r"^--hair: invalid choice: 'hen' \(choose from .*pig.*ox.*\); see paint --help$"):
        parsed("--hair", "hen")


def test_help_has_every_flag_under_its_title_with_its_default(capsys):
    with pytest.raises(SystemExit) as exit_info:
        parsed("--help", "all")
    assert exit_info.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.index("Paint: --colour X what is painted with (default: red)") < text.index("Brush: --width X")
    assert "--thinner X share of 100% (default: 0.25)" in text
    assert "--outdoors in the rain --" in text and "--primer X what goes under it --" in text, "no default is shown"
    assert text.count("Paint:") == 1 and text.index("--offset") < text.index("Brush:")


def test_groups_of_one_title_are_one_section():
    found = sections(GROUPS)
    assert {title: [about.name for about in flags] for title, flags in found.items()} == {
        "Paint": [*NAMES[:5], *NAMES[8:]], "Brush": NAMES[5:8],
    }  # fmt: skip


# Files


def test_stored_values_are_taken_as_they_are_and_others_left_out():
    values = {"coats": 4, "thinner": 0.5, "outdoors": True, "bristles": None, "hair": "ox", "varnish": [1, 2]}
    found = stored(GROUPS, values)
    assert found == {name: value for name, value in values.items() if name != "varnish"}
    assert stored(GROUPS, {"thinner": 1}) == {"thinner": 1}, "a whole number is a number"
    assert stored(GROUPS, {"colour": "GREEN"}) == {"colour": "green"}
    flat = Settings.of(GROUPS, {"primer": "chalk", "level": 2.5}).flat()
    assert stored(GROUPS, flat) == flat


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("coats", "4", "int"), ("coats", 4.0, "int"), ("coats", True, "int"), ("coats", None, "int"), ("coats", [4], "int"),
        ("thinner", "much", "float"), ("thinner", True, "float"), ("thinner", None, "float"),
        ("outdoors", 1, "bool"), ("outdoors", "yes", "bool"), ("outdoors", None, "bool"),
        ("hair", 3, "str"), ("hair", None, "str"), ("primer", 3, "str"), ("bristles", 1.5, "int"), ("level", {}, "float"),
    ],
)  # fmt: skip
def test_stored_values_of_another_type_are_refused(name, value, kind):
    with pytest.raises(UsageError) as error:
        stored(GROUPS, {"coats": 3, name: value})
    assert str(error.value) == f"the checkpoint's flag {name} is {forms.shown(value)}, which is no {kind}"


def test_numbers_of_more_bits_than_a_setting_has_are_refused():
    for value in (10**400, 2**64, -(2**63) - 2, 10**5000):
        about = flags_of(GROUPS)["shift"]
        assert "--shift must lie between -2^63 and 2^63, got a number of " in about.problem(value)
        for name in ("coats", "thinner"):
            with pytest.raises(UsageError, match=f"the checkpoint's flag {name} is "):
                stored(GROUPS, {name: value})


def test_stored_text_that_no_command_line_can_hold_is_refused():
    for value in ("x" * 5000, "\udcff", "a\x00b"):
        with pytest.raises(UsageError, match="which is no text") as error:
            stored(GROUPS, {"hair": value})
        assert len(str(error.value)) < 150


@pytest.mark.parametrize("name", ["a\u00a0b", "a\u200bb", "\u00e4"])
def test_what_a_run_may_be_named_its_checkpoint_may_hold(name):
    assert run_folder.is_plain(name) and Flag("xpid", str, None, "name").stored(name) == name


def test_a_path_may_hold_any_bytes_but_zero():
    about = Flag("place", str, ".", "where", path=True)
    for value in ("a\udcffb", "a\nb", "a\u00a0b"):
        assert about.stored(value) == value
    for value in ("a\x00b", "\ud800", "x" * 5000):
        with pytest.raises(UsageError, match="which is no text"):
            about.stored(value)


def test_a_long_stored_value_is_cut():
    with pytest.raises(UsageError) as error:
        stored(GROUPS, {"coats": "x" * 5000})
    assert len(str(error.value)) < 120


def test_stored_values_that_are_no_choice_are_refused():
    with pytest.raises(UsageError, match="the checkpoint's flag hair is 'hen', which is none of pig, ox"):
        stored(GROUPS, {"hair": "hen"})
    with pytest.raises(UsageError, match="unknown colour 'blue': choose red or green"):
        stored(GROUPS, {"colour": "blue"})


# Pages


def test_the_table_of_a_page():
    flags = flags_of([Paint])
    assert table([flags["coats"], flags["outdoors"], flags["primer"], flags["thinner"]]) == (
        "| flag | default | meaning |\n"
        "|---|---|---|\n"
        "| `--coats` | 2 | how often |\n"
        "| `--outdoors` | off | in the rain |\n"
        "| `--primer` |  | what goes under it |\n"
        "| `--thinner` | 0.25 | share of 100% |"
    )


# What does nothing


@dataclass(frozen=True)
class Sanding:
    title = "Sanding"
    needs = ("hair=ox",)
    grain: int = flag(80, "of the paper")
    wet: bool = flag(False, "with water")
    water: float = flag(1.0, "litres", needs=("wet", "outdoors"))
    paper: str = flag("own", "whose", agent=True)
    dust: bool = flag(False, "leave it", not_with=("wet", "coats=1"))
    mask: bool = flag(False, "wear one", needs=())


@pytest.mark.parametrize(
    ("values", "names", "told"),
    [
        ({}, ["grain", "paper", "mask"], {"grain": "belongs to --hair ox"}),
        ({"hair": "ox"}, ["grain", "mask"], {}),
        ({"hair": "ox"}, ["water"], {"water": "belongs to --wet or --outdoors"}),
        ({"hair": "ox", "wet": True}, ["water"], {}),
        ({"wet": True}, ["water"], {"water": "belongs to --wet or --outdoors"}),
        ({"wet": True, "outdoors": True}, ["water"], {}),
        ({"hair": "ox", "wet": True}, ["dust"], {"dust": "not with --wet"}),
        ({"wet": True}, ["dust"], {"dust": "belongs to --hair ox"}),
        ({"hair": "ox", "coats": 1}, ["dust"], {"dust": "not with --coats 1"}),
    ],
)
def test_a_flag_does_nothing_where_what_it_needs_is_not_so_or_what_forbids_it_is(values, names, told):
    assert idle(Settings.of((*GROUPS, Sanding), values), names) == told


def test_a_group_that_not_everything_uses_needs_one_of_its_users():
    settings, users = Settings.of(GROUPS, {}), {Paint: ["hair=ox", "width"], Brush: ["hair=cow"]}
    told = {"coats": "belongs to --hair ox or --width", "hair": "belongs to --hair cow"}
    assert idle(settings, ["coats", "hair"], users) == told
    assert idle(settings, ["coats"], {Paint: ["hair=ox", "hair=pig"]}) == {}

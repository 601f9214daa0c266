"""The program's command line: what is refused, and what follows from what is given."""

from __future__ import annotations

import math
import shlex
from pathlib import Path

import pytest

from main import main as entry
from main import settings as settings_module
from main.settings import RunSettings
from models import STUDENTS
from torchbeast.core.settings import Flag, Settings, UsageError, flags_of, sections
from utils_folder import minigrid
from utils_folder.motivations import MOTIVATIONS

FLAGS = settings_module.flags()
NUMBERS = [name for name, about in FLAGS.items() if about.type in (int, float)]


def parsed(text: str = "") -> Settings:
    return settings_module.parse(shlex.split(text))[0]


def problems(text: str) -> list[str]:
    return settings_module.problems(parsed(text))


# What can be given


def test_every_flag_is_explained_in_help(capsys):
    with pytest.raises(SystemExit) as exit_info:
        settings_module.parse(["--help", "all"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    for name, about in FLAGS.items():
        assert f"--{name}" in text and about.meaning


def test_help_is_short_for_who_starts(capsys):
    with pytest.raises(SystemExit) as exit_info:
        settings_module.parse(["--help"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    shown = [name for name, about in FLAGS.items() if f"  --{name} " in text]
    assert shown == [name for name, about in FLAGS.items() if about.first] and 10 < len(shown) < 25
    assert text.count("\n") < 70 and f"{len(FLAGS)} flags in all" in text and "--help all" in text
    with pytest.raises(UsageError, match="--help some: it is --help, or --help all"):
        settings_module.parse(["--help", "some"])


def examples() -> dict[str, str]:
    return {group.title: group.example for group in reversed(settings_module.groups()) if hasattr(group, "example")}


def test_every_section_of_help_has_one_example_that_works(capsys):
    assert examples().keys() == sections(settings_module.groups()).keys()
    with pytest.raises(SystemExit):
        settings_module.parse(["--help", "all"])
    text = capsys.readouterr().out
    for title, example in examples().items():
        settings, given = settings_module.parse(shlex.split(example))
        assert settings_module.problems(settings) == [] and settings_module.idle(settings, given) == {}
        assert given.keys() & {about.name for about in sections(settings_module.groups())[title]}
        assert text.count(f"{title}:\n  example: python -m main.main {example}\n") == 1


@pytest.mark.parametrize("name", [name for name, about in FLAGS.items() if about.choices is not None])
def test_help_and_pages_name_the_choices(name):
    assert all(choice in FLAGS[name].explained for choice in FLAGS[name].choices)


def test_all_registered_ones_flags_are_the_programs():
    for registered in (*STUDENTS.values(), *MOTIVATIONS.values()):
        assert flags_of(registered.groups).items() <= FLAGS.items()


def test_a_flag_is_where_its_group_is_in_order_and_stored_flat():
    names = [name for group in settings_module.groups() for name in flags_of([group])]
    assert list(FLAGS) == list(parsed().flat()) == list(settings_module.defaults()) == names
    assert parsed().flat() == settings_module.make({}).flat() == settings_module.defaults()


@pytest.mark.parametrize("model", list(MOTIVATIONS))
def test_every_variant_can_be_run_as_it_is(model):
    assert problems(f"--model {model}") == [] and parsed(f"--model {model}")[RunSettings].model == model


@pytest.mark.parametrize("model", list(MOTIVATIONS))
def test_a_misspelled_model_is_answered_with_the_close_one(model):
    with pytest.raises(UsageError, match=f"choose from {', '.join(MOTIVATIONS)}; did you mean {model}\\?"):
        parsed(f"--model {model[:-2]}{model[-1]}")


def test_a_model_like_none_is_answered_with_all():
    with pytest.raises(UsageError, match=f"unknown model 'zzz': choose from {', '.join(MOTIVATIONS)}$"):
        parsed("--model zzz")


def test_stored_flags_are_looked_at():
    flat = parsed("--num_actors 3 --seed 7").flat()
    path = Path("run/model.tar")
    assert settings_module.stored({**flat, "of_another_version": 1}, path) == flat
    with pytest.raises(UsageError, match=r"model.tar: the checkpoint's flag num_actors is 'many', which is no int; give an"):
        settings_module.stored({"num_actors": "many"}, path)
    with pytest.raises(UsageError, match=r"model.tar: the checkpoint's flag model is 'muzero': unknown model 'muzero': choose"):
        settings_module.stored({"model": "muzero"}, path)


# What is refused


def test_all_problems_come_in_one_go_and_nothing_is_written(tmp_path, capsys):
    args = "--num_buffers 2 --unroll_length 0 --momentum -1 --discounting 1.5 --env MiniGrid-KeyCoridorS3R3-v0 --engine gym"
    assert entry.main([*shlex.split(args), "--savedir", str(tmp_path / "runs")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5 and all(line.startswith("error: ") for line in lines)
    for word in ("num_buffers", "unroll_length", "momentum", "discounting", "did you mean MiniGrid-KeyCorridorS3R3-v0"):
        assert sum(word in line for line in lines) == 1
    assert not (tmp_path / "runs").exists()


def just(about: Flag) -> tuple[list[float], list[float]]:
    """(values just inside a flag's bounds, values just outside)."""
    up = (lambda value: value + 1) if about.type is int else lambda value: math.nextafter(value, math.inf)
    down = (lambda value: value - 1) if about.type is int else lambda value: math.nextafter(value, -math.inf)
    inside, outside = [], []
    if about.at_least is not None:
        inside, outside = [*inside, about.at_least], [*outside, down(about.at_least)]
    if about.above is not None:
        inside, outside = [*inside, up(about.above)], [*outside, about.above]
    if about.at_most is not None:
        inside, outside = [*inside, about.at_most], [*outside, up(about.at_most)]
    return [about.type(value) for value in inside], [about.type(value) for value in outside]


@pytest.mark.parametrize("name", [name for name in NUMBERS if just(FLAGS[name])[0]])
def test_bounds_are_kept(name):
    inside, outside = just(FLAGS[name])
    for value in inside:
        assert problems(f"--{name}={value!r}") == []
    for value in outside:
        (line,) = problems(f"--{name}={value!r}")
        assert line.startswith(f"--{name} must ") and line.endswith(f", got {value}")


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_is_finite(name):
    for value in ("nan", "inf", "-inf"):
        if FLAGS[name].type is int:
            with pytest.raises(UsageError, match=f"--{name}: invalid whole number value: '{value}'"):
                parsed(f"--{name}={value}")
        else:
            assert problems(f"--{name}={value}") == [f"--{name} must be a finite number, got {value}"]


@pytest.mark.parametrize("name", [name for name in NUMBERS if FLAGS[name].type is float])
def test_a_number_is_one_that_networks_can_compute_with(name):
    """A learning rate of 1e39 is a float, but no float32: it ended the run in a traceback of the optimiser's."""
    for value in (1e300, 1e39, -1e300):
        (line,) = problems(f"--{name}={value!r}")
        assert line.startswith(f"--{name} must ") and line.endswith(f", got {value}")


@pytest.mark.parametrize("name", NUMBERS)
def test_a_numbers_default_is_one_that_is_accepted(name):
    about = FLAGS[name]
    assert about.problem(about.default) is None and (about.default is None or type(about.default) is about.type)


@pytest.mark.parametrize("name", [name for name, about in FLAGS.items() if about.choices is not None])
def test_choices(name):
    about = FLAGS[name]
    assert about.default in about.choices
    for choice in about.choices:
        assert parsed(f"--{name} {choice}").flat()[name] == choice
    with pytest.raises(UsageError, match=f"--{name}: invalid choice: 'nonsense'"):
        parsed(f"--{name} nonsense")


@pytest.mark.parametrize(
    "bad",
    ["--alpha 0", "--epsilon 0", "--checkpoint_minutes 0", "--seed -1", "--num_actor_processes 5", "--num_actor_processes -1",
     "--discounting -0.1", "--learning_rate nan", "--discounting nan"],
)  # fmt: skip
def test_values_out_of_range_are_refused(bad):
    assert len(problems(bad)) == 1


def test_a_grid_too_large_is_refused(monkeypatch):
    survey = minigrid.survey
    monkeypatch.setattr(minigrid, "survey", lambda name, seed: survey(name, seed)._replace(size=(33, 20)))
    assert "33x20" in problems("")[0]


def test_the_compiled_engine_refuses_what_it_cannot_play():
    assert "--engine gym" in problems("--env MiniGrid-Dynamic-Obstacles-5x5-v0 --engine compiled")[0]
    assert problems("--env MiniGrid-Dynamic-Obstacles-5x5-v0") == []


def test_what_a_variant_cannot_work_with_is_told_beside_all_else(monkeypatch):
    """Of settings and grid, by the variant that is asked for and no other; and whatever else is wrong."""

    name = list(MOTIVATIONS)[-1]

    class Picky(MOTIVATIONS[name]):
        @classmethod
        def problems(cls, settings, width, height):
            return [f"picky: {settings[RunSettings].env} {width} {height}"]

    monkeypatch.setitem(MOTIVATIONS, name, Picky)
    command = "--env MiniGrid-Dynamic-Obstacles-5x5-v0 --engine compiled --num_actors 0"
    for other in list(MOTIVATIONS)[:-1]:
        assert [line.split()[0] for line in problems(f"{command} --model {other}")] == ["--num_actors", "--env:"]
    settings = parsed(f"{command} --model {name}")
    found = settings_module.problems(settings)
    assert [line.split()[0] for line in found] == ["--num_actors", "--env:", "picky:"]
    assert found[-1] == "picky: MiniGrid-Dynamic-Obstacles-5x5-v0 5 5"
    with pytest.raises(UsageError) as error:
        settings_module.check(settings)
    assert str(error.value).splitlines() == found


def test_arguments_that_are_no_flags_end_with_code_two(capsys):
    for words, told in (
        (["--no_such_flag"], "no such flag: --no_such_flag; --help lists them"),
        (["--modle=default"], "no such flag: --modle=default; did you mean --mode or --model?"),
        (["--total_frames", "1e-3"], "--total_frames: invalid whole number value: '1e-3'; see python -m main.main --help"),
        (["--mode", "play"], "--mode: invalid choice: 'play'"),
        (["--env"], "--env: expected one argument"),
    ):
        assert entry.main(words) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {told}") and error.count("\n") == 1


def test_a_value_beyond_its_own_bound_is_said_once():
    for words in ("--num_actors -5 --num_actor_processes 0", "--num_actors 0", "--num_actors -5 --num_buffers 3"):
        settings, _ = settings_module.parse(words.split())
        (problem,) = settings_module.problems(settings)
        assert problem.startswith("--num_actors must be at least 1")


# What follows from what is given


@pytest.mark.parametrize(("actors", "processes"), [(40, 1), (40, 3), (5, 2), (4, 0)])
def test_environments_are_spread_over_processes_and_buffers_suffice(actors, processes):
    settings = parsed(f"--num_actors {actors} --num_actor_processes {processes} --batch_size 8")
    own = settings_module.spread(settings)
    (count,) = own.counts
    hosted = own.hosted(count)
    assert count == processes
    assert sum(hosted) == actors and len(hosted) == max(1, processes) and max(hosted) - min(hosted) <= 1
    assert own.buffers == max(2 * actors, 8, max(hosted) + 7)


@pytest.mark.parametrize(
    ("cores", "flags", "counts", "buffers"),
    [
        (16, "--num_actors 40", (1, 15), 80), (2, "--num_actors 40", (1, 1), 80), (64, "--num_actors 40", (1, 20), 80),
        (16, "--num_actors 1", (1, 1), 8), (1, "--num_actors 40", (1, 1), 80), (16, "--num_actors 5", (1, 2), 12),
        (16, "--num_actors 40 --num_buffers 20", (4, 15), 20), (16, "--num_actors 40 --num_buffers 10", (14, 15), 10),
        (16, "--num_actors 40 --num_buffers 47", (1, 15), 47),
    ],
)  # fmt: skip
def test_without_a_number_there_may_be_as_many_processes_as_cores_environments_and_rollouts_allow(
    monkeypatch, cores, flags, counts, buffers
):
    """One per core but the learner's, each with two environments at least. By default rollouts suffice for any number."""
    monkeypatch.setattr("main.training.processes.cores", lambda: cores)
    spread = settings_module.spread(parsed(f"{flags} --batch_size 8"))
    first, *_, last = spread.counts[0], spread.counts[-1]
    assert (first, last) == counts and spread.buffers == buffers
    assert all(spread.least_buffers(count) <= buffers for count in spread.counts) and not spread.problems()
    assert first == 1 or spread.least_buffers(first - 1) > buffers


def test_rollouts_that_suffice_for_no_number_of_processes_are_refused(monkeypatch):
    monkeypatch.setattr("main.training.processes.cores", lambda: 4)
    (line,) = problems("--num_actors 40 --batch_size 8 --num_buffers 20")
    assert line.startswith("--num_buffers 20 is too few: a process fills up to 14 rollouts at once") and "at least 21" in line


@pytest.mark.parametrize(("actors", "processes", "fewest"), [(40, 1, 47), (5, 2, 10), (4, 0, 11)])
def test_fewer_rollouts_than_can_be_in_use_are_refused(actors, processes, fewest):
    text = f"--num_actors {actors} --num_actor_processes {processes} --batch_size 8 --num_buffers"
    assert problems(f"{text} {fewest}") == []
    (line,) = problems(f"{text} {fewest - 1}")
    assert line.startswith(f"--num_buffers {fewest - 1} is too few") and f"use at least {fewest}, or leave it out" in line

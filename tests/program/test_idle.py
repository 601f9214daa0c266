"""A flag that does nothing where it stands is told of, and whose it is; and whatever is not told of does something."""

from __future__ import annotations

import shlex

import pytest

from main import main as entry
from main import settings as settings_module
from tests.helpers.damage import unended
from tests.helpers.playing import play, train
from tests.helpers.program import command
from torchbeast.core.settings import flags_of
from utils_folder.motivations import MOTIVATIONS

FLAGS = settings_module.flags()
INLINE = ("--num_actor_processes", "0", "--seed", "9", "--total_frames", "48")
LONGER = (*INLINE[:-1], "2400")  # until everything has been learned from
SAID = "without effect here: "


def idle(text: str) -> dict[str, str]:
    return settings_module.idle(*settings_module.parse(shlex.split(text)))


def told(capfd) -> list[str]:
    return [line.removeprefix(SAID) for line in capfd.readouterr().err.splitlines() if line.startswith(SAID)]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("", {}),
        ("--env_seed 3", {"env_seed": "belongs to --fix_seed"}),
        ("--env_seed 3 --fix_seed", {}),
        ("--num_lstm_layers 2", {"num_lstm_layers": "belongs to --use_lstm"}),
        ("--save_every 9", {"save_every": "belongs to --save_env"}),
        ("--save_every 9 --save_env", {}),
        ("--intrinsic_discounting 0.9 --reward_mixing sum", {"intrinsic_discounting": "belongs to --reward_mixing apart"}),
        ("--intrinsic_discounting 0.9 --reward_mixing apart", {}),
        ("--intrinsic_discounting 0.9 --reward_mixing apart --mode test", {"intrinsic_discounting": "not with --mode test"}),
        ("--disable_checkpoint --milestone_frames 9", {"milestone_frames": "not with --disable_checkpoint"}),
        ("--num_threads 2 --num_actor_processes 0", {"num_threads": "not with --num_actor_processes 0"}),
        ("--num_threads 2 --num_actor_processes 1", {}),
        ("--resume a --savedir b", {"savedir": "not with --resume"}),
        ("--greedy", {"greedy": "belongs to --mode test or --mode test_render or --evaluate_minutes"}),
        ("--record_video --video_path a.gif", {
            "record_video": "belongs to --mode test or --mode test_render", "video_path": "belongs to --record_video"}),
        ("--mode test --record_video --video_path a.gif --video_episodes 2 --greedy --num_episodes 3", {}),
        ("--mode test --video_episodes 2", {"video_episodes": "belongs to --record_video or --mode test_render"}),
        ("--mode test_render --video_episodes 2 --num_episodes 3",
         {"num_episodes": "belongs to --mode test or --evaluate_minutes"}),
        ("--mode test --total_frames 9 --savedir a --batch_size 3 --disable_cuda --no_extrinsic_rewards --engine gym",
         dict.fromkeys(("total_frames", "savedir", "batch_size", "disable_cuda", "no_extrinsic_rewards"),
                       "belongs to --mode train")),
    ],
)  # fmt: skip
def test_what_does_nothing_and_whose_it_is(words, found):
    assert idle(words) == found


@pytest.mark.parametrize("model", list(MOTIVATIONS))
def test_every_other_variants_flags_do_nothing(model):
    own = flags_of(MOTIVATIONS[model].groups)
    others = flags_of(dict.fromkeys(group for motivation in MOTIVATIONS.values() for group in motivation.groups))
    found = settings_module.idle(settings_module.make({"model": model}), others)
    for name in others.keys() - own.keys():
        users = [other for other, motivation in MOTIVATIONS.items() if name in flags_of(motivation.groups)]
        assert found[name] == "belongs to " + " or ".join(f"--model {user}" for user in users)


def test_a_run_says_so_in_one_line_and_does_not_when_there_is_nothing_to_say(tmp_path, capfd):
    assert entry.main(command(tmp_path, *INLINE)) == 0
    assert told(capfd) == []
    assert entry.main(command(tmp_path / "more", *INLINE, "--greedy", "--env_seed", "1")) == 0
    assert told(capfd) == [
        "--greedy (belongs to --mode test or --mode test_render or --evaluate_minutes), --env_seed (belongs to --fix_seed)"
    ]
    assert entry.main(["--resume", str(unended(tmp_path / "run")), "--savedir", "elsewhere"]) == 0
    assert told(capfd) == ["--savedir (not with --resume)"]


def test_playing_says_so_and_what_the_agent_decides_is_said_once(tmp_path, capfd):
    weights = train(tmp_path) / "model.tar"
    told(capfd)
    assert play(weights, "--num_episodes", "1", "--seed", "1") == 0
    assert told(capfd) == []
    assert play(weights, "--num_episodes", "1", "--batch_size", "3", "--use_lstm", "--video_path", "a.mp4") == 0
    errors = capfd.readouterr().err
    assert f"{SAID}--batch_size (belongs to --mode train), --video_path (belongs to --record_video)\n" in errors
    assert errors.count("use_lstm") == 1


# What is not told of does something: it is read


@pytest.fixture
def read(monkeypatch) -> set[str]:
    """The flags that anything has read, but for what checks and stores all of them."""
    seen: set[str] = set()

    def reading(self, name):
        if name in FLAGS:
            seen.add(name)
        return object.__getattribute__(self, name)

    for group in settings_module.groups():
        monkeypatch.setattr(group, "__getattribute__", reading)
    return seen


@pytest.mark.parametrize("model", list(MOTIVATIONS))
def test_a_flag_that_training_does_not_read_is_told_of(tmp_path, monkeypatch, read, model):
    monkeypatch.chdir(tmp_path)
    words = [word for word in command(tmp_path, *LONGER, "--model", model) if word not in ("--xpid", "run")]
    assert entry.main(words) == 0
    assert FLAGS.keys() - read - settings_module.idle(settings_module.parse(words)[0], FLAGS).keys() == set()


@pytest.mark.parametrize("model", list(MOTIVATIONS))
def test_a_flag_that_playing_does_not_read_is_told_of_or_the_agents(tmp_path, read, model):
    weights = train(tmp_path, "--model", model) / "model.tar"
    read.clear()
    assert play(weights, "--num_episodes", "1") == 0
    settings, _ = settings_module.parse(["--mode", "test", "--model", model])
    decided = {name for name, about in FLAGS.items() if about.agent}
    assert FLAGS.keys() - read - decided - settings_module.idle(settings, FLAGS).keys() == set()

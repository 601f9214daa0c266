"""Two motivations at once (--also): rewards are added, and all else is what each has alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from main import settings as settings_module
from main.training.recipe import Agent
from tests.helpers.agents import assert_same_tree, random_batch
from tests.helpers.learning import (
    TASK,
    assert_goes_on_bit_for_bit,
    assert_updates_stay_finite,
    learner_settings,
    make_agent,
    real_settings,
)
from tests.helpers.playing import play, train, watch
from torchbeast.core.settings import UsageError, flags_of
from utils_folder.motivations import MOTIVATIONS

SECOND = [name for name, motivation in MOTIVATIONS.items() if motivation.pays and not motivation.goal_conditioned]
SHORT = {"env": "MiniGrid-LavaGapS5-v0", "env_args": '{"max_steps": 9}', "unroll_length": 9}


@pytest.mark.parametrize("second", SECOND)
def test_rewards_add_up_and_each_learns_as_it_does_alone(second):
    settings = learner_settings(model="default", also=second)
    agent = make_agent(settings)
    torch.manual_seed(0)
    first, other = (Agent.make(settings.replace(model=name, also=None), TASK).motivation for name in ("default", second))
    first.load_state_dict(agent.motivation.state_dict())
    other.load_state_dict(agent.motivation.state_dict())
    paid = 0.0
    for _ in range(4):
        batch = random_batch(TASK, settings)
        together, alone = dict(batch), [(part, dict(batch)) for part in (first, other)]
        reward = agent.motivation.intrinsic_reward(together)
        rewards = [part.intrinsic_reward(own) for part, own in alone]
        assert torch.equal(reward, rewards[0] + rewards[1]) and not reward.requires_grad
        paid += rewards[1].abs().sum().item()
        assert torch.equal(agent.motivation.student_goal(batch), first.student_goal(batch))
        stats = agent.motivation.learn(together)
        expected = {name: value for part, own in alone for name, value in part.learn(own).items()}
        assert stats == expected
        for part in (first, other):
            for state, whole in ((part.state_dict(), agent.motivation.state_dict()),
                                 (part.training_state_dict(), agent.motivation.training_state_dict())):  # fmt: skip
                assert_same_tree({name: whole[name] for name in state}, state)
    assert paid > 0


@pytest.mark.parametrize("second", SECOND)
def test_what_only_one_reads_on_the_device_the_other_counts_on_the_cpu(second, monkeypatch):
    """ "meta" stands for the device; its tensors hold nothing, so `cpu` gives what was sent."""
    settings = learner_settings(model="default", also=second)
    motivation, batch = make_agent(settings).motivation, random_batch(TASK, settings)
    sent = {name: batch[name].to("meta") for name in motivation.reads}
    back = {id(value): batch[name] for name, value in sent.items()}
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: back.get(id(self), self))
    amigo, other = (motivation._own(part, batch | sent) for part in motivation.parts)
    expected = motivation.parts[0].learn(dict(batch))
    assert motivation.parts[0].learn(amigo).keys() == expected.keys()
    assert {name for name, value in other.items() if value.is_meta} == set(motivation.parts[1].reads)


@pytest.mark.parametrize("second", SECOND)
def test_on_real_rollouts(second, tmp_path):
    settings = real_settings(model="default", also=second, restart_episode=True, modify=True, **SHORT)
    seen = assert_updates_stay_finite(settings, updates=6)
    assert {column.name for column in MOTIVATIONS[second].columns} <= seen
    assert_goes_on_bit_for_bit(settings, tmp_path)


def problems(*words: str) -> list[str]:
    return settings_module.problems(settings_module.parse(words)[0])


def test_what_cannot_go_together_is_refused_with_the_remedy():
    assert problems("--also", "window_adaptive") == [
        "--also window_adaptive: a variant with goals is the --model, and --also names the other one"
    ]
    assert problems("--model", "novelty_based", "--also", "novelty_based") == [
        "--also novelty_based is the --model, or has the same flags: leave it out, or name another variant"
    ]
    assert problems("--also", "vanilla") == ["--also vanilla adds no reward: leave it out, or name another variant"]
    with pytest.raises(UsageError, match="unknown model 'novelty': choose from"):
        settings_module.parse(["--also", "novelty"])
    for second in SECOND:
        assert problems("--also", second) == problems("--model", "vanilla", "--also", second, "--no_extrinsic_rewards") == []


def test_an_agent_of_two_plays_and_says_so(tmp_path, capfd):
    weights = train(tmp_path, "--model", "default", "--also", SECOND[-1]) / "model.tar"
    assert f"default and {SECOND[-1]} on MiniGrid-Empty-5x5-v0: " in capfd.readouterr().err
    out = tmp_path / "score.json"
    assert play(weights, "--num_episodes", "2", "--json", str(out)) == 0
    told = json.loads(out.read_text())
    assert (told["model"], told["also"]) == ("default", SECOND[-1])
    assert trained_alone(tmp_path).keys() == told.keys() - {"also"}
    _, ((first, *_),) = watch(weights, 1)
    assert first.goal is not None and "target distance t*" in first.lines


def trained_alone(tmp_path: Path) -> dict:
    out = tmp_path / "alone.json"
    assert play(train(tmp_path / "alone") / "model.tar", "--num_episodes", "2", "--json", str(out)) == 0
    return json.loads(out.read_text())


@pytest.mark.parametrize("second", SECOND)
def test_the_flags_of_both_do_something(second):
    names = [*flags_of(MOTIVATIONS["default"].groups), *flags_of(MOTIVATIONS[second].groups)]
    both, alone = (settings_module.make({"model": "default", "also": also}) for also in (second, None))
    own = set(flags_of(MOTIVATIONS[second].groups))
    assert own.isdisjoint(settings_module.idle(both, names)) and own == own & settings_module.idle(alone, names).keys()

"""Minigrid 3 against gym-minigrid, game by game, and against a loop by hand where gym-minigrid has no such game.

Most of it needs `requirements-minigrid.txt`, and is skipped without it; what is said without it is tested everywhere.
"""

from __future__ import annotations

import io
import json
import sys

import numpy as np
import pytest
import torch

from tests.helpers import playing
from tests.helpers.program import ROOT
from utils_folder.minigrid import (
    REGISTRY,
    choose_engine,
    make_environments,
    minigrid3,
    probe,
    survey,
)
from utils_folder.minigrid.base import carried

CORRIDOR = "MiniGrid-KeyCorridorS3R3-v0"
LOCAL = "BabyAI-GoToLocalS5N2-v0"  # a step limit of 25: random play sees rewards and limits
SEQUENCE = "BabyAI-GoToSeqS5R2-v0"  # each level sets its own step limit
FAMILIES = {  # whether random play is rewarded
    "MiniGrid-KeyCorridorS3R1-v0": False,  # a trained agent's rewards are compared below
    "MiniGrid-ObstructedMaze-1Dlhb-v0": False,
    "MiniGrid-DoorKey-5x5-v0": True,
    "MiniGrid-MultiRoom-N2-S4-v0": True,
    "MiniGrid-LavaGapS5-v0": True,
    "MiniGrid-Fetch-5x5-N2-v0": True,
    "MiniGrid-MemoryS7-v0": True,
}
OTHERS = {  # their episodes are of another length in Minigrid 3
    "MiniGrid-DoorKey-6x6-v0",
    "MiniGrid-GoToDoor-5x5-v0",
    "MiniGrid-GoToDoor-6x6-v0",
    "MiniGrid-GoToDoor-8x8-v0",
}

needs_it = pytest.mark.skipif(not minigrid3.names(), reason=f"Minigrid 3: {minigrid3.playable(CORRIDOR)}")


def play(environment, actions, first=None, ended_every=50):
    """Copies of all outputs; every so many steps a third of the episodes is ended from outside."""
    outputs = [environment.initial() if first is None else first]
    outputs = [{name: array.copy() for name, array in outputs[0].items()}]
    for t, row in enumerate(actions, 1):
        out = environment.step(row)
        if ended_every and t % ended_every == 0:
            out = environment.restart(np.arange(environment.num_envs) % 3 == t // ended_every % 3)
        outputs.append({name: array.copy() for name, array in out.items()})
    return outputs


def random_actions(steps, num_envs, num_actions=7, seed=0):
    """int64 [steps, num_envs], more often forward than not, rarely done."""
    weights = np.array((1, 1, 4, 2, 0.3, 2, 0.1))[:num_actions]
    return np.random.default_rng(seed).choice(num_actions, (steps, num_envs), p=weights / weights.sum())


def assert_same(mine, theirs):
    for t, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        assert a.keys() == b.keys()
        for name, array in a.items():
            assert array.dtype == b[name].dtype
            np.testing.assert_array_equal(array, b[name], err_msg=f"{name} at {t}")


# -- What gym-minigrid has too ----------------------------------------------------------------------------------------


@pytest.mark.slow
@needs_it
@pytest.mark.parametrize("name, rewarded", FAMILIES.items())
def test_levels_rewards_and_ends_by_seed_are_those_of_gym_minigrid(name, rewarded):
    seeds = range(30)
    actions = random_actions(180, len(seeds))
    games = [make_environments(name, seeds, engine=engine) for engine in ("minigrid3", "gym")]
    assert len({(game.frame_shape, game.num_actions, game.max_steps) for game in games}) == 1
    mine, theirs = [play(game, actions) for game in games]
    assert_same(mine, theirs)
    assert rewarded == any(out["reward"].any() for out in mine), "the comparison saw rewards"
    assert (sum(out["done"].astype(int) for out in mine[1:]) >= 1).all(), "and later levels of every seed"


@pytest.mark.slow
@needs_it
def test_of_all_that_both_have_only_what_is_the_same_is_played():
    refused = set()
    for name in set(REGISTRY["gym"].names()) & set(minigrid3.names()):
        if minigrid3.playable(name) is not None:
            refused.add(name)
            continue
        games = [make_environments(name, [3, 4], engine=engine) for engine in ("minigrid3", "gym")]
        assert len({(game.frame_shape, game.num_actions, game.max_steps) for game in games}) == 1, name
        actions = random_actions(52, 2, games[0].num_actions)
        assert_same(*[play(game, actions) for game in games])
        assert survey(name).size == minigrid3.survey(name).size
    assert refused == OTHERS
    with pytest.raises(ValueError) as error:
        choose_engine("MiniGrid-DoorKey-6x6-v0", "minigrid3")
    assert str(error.value) == (
        "Minigrid 3 cannot play MiniGrid-DoorKey-6x6-v0 (its episodes end after 360 steps in Minigrid 3, after 250 in "
        "gym-minigrid): use --engine compiled or gym or auto"
    )


@needs_it
@pytest.mark.slow
def test_a_shipped_agent_has_the_same_figures(tmp_path):
    figures = []
    for engine in ("minigrid3", "gym"):
        out = tmp_path / f"{engine}.json"
        more = ["--engine", engine, "--num_episodes", "60", "--seed", "5", "--json", str(out)]
        assert playing.play(ROOT / "results/keycorridor-default-1/model.tar", *more) == 0
        figures.append(json.loads(out.read_text()))
    assert figures[0] == figures[1]
    assert figures[0]["success_rate"] > 0.9


# -- What it alone has ------------------------------------------------------------------------------------------------


def by_hand(name, seed, actions, fixed_seed=None):
    """The outputs of one environment: the first, then one an action."""
    import gymnasium

    game = gymnasium.make(name, disable_env_checker=True).unwrapped

    def look():
        frame = game.grid.encode()
        frame[tuple(game.agent_pos)] = 10, 0, game.agent_dir
        return {"frame": frame, "carried_obj": carried(game)[0], "carried_col": carried(game)[1]}

    game.reset(seed=seed if fixed_seed is None else fixed_seed)
    outputs = [{**look(), "reward": 0, "done": True, "truncated": False, "episode_return": 0, "episode_step": 0}]
    rewards = []
    for action in actions:
        _, reward, terminated, truncated, _ = game.step(int(action))
        rewards.append(reward)
        told = {"reward": reward, "done": terminated or truncated, "truncated": truncated and not terminated}
        told |= {"episode_return": sum(rewards), "episode_step": len(rewards)}
        if terminated or truncated:
            game.reset(seed=fixed_seed)
            rewards = []
        outputs.append({**look(), **told})
    return outputs


@needs_it
@pytest.mark.parametrize("fixed_seed", [None, 11])
@pytest.mark.parametrize("name", [LOCAL, "BabyAI-PutNextS5N2Carrying-v0", "MiniGrid-ObstructedMaze-2Dlhb-v1"])
def test_it_plays_as_a_loop_by_hand_does(name, fixed_seed):
    seeds = [5, 6, 17]
    actions = random_actions(220, 3)
    environment = make_environments(name, seeds, engine="minigrid3", fixed_seed=fixed_seed)
    outputs = play(environment, actions, ended_every=None)
    for e, seed in enumerate(seeds):
        for t, expected in enumerate(by_hand(name, seed, actions[:, e], fixed_seed)):
            assert outputs[t].keys() == expected.keys()
            for field, value in expected.items():
                np.testing.assert_allclose(outputs[t][field][e], value, rtol=1e-6, err_msg=f"{field}[{t}, {e}]")
    if name == LOCAL:
        assert any(out["reward"].any() for out in outputs)
        assert any((out["done"] & (out["episode_step"] == environment.max_steps)).any() for out in outputs)
    if "Carrying" in name:
        assert (outputs[0]["carried_obj"] != 1).all(), "an episode can start with something in hand"


@needs_it
def test_what_it_alone_has_is_known_and_chosen_by_its_name():
    assert survey(LOCAL).size == (5, 5) and survey("MiniGrid-ObstructedMaze-Full-v1").size == (16, 16)
    assert choose_engine(LOCAL, "auto") == "minigrid3" and choose_engine(CORRIDOR, "auto") == "compiled"
    environment = probe(LOCAL, num_input_frames=2)
    assert (environment.frame_shape, environment.num_actions, environment.max_steps) == ((5, 5, 6), 7, 25)
    with pytest.raises(ValueError, match=f"did you mean {LOCAL}"):
        survey("BabyAI-GoToLocalS5N-v0")
    with pytest.raises(ValueError, match="unknown environment"):  # what it is made from is not in the package
        survey("MiniGrid-WFC-MazeSimple-v0")
    assert minigrid3.playable("CartPole-v1") == "Minigrid 3 has no environment of that name"


@pytest.mark.slow
@needs_it
def test_a_step_limit_that_differs_by_level_is_the_largest_of_some(capsys):
    environment = make_environments(SEQUENCE, range(20), engine="minigrid3")
    waiting = np.full((environment.max_steps, 20), survey(SEQUENCE).action_names.index("done"))
    outputs = play(environment, waiting, ended_every=None)
    ends = {int(out["episode_step"][e]) for out in outputs for e in np.flatnonzero(out["done"])}
    assert environment.max_steps == 400 and {100, 200, 300} <= ends and max(ends) <= 400
    assert capsys.readouterr().out == "", "the package would print a line for each level that it throws away"


@needs_it
@pytest.mark.parametrize("steps", [0, 33])
@pytest.mark.parametrize(
    "name, k, fixed_seed",
    [(LOCAL, 2, None), (LOCAL, 1, 9), (CORRIDOR, 1, None), ("BabyAI-MiniBossLevel-v0", 1, None),
     ("BabyAI-PutNextS5N2Carrying-v0", 3, None), ("MiniGrid-ObstructedMaze-Full-v1", 1, None),
     ("MiniGrid-Dynamic-Obstacles-5x5-v0", 1, None)],
)  # fmt: skip
def test_a_saved_state_goes_on_identically(name, k, fixed_seed, steps):
    made = dict(engine="minigrid3", num_input_frames=k, fixed_seed=fixed_seed)
    environment = make_environments(name, [5, 6, 17], **made)
    actions = random_actions(steps + 120, 3, environment.num_actions)
    play(environment, actions[:steps])
    out = environment.restart(np.array([False, False, True]))
    file = io.BytesIO()
    torch.save(environment.state_dict(), file)
    expected = play(environment, actions[steps:], out)

    file.seek(0)
    resumed = make_environments(name, [99, 98, 97], **made)
    play(resumed, actions[:7])  # it has had other levels, and nothing of them stays
    current = resumed.load_state_dict(torch.load(file, weights_only=True))
    assert_same(play(resumed, actions[steps:], current), expected)


# -- Where it is not installed ----------------------------------------------------------------------------------------


@pytest.fixture
def forgotten():
    """What is remembered of the package is forgotten, before and after."""
    remembered = (minigrid3._absence, minigrid3._minigrid, minigrid3._tasks)
    for function in remembered:
        function.cache_clear()
    yield
    for function in remembered:
        function.cache_clear()


PIP = "pip install -r requirements-minigrid.txt"


@pytest.fixture
def absent(forgotten, monkeypatch):
    monkeypatch.setattr(sys, "version_info", max(sys.version_info, (3, 11)))
    monkeypatch.setitem(sys.modules, "minigrid", None)


def test_where_it_is_not_installed_it_is_refused_with_the_remedy(absent):
    with pytest.raises(ValueError) as error:
        choose_engine(CORRIDOR, "minigrid3")
    assert str(error.value) == (
        f"Minigrid 3 cannot play {CORRIDOR} (it is not installed: {PIP}): use --engine compiled or gym or auto"
    )
    with pytest.raises(ValueError) as error:
        survey(LOCAL)
    assert f" (Minigrid 3 may have it, but it is not installed: {PIP}); one of your own is MODULE:NAME" in str(error.value)


def test_where_it_is_not_installed_auto_passes_it_by(absent):
    assert choose_engine(CORRIDOR, "auto") == "compiled"
    assert choose_engine("MiniGrid-Dynamic-Obstacles-5x5-v0", "auto") == "gym"
    assert minigrid3.names() == []


def test_an_older_python_or_version_or_a_broken_one_is_named(forgotten, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    assert minigrid3.playable(CORRIDOR) == f"it needs Python 3.11 or newer, and {PIP}"
    monkeypatch.setattr(sys, "version_info", (3, 11, 0))
    minigrid3._absence.cache_clear()

    class Older:
        __version__ = "3.1.0"

    monkeypatch.setattr(minigrid3, "_minigrid", Older)
    assert minigrid3.playable(CORRIDOR) == f"version 3.2 is needed, 3.1.0 is installed: {PIP}"
    minigrid3._absence.cache_clear()

    def broken():
        raise ImportError("no libSDL2")

    monkeypatch.setattr(minigrid3, "_minigrid", broken)
    assert minigrid3.playable(CORRIDOR) == f"it cannot be imported (no libSDL2): {PIP}"
    minigrid3._absence.cache_clear()

"""Tasks of users' own: which is meant, what it is made with, and what is refused before it is played."""

from __future__ import annotations

import json

import gym
import numpy as np
import pytest
from gym_minigrid.minigrid import MiniGridEnv

from utils_folder import minigrid
from utils_folder.minigrid import EnvironmentSettings, make_environments, survey
from utils_folder.minigrid.names import GYM_TASKS, canonical_args

pytestmark = pytest.mark.usefixtures("own_modules")
REGISTERED = sorted(name for name in gym.envs.registry if name.startswith("MiniGrid-"))
BALL = "my_tasks:OneBall-v0"


def problems(env, **settings):
    return minigrid.problems(env, EnvironmentSettings(**settings))


def test_a_module_is_imported_and_its_environment_played():
    assert problems(BALL) == []
    environment = make_environments(BALL, [3, 4], engine="gym")
    assert environment.frame_shape == (7, 7, 3) and environment.max_steps == 80
    assert environment.initial()["frame"].shape == (2, 7, 7, 3)
    assert survey("odd_tasks:ours/Room-v1").size == (6, 5)


def test_arguments_reach_the_environment():
    args = canonical_args('{"size": 6, "colour": "blue", "max_steps": 60}')
    environment = make_environments(f"{BALL} {args}", [3])
    assert environment.frame_shape == (6, 6, 3) and environment.max_steps == 60
    assert problems(BALL, env_args=args) == []
    game = GYM_TASKS.make('MiniGrid-Empty-8x8-v0 {"agent_start_pos": [3, 2]}').unwrapped
    game.reset(seed=1)
    assert tuple(game.agent_pos) == (3, 2)


@pytest.mark.parametrize("engine", ["compiled", "gym"])
@pytest.mark.parametrize("name", REGISTERED)
def test_max_steps_works_for_every_environment(name, engine):
    task = f'{name} {{"max_steps": 13}}'
    assert GYM_TASKS.make(task).unwrapped.max_steps == 13 == survey(task).max_steps
    if engine == "gym" or minigrid.choose_engine(name, "auto") == engine:
        assert make_environments(task, [1], engine=engine).max_steps == 13


@pytest.mark.parametrize(
    ("task", "limit"),
    [
        ("odd_tasks:Short-v0", 9),
        ('odd_tasks:Short-v0 {"max_steps": 5}', 5),
        ('odd_tasks:Room-v0 {"max_episode_steps": 7}', 7),
        ('odd_tasks:Room-v0 {"max_episode_steps": 70}', 20),
        ('MiniGrid-Empty-5x5-v0 {"max_episode_steps": 7}', 7),
        ("odd_tasks:OwnLimit-v0", 30),
    ],
)
def test_the_smallest_limit_counts(task, limit):
    environment = make_environments(task, [1])
    environment.initial()
    assert environment.max_steps == limit
    for step in range(1, limit + 1):
        out = environment.step(np.zeros(1, np.int64))
        assert out["truncated"][0] == out["done"][0] == (step == limit)


def test_a_time_limit_anywhere_around_it_counts():
    env = gym.wrappers.OrderEnforcing(gym.wrappers.TimeLimit(gym.make("MiniGrid-Empty-5x5-v0"), 11))
    assert GYM_TASKS.step_limit(env) == 11
    assert GYM_TASKS.step_limit(gym.make("MiniGrid-Empty-5x5-v0")) == 100


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ("nowhere:Room-v0", ("'nowhere' cannot be imported", "PYTHONPATH")),
        ("broken_tasks:Room-v0", ("'broken_tasks' cannot be imported", "I am no module")),
        ("odd_tasks:Roam-v0", ("registers no environment 'Roam-v0'", "did you mean Room-v0")),
        ("odd_tasks:", ("registers no environment ''",)),
        (":Room-v0", ("cannot be imported",)),
        ("odd_tasks:Room-v0:1", ("registers no environment",)),
        ("MiniGrid-Emty-8x8-v0", ("did you mean MiniGrid-Empty-8x8-v0",)),
        ("CartPole-v1", ("CartPole-v1 is no MiniGrid environment",)),
        ("odd_tasks:NoRoom-v0", ("NoRoom does not derive from gym_minigrid.minigrid.MiniGridEnv",)),
        ('MiniGrid-Empty-8x8-v0 {"max_steps": 4}', ("no spaces", "--env_args")),
        ("odd_tasks:Old-v0", ("its step returns 4 values (gym's old API)", "observation, reward, terminated, truncated, info")),
        ("odd_tasks:OldReset-v0", ("old API", "reset")),
        ("odd_tasks:Unseeded-v0", ("fails at its first reset", "seed")),
        ("odd_tasks:FailingStep-v0", ("fails at its first step, with action 5 (OSError: the door is stuck)",)),
        ("odd_tasks:FailingReset-v0", ("fails at its first reset (KeyError: 'no grid')",)),
        ("odd_tasks:FailingLevel-v0", ("fails at its first reset (TypeError: a grid of words)",)),
        ("odd_tasks:FourValues-v0", ("its step returns 4 values (gym's old API)",)),
        ("odd_tasks:ImgObsWrapper-v0", ("leave out its wrappers of observations, the agent sees the whole grid",)),
        ("odd_tasks:FailingLater-v0", ("KeyError: 'no more levels'",)),
        ("odd_tasks:NotANumber-v0", ("a reward of nan for action 0", "must be finite")),
        ("odd_tasks:NoLimit-v0", ("a step limit of inf", "--env_args")),
        ("odd_tasks:Deep-v0", ("fails at its first reset (RecursionError",)),
        ("odd_tasks:Boxed-v0", ("Box", "Discrete(n)")),
        ("odd_tasks:FromOne-v0", ("Discrete(7, start=1)", "counted from 0")),
    ],
)
def test_what_cannot_be_played_is_refused_in_one_line(env, said):
    (problem,) = problems(env)
    assert problem.startswith("--env") and "\n" not in problem
    for words in said:
        assert words in problem


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("5", "JSON object"),
        ("[]", "JSON object"),
        ("{", "JSON object"),
        ("{'max_steps': 5}", "JSON object"),
        ('{"max_steps": 5, "max_steps": 6}', "twice"),
        ('{"a": NaN}', "NaN is no number of JSON"),
        ('{"a": -Infinity}', "no number of JSON"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "RecursionError"),
        ('{"a": ' + "9" * 5_000 + "}", "JSON object"),
        ('{"max_steps": 0}', "at least 1"),
        ('{"max_steps": 1.5}', "whole number"),
        ('{"max_steps": true}', "whole number"),
        ('{"max_steps": "5"}', "whole number"),
        ('{"max_episode_steps": -1}', "at least 1"),
        ('{"max_episode_steps": null}', "whole number"),
        ('{"size": 1000000000}', "32x32"),
        ('{"render_mode": "human"}', "leave it out"),
        ('{"autoreset": true}', "leave it out"),
        ('{"id": "x"}', "leave it out"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(text, said):
    with pytest.raises(ValueError, match=said) as error:
        canonical_args(text)
    assert "--env_args" in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 300


def test_arguments_that_the_environment_does_not_take_are_named():
    (problem,) = problems("MiniGrid-Empty-8x8-v0", env_args='{"colour": "red"}')
    assert "cannot be made, see --env_args" in problem and "'colour'" in problem
    (problem,) = problems("odd_tasks:OwnLimit-v0", env_args='{"max_steps": 25}')
    assert "its levels set their own step limit (30)" in problem and "leave max_steps out" in problem


def test_arguments_have_one_way_of_being_written():
    assert canonical_args(' {"b":1,"a":[1, 2]}') == '{"a": [1, 2], "b": 1}' == canonical_args(json.dumps({"a": [1, 2], "b": 1}))
    assert canonical_args("{}") is None


@pytest.mark.parametrize("name", REGISTERED)
def test_every_registered_environment_passes_the_first_look(name):
    look, game = survey(name), gym.make(name, disable_env_checker=True).unwrapped
    assert look.size == (game.width, game.height) and look.max_steps == game.max_steps
    assert look.action_names == tuple(action.name for action in MiniGridEnv.Actions)[: game.action_space.n]
    game.reset(seed=0)
    missions = {game.mission}
    for _ in range(30):
        game.reset()
        missions.add(game.mission)
    assert len(look.notices(partial=False)) == (len(missions) > 1)
    assert not survey(name, fixed_seed=3).notices(partial=False)
    assert len(survey(name, fixed_seed=3).notices(partial=True)) == game.see_through_walls


def test_a_mission_that_differs_is_said_to_be_unseen():
    (notice,) = survey("MiniGrid-GoToDoor-5x5-v0").notices(partial=False)
    assert "differs by episode ('go to the " in notice and "in no input of the agent" in notice and "\n" not in notice


@pytest.mark.parametrize(
    ("name", "said"),
    [(name, False) for name in ("Room", "Leaping", "FullyObsWrapper")]
    + [(name, True) for name in ("RGBImgObsWrapper", "Blind", "Told")],
)
def test_observations_of_its_own_are_said_to_be_unseen(name, said):
    for partial, seen in ((False, "the whole grid"), (True, "the partial view")):
        told = survey(f"odd_tasks:{name}-v0", fixed_seed=1).notices(partial=partial)
        line = f"the task has observations of its own, which are in no input of the agent: it sees {seen}"
        assert [one for one in told if "observations" in one] == [line] * said


def test_a_partial_view_that_is_not_the_tasks_own_is_said_to_be_another():
    (line,) = survey("MiniGrid-Empty-5x5-v0").notices(partial=True)
    assert "own view has 7x7 cells and goes through walls, the student's is that of all tasks: 7x7 cells, and walls" in line
    (line,) = survey('MiniGrid-LavaGapS5-v0 {"agent_view_size": 5}').notices(partial=True)
    assert "own view has 5x5 cells, the student's is that of all tasks: 7x7 cells" in line
    assert not survey("MiniGrid-KeyCorridorS3R3-v0", fixed_seed=1).notices(partial=True)


def test_actions_have_the_tasks_own_names():
    assert survey("odd_tasks:Nine-v0").action_names[6:] == ("done", "wave", "whistle")
    assert survey("odd_tasks:Nameless-v0").action_names[6:] == ("done", "action 7")
    assert survey("odd_tasks:Leaping-v0").action_names[6:] == ("done", "leap", "spin"), "a wrapper's own"
    assert survey("odd_tasks:Three-v0").action_names == ("action 0", "action 1", "action 2"), "left, right, forward are others"
    assert survey("MiniGrid-Dynamic-Obstacles-5x5-v0").action_names == ("left", "right", "forward")

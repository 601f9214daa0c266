"""--student_view partial: what the student is told of states by its actor, and by the learner, is the agent's view."""

from __future__ import annotations

import json
from itertools import product

import gym
import numpy as np
import pytest
import torch
from gym_minigrid.wrappers import FullyObsWrapper

from main import main as entry
from main import settings as settings_module
from models.distinct import Rows
from tests.helpers.agents import make_inline, random_batch
from tests.helpers.learning import (
    TASK,
    B,
    assert_behaviour_is_recomputed,
    assert_goes_on_bit_for_bit,
    assert_updates_stay_finite,
    learner_settings,
    make_agent,
    real_settings,
)
from tests.helpers.marks import rarer, some
from tests.helpers.program import command
from tests.helpers.runs import assert_learns_a_small_task, assert_resumes_to_the_last_bit, assert_trains_and_plays
from tests.helpers.views import plain_cells_in_view, views_made
from utils_folder.minigrid import view
from utils_folder.motivations import MOTIVATIONS

MODELS = list(MOTIVATIONS)
CORRIDOR = "MiniGrid-ObstructedMaze-1Dl-v0"  # 11 x 6: doors hide, and balls are carried
PARTIAL = ("--student_view", "partial")
SHORT = ("--env_args", '{"max_steps": 9}')


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    torch.set_num_threads(1)


class Game:
    """One environment by gym-minigrid itself, played on through its episodes."""

    def __init__(self, seed: int):
        self.env = FullyObsWrapper(gym.make(CORRIDOR, disable_env_checker=True))
        self.env.reset(seed=seed)

    def step(self, action: int) -> None:
        *_, terminated, truncated, _ = self.env.step(action)
        if terminated or truncated:
            self.env.reset()

    def shown(self) -> tuple[np.ndarray, list[int]]:
        game = self.env.unwrapped
        return game.gen_obs()["image"], [*map(int, game.agent_pos), int(game.agent_dir)]


@pytest.mark.parametrize(
    "engine, model", [("compiled", MODELS[0]), ("gym", MODELS[-1]), *rarer(product(["compiled", "gym"], MODELS))]
)
def test_rollouts_hold_gym_minigrids_own_view_of_every_state(model, engine):
    """As the actor's student saw it: the learner makes of rollouts what it acted with (below)."""
    settings = real_settings(model=model, env=CORRIDOR, student_view="partial", engine=engine, unroll_length=90, batch_size=2)
    learner, source, _ = make_inline(settings, num_envs=2)
    games = [Game(10 + e) for e in range(2)]
    carried = 0
    for number in range(4):
        batch = source.get(2)
        inputs, _ = learner._inputs(learner.seen(batch))
        assert inputs["frame"] is batch["view"]
        for t in range(91):
            for e, game in enumerate(games):
                if t:
                    game.step(int(batch["action"][t, e]))
                image, pose = game.shown()
                assert np.array_equal(batch["view"][t, e], image), (number, t, e)
                assert batch["pose"][t, e].tolist() == pose
                carried += int(image[3, 6, 0] != 1)
        if "goal" in inputs:
            mine = inputs["goal"]
            assert torch.equal(mine, plain_cells_in_view(batch["goal"], batch["pose"], height=6))
            assert (mine < 49).any() and (mine == 49).any()
    assert carried > 0, "nothing was carried: the test has not looked at that"


@pytest.mark.parametrize("lstm", [False, True])
@pytest.mark.parametrize("model", some(MODELS))
def test_behaviour_on_rollouts_is_what_the_learner_recomputes(model, lstm):
    settings = {"student_view": "partial", "use_lstm": lstm, "env": "MiniGrid-LavaGapS5-v0", "unroll_length": 9}
    assert_behaviour_is_recomputed(real_settings(model=model, **settings))


@pytest.mark.parametrize("model", some(MODELS))
def test_a_default_student_has_no_field_of_it(model):
    fields = make_agent(learner_settings(model=model)).rollout_fields()
    assert fields.keys().isdisjoint(view.VIEW_FIELDS) and fields["frame"].shape == TASK.frame_shape
    fields = make_agent(learner_settings(model=model, student_view="partial")).rollout_fields()
    assert fields.keys() > view.VIEW_FIELDS.keys() and fields["frame"].shape == TASK.frame_shape  # the teacher's, and others'


@pytest.mark.parametrize("model", some(MODELS))
def test_the_view_is_made_once_of_each_state(model, monkeypatch):
    _, source, _ = make_inline(real_settings(model=model, student_view="partial"), num_envs=4)
    assert views_made(monkeypatch, source) == 4 * 7


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("model", some(MODELS))
def test_what_is_out_of_view_does_not_matter_to_the_student_and_is_not_computed_again(model, grad, monkeypatch):
    """Two states that differ there alone are equal rows for it."""
    settings = learner_settings(model=model, student_view="partial", unroll_length=31)
    agent = make_agent(settings)
    learner, batch = agent.learner(), random_batch(TASK, settings)
    for name in ("view", "pose", "carried_obj", "carried_col"):
        batch[name][:] = batch[name][:1, :1]
    counts, find = [], Rows.find

    def counted(self, *rows):
        first, group = find(self, *rows)
        counts.append(len(first))
        return first, group

    monkeypatch.setattr(Rows, "find", counted)
    student = learner.student
    if "goal" in batch:
        batch["goal"][:] = torch.where(torch.rand(batch["goal"].shape) < 0.5, 0, 1)
        batch["pose"][...] = torch.tensor([4, 3, 0])  # looks to the right, away from both
        assert len({frame.numpy().tobytes() for frame in batch["frame"].flatten(0, 1)}) == 32 * B
    with torch.set_grad_enabled(grad):
        inputs, core_state = learner._inputs(learner.seen(batch))
        outputs, _ = student(inputs, core_state, student.compose())
    logits = outputs["policy_logits"].detach()
    assert counts == [1] and (logits == logits[0, 0]).all()


@pytest.mark.parametrize("model", MODELS)
def test_a_few_updates_stay_finite_and_a_saved_learner_goes_on_bit_for_bit(model, tmp_path):
    settings = real_settings(model=model, student_view="partial", num_lstm_layers=2)
    assert_updates_stay_finite(settings, updates=6)
    assert_goes_on_bit_for_bit(settings, tmp_path)


def test_stacked_views_are_refused_with_a_remedy(tmp_path, capsys):
    assert entry.main(command(tmp_path, *PARTIAL, "--num_input_frames", "2")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "leave out --num_input_frames" in line and "--use_lstm" in line and not list(tmp_path.iterdir())
    assert settings_module.problems(settings_module.make({"student_view": "partial", "use_lstm": True})) == []


# -- whole runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("model", [MODELS[0], *rarer(MODELS[1:])])
def test_an_agent_trains_and_plays_and_is_filmed(tmp_path, capsys, model):
    assert_trains_and_plays(tmp_path, capsys, "--model", model, *PARTIAL, "--bootstrap_time_limit", *SHORT)
    film = tmp_path / "film.gif"
    more = ("--num_episodes", "1", "--record_video", "--video_path", str(film))
    assert entry.main(["--mode", "test", "--weight_path", str(tmp_path / "run"), *more]) == 0
    assert film.stat().st_size > 0
    assert json.loads((tmp_path / "run" / "meta.json").read_text())["args"]["student_view"] == "partial"
    capsys.readouterr()
    assert entry.main(["--mode", "test", "--weight_path", str(tmp_path / "run"), "--env", CORRIDOR]) == 2
    error = capsys.readouterr().err
    assert "25 cells" in error and "11x6" in error and len(error.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("model", [MODELS[0], *rarer(MODELS[1:])])
def test_an_interrupted_run_resumes_to_the_last_bit(tmp_path, monkeypatch, model):
    more = ("--use_lstm", "--bootstrap_time_limit")
    assert_resumes_to_the_last_bit(tmp_path, monkeypatch, "--model", model, *PARTIAL, *more)


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_a_small_task_is_learned(tmp_path, model):
    args = ("--model", model, "--num_actor_processes", "0", *PARTIAL)
    assert_learns_a_small_task(tmp_path, *args, *MOTIVATIONS[model].example.split())

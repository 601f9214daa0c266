"""BeBold's motivation against SPEC sections 3 and 4: visits, the intrinsic reward, the predictor's update, by slow twins."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from main.training.recipe import make_environments
from tests.helpers.agents import AGENT, ScriptedEnvironment, make_inline, make_motivation, make_settings, random_frames
from tests.helpers.learning import TASK, B, T, assert_student_updates_are_the_twins, learner_settings, make_agent
from tests.helpers.motivations.bebold import plain_random_network, random_batch
from tests.helpers.twins import PlainRMSprop, assert_same_change, snapshot
from tests.helpers.views import views_made
from torchbeast.core.optimizer import LearningSettings
from utils_folder.minigrid.view import partial_view
from utils_folder.motivations.base import Task
from utils_folder.motivations.bebold import NoveltySettings


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def novelty_settings(**overrides):
    common = {"model": "novelty_based", "unroll_length": T, "batch_size": B, "total_frames": T * B * 10, "learning_rate": 0.01}
    return make_settings(**{**common, **overrides})


# -- visits ----------------------------------------------------------------------------------------------------------------


def plain_visits(frames, done):
    """[t] -> how often frame t has been seen since its episode's first frame, itself included: compared one by one."""
    visits = []
    for t, frame in enumerate(frames):
        start = max([0, *(s for s in range(t + 1) if done[s])])
        visits.append(sum(np.array_equal(frame, frames[s]) for s in range(start, t + 1)))
    return visits


def test_visits_by_hand():
    """Environment 0: a a b | a a b (the frame at done opens the new episode); environment 1: a a a b b a, no end."""
    a, b = random_frames(2, 4, 3, 3).numpy()
    frames = np.array([[a, a], [a, a], [b, a], [a, b], [a, b], [b, a]])
    done = np.zeros((6, 2), bool)
    done[3, 0] = True
    environment = ScriptedEnvironment(frames, done)
    actor = make_motivation(novelty_settings(), Task.of(environment)).actor(2, torch.Generator())
    visits = [actor.observe(environment.initial(), environment)["visits"].tolist()]
    visits += [actor.observe(environment.step(np.zeros(2, int)), environment)["visits"].tolist() for _ in range(5)]
    assert visits == [[1, 1], [2, 2], [1, 3], [1, 1], [2, 2], [1, 4]]


@pytest.mark.parametrize("engine", ["gym", "compiled"])
def test_visits_are_the_twins(engine):
    settings = novelty_settings(env="MiniGrid-LavaGapS5-v0", engine=engine)
    environment = make_environments(settings, [1, 2, 3])
    actor = make_motivation(settings, Task.of(environment)).actor(3, torch.Generator())
    random = np.random.default_rng(0)
    frames, done, visits = [], [], []
    for t in range(150):
        out = environment.initial() if t == 0 else environment.step(random.integers(7, size=3))
        visits.append(actor.observe(out, environment)["visits"].copy())
        frames.append(out["frame"].copy())
        done.append(out["done"].copy())
        if t == 70:  # saved and loaded in the middle of episodes
            state = actor.state_dict()
            actor = make_motivation(settings, Task.of(environment)).actor(3, torch.Generator())
            actor.load_state_dict(state)
    frames, done, visits = np.array(frames), np.array(done), np.array(visits)
    assert done[1:].sum() >= 3 and (visits > 2).any() and (visits == 1).any()
    for e in range(3):
        assert visits[:, e].tolist() == plain_visits(frames[:, e], done[:, e])


def test_each_row_is_counted_once_though_rollouts_overlap():
    settings = novelty_settings(env="MiniGrid-LavaGapS5-v0", unroll_length=11, batch_size=2, engine="compiled")
    _, source, rollouts = make_inline(settings, num_envs=2)
    batches = [source.get(2) for _ in range(5)]
    for before, after in zip(batches, batches[1:]):
        for name in rollouts.fields:
            assert torch.equal(before[name][-1], after[name][0]), name
    frames, done, visits = (
        np.concatenate([batches[0][name][:1], *(batch[name][1:] for batch in batches)]) for name in ("frame", "done", "visits")
    )
    for e in range(2):
        assert visits[:, e].tolist() == plain_visits(frames[:, e], done[:, e])


def test_the_agents_cell_is_embedded_in_ten_numbers_whatever_goal_dim_says():
    """--goal_dim sizes what no forward pass of the student's uses, not the novelty networks."""
    motivation = make_motivation(make_settings(model="novelty_based", goal_dim=3), TASK)
    for network in motivation.networks.values():
        assert network.embed_agent_loc.weight.shape == (25, 10)


# -- intrinsic reward and the predictor ------------------------------------------------------------------------------------


class PlainBeBold:
    """SPEC section 4's novelty in float64: N(s), the intrinsic reward and the predictor's loss, with loops."""

    def __init__(self, motivation, settings):
        own = self.own = settings[NoveltySettings]
        self.seen = "view" if own.novelty_view == "partial" else "frame"
        task = TASK._replace(frame_shape=(7, 7, 3)) if self.seen == "view" else TASK
        self.target = plain_random_network(motivation.networks["target"], task, own.novelty_output).requires_grad_(False)
        self.predictor = plain_random_network(motivation.networks["predictor"], task, own.novelty_output)
        rate = own.novelty_learning_rate
        rate = settings[LearningSettings].learning_rate if rate is None else rate
        self.optimizer = PlainRMSprop(self.predictor, rate, settings)

    def novelty(self, batch):
        batch = batch | {"frame": batch[self.seen]}
        return ((self.predictor(batch) - self.target(batch)) ** 2).sum(-1).sqrt()

    def intrinsic(self, batch):
        N = self.novelty(batch).detach()
        reward = torch.zeros(N.shape[0] - 1, N.shape[1], dtype=torch.float64)
        for t in range(1, N.shape[0]):
            for b in range(N.shape[1]):
                if batch["visits"][t, b] == 1:
                    gain = max(N[t, b].item() - self.own.novelty_scale * N[t - 1, b].item(), 0.0)
                    reward[t - 1, b] = self.own.novelty_coef * gain
        return reward

    def learn(self, batch):
        N = self.novelty(batch)
        loss = sum(N[t].sum() / N.shape[1] for t in range(1, N.shape[0]))
        self.optimizer.step(loss)
        return float(loss)


NUMBERS = [
    {},
    {"novelty_scale": 0.5, "novelty_coef": 0.7},
    {"learning_rate": 0.003, "momentum": 0.4},
    {"novelty_learning_rate": 0.002},
    {"novelty_view": "partial"},
    {"novelty_output": "linear"},
    {"novelty_view": "partial", "novelty_scale": 0.5},  # NovelD
]


@pytest.mark.parametrize("overrides", NUMBERS)
def test_intrinsic_reward_and_predictor_are_the_twins(overrides):
    settings = novelty_settings(**overrides)
    motivation = make_motivation(settings, TASK)
    twin = PlainBeBold(motivation, settings)
    before, target = snapshot(motivation.networks["predictor"]), snapshot(motivation.networks["target"])
    for _ in range(4):
        batch = random_batch(TASK, settings)
        mine = dict(batch)
        reward, expected = motivation.intrinsic_reward(mine), twin.intrinsic(batch)
        assert reward.dtype == torch.float32 and not reward.requires_grad
        assert (expected > 0).any() and (expected == 0).any()
        torch.testing.assert_close(reward.double(), expected, rtol=1e-3, atol=1e-4)
        stats = motivation.learn(mine)
        assert stats["novelty_loss"] == pytest.approx(twin.learn(batch), rel=1e-3)
    assert_same_change(motivation.networks["predictor"], twin.predictor, before, unused=())
    for name, value in motivation.networks["target"].named_parameters():
        assert torch.equal(value, target[name]), name


def test_novelds_recipe_judges_by_the_view_and_counts_by_the_full_grid():
    """Its command's flags: states that look the same are equally novel, and yet each is visited first once."""
    settings = novelty_settings(novelty_view="partial", novelty_scale=0.5, novelty_coef=0.3)
    motivation = make_motivation(settings, TASK)
    batch = random_batch(TASK, settings)
    for name in ("view", "carried_obj", "carried_col"):
        batch[name][:] = batch[name][0, 0]
    reward, novelty = motivation.intrinsic_reward(dict(batch)), motivation.novelty(batch)
    assert (novelty - novelty[0, 0]).abs().max() < 1e-5 < novelty[0, 0]
    expected = 0.3 * 0.5 * novelty[0, 0] * (batch["visits"][1:] == 1)
    torch.testing.assert_close(reward, expected, rtol=1e-4, atol=1e-6)
    frames = random_frames(2, 1, 20, 20, 3).numpy()
    frames[:] = frames[0]
    frames[..., 0] = np.where(frames[..., 0] == AGENT, 1, frames[..., 0])
    frames[:, :, 0, 0, 0], frames[:, :, 0, 0, 2] = AGENT, 2  # looks left from the corner, and sees walls
    frames[1, 0, 15, 15, 0] = 5 - frames[0, 0, 15, 15, 0] % 2
    environment = ScriptedEnvironment(frames)
    actor = make_motivation(settings, Task.of(environment)).actor(1, torch.Generator())
    nothing = np.ones(1, np.uint8), np.full(1, 5, np.uint8)
    assert np.array_equal(*(partial_view(frame, *nothing) for frame in frames)) and not np.array_equal(*frames)
    first = actor.observe(environment.initial(), environment)["visits"].tolist()
    assert first == actor.observe(environment.step(np.zeros(1)), environment)["visits"].tolist() == [1]


@pytest.mark.slow
def test_known_states_lose_their_novelty_with_linear_outputs_only():
    """Outputs that died under ReLU cannot follow the target's any more: a part of the distance stays for good."""
    left = {}
    for output in ("relu", "linear"):
        settings = novelty_settings(
            novelty_output=output, novelty_optimizer="adam", novelty_learning_rate=0.001, total_frames=T * B * 10_000
        )
        motivation = make_motivation(settings, TASK)
        batch = random_batch(TASK, settings)
        for _ in range(300):
            motivation.intrinsic_reward(batch)
            motivation.learn(batch)
        known = motivation.novelty(batch)[1:].mean().item()
        dead = (motivation.networks["predictor"](batch) == 0).flatten(0, 1).all(0)
        floor = motivation.networks["target"](batch)[..., dead].norm(dim=-1)[1:].mean().item()
        left[output] = known, floor
    assert left["relu"][0] > left["relu"][1] > 0.5
    assert left["linear"][0] < 0.2 * left["relu"][0] and left["linear"][1] == 0


def test_the_predictor_learns_by_adam_where_that_is_asked_for():
    """Adam's first step moves every weight that has a gradient by the learning rate, however large the gradient."""
    settings = novelty_settings(novelty_optimizer="adam", novelty_learning_rate=0.004)
    motivation = make_motivation(settings, TASK)
    before = snapshot(motivation.networks["predictor"])
    batch = random_batch(TASK, settings)
    motivation.intrinsic_reward(batch)
    motivation.learn(batch)
    change = motivation.networks["predictor"].fc[2].bias.detach() - before["fc.2.bias"]
    moved = change[change != 0]
    assert len(moved) > 10
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, 0.004), rtol=1e-3, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [3, 6])
def test_rollouts_hold_the_partial_view_where_novelty_is_judged_by_it(channels, monkeypatch):
    """Of the newest frame, if frames are stacked; tests/minigrid/test_view.py says what it is."""
    settings = novelty_settings(env="MiniGrid-LavaGapS5-v0", num_input_frames=channels // 3, novelty_view="partial")
    _, source, rollouts = make_inline(settings, num_envs=4)
    assert "pose" not in rollouts.fields and views_made(monkeypatch, source) == 4 * (T + 1)
    batch = source.get(4)
    seen = [batch[name].flatten(0, 1).numpy() for name in ("frame", "carried_obj", "carried_col")]
    seen[0] = np.ascontiguousarray(seen[0][..., -3:])
    assert np.array_equal(batch["view"].flatten(0, 1), partial_view(*seen))


def test_a_view_that_student_and_novelty_share_is_made_once(monkeypatch):
    learner, source, rollouts = make_inline(novelty_settings(novelty_view="partial", student_view="partial"), num_envs=4)
    assert views_made(monkeypatch, source) == 4 * (T + 1)
    assert [name for name in rollouts.fields if "view" in name] == ["view"]
    batch = source.get(4)
    assert torch.equal(learner.motivation.novelty(batch), learner.motivation.novelty(batch | {"frame": batch["frame"] * 0}))


def test_target_and_predictor_start_different_and_the_novelty_of_known_states_falls():
    settings = novelty_settings(total_frames=10**6, learning_rate=0.001)
    motivation = make_motivation(settings, TASK)
    batch = random_batch(TASK, settings)
    losses = []
    for _ in range(30):
        mine = dict(batch)
        motivation.intrinsic_reward(mine)
        losses.append(motivation.learn(mine)["novelty_loss"])
    assert losses[0] > 0 and losses[-1] < 0.7 * losses[0]


def test_state_0_belongs_to_the_rollout_before_and_is_not_learned_again():
    settings = novelty_settings()
    learned = []
    for first in random_frames(2, B, *TASK.frame_shape):
        torch.manual_seed(1)
        motivation = make_motivation(settings, TASK)
        batch = random_batch(TASK, settings)
        batch["frame"][0] = first
        motivation.intrinsic_reward(batch)
        motivation.learn(batch)
        learned.append(snapshot(motivation.networks["predictor"]))
    for name, value in learned[0].items():
        torch.testing.assert_close(value, learned[1][name], rtol=0, atol=1e-6)


# -- the student's update --------------------------------------------------------------------------------------------------


def plain_intrinsic(motivation, batch, own):
    """[T][B], t = 1..T."""
    target, predictor = (plain_random_network(motivation.networks[name], TASK, "relu") for name in ("target", "predictor"))
    with torch.no_grad():
        N = ((predictor(batch) - target(batch)) ** 2).sum(-1).sqrt()
    gain, first = own.novelty_coef * (N[1:] - own.novelty_scale * N[:-1]), batch["visits"][1:] == 1
    return [[max(float(gain[t, b]), 0.0) if first[t, b] else 0.0 for b in range(B)] for t in range(T)]


STUDENTS = {
    "novelty_based": {},
    "novelty_based, LSTM": {"use_lstm": True, "novelty_scale": 0.5, "novelty_coef": 0.6},
}


@pytest.mark.parametrize("variant", STUDENTS)
def test_student_updates_are_the_twins(variant):
    settings = learner_settings(model="novelty_based", **STUDENTS[variant])
    agent = make_agent(settings)
    assert_student_updates_are_the_twins(
        agent,
        lambda: random_batch(TASK, settings),
        lambda batch: plain_intrinsic(agent.motivation, batch, settings[NoveltySettings]),
        lambda batch: None,
    )

"""AMIGo's motivation against SPEC sections 3 and 5, by slow twins: goals' time line, teacher's entries and updates, t*."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from main.settings import RunSettings
from main.training.recipe import make_environments
from tests.helpers.agents import AGENT, ScriptedEnvironment, make_motivation, make_settings, random_frames
from tests.helpers.learning import (
    TASK,
    assert_behaviour_is_recomputed,
    assert_goes_on_bit_for_bit,
    assert_student_updates_are_the_twins,
    assert_updates_stay_finite,
    learner_settings,
    make_agent,
    real_settings,
)
from tests.helpers.motivations.amigo import plain_teacher, random_batch
from tests.helpers.plain_networks import PlainTeacher
from tests.helpers.twins import PlainRMSprop, assert_same_change, plain_twin, snapshot
from tests.helpers.views import plain_cells_in_view
from torchbeast.core.optimizer import LearningSettings
from utils_folder.motivations import difficulty, goals, rewards
from utils_folder.motivations.amigo import AmigoActor, TeacherSettings, ended_goals
from utils_folder.motivations.base import Task
from utils_folder.motivations.rewards import GoalRewardSettings, RewardSettings

E = 3
FIELDS = ("goal", "goal_frame", "generator_logits", "goal_step", "reached", "late_goal")
WALL, KEY, BALL = 2, 5, 6


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# -- the actor's side ------------------------------------------------------------------------------------------------------


def plain_time_line(environment, own, actions, proposed, logits_of):
    """SPEC section 3, word for word: per environment and step, what state t's fields are, with the goals `proposed[t][e]`."""
    height = environment.frame_shape[1]
    memory = [None] * environment.num_envs
    rows = []
    for t in range(len(actions) + 1):
        out = environment.initial() if t == 0 else environment.step(actions[t - 1])
        row = [{} for _ in memory]
        for e, last in enumerate(memory):
            if t == 0:
                row[e] |= {"reached": False, "goal_step": 0}
                continue
            x, y = divmod(last["goal"], height)
            newest, then = out["frame"][e, x, y, -3:].tolist(), last["goal_frame"][x, y, -3:].tolist()
            reached = newest != then if own.modify else newest[0] == AGENT
            if own.no_boundary_awareness and out["done"][e]:
                reached = False
            row[e] |= {"reached": reached, "goal_step": t - last["proposed_at"], "late_goal": last["goal"]}
        if own.restart_episode and any(fields["reached"] for fields in row):
            out = environment.restart(np.array([fields["reached"] for fields in row]))
        for e in range(len(memory)):
            row[e]["done"] = bool(out["done"][e])
            if t == 0 or row[e]["reached"] or out["done"][e]:
                frame = out["frame"][e].copy()
                memory[e] = {
                    "goal": proposed[t][e], "goal_frame": frame, "generator_logits": logits_of(frame), "proposed_at": t
                }  # fmt: skip
            row[e] |= {name: memory[e][name] for name in ("goal", "goal_frame", "generator_logits")}
        rows.append(row)
    return rows


def observed_time_line(environment, motivation, actions):
    actor = motivation.actor(environment.num_envs, torch.Generator().manual_seed(3))
    rows = []
    for t in range(len(actions) + 1):
        out = environment.initial() if t == 0 else environment.step(actions[t - 1])
        fields = actor.observe(out, environment)
        rows.append({**{name: fields[name].copy() for name in FIELDS}, "done": out["done"].copy()})
    return rows


VARIANTS = {
    "standing": {},
    "modify": {"modify": True},
    "modify, no boundary awareness": {"modify": True, "no_boundary_awareness": True},
    "standing, no boundary awareness": {"no_boundary_awareness": True},
    "modify, restart": {"modify": True, "restart_episode": True},
    "standing, restart, two frames": {"restart_episode": True, "num_input_frames": 2},
    "modify, two frames": {"modify": True, "num_input_frames": 2},
    "modify, inner": {"modify": True, "inner": True},
    "modify, as published": {"modify": True, "as_published": True},
    "everything": {
        "modify": True, "restart_episode": True, "num_input_frames": 2, "inner": True, "as_published": True,
        "no_boundary_awareness": True,
    },
}  # fmt: skip
GAMES = [("gym", "MiniGrid-LavaGapS5-v0", 400), ("compiled", "MiniGrid-KeyCorridorS3R1-v0", 900)]  # many deaths; 7 x 3 cells


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "env_name", "steps"), GAMES, ids=[engine for engine, *_ in GAMES])
@pytest.mark.parametrize("variant", VARIANTS)
def test_time_line_is_the_twins(variant, engine, env_name, steps):
    settings = make_settings(env=env_name, engine=engine, **VARIANTS[variant])
    own = settings[TeacherSettings]
    first, second = (make_environments(settings, [4, 5, 6]) for _ in range(2))
    actions = np.random.default_rng(1).choice(7, size=(steps, E), p=[0.15, 0.15, 0.4, 0.1, 0.1, 0.08, 0.02])
    motivation = make_motivation(settings, Task.of(first))
    plain = plain_teacher(motivation.teacher, Task.of(first), settings)
    logits_of = {}

    def plain_logits(frame):
        key = frame.tobytes()
        if key not in logits_of:
            with torch.no_grad():
                logits_of[key] = plain(torch.from_numpy(frame)[None])[0][0].numpy()
        return logits_of[key]

    observed = observed_time_line(first, motivation, actions)
    expected = plain_time_line(second, own, actions, [[int(g) for g in row["goal"]] for row in observed], plain_logits)
    width, height, _ = first.frame_shape
    seen = {"reached": 0, "done": 0, "both": 0, "kept": 0}
    for t, (row, twins) in enumerate(zip(observed, expected)):
        for e, twin in enumerate(twins):
            for name in ("goal", "goal_frame", "goal_step", "reached", "done", *(["late_goal"] if t else [])):
                assert np.array_equal(row[name][e], twin[name]), f"{name} of environment {e} in state {t}"
            np.testing.assert_allclose(row["generator_logits"][e], twin["generator_logits"], atol=2e-5)
            x, y = divmod(int(row["goal"][e]), height)
            assert not own.inner or (0 < x < width - 1 and 0 < y < height - 1)
            seen["reached"] += twin["reached"]
            seen["done"] += twin["done"] and t > 0
            seen["both"] += twin["reached"] and twin["done"]
            seen["kept"] += not twin["reached"] and not twin["done"]
    if own.no_boundary_awareness and not own.restart_episode:
        assert seen["both"] == 0
    else:
        assert seen["both"] > 0 or not (own.modify or own.restart_episode)
    assert (
        seen["reached"] >= (4 if own.modify and not own.no_boundary_awareness else 1)
        and seen["done"] >= 3
        and seen["kept"] >= 20
    ), seen


class ScriptedTeacher:
    """Stands in for Reader: the goal is the cell whose colour is 4 in the frame, as good as certainly."""

    composed = None
    COLOUR = 4

    num_goals = 12

    @property
    def network(self):
        return self

    def __call__(self, frames, composed):
        logits = (frames[..., -2] == self.COLOUR).flatten(1).float() * 100.0
        return logits, torch.zeros(len(frames))


def grid(goal, agent=(0, 0), **changes):
    """uint8 [4, 3, 3]: walls, the goal's cell in the colour that ScriptedTeacher looks for, and changed cells."""
    frame = np.full((4, 3, 3), (WALL, 5, 0), np.uint8)
    frame[agent] = (AGENT, 0, 1)
    if goal is not None:
        frame[goal][1] = 4
    for cell, content in changes.items():
        frame[int(cell[1]), int(cell[2])] = content
    return frame


def play(frames, done, *, restarted=None, **overrides):
    """Rows of one scripted environment, [t] -> field, and the environment."""
    own = make_settings(**overrides)[TeacherSettings]
    environment = ScriptedEnvironment(np.array(frames)[:, None], np.array(done)[:, None], restarted=restarted)
    actor = AmigoActor(ScriptedTeacher(), 1, Task.of(environment), own, torch.Generator().manual_seed(0))
    rows = []
    for t in range(len(frames)):
        out = environment.initial() if t == 0 else environment.step(np.zeros(1, int))
        fields = actor.observe(out, environment)
        rows.append({**{k: v[0].copy() for k, v in fields.items()}, "done": out["done"][0].copy()})
    return rows, environment


A_CELL, B_CELL = (2, 1), (1, 2)
A, B = 2 * 3 + 1, 1 * 3 + 2


@pytest.mark.parametrize("content", [(BALL, 4, 0), (WALL, 3, 0), (WALL, 4, 1)], ids=["object", "colour", "state"])
def test_each_channel_of_the_goals_cell_counts_as_change(content):
    frames = [grid(A_CELL), grid(A_CELL, agent=(0, 1)), grid(B_CELL, c21=content)]
    if content[1] == 4:
        frames[2][B_CELL][1] = 5  # one cell of the goal's colour only: the changed one
    rows, _ = play(frames, [1, 0, 0], modify=True)
    assert [bool(row["reached"]) for row in rows] == [False, False, True]
    assert [int(row["goal_step"]) for row in rows] == [0, 1, 2]


def test_hand_worked_time_line_at_an_episodes_end():
    """Goal A; kept; the episode ends and changes A's cell; then an end that leaves B's cell as it was; then B reached."""
    frames = [grid(A_CELL), grid(A_CELL), grid(B_CELL), grid(B_CELL, agent=(0, 1)), grid(B_CELL)]
    frames += [grid(None, agent=B_CELL), grid(A_CELL)]
    frames[5][A_CELL][1] = 4
    done = [1, 0, 1, 0, 1, 0, 0]
    rows, _ = play(frames, done, modify=True)
    assert [int(r["goal"]) for r in rows] == [A, A, B, B, B, A, A]
    assert [bool(r["reached"]) for r in rows] == [False, False, True, False, False, True, False]
    assert [int(r["goal_step"]) for r in rows] == [0, 1, 2, 1, 2, 1, 1]
    assert [int(r["late_goal"]) for r in rows[1:]] == [A, A, B, B, B, A]
    for row, source in zip(rows, (0, 0, 2, 2, 4, 5, 5)):
        np.testing.assert_array_equal(row["goal_frame"], frames[source])
        assert row["generator_logits"].argmax() == row["goal"]
    blind, _ = play(frames, done, modify=True, no_boundary_awareness=True)
    assert [bool(r["reached"]) for r in blind] == [False, False, False, False, False, True, False]
    assert [int(r["goal"]) for r in blind] == [A, A, B, B, B, A, A]  # an end brings a new goal all the same


def test_restart_looks_at_the_cell_before_the_reset_and_proposes_after_it():
    frames = [grid(A_CELL), grid(None, agent=A_CELL), grid(B_CELL, agent=(3, 0))]
    first = grid(B_CELL)
    rows, environment = play(frames, [1, 0, 0], restarted=first[None], restart_episode=True)
    assert [bool(r["reached"]) for r in rows] == [False, True, False]
    assert [bool(r["done"]) for r in rows] == [True, True, False]
    np.testing.assert_array_equal(rows[1]["goal_frame"], first)
    assert [int(r["goal"]) for r in rows] == [A, B, B]
    assert (1, [True]) in environment.restarts


@pytest.mark.parametrize("overrides", [{}, {"inner": True}, {"as_published": True}], ids=["full", "inner", "as published"])
def test_goals_follow_the_softmax_of_the_logits_stored_with_them(overrides):
    settings, per_frame = make_settings(**overrides), 4000
    motivation = make_motivation(settings, TASK)
    with torch.no_grad():
        motivation.teacher.get_parameter("extract_representation.6.weight").mul_(25)
    motivation._shared.publish(motivation.teacher)
    frames = random_frames(2, *TASK.frame_shape)
    environment = ScriptedEnvironment(frames.repeat(per_frame, 1, 1, 1).numpy()[None])
    actor = motivation.actor(2 * per_frame, torch.Generator().manual_seed(5))
    row = actor.observe(environment.initial(), environment)
    with torch.no_grad():
        logits = plain_teacher(motivation.teacher, TASK, settings)(frames)[0]
    probabilities = logits.softmax(1).numpy()
    assert probabilities.max() > 3 / probabilities.shape[1], "too even to tell anything"
    cells = [x * 4 + y for x in range(1, 5) for y in range(1, 3)] if settings[TeacherSettings].inner else list(range(24))
    for i in range(2):
        np.testing.assert_allclose(row["generator_logits"][i::2], np.tile(logits[i].numpy(), (per_frame, 1)), atol=1e-4)
        drawn = row["goal"][i::2].tolist()
        assert set(drawn) <= set(cells)
        expected = per_frame * probabilities[i]
        observed = np.array([drawn.count(cell) for cell in cells])
        large = expected > 5
        chi2, degrees = ((observed - expected)[large] ** 2 / expected[large]).sum(), large.sum() - 1
        assert chi2 < degrees + 5 * np.sqrt(2 * degrees), (chi2, degrees)


def test_an_actor_goes_on_exactly_where_it_was_saved():
    settings = make_settings(modify=True)
    environment = ScriptedEnvironment(random_frames(9, E, *TASK.frame_shape).numpy())
    motivation = make_motivation(settings, TASK)
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    actor, other = (motivation.actor(E, generator) for generator in generators)
    for t in range(9):
        out = environment.initial() if t == 0 else environment.step(np.zeros(E, int))
        if t >= 5:
            theirs = other.observe(out, environment)
        row = actor.observe(out, environment)
        if t >= 5:
            for name in FIELDS:
                np.testing.assert_array_equal(row[name], theirs[name], err_msg=name)
        if t == 4:
            other.load_state_dict(actor.state_dict())
            generators[1].set_state(generators[0].get_state())


# -- the teacher's entries -------------------------------------------------------------------------------------------------


def plain_entries(batch):
    """SPEC section 5: the entries of a batch, by t, done ones first (that order is ours), a dict each."""
    T, width = batch["done"].shape[0] - 1, batch["done"].shape[1]
    entries = []
    for t in range(1, T + 1):
        for reached in (False, True):
            for b in range(width):
                if batch["reached" if reached else "done"][t, b]:
                    entry = {name: batch[name][t - 1, b] for name in ("goal_frame", "goal", "generator_logits")}
                    entries.append(
                        entry
                        | {
                            "goal_step": int(batch["goal_step"][t, b]),
                            "ex_reward": float(batch["reward"][t, b]),
                            "reached": reached,
                        }
                    )
    return entries


def test_entries_are_the_twins():
    settings = make_settings(unroll_length=6, batch_size=5)
    batch = random_batch(TASK, settings)
    assert (batch["done"] & batch["reached"])[1:].any() and (batch["done"] ^ batch["reached"])[1:].any()
    batch["done"][0], batch["reached"][0] = True, True  # state 0 belongs to the rollout before
    found, expected = ended_goals(batch), plain_entries(batch)
    assert {len(values) for values in found.values()} == {len(expected)}
    assert found["reached"].dtype == torch.bool
    for i, entry in enumerate(expected):
        for name, value in entry.items():
            assert torch.equal(found[name][i], torch.as_tensor(value, dtype=found[name].dtype)), (i, name)


# -- the teacher's updates -------------------------------------------------------------------------------------------------


class PlainTarget:
    """t* and its counts, as SPEC section 5 words them."""

    def __init__(self, settings):
        self.own, self.count, self.up, self.down = settings[TeacherSettings], 0, 0, 0
        self.window = settings[RunSettings].model == "window_adaptive"
        self.t = self.own.generator_start or (100 if self.window else 7)

    def success(self, entry):
        if self.window:
            return entry["reached"] and abs(entry["goal_step"] - self.t) <= self.own.window
        return entry["reached"] and entry["goal_step"] >= self.t

    def after_update(self, mean, mean_ex_reward):
        f, good = self.own, mean >= self.own.generator_threshold
        if not self.window:
            self.count = self.count + 1 if good else 0
            if self.count == f.generator_counts and self.t <= f.generator_maximum:
                self.t, self.count = self.t + 1, 0
            return
        self.down, self.up = self.down + good, self.up + (not good)
        if (self.down >= f.generator_counts or mean_ex_reward >= 0.8) and self.t > 20:
            self.t, self.up, self.down = self.t - 1, 0, 0
        elif self.up >= f.generator_counts and self.t < 270:
            self.t, self.up, self.down = self.t + 1, 0, 0


class PlainTeacherLearner:
    """SPEC section 5 in float64, entry by entry."""

    def __init__(self, motivation, settings, task):
        self.own, self.height, self.width = settings[TeacherSettings], task.frame_shape[1], task.frame_shape[0]
        self.baseline_cost = settings[LearningSettings].baseline_cost
        self.extrinsic = not settings[RewardSettings].no_extrinsic_rewards
        self.network = plain_teacher(motivation.teacher, task, settings)
        self.optimizer = PlainRMSprop(self.network, self.own.generator_learning_rate, settings)
        self.target, self.waiting, self.clipped, self.targets = PlainTarget(settings), [], 0, []

    def learn(self, batch):
        self.waiting += plain_entries(batch)
        updates = []
        while len(self.waiting) >= self.own.generator_batch_size:
            entries = self.waiting[: self.own.generator_batch_size]
            self.waiting = self.waiting[self.own.generator_batch_size :]
            updates.append(self.update(entries, counts=not updates))
        return {name: np.mean([update[name] for update in updates]) for name in updates[0]} if updates else None

    def index(self, goal):
        x, y = divmod(int(goal), self.height)
        return (x - 1) * (self.height - 2) + y - 1 if self.own.inner else x * self.height + y

    def update(self, entries, *, counts):
        f, n = self.own, len(entries)
        raw = [f.generator_reward_negative + f.generator_reward_coef * self.target.success(entry) for entry in entries]
        learned, pg, baseline, entropy = [], 0.0, 0.0, 0.0
        for entry, r in zip(entries, raw):
            learned.append(1.0 if entry["ex_reward"] > 0 and self.extrinsic else min(max(r, -1.0), 1.0))
            logits, value = (x[0] for x in self.network(entry["goal_frame"][None]))
            probabilities, i = logits.softmax(0), self.index(entry["goal"])
            ratio = float(probabilities[i] / entry["generator_logits"].double().softmax(0)[i])
            self.clipped += ratio > 1
            weight = min(1.0, ratio)
            advantage = weight * (learned[-1] - float(value))
            pg = pg - probabilities[i].log() * advantage / n
            baseline = baseline + self.baseline_cost * 0.5 * (float(value) + advantage - value) ** 2 / n
            entropy = entropy + f.generator_entropy_cost * (probabilities * probabilities.log()).sum() / n
        self.optimizer.step(pg + baseline + entropy, counts=counts)
        mean_ex_reward = sum(entry["ex_reward"] for entry in entries) / n
        self.target.after_update(sum(raw) / n, mean_ex_reward)
        self.targets.append(self.target.t)
        return {
            "gen_rewards": sum(learned) / n, "gg_loss": float(pg), "generator_baseline_loss": float(baseline),
            "generator_entropy_loss": float(entropy), "ex_reward": mean_ex_reward,
            "mean_episode_steps": sum(entry["goal_step"] for entry in entries) / n,
        }  # fmt: skip


def teacher_settings(**overrides):
    common = {
        "unroll_length": 4, "batch_size": 3, "generator_batch_size": 5, "total_frames": 4 * 3 * 20, "generator_counts": 2,
        "generator_threshold": 0.22, "generator_start": None, "generator_learning_rate": 0.003,
    }  # fmt: skip
    return make_settings(**{**common, **overrides})


TEACHERS = {
    "default": {},
    "window_adaptive": {"model": "window_adaptive"},
    "inner": {"inner": True},
    "as published": {"as_published": True},
    "as published, the goal alone": {"as_published": True, "published_slips": "late_goal"},
    "as published, the map alone": {"as_published": True, "published_slips": "mirrored_map"},
    "no extrinsic rewards": {"no_extrinsic_rewards": True, "generator_reward_coef": 0.6},
    "clipped reward, momentum": {"generator_reward_coef": 1.4, "generator_reward_negative": -1.3, "momentum": 0.5},
    "clipped gradient": {"baseline_cost": 3000.0, "momentum": 0.0},
    "raw channels": {"disable_use_embedding": True},
}


@pytest.mark.parametrize("variant", TEACHERS)
def test_teacher_updates_are_the_twins(variant):
    settings = teacher_settings(**TEACHERS[variant])
    motivation = make_motivation(settings, TASK)
    with torch.no_grad():
        motivation.teacher.get_parameter("extract_representation.6.weight").mul_(
            3
        )  # uneven logits, weights on both sides of the clip
    twin, before = PlainTeacherLearner(motivation, settings, TASK), snapshot(motivation.teacher)
    updates_at = []
    for _ in range(8):
        batch = random_batch(TASK, settings, p_done=0.2, p_reached=0.4, steps=(60, 70) if twin.target.window else (1, 30))
        stats, expected = motivation.learn(dict(batch)), twin.learn(batch)
        updates_at.append(len(twin.targets))
        assert stats["generator_current_target"] == twin.target.t
        if expected is None:
            assert "gen_rewards" not in stats
        else:
            assert {name: stats[name] for name in expected} == pytest.approx(expected, rel=2e-3, abs=1e-5)
    assert max(b - a for a, b in zip(updates_at, updates_at[1:])) >= 2, "never more than one batch's worth"
    assert 0 < twin.clipped < 5 * len(twin.targets) and twin.optimizer.updates < len(twin.targets)
    assert variant != "clipped gradient" or np.median(twin.optimizer.norms) > 40
    assert min(twin.optimizer.norms) < 40 or variant == "clipped gradient"
    assert_same_change(motivation.teacher, twin.network, before, unused=())


def with_entries(settings, count, *, reached, goal_step, reward=0.0):
    """A batch with `count` entries: `reached` tells of which kind."""
    batch = random_batch(TASK, settings, p_done=0, p_reached=0)
    batch["reward"][:] = reward
    field = batch["reached" if reached else "done"]
    batch["goal_step"][:] = goal_step
    field[1:].view(-1)[:count] = True
    return batch


def test_a_half_filled_batch_waits_and_the_rest_too():
    settings = teacher_settings(generator_batch_size=5)
    motivation = make_motivation(settings, TASK)
    before = snapshot(motivation.teacher)
    stats = motivation.learn(with_entries(settings, 3, reached=True, goal_step=9))
    assert all(torch.equal(v, before[k]) for k, v in motivation.teacher.named_parameters()) and "gg_loss" not in stats
    assert "gg_loss" in motivation.learn(with_entries(settings, 3, reached=True, goal_step=20))  # 3 and 2 of 3; 1 waits
    stats = motivation.learn(with_entries(settings, 4, reached=False, goal_step=30))
    assert stats["mean_episode_steps"] == pytest.approx((20 + 4 * 30) / 5)
    assert "gg_loss" not in motivation.learn(with_entries(settings, 4, reached=False, goal_step=30))


def test_the_learning_rate_reaches_zero_after_as_many_own_updates_as_total_frames_make():
    settings = teacher_settings(total_frames=2 * 4 * 3)
    motivation = make_motivation(settings, TASK)
    for moves in (True, True, False):
        motivation.learn(with_entries(settings, 2, reached=True, goal_step=9))  # no update: does not count
        before = snapshot(motivation.teacher)
        motivation.learn(with_entries(settings, 3, reached=True, goal_step=9))
        changed = any(not torch.equal(v, before[k]) for k, v in motivation.teacher.named_parameters())
        assert changed == moves


def test_several_updates_after_one_batch_lower_the_learning_rate_once():
    """Or it would be zero early in a run in which goals end fast, and t* go on without a teacher that learns."""
    settings = teacher_settings(total_frames=8 * 4 * 3, generator_batch_size=4)
    motivation = make_motivation(settings, TASK)
    for done in range(1, 9):
        motivation.learn(with_entries(settings, 12, reached=True, goal_step=9))  # three updates
        (group,) = motivation.training_state_dict()["generator_model_optimizer_state_dict"]["param_groups"]
        assert group["lr"] == pytest.approx(0.003 * (1 - done / 8), abs=1e-9)


def test_actors_propose_with_the_new_weights_after_an_update_and_a_refresh():
    settings = teacher_settings()
    motivation = make_motivation(settings, TASK)
    frames = random_frames(3, 1, *TASK.frame_shape)
    environment = ScriptedEnvironment(frames[:1].expand(3, -1, -1, -1, -1).numpy(), done=np.ones((3, 1)))
    actor = motivation.actor(1, torch.Generator().manual_seed(0))
    old = actor.observe(environment.initial(), environment)["generator_logits"].copy()
    motivation.learn(with_entries(settings, 5, reached=True, goal_step=9))
    same = actor.observe(environment.step(np.zeros(1, int)), environment)["generator_logits"].copy()
    np.testing.assert_array_equal(old, same)
    actor.refresh()
    new = actor.observe(environment.step(np.zeros(1, int)), environment)["generator_logits"]
    with torch.no_grad():
        expected = plain_twin(motivation.teacher, PlainTeacher(TASK.frame_shape))(frames[0])[0]
    assert np.abs(new - old).max() > 1e-4
    np.testing.assert_allclose(new, expected.numpy(), atol=1e-5)


# -- the student's update --------------------------------------------------------------------------------------------------


def plain_intrinsic(batch, coef):
    """[T][B], t = 1..T."""
    goal_step, reached = batch["goal_step"][1:].tolist(), batch["reached"][1:].tolist()
    return [
        [coef * (1 - 0.9 * steps / TASK.max_steps) * was for steps, was in zip(*row)] for row in zip(goal_step, reached)
    ]  # fmt: skip


def plain_goals(batch, own):
    """The goal in force when acting in state t; the published learner takes the one of state t-1."""
    goals = batch["goal"].clone()
    if own.as_published and own.published_slips in ("both", "late_goal"):
        for t in range(len(goals)):
            goals[t] = batch["late_goal"][0] if t == 0 else batch["goal"][t - 1]
    return goals


STUDENTS = {
    "default": {},
    "default, LSTM": {"use_lstm": True},
    "default, two LSTM layers, as published": {"use_lstm": True, "num_lstm_layers": 2, "as_published": True},
    "as published": {"as_published": True},
    "as published, the goal alone": {"as_published": True, "published_slips": "late_goal"},
    "as published, the map alone": {"as_published": True, "published_slips": "mirrored_map"},
    "coefficient 3, no decay, momentum": {"intrinsic_reward_coef": 3.0, "total_frames": 10**9, "momentum": 0.5},
    "no extrinsic rewards": {"no_extrinsic_rewards": True, "intrinsic_reward_coef": 0.5},
    "clipped gradient": {"baseline_cost": 300.0},
    "raw channels": {"disable_use_embedding": True, "learning_rate": 0.002},
    "window_adaptive": {"model": "window_adaptive", "discounting": 0.9},
}


@pytest.mark.parametrize("variant", STUDENTS)
def test_student_updates_are_the_twins(variant):
    settings = learner_settings(generator_batch_size=7, **STUDENTS[variant])
    norms = assert_student_updates_are_the_twins(
        make_agent(settings),
        lambda: random_batch(TASK, settings),
        lambda batch: plain_intrinsic(batch, settings[GoalRewardSettings].intrinsic_reward_coef),
        lambda batch: plain_goals(batch, settings[TeacherSettings]),
    )
    assert (max(norms) > 40) or variant != "clipped gradient"


def test_the_goal_of_every_state_reaches_the_loss_at_its_own_state():
    """Changing goal[t] alone changes the update for t = 0..T (the bootstrap's too), unless the code is to be as published."""
    for published, slips in ((False, "both"), (True, "both"), (True, "late_goal")):
        settings = learner_settings(as_published=published, published_slips=slips)
        batch = random_batch(TASK, settings, p_done=0.0)

        def total_loss(batch, settings=settings):
            return make_agent(settings).learner().learn(dict(batch))["total_loss"]

        base = total_loss(batch)
        for name in ("goal", "late_goal"):
            for t in range(len(batch[name])):
                changed = {**batch, name: batch[name].clone()}
                changed[name][t] = (changed[name][t] + 1) % 24
                assert (total_loss(changed) != base) == ((name == "late_goal") == published), (published, name, t)


def test_the_partial_view_shows_the_late_goal_where_it_is_in_the_state_of_the_step():
    """--as_published: the goal of the state before, in this one's view."""
    settings = learner_settings(as_published=True, student_view="partial")
    batch = random_batch(TASK, settings)
    learner = make_agent(settings).learner()
    inputs, _ = learner._inputs(learner.seen(batch))
    assert torch.equal(inputs["goal"], plain_cells_in_view(batch["late_goal"], batch["pose"], height=4))


# -- on real environments --------------------------------------------------------------------------------------------------


def amigo_settings(model, **overrides):
    return real_settings(**{"model": model, "generator_batch_size": 4, "modify": True, **overrides})


MODELS = ["default", "window_adaptive"]
SETTINGS = {
    "plain": {"use_lstm": False},
    "LSTM": {},
    "everything": {
        "num_input_frames": 2, "inner": True, "as_published": True, "restart_episode": True, "disable_use_embedding": True,
        "no_boundary_awareness": True, "no_extrinsic_rewards": True, "num_lstm_layers": 2, "window_rule": "tracking",
    },
}  # fmt: skip


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("model", MODELS)
def test_a_few_updates_on_real_rollouts_stay_finite(model, setting):
    settings = amigo_settings(model, env="MiniGrid-LavaGapS5-v0", **SETTINGS[setting])
    assert "gg_loss" in assert_updates_stay_finite(settings, updates=12), "the motivation never learned"


@pytest.mark.parametrize("model", MODELS)
def test_behaviour_on_rollouts_is_what_the_learner_recomputes(model):
    assert_behaviour_is_recomputed(amigo_settings(model, env="MiniGrid-LavaGapS5-v0", engine="gym", unroll_length=9))


@pytest.mark.parametrize("model", MODELS)
def test_a_saved_learner_goes_on_bit_for_bit(model, tmp_path):
    def reach_now_and_then(batch, number):  # the teacher learns from random rollouts too
        batch["reached"] = torch.rand(batch["done"].shape, generator=torch.Generator().manual_seed(number)) < 0.1

    settings = amigo_settings(model, generator_batch_size=5, generator_counts=2)
    state = assert_goes_on_bit_for_bit(settings, tmp_path, reach_now_and_then)
    assert 0 < len(state["generator_batch"]["goal"]) < 5, "no half-filled teacher batch: the test is weaker than it says"


CHECKPOINTS = Path(__file__).resolve().parents[3] / "shared" / "reference"


@pytest.mark.parametrize("name, width, height", [("KeyCorridorS3R3", 7, 7), ("ObstructedMaze-1Dl", 11, 6)])
def test_published_checkpoints_load(name, width, height):
    """The teacher's part; tests/models has the student's."""
    path = CHECKPOINTS / f"{name}.tar"
    if not path.exists():
        pytest.skip("no published checkpoints here")
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    settings, task = make_settings(as_published=True), Task((width, height, 3), 7, 50)
    motivation = make_motivation(settings, task)
    motivation.load_state_dict(checkpoint)
    plain = PlainTeacher(task.frame_shape, mirrored=True)
    plain.load_state_dict(checkpoint["generator_model_state_dict"])
    frames = random_frames(3, *task.frame_shape)
    for ours, theirs in zip(motivation.teacher(frames), plain(frames)):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


# -- t* --------------------------------------------------------------------------------------------------------------------


def test_default_target_is_judged_by_r_before_the_extrinsic_replacement():
    """Every entry failed but was rewarded by the environment: the teacher learns from 1, t* sees -beta."""
    settings = teacher_settings(generator_threshold=0.0, generator_counts=1)
    motivation = make_motivation(settings, TASK)
    stats = motivation.learn(with_entries(settings, 5, reached=False, goal_step=9, reward=0.5))
    assert stats["gen_rewards"] == 1 and stats["generator_current_target"] == 7
    stats = motivation.learn(with_entries(settings, 5, reached=True, goal_step=7))  # just far enough
    assert stats["gen_rewards"] == pytest.approx(0.9) and stats["generator_current_target"] == 8
    stats = motivation.learn(with_entries(settings, 5, reached=True, goal_step=7))  # one step short of the new t*
    assert stats["gen_rewards"] == pytest.approx(-0.1) and stats["generator_current_target"] == 8


def test_no_extrinsic_rewards_leaves_the_teacher_its_own_reward():
    settings = teacher_settings(no_extrinsic_rewards=True)
    stats = make_motivation(settings, TASK).learn(with_entries(settings, 5, reached=False, goal_step=9, reward=0.5))
    assert stats["gen_rewards"] == pytest.approx(-0.1) and stats["ex_reward"] == 0.5


@pytest.mark.parametrize(
    ("model", "goal_step", "reached", "reward", "expected"),
    [
        ("default", 20, True, 0.0, [7, 8, 8, 9]),
        ("default", 3, True, 0.0, [7, 7, 7, 7]),
        ("default", 20, False, 0.0, [7, 7, 7, 7]),
        ("window_adaptive", 60, True, 0.0, [100, 99, 99, 98]),  # published rule: success lowers t*
        ("window_adaptive", 60, False, 0.0, [100, 101, 101, 102]),
        ("window_adaptive", 40, True, 0.0, [100, 101, 101, 102]),  # outside the window of 50
        ("window_adaptive", 152, True, 0.0, [100, 101, 101, 102]),  # outside it on the other side
        ("window_adaptive", 60, False, 0.8125, [99, 98, 97, 96]),  # the task is solved: down, whatever the counts
        ("window_adaptive", 60, False, 0.75, [100, 101, 101, 102]),
    ],
)
def test_target_tables(model, goal_step, reached, reward, expected):
    settings = teacher_settings(model=model, generator_threshold=0.0)
    motivation = make_motivation(settings, TASK)
    batches = [with_entries(settings, 5, reached=reached, goal_step=goal_step, reward=reward) for _ in expected]
    assert [motivation.learn(batch)["generator_current_target"] for batch in batches] == expected


def test_window_edges_belong_to_the_window():
    rule = difficulty.Window(threshold=0, counts=10, window=50, negative=-0.1)
    steps = torch.tensor([49, 50, 100, 150, 151, 100], dtype=torch.int32)
    reached = torch.tensor([True, True, True, True, True, False])
    assert rule.success(reached, steps).tolist() == [False, True, True, True, False, False]


@pytest.mark.parametrize("model", ["default", "window_adaptive"])
@pytest.mark.parametrize("start", [7, 18, 21, 98, 101, 102, 268, 271])
def test_targets_and_counts_follow_the_twin_over_hundreds_of_updates(model, start):
    settings = teacher_settings(model=model, generator_start=start, generator_counts=3)
    rule, twin = make_motivation(settings, TASK).difficulty, PlainTarget(settings)
    random = np.random.default_rng(start)
    moves = set()
    for i in range(600):
        bias = (0.1, 0.9)[i // 100 % 2]
        mean = 0.22 if random.random() < 0.1 else random.choice([0.1, 0.4], p=[1 - bias, bias])
        mean_ex_reward = random.choice([0.0, 0.79, 0.8], p=[0.95, 0.03, 0.02])
        last = rule.target
        rule.update(mean, mean_ex_reward)
        twin.after_update(mean, mean_ex_reward)
        moves.add(rule.target - last)
        assert rule.target == twin.t
        if model == "window_adaptive":
            assert (rule.up, rule.down) == (twin.up, twin.down)
        else:
            # at the maximum the twin's and our counts no longer matter
            assert rule.target > twin.own.generator_maximum or rule.count == twin.count
    if model == "window_adaptive":
        assert moves == ({0, 1, -1})
    else:
        assert rule.target == max(start, 101) or rule.target > start + 40


def test_tracking_rule_moves_with_the_students_skill_between_its_bounds():
    settings = teacher_settings(model="window_adaptive", window_rule="tracking", generator_start=9, generator_maximum=11)
    rule = make_motivation(settings, TASK).difficulty
    targets = []
    for good in [True] * 7 + [False] * 3 + [True, False] * 3 + [False] * 5:
        rule.update(0.5 if good else 0.0, 0.9)
        targets.append(rule.target)
    assert targets == [9, 10, 10, 11, 11, 11, 11] + [11, 10, 10] + [10] * 6 + [9] * 5


@pytest.mark.parametrize("negative", [-0.1, -0.3, -0.5])
def test_a_threshold_at_minus_beta_lets_every_mean_pass(negative):
    """SPEC section 5: generator_threshold <= -beta makes every mean pass, an update without any success too."""
    settings = teacher_settings(generator_threshold=negative, generator_reward_negative=negative, generator_counts=1)
    motivation = make_motivation(settings, TASK)
    stats = motivation.learn(with_entries(settings, 5, reached=False, goal_step=9))
    assert stats["generator_current_target"] == 8


# -- pure functions --------------------------------------------------------------------------------------------------------


def test_inner_cells_are_those_inside_the_wall_in_order():
    width, height = 6, 4
    cells = [x * height + y for x in range(1, width - 1) for y in range(1, height - 1)]
    assert [goals.inner_to_cell(i, height=height) for i in range(len(cells))] == cells
    assert goals.cell_to_inner(torch.tensor(cells), height=height).tolist() == list(range(len(cells)))


def test_teacher_reward_is_minus_beta_and_a_scaled_positive_part():
    success = torch.tensor([True, False])
    assert rewards.teacher_reward(success, negative=-0.3, coef=0.7).tolist() == pytest.approx([0.4, -0.3])

"""Batches of environments against loops written by hand over gym-minigrid's own."""

from __future__ import annotations

import io

import gym
import numpy as np
import pytest
import torch
from gym_minigrid.minigrid import COLOR_TO_IDX, OBJECT_TO_IDX

from torchbeast.core.environment import FrameStack, GymEnvironment, generator_state, set_generator_state
from utils_folder.minigrid import REGISTRY, choose_engine, make_environments, survey

LAVA = "MiniGrid-LavaGapS5-v0"  # episodes end often, in lava or at the goal
PICKUP = "MiniGrid-BlockedUnlockPickup-v0"  # 11 x 6, with a ball, a key and a box
CORRIDOR = "MiniGrid-KeyCorridorS3R1-v0"  # 7 x 3, levels made by compiled code
ENGINES = [name for name, engine in REGISTRY.items() if engine.names()]  # those that are installed
SEEDS = [5, 6, 17]
FORWARD, PICK_UP, DROP = 2, 3, 4
DTYPES = {
    "frame": np.uint8,
    "reward": np.float32,
    "done": np.bool_,
    "truncated": np.bool_,
    "episode_return": np.float32,
    "episode_step": np.int32,
    "carried_obj": np.uint8,
    "carried_col": np.uint8,
}


def look(env):
    """What is in an ordinary gym-minigrid environment: frame and carried pair."""
    env = env.unwrapped
    frame = np.zeros((env.width, env.height, 3), np.uint8)
    for x in range(env.width):
        for y in range(env.height):
            thing = env.grid.get(x, y)
            frame[x, y] = (OBJECT_TO_IDX["empty"], 0, 0) if thing is None else thing.encode()
    frame[tuple(env.agent_pos)] = OBJECT_TO_IDX["agent"], COLOR_TO_IDX["red"], env.agent_dir
    if env.carrying is None:
        return {"frame": frame, "carried_obj": 1, "carried_col": 5}
    return {
        "frame": frame,
        "carried_obj": OBJECT_TO_IDX[env.carrying.type],
        "carried_col": COLOR_TO_IDX[env.carrying.color],
    }


def by_hand(name, seed, actions, fixed_seed=None):
    """One environment's outputs: the first, then one per action (SPEC section 3's convention of auto-reset)."""
    env = gym.make(name, disable_env_checker=True)
    env.reset(seed=seed if fixed_seed is None else fixed_seed)
    outputs = [{**look(env), "reward": 0.0, "done": True, "truncated": False, "episode_return": 0.0, "episode_step": 0}]
    rewards = []
    for action in actions:
        _, reward, terminated, truncated, _ = env.step(int(action))
        done = terminated or truncated
        rewards.append(reward)
        if done:
            env.reset(seed=fixed_seed)
        told = {"reward": reward, "done": done, "truncated": truncated and not terminated}
        sums = {"episode_return": sum(rewards), "episode_step": len(rewards)}
        outputs.append({**look(env), **told, **sums})
        if done:
            rewards = []
    return outputs


def copied(output):
    return {name: array.copy() for name, array in output.items()}


def play(environment, actions, *, start=True):
    outputs = [copied(environment.initial())] if start else []
    return outputs + [copied(environment.step(row)) for row in actions]


def random_actions(steps, seed=0, E=3, weights=(1, 1, 4, 1, 0.2, 1, 0.1)):
    """int64 [steps, E], more often forward than not."""
    return np.random.default_rng(seed).choice(7, (steps, E), p=np.array(weights) / sum(weights))


def assert_same(mine, theirs):
    assert len(mine) == len(theirs)
    for t, (a, b) in enumerate(zip(mine, theirs)):
        assert a.keys() == b.keys()
        for name, array in a.items():
            assert array.dtype == b[name].dtype
            np.testing.assert_array_equal(array, b[name], err_msg=f"{name} at {t}")


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_by_hand(outputs, name, actions, **kwargs):
    for e, seed in enumerate(SEEDS):
        for t, expected in enumerate(by_hand(name, seed, actions[:, e], **kwargs)):
            assert outputs[t].keys() == expected.keys()
            for field, value in expected.items():
                np.testing.assert_allclose(outputs[t][field][e], value, rtol=1e-6, err_msg=f"{field}[{t}, {e}]")


# -- GymEnvironment ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lava_game():
    actions = random_actions(260)
    return actions, play(make_environments(LAVA, SEEDS, engine="gym"), actions)


def test_it_plays_as_a_loop_by_hand_does(lava_game):
    actions, outputs = lava_game
    assert_by_hand(outputs, LAVA, actions)
    done = np.stack([out["done"] for out in outputs[1:]])
    reward = np.stack([out["reward"] for out in outputs[1:]])
    assert (done.sum(0) >= 3).all() and (reward > 0).any() and (done & (reward == 0)).any()  # the comparison saw all of it
    assert len({out["frame"][0].tobytes() for out in outputs if out["done"][0]}) > 1  # and levels that differ


def test_shapes_dtypes_and_attributes(lava_game):
    _, outputs = lava_game
    for out in (outputs[0], outputs[-1]):
        assert {name: array.dtype for name, array in out.items()} == {n: np.dtype(d) for n, d in DTYPES.items()}
        assert all(len(array) == len(SEEDS) for array in out.values())
    environment = make_environments(PICKUP, [1, 2], engine="gym")
    assert isinstance(environment, GymEnvironment)
    assert (environment.num_envs, environment.frame_shape, environment.num_actions) == (2, (11, 6, 3), 7)
    assert environment.max_steps == 576
    assert environment.initial()["frame"].shape == (2, 11, 6, 3)
    assert survey(PICKUP).size == (11, 6)


def test_a_finished_episode_keeps_its_sums_beside_the_next_ones_first_frame(lava_game):
    _, outputs = lava_game
    for before, out, after in zip(outputs, outputs[1:], outputs[2:]):
        for e in np.flatnonzero(out["done"]):
            assert out["episode_step"][e] == (0 if before["done"][e] else before["episode_step"][e]) + 1
            assert after["episode_step"][e] == 1
            assert after["episode_return"][e] == after["reward"][e]


def test_the_step_limit_ends_an_episode():
    environment = make_environments(CORRIDOR, [3, 4], engine="gym")
    environment.initial()
    for t in range(1, environment.max_steps + 2):
        out = environment.step(np.zeros(2, np.int64))  # turning on the spot
        assert out["done"].tolist() == out["truncated"].tolist() == [t == environment.max_steps] * 2
    assert out["episode_step"].tolist() == [1, 1]


# -- Running out of time ----------------------------------------------------------------------------------------------

SHORT = 'MiniGrid-Empty-5x5-v0 {"max_steps": 4}'
TO_THE_GOAL = [2, 2, 1, 2, 2]  # from the corner at which the agent starts


@pytest.mark.parametrize("engine", REGISTRY)
@pytest.mark.parametrize("k", [1, 3])
def test_an_episode_that_runs_out_of_time_is_told_from_one_that_ends(engine, k):
    """Two environments that turn on the spot, one of which is restarted; one that reaches the goal with its last step."""
    made = {"engine": engine, "num_input_frames": k, "fixed_seed": 1}
    environment = make_environments(SHORT, [1, 2], **made)
    environment.initial()
    for t in range(1, 9):
        out = environment.step(np.zeros(2, np.int64))
        assert out["truncated"].tolist() == [t % 4 == 0, t == 6], t
        if t == 2:
            out = environment.restart(np.array([False, True]))
            assert out["done"].tolist() == [False, True] and not out["truncated"].any()
    assert environment.restart(np.array([True, True]))["truncated"].tolist() == [True, False]

    solved = make_environments('MiniGrid-Empty-5x5-v0 {"max_steps": 5}', [1], **made)
    solved.initial()
    for action in TO_THE_GOAL:
        out = solved.step(np.array([action]))
    assert out["episode_step"][0] == solved.max_steps and out["done"].all() and out["reward"][0] > 0
    assert not out["truncated"].any()


@pytest.mark.parametrize("name", [LAVA, PICKUP, CORRIDOR])
@pytest.mark.parametrize("engine", REGISTRY)
@pytest.mark.parametrize("k", [1, 3])
def test_the_last_state_of_an_episode_is_kept(name, engine, k):
    """Against single episodes of gym-minigrid that nobody resets; an engine that keeps nothing gives the same besides."""
    task = f'{name} {{"max_steps": 7}}'
    environment = make_environments(task, SEEDS, engine=engine, num_input_frames=k)
    fields = ("frame", "carried_obj", "carried_col")
    environment.keep_last(fields)
    other = make_environments(task, SEEDS, engine=engine, num_input_frames=k)
    envs = [gym.make(name, disable_env_checker=True) for _ in SEEDS]
    for env, seed in zip(envs, SEEDS):
        env.reset(seed=seed)
        env.unwrapped.max_steps = 7
    frames = [[look(env)["frame"]] * k for env in envs]
    actions = random_actions(60, seed=8, weights=(1, 1, 3, 3, 1, 1, 0))
    assert not any(values.any() for name, values in environment.initial().items() if name.startswith("last_"))
    other.initial()
    kept = solved = 0
    for row in actions:
        out, plain = environment.step(row), other.step(row)
        for field, values in plain.items():
            np.testing.assert_array_equal(values, out[field], err_msg=field)
        for e, env in enumerate(envs):
            _, _, terminated, truncated, _ = env.step(row[e])
            seen = look(env)
            frames[e] = [*frames[e][1:], seen["frame"]]
            last = {**seen, "frame": np.concatenate(frames[e], axis=-1)}
            over = truncated or terminated
            assert out["truncated"][e] == (truncated and not terminated)
            solved += terminated
            kept += over and bool((last["frame"] != out["frame"][e]).any())
            for field in fields:
                assert out[f"last_{field}"].dtype == out[field].dtype
                np.testing.assert_array_equal(out[f"last_{field}"][e], last[field] if over else 0)
            if terminated or truncated:
                env.reset()
                frames[e] = [look(env)["frame"]] * k
    assert kept >= 12 and (solved or name != LAVA)


@pytest.mark.parametrize("engine", REGISTRY)
@pytest.mark.parametrize("k", [1, 3])
def test_the_last_state_before_a_restart_is_kept_too(engine, k):
    environment = make_environments(PICKUP, SEEDS, engine=engine, num_input_frames=k)
    environment.keep_last(("frame", "carried_obj"))
    environment.initial()
    for row in random_actions(8, seed=8, weights=(1, 1, 3, 3, 1, 1, 0)):
        out = environment.step(row)
    before = {name: out[name].copy() for name in ("frame", "carried_obj")}
    where = np.array([True, False, True])
    out = environment.restart(where)
    assert out["done"].tolist() == where.tolist()
    for name, values in before.items():
        assert (values[where] != out[name][where]).any() or name != "frame"
        np.testing.assert_array_equal(out[f"last_{name}"], np.where(where.reshape(-1, *[1] * (values.ndim - 1)), values, 0))
    out = environment.step(np.zeros(len(SEEDS), int))
    assert not out["last_frame"].any() and not out["done"].any()


def test_nothing_is_carried_at_first_and_then_what_was_picked_up():
    """Random play with many pick-ups; what is carried must have vanished from the grid, and is told as (kind, colour)."""
    environment = make_environments(PICKUP, SEEDS, engine="gym")
    actions = random_actions(300, seed=2, weights=(1, 1, 4, 4, 0.3, 0.5, 0))
    outputs = play(environment, actions)
    carried = np.array([[(int(o), int(c)) for o, c in zip(out["carried_obj"], out["carried_col"])] for out in outputs])
    assert (carried[0] == (1, 5)).all()
    picked_up = 0
    for e in range(len(SEEDS)):
        for t in range(1, len(outputs)):
            before, now = tuple(carried[t - 1, e]), tuple(carried[t, e])
            if before == (1, 5) and now != (1, 5):
                picked_up += 1
                assert actions[t - 1, e] == PICK_UP
                (cell,) = np.argwhere((outputs[t - 1]["frame"][e] != outputs[t]["frame"][e]).any(-1))
                x, y = cell
                assert tuple(outputs[t - 1]["frame"][e, x, y, :2]) == now
                assert outputs[t]["frame"][e, x, y, 0] == OBJECT_TO_IDX["empty"]
            elif before != now:
                assert actions[t - 1, e] == DROP or outputs[t]["done"][e]
    assert picked_up >= 2
    assert_by_hand(outputs, PICKUP, actions)


@pytest.mark.parametrize("engine", ENGINES)
def test_with_a_fixed_seed_every_episode_is_that_level(engine):
    actions = random_actions(120, seed=1)
    outputs = play(make_environments(LAVA, SEEDS, engine=engine, fixed_seed=23), actions)
    level = outputs[0]["frame"][0]
    starts = [out["frame"][e] for out in outputs for e in range(len(SEEDS)) if out["done"][e]]
    assert len(starts) > 6
    assert all(np.array_equal(start, level) for start in starts)
    assert_by_hand(outputs, LAVA, actions, fixed_seed=23)
    assert not np.array_equal(level, make_environments(LAVA, [24], engine=engine).initial()["frame"][0])


@pytest.mark.parametrize("engine", ENGINES)
def test_restart_ends_the_chosen_episodes_as_if_their_step_had(engine):
    environment = make_environments(PICKUP, SEEDS, engine=engine)
    environment.initial()
    for row in random_actions(7, weights=(1, 1, 1, 0, 0, 0, 0)):
        before = copied(environment.step(row))
    out = environment.restart(np.array([False, True, False]))
    assert out["done"].tolist() == [False, True, False]
    for name in set(DTYPES) - {"frame", "done"}:
        np.testing.assert_array_equal(out[name], before[name])  # return and step belong to the episode that ended
    assert np.array_equal(out["frame"][0], before["frame"][0]) and np.array_equal(out["frame"][2], before["frame"][2])
    # The new frame is the second level of that environment's own generator.
    env = gym.make(PICKUP, disable_env_checker=True)
    env.reset(seed=SEEDS[1])
    env.reset()
    assert np.array_equal(out["frame"][1], look(env)["frame"])
    out = copied(out)
    again = environment.restart(np.ones(3, np.bool_))
    assert np.array_equal(again["frame"][1], out["frame"][1])  # had ended already: left alone
    assert again["done"].all()
    after = environment.step(np.zeros(3, np.int64))
    assert after["episode_step"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("engine", ENGINES)
def test_restart_empties_the_hands(engine):
    environment = make_environments(PICKUP, [SEEDS[0]], engine=engine)
    out = environment.initial()
    for row in random_actions(600, seed=3, E=1, weights=(1, 1, 3, 4, 0, 0.5, 0)):
        out = environment.step(row)
        if out["carried_obj"][0] != 1:
            break
    assert out["carried_obj"][0] != 1
    out = environment.restart(np.array([True]))
    assert (out["carried_obj"][0], out["carried_col"][0]) == (1, 5)


DYNAMIC = "MiniGrid-Dynamic-Obstacles-5x5-v0"  # its steps draw random numbers; the compiled engine does not play it
SAVED = [(LAVA, "gym", 1, None), (LAVA, "compiled", 1, None), (PICKUP, "gym", 1, None), (CORRIDOR, "gym", 3, None),
         (CORRIDOR, "compiled", 3, None), (DYNAMIC, "gym", 1, None), (LAVA, "gym", 1, 9), (LAVA, "compiled", 2, 9)]  # fmt: skip


@pytest.mark.parametrize("name, engine, k, fixed_seed", SAVED)
@pytest.mark.parametrize("steps", [0, 33])
def test_a_saved_state_goes_on_identically(name, engine, k, fixed_seed, steps):
    made = dict(engine=engine, num_input_frames=k, fixed_seed=fixed_seed)
    environment = make_environments(name, SEEDS, **made)
    weights = (1, 1, 4, 2, 0.2, 1, 0)[: environment.num_actions]
    actions = np.random.default_rng(4).choice(len(weights), (steps + 60, 3), p=np.array(weights) / sum(weights))
    play(environment, actions[:steps])
    out = environment.restart(np.array([False, False, True]))
    state = through_a_file(environment.state_dict())
    expected = [copied(out), *play(environment, actions[steps:], start=False)]

    resumed = make_environments(name, [99, 98, 97], **made)
    current = copied(resumed.load_state_dict(state))
    assert_same([current, *play(resumed, actions[steps:], start=False)], expected)
    assert np.any([out["done"] for out in expected[1:]]) or name in (PICKUP, CORRIDOR)


def test_saving_disturbs_nothing(lava_game):
    actions, outputs = lava_game
    environment = make_environments(LAVA, SEEDS, engine="gym")
    environment.initial()
    for t, row in enumerate(actions[:60]):
        state = environment.state_dict()
        assert_same([copied(environment.step(row))], [outputs[t + 1]])
    assert state["out"]["episode_step"].tolist() == outputs[59]["episode_step"].tolist()  # and is a copy


def test_generator_states_go_through_text():
    generator = np.random.default_rng(3)
    generator.integers(0, 7, 5, dtype=np.int32)
    other = np.random.default_rng(4)
    set_generator_state(other, through_a_file(generator_state(generator)))
    assert other.integers(0, 10**9, 20, dtype=np.int32).tolist() == generator.integers(0, 10**9, 20, dtype=np.int32).tolist()


def test_as_many_seeds_as_environments():
    with pytest.raises(ValueError, match="seeds"):
        GymEnvironment([gym.make(LAVA)], lambda env, observation: {}, seeds=[1, 2], max_steps=5)


# -- FrameStack -------------------------------------------------------------------------------------------------------

K = 4


def stacked(outputs, k=K):
    """The slow twin: the last k frames of the episode, its first one repeated."""
    histories = [[] for _ in range(len(outputs[0]["done"]))]
    found = []
    for out in outputs:
        rows = []
        for e, history in enumerate(histories):
            if out["done"][e]:
                history.clear()
            history.append(out["frame"][e])
            rows.append(np.concatenate(([history[0]] * k + history)[-k:], axis=-1))
        found.append(np.stack(rows))
    return found


@pytest.mark.parametrize("engine", ENGINES)
def test_stacks_hold_the_last_frames_of_the_episode(engine, lava_game):
    actions, plain = lava_game
    environment = make_environments(LAVA, SEEDS, engine=engine, num_input_frames=K)
    assert isinstance(environment, FrameStack) and environment.frame_shape == (5, 5, 3 * K)
    outputs = play(environment, actions)
    for t, (out, expected) in enumerate(zip(outputs, stacked(plain), strict=True)):
        assert out["frame"].dtype == np.uint8 and out["frame"].shape == (3, 5, 5, 3 * K)
        np.testing.assert_array_equal(out["frame"], expected, err_msg=f"at {t}")
        for name in set(DTYPES) - {"frame"}:
            np.testing.assert_array_equal(out[name], plain[t][name], err_msg=name)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_restart_fills_the_stack_with_the_new_episodes_first_frame(engine):
    environment = make_environments(PICKUP, SEEDS, engine=engine, num_input_frames=K)
    plain = make_environments(PICKUP, SEEDS, engine=engine)
    actions = random_actions(9, weights=(1, 1, 2, 0, 0, 0, 0))
    before, history = play(environment, actions[:6])[-1], play(plain, actions[:6])
    where = np.array([True, False, True])
    out, first = environment.restart(where), copied(plain.restart(where))
    for e in range(3):
        expected = np.tile(first["frame"][e], K) if where[e] else before["frame"][e]
        np.testing.assert_array_equal(out["frame"][e], expected)
    assert out["done"].tolist() == where.tolist()
    history[-1] = first
    after = play(environment, actions[6:], start=False)
    expected = stacked(history + play(plain, actions[6:], start=False))[-3:]
    for mine, theirs in zip(after, expected, strict=True):
        np.testing.assert_array_equal(mine["frame"], theirs)


def test_stacks_of_nothing_are_refused():
    with pytest.raises(ValueError):
        FrameStack(make_environments(LAVA, [1], engine="gym"), 0)


# -- all engines, and names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [LAVA, PICKUP, CORRIDOR])
@pytest.mark.parametrize("k", [1, 2])
def test_all_engines_give_the_same(name, k):
    actions = random_actions(320, seed=5, weights=(1, 1, 4, 2, 0.3, 1, 0.1))
    games = [make_environments(name, SEEDS, engine=engine, num_input_frames=k) for engine in ENGINES]
    assert len({(game.frame_shape, game.max_steps) for game in games}) == 1
    assert {game.num_actions for game in games} == {7}
    outputs = [play(game, actions) for game in games]
    for mine in outputs[1:]:
        assert_same(mine, outputs[0])
    assert np.any([out["done"] for out in outputs[0][1:]]) or name == PICKUP


def test_auto_takes_the_compiled_engine_where_it_can():
    assert choose_engine(PICKUP, "auto") == choose_engine(PICKUP, "compiled") == "compiled"
    assert choose_engine(PICKUP, "gym") == "gym"
    assert choose_engine(DYNAMIC, "auto") == "gym"
    with pytest.raises(ValueError, match="--engine"):
        choose_engine(DYNAMIC, "compiled")


def test_unknown_names_are_answered_with_close_ones():
    with pytest.raises(ValueError, match="MiniGrid-KeyCorridorS3R3-v0"):
        survey("MiniGrid-KeyCoridorS3R3-v0")
    with pytest.raises(ValueError, match="MiniGrid-LavaGapS5-v0"):
        make_environments("LavaGapS5", [1])
    for name in ("", "CartPole-v1", "xyz"):
        with pytest.raises(ValueError, match="MiniGrid-"):
            survey(name)
    survey(LAVA)

"""Users' own tasks: whatever of gym-minigrid's rules they change, the game that is played is gym-minigrid's.

By search: subclasses that override, one at a time and in pairs, what gym-minigrid's rules read. Each is either refused by
the compiled engine or played to the bit as gym-minigrid plays it. CHANGES says which must be refused: the compiled
engine cannot play them.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import subprocess
import sys
from enum import IntEnum
from pathlib import Path

import gym
import numpy as np
import pytest
from gym_minigrid import envs, minigrid
from gym_minigrid.minigrid import Ball, Box, Door, Floor, Goal, Grid, Key, Lava, MiniGridEnv, Wall, WorldObj

from main.main import main
from models import grid
from tests.helpers.program import ROOT
from torchbeast.core.settings import UsageError
from utils_folder.minigrid import choose_engine, levels, make_environments, probe, rules, survey, why_not_first
from utils_folder.minigrid.engine import CompiledEnvironment, playable
from utils_folder.minigrid.rules import names_read

BASES = (envs.DoorKeyEnv, envs.UnlockPickupEnv, envs.FetchEnv, envs.EmptyEnv, envs.RedBlueDoorEnv, envs.KeyCorridorEnv)
numbers = itertools.count()


def register(cls, **kwargs):
    name = f"MiniGrid-Own{next(numbers)}-v0"
    gym.register(name, entry_point=cls, **kwargs)
    return name


class Turned(IntEnum):
    left, right, forward, pickup, drop, toggle, done = 1, 0, 2, 3, 4, 5, 6


class Sliding(Ball):
    def can_overlap(self):
        return True


class TornGrid(Grid):
    def get(self, i, j):
        return super().get(max(i, 1), j)


# --- What may be changed: in a class, in an object when it is made, and in each level ------------------------------------


def dir_vec(self):
    return minigrid.DIR_TO_VEC[(self.agent_dir + 1) % 4]


def front_pos(self):
    return np.array(self.agent_pos) + minigrid.DIR_TO_VEC[(self.agent_dir + 2) % 4]


class Free:
    """An attribute that is kept on the object under another name; `told` changes what is read."""

    def __init__(self, name, told):
        self.name, self.told = f"_own_{name}", told

    def __get__(self, game, cls):
        return self if game is None else self.told(vars(game)[self.name])

    def __set__(self, game, value):
        vars(game)[self.name] = value


def stepping(self, action):
    return MiniGridEnv.step(self, 0 if action == 1 else action)


def looking(self, name):
    value = object.__getattribute__(self, name)
    return value // 2 + 1 if name == "max_steps" else value


CLASS = {
    "dir_vec": property(dir_vec),
    "front_pos": property(front_pos),
    "max_steps": Free("max_steps", lambda steps: 7),
    "step_count": Free("step_count", lambda steps: steps + 3 if steps else steps),
    "agent_dir": Free("agent_dir", lambda direction: (direction + 1) % 4),
    "agent_pos": Free("agent_pos", lambda at: at),
    "carrying": Free("carrying", lambda thing: None),
    "actions": Free("actions", lambda actions: Turned),
    "grid": Free("grid", lambda grid: grid),
    "step": stepping,
    "_reward": lambda self: 0.5,
    "gen_obs": lambda self: {"image": None, "direction": 0, "mission": ""},
    "gen_obs_grid": lambda self, size=None: MiniGridEnv.gen_obs_grid(self, size),
    "get_view_exts": lambda self, size=None: MiniGridEnv.get_view_exts(self, size),
    "reset": lambda self, **kwargs: MiniGridEnv.reset(self, seed=3),
    "np_random": property(lambda self: np.random.default_rng(5), lambda self, value: None),
    "__getattribute__": looking,
    "__setattr__": lambda self, name, value: object.__setattr__(self, name, 9 if name == "max_steps" else value),
}


def odd(thing, **parts):
    for name, value in parts.items():
        setattr(thing, name, value)
    return thing


def everywhere(*things):
    def place(game):
        for thing in things:
            game.place_obj(thing())

    return place


def setting(**parts):
    return lambda game: [setattr(game, name, value(game) if callable(value) else value) for name, value in parts.items()]


def as_method(function):
    return lambda game: function.__get__(game)


class Swapped(WorldObj):
    def __init__(self):
        super().__init__("goal", "green")

    def can_overlap(self):
        return False


class AllKeys(WorldObj):
    """What is carried is compared with it, not it with what is carried."""

    def __init__(self):
        super().__init__("key", "red")

    def __eq__(self, other):
        return isinstance(other, (Key, Ball, Box))

    def __hash__(self):
        return 1


def in_itself():
    box = Box("red")
    box.contains = box
    return box


def same_door_twice(game):
    door = Door("yellow")
    game.place_obj(door)
    game.place_obj(door)


def torn(game):
    whole, game.grid = game.grid, TornGrid(game.width, game.height)
    game.grid.grid = whole.grid


def get_on_the_grid(game):
    grid = game.grid
    grid.get = lambda i, j: Grid.get(grid, max(i, 1), j)


def open_first(game):
    for thing in game.grid.grid:
        if isinstance(thing, Door):
            thing.is_locked, thing.is_open = False, True


LEVEL = {
    "max_steps in a level": setting(max_steps=7),
    "max_steps by level": lambda game: setattr(game, "max_steps", 5 + game._rand_int(0, 30)),
    "actions in a level": setting(actions=lambda game: Turned),
    "step in a level": setting(step=as_method(stepping)),
    "_reward in a level": setting(_reward=as_method(lambda self: 0.5)),
    "gen_obs in a level": setting(gen_obs=as_method(lambda self: {"image": None, "direction": 0, "mission": ""})),
    "can_overlap of an object": everywhere(lambda: odd(Ball(), can_overlap=lambda: True), Ball),
    "can_pickup of an object": everywhere(lambda: odd(Ball(), can_pickup=bool), lambda: odd(Goal(), can_pickup=lambda: True)),
    "toggle of an object": everywhere(*[lambda: odd(Ball(), toggle=lambda env, pos: env.grid.set(*pos, None))] * 3),
    "encode of an object": everywhere(lambda: odd(Ball(), encode=lambda: (5, 0, 0))),
    "type of an object": everywhere(*[lambda: odd(Floor(), type="goal")] * 3),
    "colour under way": everywhere(*[lambda: odd(Key(), color=np.str_("red"))] * 2),
    "a subclass of Ball": everywhere(*[Sliding] * 3),
    "an object of its own": everywhere(Swapped, Swapped),
    "open and locked": everywhere(lambda: Door("red", is_open=True, is_locked=True)),
    "a subclass in a box": everywhere(*[lambda: Box("red", Sliding())] * 3),
    "boxes in boxes": everywhere(lambda: Box("red", Box("red", Box("blue", Box("green", Box("grey", Key())))))),
    "one door twice": same_door_twice,
    "a grid of its own": torn,
    "get of the grid": get_on_the_grid,
    "an open door": open_first,
    "a task of its own": setting(obj=lambda game: AllKeys()),
    "one door for both": lambda game: hasattr(game, "red_door") and setattr(game, "red_door", game.blue_door),
    "a box in itself": lambda game: game.place_obj(in_itself()),
    "other random numbers": lambda game: setattr(game, "np_random", np.random.Generator(np.random.MT19937(3))),
    "things": everywhere(Lava, Goal, Key, lambda: Box("red", Door("red")), lambda: Floor("red"), lambda: Door("blue")),
    "a wall of another colour": lambda game: game.grid.set(0, 0, Wall("red")),
    "nothing": lambda game: None,
}  # fmt: skip


def counting(game):
    game.levels = getattr(game, "levels", 0) + 1
    if game.levels % 2:
        game.place_obj(Goal())


def counting_in_a_list(game):
    game.__dict__.setdefault("seen", []).append(0)
    if len(game.seen) % 3 == 0:
        game.place_obj(Lava())


def counting_in_the_class(game):
    type(game).made = getattr(type(game), "made", 0) + 1
    if type(game).made % 2:
        game.place_obj(Goal())


STATE = {
    "a count of levels": counting,
    "a list of levels": counting_in_a_list,
    "a count in the class": counting_in_the_class,
    "what was carried": lambda game: game.place_obj(Goal() if game.carrying is None else Lava()),
    "what was carried, by its vars": lambda game: game.place_obj(Goal() if vars(game)["carrying"] is None else Lava()),
    "how long it took": lambda game: game.place_obj(Goal() if getattr(game, "step_count", 0) < 20 else Lava()),
    "another generator": lambda game: game.place_obj(Goal(), top=(0, 0), size=(random.randrange(3, 5), 9)),
}
# These change nothing that the rules read, or nothing that the compiled ones do not know.
PLAYED = {"colour under way", "things", "a wall of another colour", "nothing"}


def own_class(base, class_parts=(), level_parts=()):
    """A subclass of `base` with these changes. The level's come after the level."""

    def _gen_grid(self, width, height):
        base._gen_grid(self, width, height)
        for name in level_parts:
            (LEVEL | STATE)[name](self)

    return type("Own", (base,), {"_gen_grid": _gen_grid, **{name: CLASS[name] for name in class_parts}})


class Twin:
    """gym-minigrid's own object as a batch of one plays it: the obvious loop."""

    def __init__(self, name, seed):
        self.env = gym.make(name, disable_env_checker=True).unwrapped
        self.env.reset(seed=seed)
        self.reward, self.done = 0.0, True

    def step(self, action):
        _, self.reward, terminated, truncated, _ = self.env.step(action)
        self.done = terminated or truncated
        if self.done:
            self.env.reset()

    def shown(self):
        frame = self.env.grid.encode()
        frame[tuple(self.env.agent_pos)] = 10, 0, self.env.agent_dir
        return frame, np.float32(self.reward), self.done


def play_both(name, steps=220, seeds=(3, 4)):
    """Plays the compiled engine beside gym-minigrid, and compares at each step."""
    game, twins = CompiledEnvironment(name, seeds), [Twin(name, seed) for seed in seeds]
    actions = np.random.default_rng(1).choice(7, (steps, len(seeds)), p=[0.15, 0.15, 0.35, 0.12, 0.05, 0.15, 0.03])
    output = game.initial()
    for t, row in enumerate(actions):
        for e, twin in enumerate(twins):
            for mine, theirs in zip((output["frame"][e], output["reward"][e], output["done"][e]), twin.shown()):
                assert np.array_equal(mine, theirs), f"{name}: environment {e} differs at step {t}"
        output = game.step(row)
        for twin, action in zip(twins, row):
            twin.step(int(action))


def decide_and_play(name, steps=220):
    """Whether the compiled engine takes it; if so, it plays it as gym-minigrid does."""
    try:
        chosen = choose_engine(name, "auto")
    except (AssertionError, TypeError, RecursionError, AttributeError):
        return None  # gym-minigrid cannot play it either
    if chosen == "gym":
        assert why_not_first(name, "auto").startswith(f"gym-minigrid itself plays {name}: ")
        return False
    play_both(name, steps)
    return True


SINGLE = [*CLASS, *LEVEL, *STATE]


@pytest.mark.slow
@pytest.mark.parametrize("base", BASES, ids=lambda base: base.__name__)
@pytest.mark.parametrize("change", SINGLE)
def test_what_the_rules_read_is_never_played_wrongly(base, change):
    if base is envs.KeyCorridorEnv and change in STATE:
        pytest.skip("its rooms have no room for more")
    name = register(own_class(base, [change] * (change in CLASS), [change] * (change not in CLASS)))
    taken = decide_and_play(name)
    if harmless(base, change):
        assert taken in (True, None)
    else:
        assert not taken, "the compiled engine took rules that are not its own"


def harmless(base, change):
    """Whether it changes nothing of what the rules of this base read and the compiled ones do not know."""
    if change == "an open door":
        return base is not envs.RedBlueDoorEnv
    if change == "what was carried, by its vars":
        return base in (envs.EmptyEnv, envs.RedBlueDoorEnv)  # they have nothing to carry
    if change == "a task of its own":
        return "obj" not in names_read(base)
    return change in PLAYED or (change == "one door for both" and base is not envs.RedBlueDoorEnv)


def test_every_name_that_the_rules_read_may_not_be_overridden():
    """Whatever the name: a property in the class that gives what the object has is refused by name."""
    skipped = {"_gen_grid", "render"}
    names = sorted(names_read(envs.UnlockPickupEnv) - skipped)
    assert {"dir_vec", "max_steps", "agent_dir", "carrying", "obj", "actions", "step_count", "front_pos"} <= set(names)
    for name in names:
        cls = type("Own", (envs.UnlockPickupEnv,), {name: Free(name, lambda value: value)})
        try:
            reason = playable(register(cls))
        except ValueError as error:
            assert "cannot be made" in str(error)
            continue  # such an object cannot even be made
        assert reason is not None, name


def test_pairs_of_changes():
    """A seeded sample of all pairs, on all bases; a pair of which one must be refused is refused."""
    pairs = list(itertools.combinations([*CLASS, *LEVEL], 2))
    draws = random.Random(0)
    for pair in draws.sample(pairs, 160):
        base = draws.choice(BASES)
        name = register(own_class(base, [c for c in pair if c in CLASS], [c for c in pair if c in LEVEL]))
        taken = decide_and_play(name, 120)
        assert not taken or all(harmless(base, change) for change in pair), pair


# --- Later levels, and what all of them share -------------------------------------------------------------------------


class Later(envs.EmptyEnv):
    """A tenth of its levels, not the first one that is looked at, are what `change` makes of them."""

    def __init__(self):
        super().__init__(size=6)
        self.max_steps = 12

    def _gen_grid(self, width, height):
        super()._gen_grid(width, height)
        self.place_obj(Ball())
        self.max_steps = 12
        if self._rand_int(0, 100) >= 90:
            LEVEL[self.change](self)


def later(change):
    return type("OfThese", (Later,), {"change": change})


CHANGES_LATER = [
    *("max_steps in a level", "max_steps by level", "a subclass of Ball", "can_overlap of an object", "open and locked"),
    *("actions in a level", "one door twice", "boxes in boxes", "_reward in a level"),
]


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES_LATER)
def test_a_later_level_with_other_rules_is_played_by_gym_minigrid(change, monkeypatch, caplog):
    monkeypatch.setattr("utils_folder.minigrid.engine.LOOKED_AT", 1)
    name = register(later(change))
    assert choose_engine(name, "auto") == "compiled"
    play_both(name, steps=700, seeds=(1, 2, 3))
    said = [record.message for record in caplog.records if "gym-minigrid itself plays" in record.message]
    assert len(said) == 1, said


def copied(output):
    return {field: array.copy() for field, array in output.items()}


def test_a_saved_state_with_such_an_episode_goes_on_identically(monkeypatch):
    monkeypatch.setattr("utils_folder.minigrid.engine.LOOKED_AT", 1)
    name = register(later("a subclass of Ball"))
    actions = np.random.default_rng(0).integers(0, 7, (900, 4))
    game = CompiledEnvironment(name, range(4))
    game.initial()
    t = 0
    while not (game._live._games and t % 12 == 5):
        game.step(actions[t])
        t += 1
    state = game.state_dict()
    expected = [copied(game.step(row)) for row in actions[t : t + 150]]
    other = CompiledEnvironment(name, range(50, 54))
    other.initial()
    other.load_state_dict(state)
    for row, wanted in zip(actions[t:], expected):
        for field, array in other.step(row).items():
            np.testing.assert_array_equal(array, wanted[field], err_msg=field)


def test_levels_that_begin_to_look_at_the_last_episode_are_refused(monkeypatch):
    monkeypatch.setattr("utils_folder.minigrid.engine.LOOKED_AT", 1)
    name = register(own_class(envs.EmptyEnv, level_parts=["what was carried"]))
    game = CompiledEnvironment(name, [1])
    with pytest.raises(UsageError, match=r"depends on those before it \(carrying\): use --engine gym"):
        for _ in range(3):
            game.initial()


def test_environments_that_count_their_levels_each_have_an_object(monkeypatch):
    """Even where nothing has noticed that they count."""
    monkeypatch.setattr("utils_folder.minigrid.engine.outlives", lambda maker, generators: None)
    counts = own_class(envs.EmptyEnv, level_parts=["a count of levels"])
    lists = own_class(envs.EmptyEnv, level_parts=["a list of levels"])
    lists.__init__ = lambda self: setattr(self, "seen", []) or super(lists, self).__init__()
    for cls in (counts, lists):
        play_both(register(cls), 900, seeds=(1, 2, 3))


class Crowded(envs.PutNearEnv):
    """The object that is to be put somewhere lies in seven places: it is dropped where it lies already."""

    def __init__(self):
        super().__init__(size=6, numObjs=2)

    def _gen_grid(self, width, height):
        super()._gen_grid(width, height)
        its = self.moveColor, self.move_type
        (wanted,) = (thing for thing in self.grid.grid if thing and (thing.color, thing.type) == its)
        for _ in range(6):
            self.place_obj(wanted)


def test_a_thing_in_two_places_is_told_from_one_like_it_where_the_rules_do_so(monkeypatch):
    name = register(Crowded)
    assert " in two places" in playable(name)
    monkeypatch.setattr("utils_folder.minigrid.engine.outlives", lambda maker, generators: None)
    play_both(name, 900, seeds=(3, 4, 5))


LAST_DOORS = {}


class AsLeft(envs.EmptyEnv):
    """Its levels look the same until one is played; the last one's door is known to the module only."""

    def _gen_grid(self, width, height):
        super()._gen_grid(width, height)
        open_before = "door" in LAST_DOORS and LAST_DOORS["door"].is_open
        LAST_DOORS["door"] = Door("red", is_open=open_before)
        self.grid.set(2, 1, LAST_DOORS["door"])


def test_levels_that_depend_on_play_outside_their_object_are_noticed():
    name = register(AsLeft)
    survey(name)  # has made levels already
    assert "depend on those before them (they differ after one that was played)" in playable(name)


def test_looking_whether_play_matters_leaves_a_users_things_as_they_were():
    kept = []

    class Keeping(envs.EmptyEnv):
        def _gen_grid(self, width, height):
            super()._gen_grid(width, height)
            kept.append(Door("red", is_locked=True))
            self.grid.set(2, 1, kept[-1])

    assert playable(register(Keeping)) is None
    assert len(kept) > 6 and all(door.is_locked and not door.is_open for door in kept)


class Kept(envs.EmptyEnv):
    """Its door is put into every level, as the last one left it."""

    def __init__(self):
        super().__init__(size=6)
        self.door = Door("red")
        self.max_steps = 10

    def _gen_grid(self, width, height):
        super()._gen_grid(width, height)
        self.grid.set(2, 1, self.door)


def test_a_door_that_stays_as_it_was_left_is_noticed(monkeypatch):
    name = register(Kept)
    assert "depend on those before them (a door that was in one before)" in playable(name)
    monkeypatch.setattr("utils_folder.minigrid.engine.LOOKED_AT", 1)
    game = CompiledEnvironment(name, [1])
    game.initial()
    with pytest.raises(UsageError, match="a door that was in one before"):
        game.initial()


def handmade(**parts):
    def make():
        game = envs.KeyCorridorEnv(room_size=3)
        setting(**parts)(game)
        return game

    return make


@pytest.mark.parametrize(
    "entry_point, taken",
    [
        (handmade(max_steps=9), True),
        (handmade(_reward=as_method(lambda self: 0.25)), False),
        (handmade(_gen_grid=as_method(lambda self, width, height: envs.EmptyEnv._gen_grid(self, width, height))), None),
        (handmade(place_agent=as_method(lambda self, *args: MiniGridEnv.place_agent(self))), None),
        (handmade(obj_type="key"), True),
    ],
)
def test_objects_that_a_function_makes_are_looked_at_too(entry_point, taken):
    found = decide_and_play(register(entry_point), 500)
    assert taken is None or found == taken


def test_random_numbers_that_cannot_be_saved_are_refused():
    name = register(own_class(envs.EmptyEnv, level_parts=["other random numbers"]))
    with pytest.raises(UsageError, match="np_random"):
        probe(name)


@pytest.mark.parametrize(
    "cls",
    [
        type("Both", (envs.UnlockEnv, envs.KeyCorridorEnv), {"__init__": envs.KeyCorridorEnv.__init__}),
        type("Mixed", (envs.DoorKeyEnv, type("Mixin", (MiniGridEnv,), {"step": stepping})), {}),
    ],
)
def test_rules_of_several_classes_are_not_one_of_theirs(cls):
    assert playable(register(cls)) is not None


PATCHES = {
    "Door.toggle": (Door, "toggle", Box.toggle),
    "Key.toggle": (Key, "toggle", lambda self, env, pos: env.grid.set(*pos, None)),
    "WorldObj.encode": (WorldObj, "encode", lambda self: (2, 0, 0)),
    "MiniGridEnv._reward": (MiniGridEnv, "_reward", lambda self: 1),
    "MiniGridEnv.__getattribute__": (MiniGridEnv, "__getattribute__", looking),
    "MiniGridEnv.front_pos": (MiniGridEnv, "front_pos", property(front_pos)),
    "MiniGridEnv.Actions": (MiniGridEnv, "Actions", Turned),
    "Grid.get": (Grid, "get", TornGrid.get),
    "KeyCorridorEnv._gen_grid": (envs.KeyCorridorEnv, "_gen_grid", envs.EmptyEnv._gen_grid),
    "KeyCorridorEnv.reset": (envs.KeyCorridorEnv, "reset", MiniGridEnv.reset),
    "DIR_TO_VEC": (minigrid, "DIR_TO_VEC", minigrid.DIR_TO_VEC[::-1]),
    "COLOR_NAMES": (minigrid, "COLOR_NAMES", [*minigrid.COLOR_NAMES, "orange"]),
    "Key": (minigrid, "Key", Ball),
    "reversed": (minigrid, "reversed", lambda things: things),
}


@pytest.mark.parametrize("patch", PATCHES)
def test_a_changed_gym_minigrid_is_played_by_gym_minigrid(patch, monkeypatch):
    assert playable("MiniGrid-KeyCorridorS3R3-v0") is None
    monkeypatch.setattr(*PATCHES[patch], raising=False)
    assert "is not gym-minigrid's own" in playable("MiniGrid-KeyCorridorS3R3-v0")


@pytest.mark.parametrize("edited", ["minigrid", "wrappers", "roomgrid", "envs.keycorridor"])
def test_a_gym_minigrid_that_was_edited_where_it_is_installed_is_played_by_itself(edited, monkeypatch):
    monkeypatch.setitem(rules.SOURCES, edited, "of the release")
    assert f"the file of gym_minigrid.{edited} is not that of gym-minigrid 1.2.2" in playable("MiniGrid-KeyCorridorS3R3-v0")


def test_what_is_edited_and_not_read_by_a_task_is_no_matter(monkeypatch):
    monkeypatch.setitem(rules.SOURCES, "envs.keycorridor", "of the release")
    assert playable("MiniGrid-DoorKey-5x5-v0") is None


@pytest.mark.slow
def test_a_task_within_the_package_of_gym_minigrid_is_a_users_too(tmp_path):
    """A copy with an edited rule, and with a file more, as they are found where people keep their tasks there."""
    package = shutil.copytree(Path(minigrid.__file__).parent, tmp_path / "gym_minigrid")
    (package / "envs/mine.py").write_text(
        "import gym\nfrom gym_minigrid.envs.empty import EmptyEnv\nfrom gym_minigrid.minigrid import DIR_TO_VEC\n"
        "class Mine(EmptyEnv):\n    dir_vec = property(lambda self: DIR_TO_VEC[self.agent_dir - 1])\n"
        "gym.register('Mine-v0', entry_point=Mine)\n"
    )
    show = (
        "from utils_folder.minigrid.engine import playable as p; "
        "print(p('gym_minigrid.envs.mine:Mine-v0'), '|', p('MiniGrid-KeyCorridorS3R3-v0'))"
    )

    def told():
        environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
        run = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert run.returncode == 0, run.stderr
        return run.stdout.strip().splitlines()[-1].split(" | ")

    assert told() == ["Mine has its own dir_vec", "None"]
    rules_file = package / "minigrid.py"
    rules_file.write_text(rules_file.read_text().replace("return 1 - 0.9", "return 2 - 0.9"))
    assert told() == ["the file of gym_minigrid.minigrid is not that of gym-minigrid 1.2.2"] * 2


def test_a_number_changed_in_place_is_noticed_and_one_more_does_no_harm(monkeypatch):
    monkeypatch.setitem(minigrid.OBJECT_TO_IDX, "coin", 11)
    assert playable("MiniGrid-KeyCorridorS3R3-v0") is None
    monkeypatch.setitem(minigrid.OBJECT_TO_IDX, "key", 6)
    assert "OBJECT_TO_IDX" in playable("MiniGrid-KeyCorridorS3R3-v0")


@pytest.mark.parametrize(
    "cls, kwargs",
    [
        (envs.KeyCorridorEnv, {"num_cols": 4, "room_size": 4}),
        (envs.KeyCorridorEnv, {"obj_type": "box", "room_size": 4, "num_rows": 2}),
        (envs.KeyCorridorEnv, {"room_size": 5, "num_rows": 5}),
        (envs.ObstructedMaze_Full, {"num_quarters": 7}),
        (envs.ObstructedMaze_Full, {"num_quarters": -1, "agent_room": (0, 2)}),
        (envs.ObstructedMaze_Full, {"num_quarters": 2, "agent_room": [1, 2], "key_in_box": False, "num_rooms_visited": 3}),
        (envs.ObstructedMaze_1Dlhb, {"key_in_box": 1, "blocked": False}),
    ],
)
def test_what_a_task_is_registered_with_is_part_of_the_game(cls, kwargs):
    play_both(register(cls, kwargs=kwargs), 500)


IMPORTS = ["import own", "import models.grid, utils_folder.minigrid.levels, utils_folder.motivations.curriculum"]


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, 1])
def test_the_order_of_imports_decides_nothing(first, tmp_path):
    """A user's package that adds to gym-minigrid's tables, before or after this program's modules are imported."""
    (tmp_path / "own.py").write_text(
        "from gym_minigrid import minigrid as m\n"
        "m.OBJECT_TO_IDX['coin'] = 11\nm.COLOR_TO_IDX['orange'] = 6\n"
        "m.COLOR_NAMES.append('orange')\nm.DIR_TO_VEC.append(None)\n"
    )
    lines = IMPORTS[::-1] if first else IMPORTS
    show = (
        "from models import grid; from utils_folder.minigrid import levels; from utils_folder.motivations import curriculum;"
        "print(grid.OBJECTS, grid.COLOURS, grid.STATES, grid.CODES, curriculum.KINDS, levels.COLOURS, levels.STEP_X)"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    program = "; ".join([*lines, show])
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "11 6 4 264 11 [2 1 5 3 0 4] [ 1  0 -1  0]"


def test_the_numbers_are_gym_minigrids():
    assert list(minigrid.OBJECT_TO_IDX) == [
        *("unseen", "empty", "wall", "floor", "door", "key", "ball", "box", "goal", "lava", "agent"),
    ]
    things = ("EMPTY", "WALL", "FLOOR", "DOOR", "KEY", "BALL", "BOX", "GOAL", "LAVA", "AGENT")
    assert {name.lower(): getattr(levels, name) for name in things} | {"unseen": 0} == minigrid.OBJECT_TO_IDX
    colours = ("RED", "GREEN", "BLUE", "PURPLE", "YELLOW", "GREY")
    assert {name.lower(): getattr(levels, name) for name in colours} == minigrid.COLOR_TO_IDX
    assert {name.lower(): getattr(levels, name) for name in ("OPEN", "CLOSED", "LOCKED")} == minigrid.STATE_TO_IDX
    assert [minigrid.COLOR_TO_IDX[name] for name in minigrid.COLOR_NAMES] == levels.COLOURS.tolist()
    assert np.array_equal(np.stack([levels.STEP_X, levels.STEP_Y], axis=1), minigrid.DIR_TO_VEC)
    assert {action.name: action.value for action in MiniGridEnv.Actions} == {
        action.name: getattr(levels, action.name.upper()) for action in MiniGridEnv.Actions
    }
    assert (len(minigrid.OBJECT_TO_IDX), len(minigrid.COLOR_TO_IDX)) == (grid.OBJECTS, grid.COLOURS)
    assert minigrid.OBJECT_TO_IDX["agent"] == grid.AGENT and len(minigrid.DIR_TO_VEC) == grid.STATES


# --- What the networks have no number for -----------------------------------------------------------------------------


class Coin(WorldObj):
    def __init__(self, color="red"):
        super().__init__("coin", color)

    def can_pickup(self):
        return True


def holding(thing, odds=100, max_steps=100):
    """An empty room with that in it, in so many levels of a hundred."""

    def _gen_grid(self, width, height):
        self.max_steps = max_steps
        envs.EmptyEnv._gen_grid(self, width, height)
        if self._rand_float(0, 100) < odds:
            self.grid.set(3, 2, thing())

    return register(type("Holding", (envs.EmptyEnv,), {"_gen_grid": _gen_grid}))


@pytest.fixture
def more_numbers(monkeypatch):
    monkeypatch.setitem(minigrid.OBJECT_TO_IDX, "coin", 11)
    monkeypatch.setitem(minigrid.COLOR_TO_IDX, "orange", 6)
    monkeypatch.setitem(minigrid.COLOR_TO_IDX, "white", 256)  # as a byte it would be red


BEYOND = {
    "coin": (Coin, r"cell \(3, 2\) is \(11, 0, 0\), Coin, a red coin; the networks know 11 objects"),
    "orange": (lambda: Ball("orange"), r"cell \(3, 2\) is \(6, 6, 0\), Ball, a orange ball"),
    "white": (lambda: Ball("white"), r"cell \(3, 2\) is \(6, 256, 0\), Ball, a white ball"),
    "state": (lambda: odd(Ball(), encode=lambda: (6, 0, 7)), r"cell \(3, 2\) is \(6, 0, 7\), Ball, a blue ball"),
    "state, as a byte": (lambda: odd(Ball(), encode=lambda: (6, 0, 258)), r"cell \(3, 2\) is \(6, 0, 258\)"),
    "half a state": (lambda: odd(Ball(), encode=lambda: (6, 0, 0.5)), r"cell \(3, 2\) is \(6, 0, 0.5\)"),
}


@pytest.mark.parametrize("kind", BEYOND)
def test_what_the_networks_have_no_number_for_is_refused_by_name(kind, more_numbers):
    thing, message = BEYOND[kind]
    first = UsageError, message
    if kind in ("white", "state, as a byte") and np.lib.NumpyVersion(np.__version__) >= "2.0.0":
        first = ValueError, "out of bounds for uint8"  # the survey, which looks at no frames, has it from NumPy
    with pytest.raises(first[0], match=first[1]):
        probe(holding(thing))
    name = holding(thing, odds=0.5)  # not in the levels that are looked at first
    game = make_environments(name, [11, 12])
    game.initial()
    with pytest.raises(UsageError, match=message):
        for _ in range(400):
            game.restart(np.ones(2, bool))
            game.step(np.zeros(2, np.int64))


def test_a_coin_in_the_hands_is_refused_too(more_numbers):
    def _gen_grid(self, width, height):
        envs.EmptyEnv._gen_grid(self, width, height)
        self.grid.set(2, 1, Box("red", odd(Ball(), type="coin", encode=lambda: (6, 0, 0))))

    game = make_environments(register(type("Hidden", (envs.EmptyEnv,), {"_gen_grid": _gen_grid})), [1])
    game.initial()
    game.step(np.array([5]))
    with pytest.raises(UsageError, match="what the agent carries is \\(11, 2, 0\\)"):
        game.step(np.array([3]))


@pytest.mark.parametrize("engine", ["auto", "gym"])
@pytest.mark.parametrize("sizes", [(6, 7), (7, 6), (5, 9)])
def test_a_grid_that_changes_its_size_is_refused_in_one_line(engine, sizes):
    def _gen_grid(self, width, height):
        self.width, self.height = sizes if self._rand_int(0, 100) < 5 else (6, 6)
        envs.EmptyEnv._gen_grid(self, self.width, self.height)

    name = register(type("Growing", (envs.EmptyEnv,), {"_gen_grid": _gen_grid}), kwargs={"size": 6})
    game = make_environments(name, range(4), engine=engine)
    game.initial()
    with pytest.raises(UsageError, match=f"a grid of {sizes[0]}x{sizes[1]} after one of 6x6; the networks take one size"):
        for _ in range(100):
            game.restart(np.ones(4, bool))
            game.step(np.zeros(4, np.int64))


def test_a_grid_of_another_size_than_the_task_says_is_seen_as_it_is():
    def _gen_grid(self, width, height):
        envs.EmptyEnv._gen_grid(self, width + 2, height)

    name = register(type("Wider", (envs.EmptyEnv,), {"_gen_grid": _gen_grid}))
    assert choose_engine(name, "auto") == "gym"
    assert survey(name).size == (10, 8) == probe(name).frame_shape[:2]


@pytest.mark.parametrize("processes", [0, 1])
@pytest.mark.parametrize("odds", [100, 2])
def test_a_run_ends_with_one_line_and_nothing_is_played_wrongly(processes, odds, more_numbers, monkeypatch, tmp_path, capfd):
    """Before anything is written where the first levels show it; later at once, and without a traceback or a restart."""
    monkeypatch.setattr("utils_folder.minigrid.PROBED_LEVELS", 1)
    name = holding(Coin, odds, max_steps=15)
    flags = ["--env", name, "--num_actors", "4", "--num_actor_processes", str(processes), "--batch_size", "4"]
    flags += ["--unroll_length", "20", "--total_frames", "1000000", "--savedir", str(tmp_path), "--seed", "3"]
    assert main(flags) == 2
    said = capfd.readouterr().err
    assert [line for line in said.splitlines() if line.startswith("error: ")] == [
        f"error: {name}: cell (3, 2) is (11, 0, 0), Coin, a red coin; the networks know 11 objects (0 to 10), 6 colours and "
        "4 states: use objects, colours and states that gym-minigrid has"
    ]
    assert "Traceback" not in said and "starting it again" not in said
    assert (odds == 100) == (not any(tmp_path.iterdir()))

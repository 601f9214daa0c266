"""An engine is one file and one line: what is registered is offered, and chosen by its name and in its order."""

from __future__ import annotations

import pytest

from main import main as entry
from utils_folder import minigrid
from utils_folder.minigrid import Engine, choose_engine, make_environments, survey, why_not_first
from utils_folder.minigrid.engine import COMPILED
from utils_folder.minigrid.gym import GYM

LAVA = "MiniGrid-LavaGapS5-v0"
EMPTY = "MiniGrid-Empty-5x5-v0"
OWN = "Kitchen-Cook-v0"  # an environment that one engine alone has
DYNAMIC = "MiniGrid-Dynamic-Obstacles-5x5-v0"  # its steps draw random numbers; the compiled engine does not play it
TWO = {"compiled": COMPILED, "gym": GYM}
REASON = "the engine does not know the rules of DynamicObstaclesEnv.step"


class Third:
    """A test double that plays `OWN` and all of gym-minigrid's but `EMPTY`, and remembers what it was asked to make."""

    def __init__(self):
        self.made = []
        self.engine = Engine(self.playable, self.make, lambda: [*GYM.names(), OWN], self.survey)

    def playable(self, env_name):
        return "it needs lava" if env_name == EMPTY else None

    def survey(self, env_name, fixed_seed=None):
        return GYM.survey(LAVA)._replace(size=(4, 3)) if env_name == OWN else GYM.survey(env_name, fixed_seed)

    def make(self, env_name, seeds, *, fixed_seed=None):
        self.made.append((env_name, list(seeds), fixed_seed))
        return GYM.make(env_name, seeds, fixed_seed=fixed_seed)


@pytest.fixture(autouse=True)
def two(monkeypatch):
    """Whatever else is registered, here it is not."""
    monkeypatch.setattr(minigrid, "REGISTRY", dict(TWO))


@pytest.fixture
def third(two):
    """Registered behind the others."""
    double = Third()
    minigrid.REGISTRY["third"] = double.engine
    return double


def test_an_engine_that_is_registered_is_offered(third):
    assert minigrid.engine_names() == ("auto", "compiled", "gym", "third")
    assert minigrid.engines_explained() == "compiled, gym (gym-minigrid itself), third, or auto (compiled where it can)"


def test_it_is_chosen_by_its_name(third):
    assert choose_engine(LAVA, "third") == "third"
    environment = make_environments(LAVA, [5, 6], engine="third", num_input_frames=2, fixed_seed=9)
    assert third.made == [(LAVA, [5, 6], 9)]
    assert environment.initial()["frame"].shape == (2, 5, 5, 6)
    assert minigrid.probe(LAVA, engine="third").frame_shape == (5, 5, 3)
    assert third.made[1:] == [(LAVA, [0], None)]


def test_it_is_refused_by_its_name_where_it_cannot_play(third):
    with pytest.raises(ValueError) as error:
        make_environments(EMPTY, [5], engine="third")
    assert str(error.value) == f"the third engine cannot play {EMPTY} (it needs lava): use --engine compiled or gym or auto"
    assert not third.made
    with pytest.raises(ValueError, match="choose from auto, compiled, gym, third"):
        choose_engine(EMPTY, "fourth")


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        (0, {LAVA: "third", DYNAMIC: "third", EMPTY: "compiled"}),
        (1, {LAVA: "compiled", DYNAMIC: "third", EMPTY: "compiled"}),
        (2, {LAVA: "compiled", DYNAMIC: "gym", EMPTY: "compiled"}),
    ],
)
def test_auto_takes_the_first_that_can(monkeypatch, place, expected):
    items = list(TWO.items())
    items.insert(place, ("third", Third().engine))
    monkeypatch.setattr(minigrid, "REGISTRY", dict(items))
    assert {env_name: choose_engine(env_name, "auto") for env_name in expected} == expected


def test_auto_says_why_the_first_ones_do_not_play(monkeypatch):
    never = {"never": GYM._replace(playable=lambda env_name: "it is broken", title="")}
    monkeypatch.setattr(minigrid, "REGISTRY", {"compiled": COMPILED, "third": Third().engine, "gym": GYM})
    assert why_not_first(DYNAMIC, "auto") == f"the third engine plays {DYNAMIC}: {REASON}"
    monkeypatch.setattr(minigrid, "REGISTRY", never | TWO)
    assert why_not_first(DYNAMIC, "auto") == f"gym-minigrid itself plays {DYNAMIC}: it is broken; {REASON}"
    monkeypatch.setattr(minigrid, "REGISTRY", never)
    with pytest.raises(ValueError, match=f"no engine plays {DYNAMIC}"):
        choose_engine(DYNAMIC, "auto")


def test_what_is_said_of_the_first_two():
    assert why_not_first(DYNAMIC, "auto") == f"gym-minigrid itself plays {DYNAMIC}: {REASON}"
    assert why_not_first(LAVA, "auto") is None, "the first one plays it"
    assert why_not_first(DYNAMIC, "gym") is None, "it was asked for"
    with pytest.raises(ValueError) as error:
        choose_engine(DYNAMIC, "compiled")
    assert str(error.value) == f"the compiled engine cannot play {DYNAMIC} ({REASON}): use --engine gym or auto"
    assert minigrid.engine_names() == ("auto", "compiled", "gym")
    assert minigrid.engines_explained() == "compiled, gym (gym-minigrid itself), or auto (compiled where it can)"


NO_SUCH = "gym-minigrid has no environment of that name"


def test_what_one_engine_alone_has_is_known_by_it(third):
    assert survey(OWN).size == (4, 3) and survey(LAVA).size == (5, 5)
    assert choose_engine(OWN, "auto") == "third"
    assert why_not_first(OWN, "auto") == f"the third engine plays {OWN}: {NO_SUCH}", "a reason that two have is said once"
    with pytest.raises(ValueError) as error:
        choose_engine(OWN, "gym")
    assert str(error.value) == f"gym-minigrid itself cannot play {OWN} ({NO_SUCH}): use --engine third or auto"


def test_close_names_are_those_of_all_engines(third):
    with pytest.raises(ValueError, match=f"unknown environment 'Kitchen-Cock': did you mean {OWN}\\?;"):
        survey("Kitchen-Cock")
    with pytest.raises(ValueError, match="MiniGrid-LavaGapS5-v0"):
        survey("LavaGapS5")
    with pytest.raises(ValueError, match=r"known ones are MiniGrid-.* and \d+ others;"):
        survey("xyz")


def test_an_engine_that_is_not_installed_is_named_where_a_name_is_unknown(third):
    absent = third.engine._replace(
        playable=lambda env_name: "it is not installed: buy it", names=lambda: [], survey=GYM.survey
    )
    minigrid.REGISTRY["third"] = absent
    with pytest.raises(ValueError, match=r"others \(the third engine may have it, but it is not installed: buy it\);"):
        survey(OWN)
    assert choose_engine(LAVA, "auto") == "compiled"


def test_the_listing_has_every_environment_as_it_is(third):
    names = ["MiniGrid-Empty-Random-6x6-v0", DYNAMIC, "MiniGrid-KeyCorridorS3R1-v0", OWN]
    for name, engine in minigrid.REGISTRY.items():
        minigrid.REGISTRY[name] = engine._replace(names=lambda: names)
    minigrid.REGISTRY["third"] = third.engine._replace(
        names=lambda: [], playable=lambda name: "it is not installed: buy it", survey=GYM.survey
    )
    lines = [" ".join(line.split()) for line in minigrid.listing()]
    assert lines[:4] == [
        "environment grid actions engine mission",
        "MiniGrid-Empty-Random-6x6-v0 6x6 7 compiled always the same",
        "MiniGrid-Dynamic-Obstacles-5x5-v0 5x5 3 gym always the same",
        "MiniGrid-KeyCorridorS3R1-v0 7x3 7 compiled matters: 'pick up the purple ball' or another",
    ]
    assert lines[4].startswith(f"{OWN} none unknown environment")
    assert lines[-1] == "the third engine has more, but it is not installed: buy it"


def test_the_listing_is_what_env_list_prints(monkeypatch, capsys):
    monkeypatch.setattr(minigrid, "listing", lambda: iter(["one", "two"]))
    for more in ([], ["--mode", "test"]):
        assert entry.main(["--env", "list", *more]) == 0
        assert capsys.readouterr().out == "one\ntwo\n"

"""What the document asks of the command line: the reference's flags and defaults, its commands, and what cannot be given.

The one test outside a variant's own that names its flags: they are the specification's.
"""

from __future__ import annotations

import shlex

import pytest

from main import settings as settings_module
from main.settings import EvaluationSettings, FileSettings, RunSettings
from main.training.processes import ProcessSettings
from models.grid import CellSettings
from models.student import StudentSettings
from torchbeast.core.optimizer import LearningSettings
from torchbeast.core.settings import Settings, flags_of
from utils_folder.minigrid import EnvironmentSettings
from utils_folder.motivations.rewards import GoalRewardSettings, RewardSettings

REFERENCE_DEFAULTS = {
    "env": "MiniGrid-Empty-8x8-v0", "mode": "train", "xpid": None, "window": 50, "disable_checkpoint": False,
    "savedir": "./experimentsMinigrid", "total_frames": 600_000_000, "num_actors": 4, "num_buffers": None, "num_threads": 4,
    "disable_cuda": False, "entropy_cost": 0.0005, "generator_counts": 10, "generator_reward_coef": 1.0, "inner": False,
    "use_lstm": False, "num_lstm_layers": 1, "no_extrinsic_rewards": False, "restart_episode": False,
    "no_boundary_awareness": False, "save_env": False, "save_every": 50_000, "record_video": False,
    "generator_entropy_cost": 0.05, "baseline_cost": 0.5, "discounting": 0.99, "learning_rate": 0.001,
    "generator_learning_rate": 0.002, "alpha": 0.99, "momentum": 0, "epsilon": 0.01, "batch_size": 8,
    "generator_batch_size": 32, "unroll_length": 100, "goal_dim": 10, "state_embedding_dim": 256,
    "generator_reward_negative": -0.1, "generator_threshold": -0.5, "generator_maximum": 100, "fix_seed": False,
    "env_seed": 1, "num_input_frames": 1, "disable_use_embedding": False, "intrinsic_reward_coef": 1.0, "modify": False,
    "initials": "anonymous", "weight_path": "model.tar", "video_path": "minigrid_video.mp4",
}  # fmt: skip

DOCUMENT_COMMANDS = [
    """--env MiniGrid-KeyCorridorS3R3-v0 --num_actors 40 --modify --generator_batch_size 150 --generator_entropy_cost .05
    --generator_threshold -.1 --total_frames 100000000 --generator_reward_negative -.3 --savedir ./experimentMinigrid
    --model default""",
    """--env MiniGrid-KeyCorridorS3R3-v0 --num_actors 40 --modify --generator_batch_size 150 --generator_entropy_cost .05
    --generator_threshold -.5 --total_frames 100000000 --generator_reward_negative -.3 --savedir ./experimentMinigrid
    --model window_addaptive --window 50""",
    """--env MiniGrid-KeyCorridorS3R3-v0 --num_actors 10 --modify --total_frames 100000000
    --savedir ./experimentMinigrid --model novelty_based""",
    """--env MiniGrid-KeyCorridorS3R3-v0 --mode test --weight_path path_to_saved_weights --record_video
    --video_path path_to_video.mp4""",
]

# The bounds of the program's own flags; those of a variant stand in the tests of its settings.
OWN = (
    RunSettings, FileSettings, ProcessSettings, EnvironmentSettings, LearningSettings, StudentSettings, CellSettings,
    GoalRewardSettings, RewardSettings, EvaluationSettings,
)  # fmt: skip
AT_LEAST_ONE = {
    "total_frames", "num_actors", "batch_size", "unroll_length", "save_every", "state_embedding_dim", "num_lstm_layers",
    "goal_dim", "video_episodes", "milestone_frames",
}  # fmt: skip
NOT_NEGATIVE = {
    "learning_rate", "entropy_cost", "baseline_cost", "momentum", "intrinsic_reward_coef", "env_seed", "max_actor_restarts",
    "seed",
}  # fmt: skip
OTHER_BOUNDS = {  # (at_least, above, at_most)
    "discounting": (0, None, 1), "alpha": (None, 0, 1), "epsilon": (1e-30, None, None), "checkpoint_minutes": (None, 0, None),
    "num_threads": (1, None, 1000), "keep_checkpoints": (1, None, 1000), "num_input_frames": (1, None, 100),
    "evaluate_minutes": (None, 0, None), "video_minutes": (None, 0, None), "num_episodes": (1, None, 10**7),
    "max_grad_norm": (None, 0, None), "policy_clip": (None, 0, None), "intrinsic_discounting": (0, None, 1),
}  # fmt: skip
BOUNDED_BY_OTHERS = {"num_actor_processes", "num_buffers"}  # see tests/program/test_settings.py


def parsed(text: str = "") -> Settings:
    return settings_module.parse(shlex.split(text))[0]


def test_the_references_flags_have_its_defaults():
    flags = parsed().flat()
    assert {name: flags[name] for name in REFERENCE_DEFAULTS} == REFERENCE_DEFAULTS
    assert flags["model"] == "default"


@pytest.mark.parametrize("command", DOCUMENT_COMMANDS)
def test_the_documents_commands_parse_and_pass(command):
    settings = parsed(command)
    settings_module.check(settings)
    assert settings[RunSettings].env == "MiniGrid-KeyCorridorS3R3-v0"


def test_the_documents_spelling_means_window_adaptive():
    assert parsed("--model window_addaptive")[RunSettings].model == "window_adaptive"


def test_bounds_are_the_ones_that_are_expected():
    bounds = {name: (about.at_least, about.above, about.at_most) for name, about in flags_of(OWN).items()}
    expected = dict.fromkeys(bounds, (None, None, None)) | OTHER_BOUNDS
    expected |= dict.fromkeys(AT_LEAST_ONE, (1, None, None)) | dict.fromkeys(NOT_NEGATIVE, (0, None, None))
    assert bounds == expected
    numbers = {name for name, about in flags_of(OWN).items() if about.type in (int, float)}
    assert numbers == AT_LEAST_ONE | NOT_NEGATIVE | OTHER_BOUNDS.keys() | BOUNDED_BY_OTHERS


@pytest.mark.parametrize("name", sorted(AT_LEAST_ONE))
def test_counts_must_be_at_least_one(name):
    assert settings_module.problems(parsed(f"--{name} 0")) == [f"--{name} must be at least 1, got 0"]
    assert settings_module.problems(parsed(f"--{name} 1")) == []


@pytest.mark.parametrize("name", ["num_threads", "keep_checkpoints", "num_input_frames", "num_episodes"])
def test_counts_that_have_an_end(name):
    at_least, _, at_most = OTHER_BOUNDS[name]
    for wrong in (0, at_most + 1):
        assert settings_module.problems(parsed(f"--{name} {wrong}")) == [f"--{name} must be in [1, {at_most:g}], got {wrong}"]
    for right in (at_least, at_most):
        assert settings_module.problems(parsed(f"--{name} {right}")) == []


@pytest.mark.parametrize("name", sorted(NOT_NEGATIVE))
def test_what_must_not_be_negative(name):
    (line,) = settings_module.problems(parsed(f"--{name} -1"))
    assert line.startswith(f"--{name} must not be negative, got -1")
    assert settings_module.problems(parsed(f"--{name} 0")) == []

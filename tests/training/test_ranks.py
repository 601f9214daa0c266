"""Several learners: what ranks do together, what becomes of one that fails, and runs of two ranks on the CPU."""

from __future__ import annotations

import itertools
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from main import main as entry
from main.settings import spread
from main.training import learner as learners
from main.training import preflight
from main.training.recipe import Agent
from main.training.run import Run
from main.training.sources import ActorProcesses, ActorsFailed
from tests.helpers.agents import make_settings, random_batch
from tests.helpers.marks import rarer, some
from tests.helpers.program import LEARNABLE, ROOT, alive, children, command, rows, scripts
from tests.helpers.ranks import (
    CPU,
    TWO,
    assert_close,
    assert_equal_trees,
    dispatch,
    flat_numbers,
    in_ranks,
    learn_all,
    learn_halves,
    run_settings,
    run_to_the_end,
    save_often,
    shared,
    signal_one,
    two_then_one_then_two,
    whole_and_cut,
)
from tests.helpers.runs import evaluated
from torchbeast.core import checkpoint
from torchbeast.core.columns import Column
from torchbeast.core.optimizer import Diverged, LearningSettings, Optimizer
from torchbeast.core.ranks import ALONE, Ranks, RanksFailed, from_environment
from torchbeast.core.settings import Settings, UsageError
from utils_folder.motivations import MOTIVATIONS
from utils_folder.motivations.base import Task

pytestmark = pytest.mark.slow

TASK = Task((6, 4, 3), 7, 50)
T, B = 4, 3  # T + 1, B and 2 B all differ
MODELS = list(MOTIVATIONS)


@pytest.fixture(autouse=True)
def _threads():
    torch.set_num_threads(1)


@pytest.fixture
def store(tmp_path) -> Path:
    return tmp_path / "store"


# -- what they do together ---------------------------------------------------------------------------------------------------


def do_everything(ranks: Ranks):
    seed = ranks.share(100 + ranks.rank)
    ranks.connect(CPU)
    gradient = torch.tensor([1.0, 10.0]) * ranks.rank
    ranks.average(gradient, weight=(0.0, 1.25, 1.75)[ranks.rank])
    nan = math.nan
    means = ranks.mean(
        {"plain": float(ranks.rank), "some": (nan, 4.0, 6.0)[ranks.rank], "none": nan, "weighted": 10.0 * ranks.rank},
        {"weighted": (0.0, 1.0, 3.0)[ranks.rank]},
    )
    ranks.check_equal(b"the same", "nothing")
    everything = (seed, gradient, means, ranks.gather([ranks.rank, 2**52 + 1]), ranks.collect({"rank": ranks.rank}))
    ranks.close()
    return everything


def test_averages_sums_and_gatherings_of_three_ranks(store):
    results = in_ranks(3, do_everything, store=store)
    for rank, (seed, gradient, means, gathered, collected) in enumerate(results):
        assert seed == 100
        torch.testing.assert_close(gradient, torch.tensor([1.0, 10.0]) * (1 * 1.25 + 2 * 1.75) / 3)
        assert means["plain"] == 1.0 and means["some"] == 5.0 and math.isnan(means["none"]) and means["weighted"] == 17.5
        assert gathered == [[r, 2**52 + 1] for r in range(3)]
        assert collected == ([{"rank": r} for r in range(3)] if rank == 0 else [])


def test_alone_nothing_is_computed_and_no_process_group_made(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert from_environment() is ALONE and not dist.is_initialized()
    gradient = torch.tensor([1.0])
    ALONE.connect(CPU)
    ALONE.average(gradient)
    assert gradient.item() == 1.0 and ALONE.gather([3]) == [[3]] and ALONE.mean({"a": 7}) == {"a": 7}
    assert ALONE.share("x") == "x" and ALONE.collect({"a": 1}) == [{"a": 1}] and not list(ALONE.news())
    assert not dist.is_initialized()


def differ(ranks: Ranks, odd: int):
    ranks.connect(CPU)
    ranks.check_equal(b"odd" if ranks.rank == odd else b"usual", "the colour")


@pytest.mark.parametrize("size, odd", [(2, 1), (3, 0), (3, 2)])
def test_the_rank_that_differs_is_named_everywhere(store, size, odd):
    """Of two, the one that is not the first, whose checkpoint all would go back to."""
    for error in in_ranks(size, differ, odd, store=store):
        assert isinstance(error, RanksFailed) and str(error).startswith(f"rank {odd}: the colour differs")


def tell_or_hear(ranks: Ranks):
    if ranks.rank:
        ranks.tell("one")
        ranks.tell("two")
        ranks.share("")
        return None
    ranks.share("")  # rank 0 does not wait for an answer
    heard = []
    while len(heard) < 4:
        heard += ranks.news()
        time.sleep(0.01)
    return heard, list(ranks.news())


def test_rank_0_hears_what_the_others_tell_once(store):
    (heard, again), *_ = in_ranks(3, tell_or_hear, store=store)
    assert sorted(heard) == ["rank 1: one", "rank 1: two", "rank 2: one", "rank 2: two"] and not again


def share_late(ranks: Ranks, base: int):
    if ranks.first:
        time.sleep(0.3)  # time enough to read an old answer
    return ranks.share(base + ranks.rank)


def test_ranks_that_start_again_do_not_read_what_the_last_attempt_wrote(store):
    """torchrun's store outlives its ranks."""
    for base in (100, 200):
        assert in_ranks(3, share_late, base, store=store) == [base] * 3


# -- ranks that fail ---------------------------------------------------------------------------------------------------------


def end_or_wait(ranks: Ranks, how: str):
    ranks.connect(CPU)
    ranks.gather([0])
    if ranks.rank == 1:
        if how == "with a cause":
            ranks.fail(ValueError("no more batches"))
        if how == "stuck":
            time.sleep(6)
        os._exit(3)
    began = time.monotonic()
    try:
        ranks.average(torch.zeros(1000))
    except RanksFailed as error:
        return str(error), time.monotonic() - began


@pytest.mark.parametrize("how, cause", [("killed", "is gone"), ("with a cause", "rank 1 failed: no more batches"),
                                        ("stuck", "did not come in time")])  # fmt: skip
def test_nobody_waits_for_ever_for_a_rank_that_is_gone(store, how, cause):
    (text, seconds), ended = in_ranks(2, end_or_wait, how, store=store, seconds=3.0)
    assert ended is None and cause in text and "\n" not in text and "GLHF" not in text
    assert seconds < 1 if how != "stuck" else 2.5 < seconds < 5


def test_ranks_that_never_come_are_not_waited_for(store):
    with pytest.raises(RanksFailed, match="did not find each other"):
        Ranks(0, 2, dist.FileStore(str(store), -1), seconds=0.5)
    with pytest.raises(RanksFailed, match="did not find each other"):
        Ranks(1, 2, dist.FileStore(str(store), -1), seconds=0.5)


# -- one rank with 2B is two ranks with B ------------------------------------------------------------------------------------

LEARNERS_OWN = ("model_state_dict", "optimizer_state_dict", "scheduler_state_dict", "frames", "weights_version")


@pytest.mark.parametrize("model", some(MODELS))
def test_two_ranks_with_half_a_batch_each_make_the_students_update_of_one_with_the_whole(store, model):
    """And all else that they learn is the same on both; whether it is what one would learn the variant's own tests look at."""
    settings = make_settings(
        model=model, unroll_length=T, batch_size=B, total_frames=T * B * 12, learning_rate=0.01, state_embedding_dim=24,
        entropy_cost=0.05, use_lstm=True,
    )  # fmt: skip
    whole = settings.replace(batch_size=2 * B)
    torch.manual_seed(0)
    batches = [random_batch(TASK, whole) for _ in range(5)]
    state, stats = learn_all(ALONE, whole, TASK, batches)
    (state_0, stats_0), (state_1, stats_1) = in_ranks(2, learn_halves, settings, TASK, batches, store=store)
    assert_close({name: state_0[name] for name in LEARNERS_OWN}, {name: state[name] for name in LEARNERS_OWN})
    columns = [column.name for column in learners.COLUMNS]
    assert_close([{name: row[name] for name in columns} for row in stats_0], [{n: row[n] for n in columns} for row in stats])
    assert_equal_trees(shared(state_0, model), shared(state_1, model))
    assert stats_0 == stats_1 or flat_numbers(stats_0).keys() == flat_numbers(stats_1).keys()
    assert stats[-1]["frames"] == 5 * T * 2 * B and sum(row["episodes"] for row in stats) > 5


def join_rows(ranks: Ranks, settings: Settings, rows_of: list):
    ranks.connect(CPU)
    learner = Agent.make(settings, TASK, ranks).learner(ranks)
    learner.motivation.columns = (Column("worth", "", "new_states"), Column("new_states", "", "sum"), Column("all", ""))
    joined = [learner.row_of_all(row, {"stop": row["stop"]}) for row in rows_of[ranks.rank]]
    ranks.close()
    return joined


def test_a_mean_over_some_states_is_weighed_by_how_many_each_rank_had(store):
    """Also where one rank had none, and the mean over episodes by its own weight."""
    both = [
        {"episodes": 3, "success_rate": 1.0, "worth": 2.0, "new_states": 5, "all": 2.0, "stop": 0.0},
        {"episodes": 1, "success_rate": 0.0, "worth": 8.0, "new_states": 1, "all": 8.0, "stop": 1.0},
    ]
    one = [both[0], {"episodes": 0, "new_states": 0, "all": 8.0, "stop": 0.0}]
    none = [{"episodes": 0, "new_states": 0, "all": 2.0, "stop": 0.0}] * 2
    settings = make_settings(model=MODELS[0], unroll_length=T, batch_size=B)
    results = in_ranks(2, join_rows, settings, list(zip(both, one, none)), store=store)
    for (of_both, wishes), (of_one, _), (of_none, _) in results:
        assert (of_both["worth"], of_both["new_states"], of_both["all"]) == (3.0, 6, 5.0)
        assert (of_both["success_rate"], of_both["episodes"], wishes) == (0.75, 4, {"stop": 0.5})
        assert (of_one["worth"], of_one["new_states"], of_one["all"], of_one["success_rate"]) == (2.0, 5, 5.0, 1.0)
        assert math.isnan(of_none["worth"]) and of_none["new_states"] == 0 and of_none["all"] == 2.0


OPTIMIZER = {
    "learning_rate": 0.1, "frames_per_update": 1, "total_frames": 100, "alpha": 0.9, "epsilon": 0.01, "momentum": 0,
    "max_norm": 40,
}  # fmt: skip


def step_not_finite(ranks: Ranks, updates):
    ranks.connect(CPU)
    parameter = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = Optimizer([parameter], **OPTIMIZER, ranks=ranks)
    values = []
    try:
        for scale in updates[ranks.rank]:
            optimizer.step((scale * parameter).sum())
            values.append(parameter.item())
    except Diverged:
        values.append("diverged")
    return values


def test_all_ranks_leave_out_the_update_that_is_not_finite_on_one(store):
    inf = math.inf
    updates = [[1.0, inf, 1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, inf, inf, inf]]
    first, second = in_ranks(2, step_not_finite, updates, store=store)
    assert first == second and first[0] == first[1] != first[2] == first[3] and first[-1] == "diverged" and len(first) == 6


def step_large(ranks: Ranks):
    ranks.connect(CPU)
    parameter = nn.Parameter(torch.tensor([0.0, 0.0]))
    optimizer = Optimizer([parameter], **OPTIMIZER, ranks=ranks)
    scale = torch.tensor([(120.0, 0.0), (0.0, 160.0)][ranks.rank])
    return optimizer.step((scale * parameter).sum()).item(), parameter.grad.tolist()


def test_the_gradient_is_averaged_before_it_is_clipped(store):
    """(120, 0) and (0, 160): the mean (60, 80) has norm 100, clipped to 40. Clipped first, the mean would be (20, 20)."""
    for norm, gradient in in_ranks(2, step_large, store=store):
        assert norm == pytest.approx(100) and gradient == pytest.approx([24, 32], rel=1e-4)


# -- whole runs of two ranks -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("model, processes", some(zip(MODELS, itertools.cycle(("2", "0")))))
def test_after_200_updates_the_weights_are_equal(tmp_path, store, model, processes):
    settings = run_settings(tmp_path, "--model", model, "--num_actor_processes", processes, "--total_frames", str(200 * 24))
    (code_0, state_0), (code_1, state_1) = in_ranks(2, run_to_the_end, settings, store=store)
    assert code_0 == code_1 == 0 and state_0["frames"] == state_1["frames"] == 200 * 24
    assert_equal_trees(shared(state_0, model), shared(state_1, model))
    table = rows(tmp_path / "run")
    assert [row["frames"] for row in table] == list(range(24, 200 * 24 + 1, 24))
    assert all(float(row["episodes"]).is_integer() for row in table) and sum(row["episodes"] for row in table) > 20
    saved = checkpoint.load(tmp_path / "run" / "model.tar")
    assert checkpoint.ranks(saved) == 2 and saved["frames"] == 4800


def first_batch(ranks: Ranks, settings: Settings):
    run = Run(settings, None, ranks)
    batch = run.source.get(settings[LearningSettings].batch_size)
    run.source.close()
    run.record.close(False)
    return {name: value.numpy() for name, value in batch.items()}


def test_ranks_play_levels_of_their_own_and_the_first_those_of_a_run_alone(tmp_path, store):
    more = ("--env", "MiniGrid-Empty-Random-5x5-v0", "--num_actor_processes", "0")
    first, second = in_ranks(2, first_batch, run_settings(tmp_path / "two", *more), store=store)
    alone = first_batch(ALONE, run_settings(tmp_path / "one", *more))
    assert all(np.array_equal(first[name], alone[name], equal_nan=first[name].dtype.kind == "f") for name in alone)
    assert not np.array_equal(first["frame"], second["frame"]) and not np.array_equal(first["action"], second["action"])


def test_ranks_on_one_machine_share_its_cores_and_memory(monkeypatch):
    settings = make_settings(num_actors=40)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(16))
    assert spread(settings).counts == range(1, 16)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert spread(settings).counts == range(1, 4)
    preflight.examine(settings, rollout_bytes=1 << 20, checkpoint_bytes=1 << 20)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "100000")
    with pytest.raises(UsageError, match="of memory"):
        preflight.examine(settings, rollout_bytes=1 << 20, checkpoint_bytes=1 << 20)


def drift(ranks: Ranks, settings: Settings):
    run = Run(settings, None, ranks)
    learn = run.learner.learn

    def learn_and_drift(*given):
        stats = learn(*given)
        if ranks.rank == 1 and run.learner.updates == 150:
            with torch.no_grad():
                run.learner.student.policy.weight[3, 5] += 1e-6
        return stats

    run.learner.learn = learn_and_drift
    run.execute()


def test_a_rank_whose_weights_drift_is_named(tmp_path, store):
    settings = run_settings(tmp_path, "--total_frames", "48000", "--num_actor_processes", "1")
    errors = in_ranks(2, drift, settings, store=store)
    for error in errors:
        assert (
            isinstance(error, RanksFailed) and str(error).startswith("rank 1: what has been learned") and "4,800" in str(error)
        )
    assert checkpoint.load(tmp_path / "run" / "model.tar")["frames"] == 0, "weights that may be wrong were saved"


def with_other_flags(ranks: Ranks, folder: Path):
    Run(run_settings(folder, "--learning_rate", ("0.1", "0.2", "0.1")[ranks.rank]), None, ranks)


def test_ranks_with_other_flags_are_refused_before_anything_is_written(tmp_path, store):
    for error in in_ranks(3, with_other_flags, tmp_path, store=store):
        assert isinstance(error, RanksFailed) and "rank 1: the command line differs" in str(error)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number, victim, code, processes", [(signal.SIGTERM, 1, 143, "2"), (signal.SIGINT, 0, 130, "1"),
                                                             (signal.SIGUSR1, 1, 75, "0")])  # fmt: skip
def test_a_signal_to_one_rank_ends_all_after_the_same_update(tmp_path, store, number, victim, code, processes):
    settings = run_settings(tmp_path, "--total_frames", "480000", "--num_actor_processes", processes)
    results = in_ranks(2, signal_one, settings, number, victim, store=store)
    assert results[0] == results[1] and results[0][0] == code
    frames = results[0][1]
    assert frames >= 240 and checkpoint.load(tmp_path / "run" / "model.tar")["frames"] == frames
    assert rows(tmp_path / "run")[-1]["frames"] == frames


def actors_fail_on_rank_1(ranks: Ranks, settings: Settings):
    run = Run(settings, None, ranks)
    if ranks.rank == 1:

        def supervise():
            if run.learner.updates > 20:
                raise ActorsFailed("all the actors have gone home")

        run.source.supervise = supervise
    try:
        run.execute()
    except BaseException as error:
        ranks.fail(error)
        raise


def test_a_rank_that_cannot_go_on_ends_the_others_with_its_cause(tmp_path, store):
    settings = run_settings(tmp_path, "--total_frames", "4800000", "--num_actor_processes", "1")
    first, second = in_ranks(2, actors_fail_on_rank_1, settings, store=store)
    assert "all the actors have gone home" in str(second)
    assert isinstance(first, RanksFailed) and str(first).startswith("rank 1 failed: all the actors have gone home")


@pytest.mark.parametrize("model", [MODELS[0], *rarer(MODELS[1:])])
def test_checkpoints_come_by_the_clock_and_hold_what_waits_on_every_rank(tmp_path, store, model):
    settings = run_settings(tmp_path, "--model", model, "--total_frames", "1200", "--num_actor_processes", "1",
                            "--checkpoint_minutes", "0.0001", "--keep_checkpoints", "1000")  # fmt: skip
    (_, state_0), (_, state_1) = in_ranks(2, save_often, settings, store=store)
    run = tmp_path / "run"
    saved = checkpoint.load(run / "model.tar")
    assert len(list(run.glob("model-*.tar"))) > 10
    for key in MOTIVATIONS[model].waiting_keys:
        assert_equal_trees(saved[key], state_0[key])
        assert_equal_trees(saved["other_ranks"][0][key], state_1[key])
    log = rows(run)
    for path in run.glob("model-*.tar"):
        frames = checkpoint.load(path)["frames"]
        assert frames == 0 or frames in [row["frames"] for row in log]


# -- going on ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def said(tmp_path, monkeypatch):
    """What ranks wrote to stderr."""
    path = tmp_path / "stderr"
    monkeypatch.setenv("RANKS_STDERR", str(path))
    return path.read_text


@pytest.mark.parametrize("model", [MODELS[0], *rarer(MODELS[1:])])
def test_two_ranks_interrupted_and_resumed_go_on_to_the_last_bit(tmp_path, store, model):
    """In turn in one process each: environments, counts and what waits on both ranks are in the checkpoint."""
    whole, cut = whole_and_cut(tmp_path, store, "--model", model)
    assert rows(cut) == rows(whole)
    a, b = (checkpoint.load(run / "model.tar") for run in (whole, cut))
    for state in (a, b):
        del state["flags"], state["incarnation"]  # other folders; gone on with once
        for part in (state, *state["other_ranks"]):
            del part["source"]["full"], part["source"]["free"]  # the same rollouts, elsewhere in memory
    assert_equal_trees(a, b)


def test_the_command_that_began_a_run_goes_on_with_it(tmp_path, store, said):
    """torchrun starts ranks again by it. Another command is refused, and so is one without a name."""
    first = command(tmp_path, *TWO, "--total_frames", "240")
    assert in_ranks(2, dispatch, first, store=store) == [0, 0]
    assert in_ranks(2, dispatch, [*first, "--total_frames", "480"], store=store) == [0, 0]
    assert [row["frames"] for row in rows(tmp_path / "run")] == list(range(24, 481, 24))
    assert in_ranks(2, dispatch, [*first, "--total_frames", "480"], store=store) == [0, 0]  # said once, and left alone
    assert said().count("run is finished: it has learned from 480 frames") == 1
    assert in_ranks(2, dispatch, [*first, "--batch_size", "3"], store=store) == [2, 2]
    nameless = [argument for argument in first if argument not in ("--xpid", "run")]
    assert in_ranks(2, dispatch, nameless, store=store) == [2, 2]
    errors = said()
    assert "--batch_size 3 (the run has 2)" in errors and "rank 1: error: under torchrun" in errors


def test_resume_with_one_rank_what_two_began_and_back(tmp_path, store, capfd):
    """Frames go on, and the schedules follow the frames of all ranks."""
    two, one, again = two_then_one_then_two(tmp_path, store)
    assert checkpoint.ranks(two) == 2 and two["scheduler_state_dict"]["last_epoch"] == 40
    assert checkpoint.ranks(one) == 1 and one["frames"] == 972
    assert one["scheduler_state_dict"]["last_epoch"] * 12 == 972
    rate = one["optimizer_state_dict"]["param_groups"][0]["lr"]
    assert rate == pytest.approx(0.001 * (1 - 972 / 972), abs=1e-9)
    assert checkpoint.ranks(again) == 2 and again["frames"] == 1068
    assert again["scheduler_state_dict"]["last_epoch"] * 24 == 1068
    frames = [row["frames"] for row in rows(tmp_path / "run")]
    assert frames == [*range(24, 961, 24), 972, *range(996, 1069, 24)]
    assert "2 ranks and goes on with 1: each update now learns from 2 rollouts in place of 4" in capfd.readouterr().err


def kill_an_actor(ranks: Ranks, arguments: list[str]) -> int:
    if ranks.rank == 1:
        start = ActorProcesses.start

        def start_and_kill(source):
            start(source)
            os.kill(source.pids[0], signal.SIGKILL)

        ActorProcesses.start = start_and_kill
    return entry.run(arguments, ranks)


def test_the_first_ranks_log_tells_of_the_others_faults(tmp_path, store):
    arguments = command(tmp_path, *TWO, "--total_frames", "2400", "--num_actor_processes", "2")
    assert in_ranks(2, kill_an_actor, arguments, store=store) == [0, 0]
    log = (tmp_path / "run" / "out.log").read_text()
    assert log.count("rank 1: actor 0 (process") == 1 and "was killed by signal 9; starting it again" in log


def test_evaluation_is_refused(store, said):
    assert in_ranks(2, dispatch, ["--mode", "test"], store=store) == [2, 2]
    assert "leave torchrun out" in said()


# -- torchrun itself ---------------------------------------------------------------------------------------------------------


def torchrun(tmp_path: Path, *more: str, options: tuple[str, ...] = ()) -> subprocess.Popen:
    """Two ranks under torchrun on the loopback interface; what they say goes to files."""
    arguments = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", *options, "-m", "main.main"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with open(tmp_path / "stderr", "w") as errors:
        return subprocess.Popen([*arguments, *command(tmp_path, *more)], cwd=ROOT, stderr=errors, env=env)


def logged(tmp_path: Path, *, beyond: int, seconds: float = 90.0, name: str = "run") -> int:
    """Waits for a row of more frames than that; returns them."""
    log, deadline = tmp_path / name / "logs.csv", time.monotonic() + seconds
    while time.monotonic() < deadline:
        lines = log.read_text().split("\n")[1:-1] if log.exists() else []
        if lines and float(lines[-1].split(",")[2]) > beyond:
            return int(float(lines[-1].split(",")[2]))
        time.sleep(0.1)
    raise TimeoutError(f"no row beyond {beyond} frames")


def end(process: subprocess.Popen) -> None:
    """Ends torchrun and its ranks."""
    process.terminate()
    try:
        process.wait(40)
    except subprocess.TimeoutExpired:
        process.kill()


def test_a_killed_rank_ends_the_other_and_torchrun_resumes_from_the_last_checkpoint(tmp_path):
    often = ("--total_frames", "100000000", "--checkpoint_minutes", "0.02", "--num_actor_processes", "1")
    process = torchrun(tmp_path, *often, options=("--max-restarts", "1"))
    try:
        logged(tmp_path, beyond=48 * 40)
        ranks = children(process.pid)
        family = [pid for rank in ranks for pid in (*children(rank), rank)]
        saved, deadline = 0, time.monotonic() + 30
        while not saved and time.monotonic() < deadline:  # the first one is of frame 0
            time.sleep(0.1)
            saved = checkpoint.load(tmp_path / "run" / "model.tar")["frames"]
        os.kill(ranks[1], signal.SIGKILL)
        began = time.monotonic()
        while any(alive(pid) for pid in family) and time.monotonic() - began < 30:
            time.sleep(0.1)
        assert not any(alive(pid) for pid in family), "a rank outlives the one that was killed"
        at_death = logged(tmp_path, beyond=0)
        logged(tmp_path, beyond=at_death + 48 * 10)
        os.kill(children(process.pid)[0], signal.SIGKILL)  # no restart is left: torchrun ends with the cause
        assert process.wait(60) == 1
    finally:
        end(process)
    errors, log = (tmp_path / "stderr").read_text(), (tmp_path / "run" / "out.log").read_text()
    assert "Signal 9 (SIGKILL)" in errors and "error: another rank is gone" in errors
    resumed = int(log.split("resumed at ")[1].split(" ")[0].replace(",", ""))
    assert 0 < saved <= resumed <= at_death and log.count("resumed at") == 1
    frames = [row["frames"] for row in rows(tmp_path / "run")]
    assert frames == list(range(48, int(frames[-1]) + 1, 48)), "a gap or a duplicate"


def test_sigterm_to_torchrun_leaves_a_checkpoint_of_the_last_update(tmp_path):
    """As scancel, a preemption or a terminal's Ctrl-C does it."""
    process = torchrun(tmp_path, "--total_frames", "100000000")
    try:
        logged(tmp_path, beyond=48 * 4)
        ranks = children(process.pid)
        process.terminate()
        assert process.wait(40) != 0
    finally:
        end(process)
    assert not any(alive(pid) for pid in ranks)
    assert checkpoint.load(tmp_path / "run" / "model.tar")["frames"] == rows(tmp_path / "run")[-1]["frames"]


@pytest.mark.soak
def test_two_ranks_learn_a_small_task(tmp_path):
    """With twice the batch of one rank, and as many frames in all."""
    arguments = [*LEARNABLE, "--savedir", str(tmp_path), "--num_actors", "8", "--batch_size", "8", "--num_actor_processes", "1"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "main.main"]
    done = subprocess.run([*launch, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    result = evaluated(tmp_path / "run" / "model.tar", tmp_path / "result.json")
    assert result["success_rate"] > 0.9 and result["mean_return"] > 0.75


STAND_INS = {
    "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
    "torchrun": f'exec {sys.executable} -m torch.distributed.run "$@"',
    "scontrol": '[ "$1" = show ] && echo localhost || echo "$@" >> requeued',
}


@pytest.mark.soak
def test_the_pages_job_for_several_nodes_ends_before_its_time_limit_and_goes_on_when_requeued(tmp_path):
    """With stand-ins for Slurm's commands, on one node."""
    (script,) = [script for script in scripts() if "srun" in script]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    (tmp_path / "job").write_text(script.replace("29500", str(port)))
    (tmp_path / "bin").mkdir()
    for name, text in STAND_INS.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    slurm = {"SLURM_JOB_ID": "77", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "localhost", "GLOO_SOCKET_IFNAME": "lo"}
    env = {**os.environ, **slurm, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    run, frames = tmp_path / "experimentMinigrid" / "keycorridor", 0
    for attempt in range(2):
        with open(tmp_path / "stderr", "w") as errors:
            process = subprocess.Popen(["bash", "job"], cwd=tmp_path, env=env, stderr=errors)
        try:
            frames = logged(run.parent, beyond=frames + 4000, name="keycorridor")
            process.send_signal(signal.SIGUSR1)
            process.wait(60)
        finally:
            end(process)
        assert (tmp_path / "requeued").read_text() == "requeue 77\n" * (attempt + 1)
        frames = rows(run)[-1]["frames"]
        assert checkpoint.load(run / "model.tar")["frames"] == frames
    assert [row["frames"] for row in rows(run)] == [1600 * (n + 1) for n in range(int(frames) // 1600)]

"""`python -m main.benchmark`: how fast each part is, and how near the machine's limit, in under two minutes."""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import multiprocessing
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from main.training import interrupt

if __name__ == "__main__":  # what is imported below takes seconds
    interrupt.end_at_once()

import numpy as np
import torch
import torch.distributed as dist

from main import command
from main import settings as settings_module
from main.amigo import program
from main.analysis import paired, scaling
from main.settings import RunSettings
from main.training import recipe
from main.training.learner import Learner
from main.training.processes import ProcessSettings, cores
from models.linear import product
from torchbeast.core import checkpoint, outputs, run_folder
from torchbeast.core.memory import keep_freed
from torchbeast.core.optimizer import LearningSettings
from torchbeast.core.provenance import processor_name
from torchbeast.core.ranks import ALONE, Alone, Ranks
from torchbeast.core.rollouts import Rollouts
from torchbeast.core.sampling import torch_generator
from torchbeast.core.settings import Parser, UsageError, a_path, not_empty, positive_number, positive_whole_number
from utils_folder import minigrid
from utils_folder.motivations import MOTIVATIONS

KEY_CORRIDOR = "MiniGrid-KeyCorridorS3R3-v0"
DOCUMENT = ["--env", KEY_CORRIDOR, "--num_actors", "40", *MOTIVATIONS[settings_module.defaults()["model"]].example.split()]
GRIDS = (KEY_CORRIDOR, "MiniGrid-ObstructedMaze-1Dl-v0", "MiniGrid-KeyCorridorS4R3-v0", "MiniGrid-KeyCorridorS6R3-v0")
BATCHES = (8, 40, 320)
GPU_BATCHES = (8, 32, 128)
PART_SECONDS = 1.5
SECONDS = 20.0
WORK = ("program", "acting", "learning")
PROGRAM_PAIRS, PART_PAIRS = 5, 20
ROOT = Path(__file__).resolve().parents[1]
STRETCHES = 40
CALLS = 5  # of ranks, in a stretch: so many that a rank which comes late is not taken for a fast one
TIMEOUT_SECONDS = 300.0
ROW = [0.0] * scaling.ROW_VALUES


class Part(NamedTuple):
    """One line of the table: frames (or steps) per second, and the share of the peak that its operations come to."""

    name: str
    rate: float
    share: float | None = None


def forward_flops(width: int, height: int, *, hidden: int = 256, num_actions: int = 7) -> int:
    """Operations (multiply and add are two) of one plain forward pass of the student: five convolutions and four layers."""
    channels, flops = 11, 0
    for _ in range(5):
        width, height = (width + 1) // 2, (height + 1) // 2
        flops += 2 * width * height * 32 * channels * 9
        channels = 32
    return flops + 2 * (40 * hidden + hidden * hidden + hidden * (num_actions + 1))


def rate(work: Callable[[], Any], amount: int, seconds: float = PART_SECONDS) -> float:
    """Amount per second: the best of several stretches, since other programs can only slow one down."""
    work()
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < seconds / 5:
            work()
            count += 1
        best = max(best, count * amount / (time.perf_counter() - began))
    return best


def peaks() -> tuple[float, float]:
    """float32 matrix products on one core, operations per second: torch.mm's, and the networks' own entry point's."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    out = torch.empty(1024, 1024)
    operations = 2 * 1024**3
    return rate(lambda: torch.mm(a, b, out=out), operations), rate(lambda: product(a, b), operations)


class Parts:
    """The parts of a run on one environment, built as training builds them, in this process."""

    def __init__(self, env: str, num_envs: int, ranks: Alone = ALONE, flags: Sequence[str] = ()):
        keep_freed()  # as training does
        settings, _ = settings_module.parse([*DOCUMENT, "--env", env, "--num_actors", str(num_envs), *flags])
        self.learning_settings = settings[LearningSettings]
        agent = recipe.Agent.make(settings, recipe.probe(settings), ranks)
        self.learner = agent.learner(ranks)
        self.rollouts = agent.rollouts()
        self.actor = agent.actor(range(num_envs), torch_generator(0, "benchmark"))
        self.slots = np.arange(num_envs)

    def acting(self) -> float:
        """Frames per second of filling rollouts, environment included."""
        amount = self.learning_settings.unroll_length * len(self.slots)
        return rate(lambda: self.actor.fill(self.rollouts, self.slots), amount)

    def learning(self) -> float:
        """Frames per second of updates, the motivation's included, from rollouts filled before."""
        return rate(self.update(), self.learning_settings.unroll_length * self.learning_settings.batch_size)

    def update(self) -> Callable[[], Any]:
        """An update, always from the same rollouts, which are filled here; of several ranks with the row of them all."""
        self.actor.fill(self.rollouts, self.slots)
        slots = [i % len(self.slots) for i in range(self.learning_settings.batch_size)]
        return functools.partial(_learn, self.learner, self.rollouts, slots)


def _learn(learner: Learner, rollouts: Rollouts, slots: list[int]) -> None:
    row = learner.learn(rollouts.batch(slots))
    if not learner.ranks.alone:
        learner.row_of_all(row, {})


def learner_of(ranks: Alone) -> tuple[Learner, Callable[[], Any]]:
    """A learner on the document's task as one of `ranks`, and an update of it."""
    torch.manual_seed(0)
    parts = Parts(KEY_CORRIDOR, 40, ranks=ranks)
    return parts.learner, parts.update()


def environment_steps(env: str, engine: str, num_envs: int = 40) -> float:
    """Steps per second of random actions on one core, full observation written, resets included."""
    environment = minigrid.make_environments(env, range(num_envs), engine=engine)
    environment.initial()
    actions = np.random.default_rng(0).integers(0, environment.num_actions, (1000, num_envs))
    turns = itertools.cycle(actions)
    return rate(lambda: environment.step(next(turns)), num_envs)


def whole_program(seconds: float, *more: str) -> float:
    """Frames per second of `python -m main.main` with the document's flags, logging and checkpoints on."""
    return paired.whole_program(seconds, [*DOCUMENT, *more], ROOT)


def measure(seconds: float) -> dict[str, Any]:
    """Every figure of the table."""
    torch.set_num_threads(1)
    one_core, one_core_onednn = peaks()
    parts = Parts(KEY_CORRIDOR, 40)
    width, height = minigrid.survey(KEY_CORRIDOR).size
    forward = forward_flops(width, height)
    acting, learning = parts.acting(), parts.learning()
    program = whole_program(seconds)
    original_way = whole_program(seconds, "--num_actor_processes", "40", "--engine", "gym")
    lines = [
        Part("environment steps, compiled engine, one core", environment_steps(KEY_CORRIDOR, "compiled")),
        Part("environment steps, gym-minigrid, one core", environment_steps(KEY_CORRIDOR, "gym")),
        Part("acting, one core", acting, acting * forward / one_core),
        Part("learning, one core", learning, learning * 3 * forward / one_core),
        Part(f"whole program, {cores()} cores", program, program * 4 * forward / (cores() * one_core)),
        Part("the same, one environment per process on gym-minigrid", original_way,
             original_way * 4 * forward / (cores() * one_core)),
    ]  # fmt: skip
    return {
        **machine(),
        "peak_gflops_one_core": one_core / 1e9,
        "peak_gflops_one_core_onednn": one_core_onednn / 1e9,
        "flops_per_frame": 4 * forward,
        "parts": [part._asdict() for part in lines],
        "ratio": program / original_way,
        "by_grid": [_grid_line(env) for env in GRIDS],
        "by_environments": [_batch_line(count) for count in BATCHES],
        "on_gpu": [_gpu_line(size) for size in GPU_BATCHES if torch.cuda.is_available()],
    }


def machine() -> dict[str, Any]:
    """What the figures were measured on, and when."""
    return {
        "date": date.today().isoformat(),
        "processor": processor_name(),
        "cores": cores(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def heading(result: dict[str, Any]) -> str:
    return f"{result['date']}, {result['processor']}, {result['cores']} cores, torch {result['torch']}"


def _grid_line(env: str) -> dict[str, Any]:
    width, height = minigrid.survey(env).size
    parts = Parts(env, 40)
    return {
        "env": env,
        "grid": f"{width}x{height}",
        "flops_per_frame": 4 * forward_flops(width, height),
        "acting": parts.acting(),
        "learning": parts.learning(),
    }


def _batch_line(num_envs: int) -> dict[str, Any]:
    return {"num_actors": num_envs, "acting": Parts(KEY_CORRIDOR, num_envs).acting()}


def learning_on(device: torch.device, batch_size: int) -> float:
    """Frames per second of updates there, each of so many rollouts."""
    parts = Parts(KEY_CORRIDOR, max(40, batch_size), flags=["--batch_size", str(batch_size)])
    parts.learner.to(device)
    return parts.learning()


def _gpu_line(batch_size: int) -> dict[str, Any]:
    return {"batch_size": batch_size, "learning": learning_on(torch.device("cuda", 0), batch_size)}


def report(result: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    lines = [
        heading(result),
        f"float32 matrix products on one core: torch.mm {result['peak_gflops_one_core']:.0f} GFLOP/s (the peak below), "
        f"oneDNN's product, which the networks call, {result['peak_gflops_one_core_onednn']:.0f}",
        f"the plain student's operations: {result['flops_per_frame'] / 1e6:.2f} MFLOP a frame (one forward to act, three "
        "forwards' worth to learn); the teacher's and the environment's are not counted",
        "",
        "| part | frames/s | share of the peak |",
        "|---|---|---|",
    ]
    for part in result["parts"]:
        share = "" if part["share"] is None else f"{part['share']:.0%}"
        lines.append(f"| {part['name']} | {part['rate']:,.0f} | {share} |")
    lines += ["", f"whole program against one environment per process: {result['ratio']:.1f}x", ""]
    lines += ["| grid | MFLOP a frame | acting, frames/s | learning, frames/s |", "|---|---|---|---|"]
    for row in result["by_grid"]:
        flops = f"{row['flops_per_frame'] / 1e6:.2f}"
        lines.append(f"| {row['env']}, {row['grid']} | {flops} | {row['acting']:,.0f} | {row['learning']:,.0f} |")
    lines += ["", "| environments in one process | acting, frames/s |", "|---|---|"]
    lines += [f"| {row['num_actors']} | {row['acting']:,.0f} |" for row in result["by_environments"]]
    if result["on_gpu"]:
        lines += ["", "| rollouts in a batch, on the GPU | learning, frames/s |", "|---|---|"]
        lines += [f"| {row['batch_size']} | {row['learning']:,.0f} |" for row in result["on_gpu"]]
    return "\n".join(lines)


# Of several learners


def best_seconds(work: Callable[[], Any], count: int = CALLS) -> float:
    """Seconds that `work` takes: the best of several stretches, since other programs can only slow one down.

    The number of calls is fixed: all ranks must make the same.
    """
    best = float("inf")
    for _ in range(STRETCHES):
        began = time.perf_counter()
        for _ in range(count):
            work()
        best = min(best, (time.perf_counter() - began) / count)
    return best


def times(learner: Learner, learn: Callable[[], Any], ranks: Alone) -> dict[str, float]:
    """Seconds of an update, and, of several ranks, of an all-reduce of the student's gradient, of one value, and of a row."""
    found = {"update": best_seconds(learn, 2)}
    if not ranks.alone:
        gradient = torch.zeros(sum(parameter.numel() for parameter in learner.student.parameters()))
        found["all_reduce"] = best_seconds(lambda: ranks.average(gradient))
        found["short"] = best_seconds(lambda: ranks.average(gradient[:1]))
        found["row"] = best_seconds(lambda: ranks.gather(ROW))
    return found


def _rank(rank: int, folder: str, connection: Connection) -> None:
    torch.set_num_threads(1)
    ranks = Ranks(rank, 2, dist.FileStore(f"{folder}/store", -1))
    learner, learn = learner_of(ranks)
    ranks.connect(torch.device("cpu"))
    connection.send(times(learner, learn, ranks))
    ranks.close()


def of_two() -> dict[str, float]:
    """`times` of rank 0 of two over the loopback interface."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        ends, processes = [], []
        for rank in range(2):
            ours, theirs = context.Pipe(duplex=False)
            processes.append(context.Process(target=_rank, args=(rank, folder, theirs), daemon=True))
            processes[-1].start()
            theirs.close()
            ends.append(ours)
        try:
            if not ends[0].poll(TIMEOUT_SECONDS):
                raise RuntimeError("the two ranks to be measured do not answer")
            found = ends[0].recv()
            for process in processes:
                process.join(TIMEOUT_SECONDS)
        except EOFError:
            raise RuntimeError("a rank to be measured ended early: see above") from None
        finally:
            for process in processes:
                process.kill()
    return found


def measure_scaling() -> dict[str, Any]:
    """Every figure of `scaling.report`."""
    torch.set_num_threads(1)
    learner, learn = learner_of(ALONE)
    size = 4 * sum(parameter.numel() for parameter in learner.student.parameters())
    return scaling.predicted(size, times(learner, learn, ALONE), of_two())


# Of two checkouts


def against(options: argparse.Namespace) -> Iterator[paired.Ratio]:
    """This checkout's rates to the other's, of each kind of work. Raises: UsageError before anything is measured."""
    if not (options.against / "main" / "main.py").is_file():
        raise UsageError(f"--against: {options.against} is no checkout of this program (it has no main/main.py)")
    words, path, agent = [*DOCUMENT, *options.flags], None, None
    if options.agent is not None:
        try:
            agent, path = checkpoint.find(run_folder.own(run_folder.real(options.agent)))
        except checkpoint.CheckpointError as error:
            raise UsageError(f"--agent: {error}") from None
    settings, _ = settings_module.parse(words)
    settings_module.check(settings)
    env = settings[RunSettings].env
    if agent is not None and (its := agent["flags"].get("env", env)) != env:
        raise UsageError(f"--agent: {path} was trained on {its}, and what is measured plays {env}: add -- --env {its}")
    trees = ROOT, run_folder.real(options.against)
    for work in options.work or WORK:
        if work == "program":
            ways = (functools.partial(paired.whole_program, options.seconds or SECONDS, words, tree, agent) for tree in trees)
            yield paired.compare(work, *ways, pairs=options.pairs or PROGRAM_PAIRS)
        else:
            about = {"words": words, "env": env, "num_envs": settings[ProcessSettings].num_actors}
            batch = settings[LearningSettings].batch_size * settings[LearningSettings].unroll_length
            yield paired.compare_part(
                work, trees, **about, batch=batch, agent=path, pairs=options.pairs or PART_PAIRS, seconds=PART_SECONDS / 3
            )


# The program


def idle(options: argparse.Namespace) -> dict[str, str]:
    """What of the command line does nothing where it stands, with the reason."""
    found = {}
    if options.against is None:
        given = {"--work": options.work, "--pairs": options.pairs, "--agent": options.agent}
        given[shlex.join(options.flags)] = options.flags
        found = {name: "belongs to --against" for name, value in given.items() if value}
    elif options.scaling:
        found["--scaling"] = "not with --against"
    if options.seconds and options.against is None and options.scaling:
        found["--seconds"] = "not with --scaling"
    if options.seconds and options.against is not None and "program" not in (options.work or WORK):
        found["--seconds"] = "belongs to --work program"
    return found


def benchmark(options: argparse.Namespace) -> None:
    """Everything the command line asks for. Raises: UsageError, before anything is measured."""
    settings_module.tell_idle(idle(options))
    if options.json is not None:
        outputs.must_be_writable("--json", options.json)
    if options.against:
        result = {**machine(), "against": []}
        print(heading(result), flush=True)
        for ratio in against(options):
            print(ratio, flush=True)
            result["against"].append(ratio._asdict())
    elif options.scaling:
        result = {**machine(), **measure_scaling()}
        print(heading(result), scaling.report(result), sep="\n\n")
    else:
        result = measure(options.seconds or SECONDS)
        print(report(result))
    outputs.write({options.json: (json.dumps(result, indent=2) + "\n").encode()})


def make_parser() -> Parser:
    parser = Parser(
        prog=program("main.benchmark"),
        description="How fast each part of a run is, and the whole, and how near the machine's limit; under two minutes.",
        examples=("--seconds 10 --json speed.json", f"--against ../old --work acting learning -- --env {KEY_CORRIDOR}"),
    )
    parser.add_argument("--seconds", type=positive_number, help=f"length of each whole-program run (default: {SECONDS:g})")
    parser.add_argument("--json", type=not_empty, help="also write the figures to this file")
    parser.add_argument("--scaling", action="store_true", help="measure two ranks in place of all else, and predict more")
    parser.add_argument("--against", type=a_path, help="another checkout: measure this one's rates as ratios to it, in turn")
    parser.add_argument("--work", nargs="+", choices=WORK, help="what of it (default: all three)")
    parser.add_argument("--pairs", type=positive_whole_number,
        help=f"pairs of stretches (default: {PROGRAM_PAIRS}; of a part {PART_PAIRS})")  # fmt: skip
    parser.add_argument("--agent", type=a_path, help="with --against: go on from the agent of this run, of the same task")
    parser.add_argument("flags", nargs="*", help="with --against, after --: flags of the training beside the document's")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns the exit code: 0; 2 for a wrong input."""
    return command.run(lambda: benchmark(make_parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())

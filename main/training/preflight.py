"""Before the start: is this machine enough for the run? Prints what it found, and refuses with the remedy."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from main.settings import FileSettings, RunSettings, spread
from main.training import processes as processes_module
from main.training.processes import ProcessSettings
from models import STUDENTS
from torchbeast.core import cgroups, checkpoint, run_folder, spawner
from torchbeast.core.optimizer import LearningSettings
from torchbeast.core.ranks import ALONE, Alone, local_size
from torchbeast.core.settings import Settings, UsageError, flags_of
from utils_folder.minigrid import EnvironmentSettings
from utils_folder.motivations.base import Task

try:
    import resource
except ImportError:  # Windows has none
    resource = None

logger = logging.getLogger("amigo")

PROCESS_BYTES = 150 << 20  # what a forked actor process needs of its own (measured: 90 to 140 MiB)
MAIN_BYTES = 500 << 20
LOG_ROW_BYTES = 350
FREE_BYTES = 100 << 20  # of disk, beside logs and checkpoints
FILES_PER_PROCESS = 4
FILES = 64
COPIES = 10  # of the student's weights: gradient, optimiser, what actors read, and a checkpoint while it is written
COPIES_OF_PROCESS = 2
THREADS = 8  # of the main process, beside those that learn and compute
GPU_SECONDS = 60
GPU_CHECK = """import sys, torch
rank, gpus = int(sys.argv[1]), torch.cuda.device_count()
if rank and rank >= gpus:
    sys.exit(f"each rank needs its own, there are {gpus}: torchrun --nproc_per_node {gpus}")
torch.zeros(1, device=f"cuda:{rank}")
print(torch.cuda.get_device_name(rank))"""


class Finding(NamedTuple):
    """What was looked at; `problem` names the remedy if the run cannot work."""

    text: str
    problem: str | None = None


def examine(
    settings: Settings, done: int = 0, ranks: Alone = ALONE, *, rollout_bytes: int, checkpoint_bytes: int
) -> None:
    """Logs a line per finding. Raises UsageError with every problem. Writes nothing, starts nothing, touches no CUDA here.

    Args:
        done: frames learned so far.
    """
    counts = spread(settings).counts
    actors = counts[0]  # with so many it works; whether more do is looked at where more are taken
    playing = int(ranks.first and settings[FileSettings].evaluate_minutes is not None)
    threads = torch.get_num_threads() + THREADS  # those of the thread that computes are OpenMP's
    findings = [
        memory(
            local_size() * (MAIN_BYTES + rollout_bytes + actors * PROCESS_BYTES) + playing * MAIN_BYTES,
            local_size() * rollout_bytes,
        ),
        open_files(FILES + FILES_PER_PROCESS * (actors + ranks.size - 1)),
        processes(local_size() * (actors + threads) + playing * THREADS),
        *([disk(settings, checkpoint_bytes, ranks.size, done)] if ranks.first else []),
        cores(counts),
        system(actors),
        gpu(settings[ProcessSettings].disable_cuda, ranks.local_rank),
    ]
    for finding in findings:
        logger.info(f"check: {finding.text}")
    problems = [finding.problem for finding in findings if finding.problem]
    if problems:
        raise UsageError("\n".join(problems))


def memory(needed: int, rollout_bytes: int) -> Finding:
    """Rollouts lie in anonymous shared memory: it counts as memory, and a small /dev/shm does not matter."""
    available = available_memory()
    shared = f"{_mib(rollout_bytes)} of it shared rollouts (not in /dev/shm)"
    if available is None:
        return Finding(f"memory {_mib(needed)}, {shared}; this system does not tell how much there is")
    text = f"memory {_mib(needed)} of {_mib(available)} available, {shared}"
    if needed <= available:
        return Finding(text)
    return Finding(
        text,
        f"the run needs about {_mib(needed)} of memory and {_mib(available)} are available: use fewer --num_buffers, "
        "--num_actors or --num_actor_processes, a shorter --unroll_length or a smaller --batch_size, or "
        "give the container more (docker run --memory)",
    )


def processes_in_memory(own_bytes: int) -> int | None:
    """How many actor processes a run whose rollouts are there has memory for, each for `own_bytes` beside PROCESS_BYTES; None
    where nobody knows."""
    available = available_memory()
    if available is None:
        return None
    return (available // local_size() - MAIN_BYTES) // (PROCESS_BYTES + own_bytes)


def available_memory(proc: Path = cgroups.PROC) -> int | None:
    """Bytes that can still be had, by the machine's account and that of every group that this process is in.

    Where no account of what is free is given it is all that the machine has, and None where that is not told either.
    """
    try:
        with open("/proc/meminfo") as file:
            values = {line.split(":")[0]: int(line.split()[1]) << 10 for line in file if line.rstrip().endswith("kB")}
        machine = values["MemAvailable"]
    except (OSError, KeyError):
        machine = _all_memory()
    limits = [limit for limit in (machine, cgroups.free_memory(proc)) if limit is not None]
    return max(0, min(limits)) if limits else None


def _all_memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # no such function, no such name, no answer
        return None


def network(settings: Settings, task: Task, weights: Mapping[str, Any] | None = None) -> None:
    """Flags may ask for any size, and a checkpoint's may come from anywhere: looked at before a network is made.

    weights: those that it is to have. Raises: UsageError if it does not fit into them, or into memory.
    """
    student = STUDENTS[settings[RunSettings].student_network]
    shape = settings[EnvironmentSettings].student_shape(task.frame_shape)
    size = student.least_size(settings, shape, task.num_actions)
    asked = [f"--{name} {settings.flat()[name]}" for name, about in flags_of(student.groups).items() if about.type is int]
    if weights is not None:
        there = sum(value.numel() for value in weights.values() if isinstance(value, Tensor))
        if size > there:
            raise UsageError(
                f"the checkpoint's weights do not fit its own flags: {', '.join(asked)} make a network of {size:,} numbers, "
                f"and it holds {there:,}"
            )
    needed = local_size() * size * 4 * (COPIES + COPIES_OF_PROCESS * spread(settings).counts[0])
    available = available_memory()
    if available is not None and needed > available:
        raise UsageError(
            f"the student's network needs about {_mib(needed)} of memory and {_mib(available)} are available: make it smaller "
            f"({', '.join(asked)})"
        )


def open_files(needed: int) -> Finding:
    limit = _limit("RLIMIT_NOFILE")
    text = f"open files {needed}" if limit is None else f"open files {needed} of {limit}"
    if limit is None or needed <= limit:
        return Finding(text)
    return Finding(
        text, f"the run opens about {needed} files and {limit} are allowed: ulimit -n {needed}, or fewer actor processes"
    )


def processes(needed: int) -> Finding:
    """Threads count as processes do, everywhere."""
    text, free, remedy = f"processes and threads {needed}", cgroups.free_processes(), "docker run --pids-limit"
    limit = _limit("RLIMIT_NPROC")
    if limit is not None and not _is_privileged():
        own = limit - threads_of(os.getuid())
        if free is None or own < free:
            free, remedy = own, f"ulimit -u {limit - own + needed}"
    if free is None:
        return Finding(text)
    text = f"{text} of {max(0, free)} left"
    if needed <= free:
        return Finding(text)
    return Finding(
        text,
        f"the run starts about {needed} processes and threads, and {max(0, free)} more are allowed: {remedy}, or fewer "
        "--num_actor_processes",
    )


def _limit(name: str) -> int | None:
    """A limit of this process's; None where there is none, or no such limit on this system."""
    number = getattr(resource, name, None)
    if number is None:
        return None
    limit, _ = resource.getrlimit(number)
    return None if limit == resource.RLIM_INFINITY else limit


def _is_privileged() -> bool:
    """Whether ulimit -u does not hold: with CAP_SYS_ADMIN (21) or CAP_SYS_RESOURCE (24)."""
    status = _status(cgroups.PROC / "status")
    return os.getuid() == 0 or bool(int(status.get("CapEff", "0"), 16) & (1 << 21 | 1 << 24))


def threads_of(user: int) -> int:
    """How many threads a user's processes have, as far as they can be seen."""
    found = [_status(path) for path in Path("/proc").glob("[0-9]*/status")]
    return sum(int(status["Threads"]) for status in found if status.get("Uid", "").split("\t")[0] == str(user))


def _status(path: Path) -> dict[str, str]:
    try:
        return dict(line.split(":\t", 1) for line in path.read_text().splitlines() if ":\t" in line)
    except OSError:  # it has ended since
        return {}


def disk(settings: Settings, checkpoint_bytes: int, ranks: int = 1, done: int = 0) -> Finding:
    """The folder for runs can be written and has room for what the log and the checkpoints will still take, as files may."""
    files, learning = settings[FileSettings], settings[LearningSettings]
    folder = run_folder.real(files.savedir)
    while not os.path.exists(folder):  # as far as may be seen
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        text = f"{folder} cannot be written"
        return Finding(text, f"--savedir {files.savedir}: {text}; choose another folder")
    free = shutil.disk_usage(folder).free
    total, a_row = settings[RunSettings].total_frames, learning.unroll_length * learning.batch_size * ranks
    largest, limit = max(total // a_row * LOG_ROW_BYTES, checkpoint_bytes), _limit("RLIMIT_FSIZE")
    if limit is not None and limit < largest:
        text = f"the run's largest file takes about {_mib(largest)}, and {_mib(limit)} are allowed"
        return Finding(text, f"{text}: ulimit -f unlimited")
    rows = max(0, total - done) // a_row
    needed = FREE_BYTES + rows * LOG_ROW_BYTES + _new_checkpoints(settings, done) * checkpoint_bytes
    text = f"disk {_mib(needed)} of {_mib(free)} free in {folder}"
    if needed <= free:
        return Finding(text)
    return Finding(
        text,
        f"the run needs about {_mib(needed)} of disk for its log and checkpoints, and {folder} has {_mib(free)}: free some, "
        "or choose another --savedir",
    )


def _new_checkpoints(settings: Settings, done: int) -> int:
    """How many more than now there will be at most, one of them half written."""
    files, total_frames = settings[FileSettings], settings[RunSettings].total_frames
    evaluated = 0 if files.evaluate_minutes is None else 2
    milestones = total_frames // files.milestone_frames - done // files.milestone_frames if files.milestone_frames else 0
    if files.disable_checkpoint:
        return evaluated
    path = Path(files.savedir) / files.xpid / run_folder.CHECKPOINT if done and files.xpid else None
    there = 0 if path is None else min(files.keep_checkpoints, checkpoint.kept(path))
    return files.keep_checkpoints + 1 - there + max(0, milestones) + evaluated


def cores(counts: range) -> Finding:
    """counts: how many actor processes there can be."""
    available, most = processes_module.cores(), counts[-1]
    note = "" if most < available else ": they will take turns"
    actors = f"{most}" if len(counts) == 1 else f"{counts[0]} to {most}"
    return Finding(f"{available} cores for {actors} actor processes and the learner{note}")


def system(actors: int) -> Finding:
    """Actor processes are watched through descriptors that only Linux has, and neither its older kernels nor Pythons built on
    them."""
    text, lacking = f"{sys.platform}, Python {sys.version.split()[0]}", spawner.lacking()
    if not lacking or not actors:
        return Finding(text)
    text = f"{text}, without {', '.join(lacking)}"
    return Finding(
        text,
        f"actor processes need {' and '.join(lacking)}, which this system or this Python lacks: train in one process with "
        "--num_actor_processes 0, or on Linux 5.3 or newer (on Windows in WSL2, on macOS in a container) with a Python built "
        "for it (python.org's, conda-forge's)",
    )


def gpu(disable_cuda: bool, local_rank: int = 0) -> Finding:
    """Whether a GPU can be used, found out in a process of its own: CUDA must not be touched before the fork."""
    if disable_cuda or not Path("/proc/driver/nvidia/version").exists():
        return Finding("no GPU" if not disable_cuda else "no GPU wanted")
    try:
        command = [sys.executable, "-c", GPU_CHECK, str(local_rank)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=GPU_SECONDS)
    except subprocess.TimeoutExpired:
        text = f"the GPU does not answer within {GPU_SECONDS} s"
        return Finding(text, f"{text}: mend that, or learn on the CPU with --disable_cuda")
    if result.returncode == 0:
        return Finding(f"GPU {result.stdout.strip()}")
    reason = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
    if any(harmless in reason for harmless in ("not compiled with CUDA", "no NVIDIA driver", "No CUDA GPUs are available")):
        return Finding(f"a GPU that this PyTorch cannot use ({reason}): learning on the CPU")
    return Finding(f"GPU: {reason}", f"the GPU cannot be used ({reason}): mend that, or learn on the CPU with --disable_cuda")


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"

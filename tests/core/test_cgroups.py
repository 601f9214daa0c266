"""Limits of control groups, in made-up trees: the least on the way up from the process's own group counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchbeast.core import cgroups

V1_NONE = 9223372036854771712  # how version 1 says that there is no limit


@pytest.fixture
def tree(tmp_path):
    """Makes a /proc/self and what it names. files: content by path below the mount point of its hierarchy."""

    def make(cgroup: str, mounts: list[tuple[str, str, str, str]], files: dict[str, object]) -> Path:
        proc = tmp_path / "proc"
        proc.mkdir()
        (proc / "cgroup").write_text(cgroup)
        lines = ["22 1 0:20 / /proc rw,nosuid - proc proc rw", "nonsense"]
        for root, point, kind, options in mounts:
            lines.append(f"30 22 0:26 {root} {tmp_path / point} rw shared:9 - {kind} cgroup rw,{options}")
        (proc / "mountinfo").write_text("\n".join(lines) + "\n")
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{content}\n")
        return proc

    return make


def v2(folder: str, limit, used: int, cache: int = 0, **more) -> dict:
    return {
        f"{folder}/memory.max": limit,
        f"{folder}/memory.current": used,
        f"{folder}/memory.stat": f"anon 5\nactive_file {cache}\ninactive_file 0",
        **{f"{folder}/memory.{name}": value for name, value in more.items()},
    }


def v1(folder: str, limit: int, used: int, cache: int = 0) -> dict:
    stat = f"cache 9\nactive_file 3\ntotal_active_file {cache}\ntotal_inactive_file 0"
    names = {"limit_in_bytes": limit, "usage_in_bytes": used, "stat": stat}
    return {f"{folder}/memory.{name}": value for name, value in names.items()}


SLURM = "/system.slice/job_7/step_0"
V2 = [("/", "fs", "cgroup2", "nsdelegate")]
V1 = [("/", "fs/memory", "cgroup", "memory"), ("/", "fs/cpu,cpuacct", "cgroup", "cpu,cpuacct")]
CASES = {
    "own group": (f"0::{SLURM}\n", V2, {**v2("fs", "max", 90), **v2(f"fs{SLURM}", 1000, 400, 100)}, 700),
    "a group above": (
        f"0::{SLURM}\n",
        V2,
        {**v2(f"fs{SLURM}", "max", 400), **v2("fs/system.slice/job_7", 800, 500), **v2("fs/system.slice", 9000, 600)},
        300,
    ),
    "the root of a container": ("0::/\n", V2, v2("fs", 1000, 400), 600),
    "the throttle": (f"0::{SLURM}\n", V2, v2(f"fs{SLURM}", 1000, 400, high=500), 100),
    "more in use than allowed": ("0::/\n", V2, v2("fs", 1000, 1400, 100), -300),
    "no limit": (f"0::{SLURM}\n", V2, {**v2(f"fs{SLURM}", "max", 400), **v2("fs", "max", 1)}, None),
    "no controller": ("0::/\n", V2, {"fs/cgroup.procs": ""}, None),
    "another's group": ("0::/mine\n", V2, {**v2("fs/mine", 1000, 100), **v2("fs/other", 10, 1)}, 900),
    "a group that is gone": ("0::/a/gone (deleted)\n", V2, v2("fs/a", 1000, 100), 900),
    "a colon in its name": ("0::/a:b/c\n", V2, v2("fs/a:b/c", 1000, 100), 900),
    "version 1": (f"4:memory:{SLURM}\n3:cpu,cpuacct:/\n", V1, {**v1("fs/memory", V1_NONE, 1),
                  **v1(f"fs/memory{SLURM}", 1000, 400, 100)}, 700),
    "version 1, above": (f"4:memory:{SLURM}\n", V1, {**v1(f"fs/memory{SLURM}", V1_NONE, 5),
                         **v1("fs/memory/system.slice/job_7", 1000, 400)}, 600),
    "version 1 of a container": ("4:memory:/docker/abc\n", [("/docker/abc", "fs/memory", "cgroup", "memory")],
                                 v1("fs/memory", 1000, 400), 600),
    "below a container's": ("4:memory:/docker/abc/job\n", [("/docker/abc", "fs/memory", "cgroup", "memory")],
                            {**v1("fs/memory", 1000, 400), **v1("fs/memory/job", 500, 450)}, 50),
    "outside of what is mounted": ("0::/../../other\n", V2, v2("fs", 1000, 400), 600),
    "both versions": (f"4:memory:{SLURM}\n0::/x\n", [*V1, ("/", "fs/unified", "cgroup2", "")],
                      {**v1(f"fs/memory{SLURM}", 1000, 400), "fs/unified/x/cgroup.procs": ""}, 600),
    "no groups at all": ("", [], {}, None),
}  # fmt: skip


@pytest.mark.parametrize("case", list(CASES))
def test_the_least_memory_on_the_way_up(tree, case):
    cgroup, mounts, files, free = CASES[case]
    found = cgroups.free_memory(tree(cgroup, mounts, files))
    assert (None if found is not None and found > 1 << 60 else found) == free


def test_a_mount_point_with_a_space(tree):
    proc = tree("0::/\n", [("/", "a\\040b", "cgroup2", "")], v2("a b", 1000, 400))
    assert cgroups.free_memory(proc) == 600


def test_processes_are_counted_in_the_same_way(tree):
    files = {"fs/pids.max": "max", "fs/pids.current": 9, "fs/a/pids.max": 50, "fs/a/pids.current": 20,
             "fs/a/b/pids.max": 40, "fs/a/b/pids.current": 5}  # fmt: skip
    assert cgroups.free_processes(tree("0::/a/b\n", V2, files)) == 30


def test_this_process_is_in_groups_that_can_be_read():
    assert all(folder.is_dir() for folder in cgroups.folders("memory"))
    free = cgroups.free_memory()
    assert free is None or free > 0


def test_without_proc_nothing_is_known(tmp_path):
    assert cgroups.free_memory(tmp_path) is cgroups.free_processes(tmp_path) is None

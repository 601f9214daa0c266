"""Damaged, truncated, foreign and malicious files: a clear line each, nothing executed, nothing overwritten."""

from __future__ import annotations

import json
import math
import os
import pickle
import random
import resource
import shutil
import time
import zipfile
from pathlib import Path

import pytest
import torch

from main import main as entry
from main import plot
from main import settings as settings_module
from main.training import recipe
from tests.helpers.damage import changed, contents, flag, leaves, others, replaced, unended
from tests.helpers.marks import some
from tests.helpers.program import command, rows
from torchbeast.core import checkpoint
from utils_folder.motivations import MOTIVATIONS

SAMPLE = 60  # of the thousands of other values that a leaf of a file can have
RESUMED = {"date": "2026-01-01T00:00:00+00:00", "frames": 48, "args": {"xpid": "run", "seed": 1}, "command": ["main.py"]}


def entry_of(key: str, **inside):
    """The checkpoint with other values in one of its tables."""
    return lambda path, trap: torch.save((state := checkpoint.load(path)) | {key: state[key] | inside}, path)


def without_flag(path: Path, name: str) -> None:
    state = checkpoint.load(path)
    del state["flags"][name]
    torch.save(state, path)


class Command:
    """Unpickling it would run a shell command."""

    def __init__(self, trap: Path):
        self.trap = trap

    def __reduce__(self):
        return (os.system, (f"touch {self.trap}",))


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert entry.main(command(folder, "--total_frames", "96", "--num_actor_processes", "0", "--keep_checkpoints", "1")) == 0
    return unended(folder / "run")


@pytest.fixture
def run(whole_run, tmp_path) -> Path:
    return Path(shutil.copytree(whole_run, tmp_path / "runs" / "run"))


@pytest.fixture(scope="module", params=some(MOTIVATIONS))
def every_run(request, tmp_path_factory) -> Path:
    """A run's folder, of each variant in turn; a test leaves it as it was."""
    folder, more = tmp_path_factory.mktemp("every"), ["--model", request.param, "--num_actor_processes", "0"]
    assert entry.main(command(folder, "--total_frames", "48", *more)) == 0
    return unended(folder / "run")


def cut(share: float):
    return lambda path, trap: path.write_bytes(path.read_bytes()[: int(len(path.read_bytes()) * share)])


def flipped(share: float):
    def flip(path, trap):
        data = bytearray(path.read_bytes())
        start = int(len(data) * share)
        data[start : start + 200] = bytes(b ^ 0xFF for b in data[start : start + 200])
        path.write_bytes(data)

    return flip


def weights(change_one):
    def change(path, trap):
        state = checkpoint.load(path)
        change_one(state["model_state_dict"])
        torch.save(state, path)

    return change


def as_zip(name: str, content: bytes):
    def make(path, trap):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, content)

    return make


def other_folder(path, trap):
    path.unlink()
    path.mkdir()


def loop(path, trap):
    path.unlink()
    path.symlink_to(path)


DTYPES = (torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.int64)
HUGE = {"state_embedding_dim": 10**9, "goal_dim": 10**11, "num_input_frames": 10**9}

DAMAGED = {
    "missing": lambda path, trap: path.unlink(),
    "a folder": other_folder,
    "a link to itself": loop,
    "empty": lambda path, trap: path.write_bytes(b""),
    "one byte": lambda path, trap: path.write_bytes(b"\x80"),
    "text": lambda path, trap: path.write_text("frames,return\n1,2\n"),
    "zeros": lambda path, trap: path.write_bytes(bytes(100_000)),
    "cut at 1%": cut(0.01),
    "cut at 50%": cut(0.5),
    "cut at 99%": cut(0.99),
    "flipped at the start": flipped(0.0),
    "flipped at the end": flipped(0.995),
    "a zip of something else": as_zip("notes.txt", b"hello"),
    "a zip with a false pickle": as_zip("archive/data.pkl", b"not a pickle"),
    "json": lambda path, trap: path.write_text('{"model_state_dict": {}, "flags": {}}'),
    "a list": lambda path, trap: torch.save([1, 2, 3], path),
    "a tensor": lambda path, trap: torch.save(torch.zeros(3), path),
    "a state dict": lambda path, trap: torch.save({"weight": torch.zeros(3)}, path),
    "flags are a list": changed(flags=[1, 2]),
    "no weights": changed(model_state_dict=None),
    "weights are a string": changed(model_state_dict="weights"),
    "empty weights": changed(model_state_dict={}),
    "weights of other names": weights(lambda w: w.update(extra=w.pop("policy.weight"))),
    "weights of other shapes": weights(lambda w: w.update({"policy.weight": torch.zeros(3, 3)})),
    "weights that are no tensors": weights(lambda w: w.update({"embed_agent_loc.weight": 7})),
    "an unknown model": flag("model", "muzero"),
    "an unknown environment": flag("env", "MiniGrid-Nowhere-v0"),
    "a flag of another type": flag("state_embedding_dim", "wide"),
    "an impossible flag": flag("num_input_frames", 0),
    "a flag that is no choice": flag("student_network", "nonsense"),
    "a pickled command": lambda path, trap: path.write_bytes(pickle.dumps(Command(trap))),
    "a command among the flags": lambda path, trap: torch.save({"model_state_dict": {}, "flags": {"env": Command(trap)}}, path),
    "a command in the old format": lambda path, trap: torch.save(
        {"model_state_dict": {}, "flags": Command(trap)}, path, _use_new_zipfile_serialization=False
    ),
}


def bomb(path, trap):
    """A checkpoint that is deflated: 3 MiB of it would inflate to a thousand times that."""
    with zipfile.ZipFile(path) as archive:
        contents_of = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents_of.items():
            archive.writestr(name, data)
        archive.writestr("archive/data/999", bytes(50 << 20))


def overlapping(path, trap):
    """Stored, but many entries of the directory name the same bytes."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda file: file.file_size)
        start = archive.start_dir
    directory, end = data[start:-22], bytearray(data[-22:])
    starts = [i for i in range(len(directory)) if directory[i:].startswith(b"PK\1\2")]
    entry = next(directory[i:] for i in starts if largest.filename.encode() in directory[i : i + 80])
    entry = entry[: 46 + int.from_bytes(entry[28:30], "little") + int.from_bytes(entry[30:32], "little")]
    path.write_bytes(bytes(data[:start] + directory + entry * 100 + end))


def with_wrong_bytes(path, trap):
    """A whole file, of which some numbers are others: PyTorch reads it without a word."""
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda file: file.file_size)
    data = bytearray(path.read_bytes())
    data[largest.header_offset + 500] ^= 0xFF
    path.write_bytes(data)
    torch.load(path, weights_only=True)


def nested(depth: int) -> dict:
    inner: dict = {}
    for _ in range(depth):
        inner = {"a": inner}
    return inner


def in_circles(path, trap):
    state = checkpoint.load(path)
    state["more"] = [state["flags"]]
    state["more"].append(state["more"])
    torch.save(state, path)


def doubled(path, trap):
    """Thirty lists, each of which holds the one before twice."""
    state, inner = checkpoint.load(path), []
    for _ in range(30):
        inner = [inner, inner]
    torch.save(state | {"more": inner}, path)


def all_of(dtype):
    return weights(lambda w: w.update({name: value.to(dtype) for name, value in w.items()}))


def one_weight(value: float):
    return weights(lambda w: w["fc.0.weight"].view(-1)[17].fill_(value))


DAMAGED |= {
    "deflated": bomb,
    "entries over each other": overlapping,
    "numbers that are others": with_wrong_bytes,
    "nested 200 deep": lambda path, trap: torch.save(checkpoint.load(path) | {"more": nested(200)}, path),
    "in circles": in_circles,
    "doubled thirty times": doubled,
    "another format": changed(format="amigo-2"),
    "a weight that is NaN": one_weight(float("nan")),
    "a weight that is infinite": one_weight(float("-inf")),
    "a weight that is enormous": one_weight(3e38),
    **{f"weights of {dtype}": all_of(dtype) for dtype in DTYPES},
    "weights that are views of one number": weights(lambda w: w.update({"fc.2.weight": torch.zeros(1).expand(10**6, 10**6)})),
    "weights that are sparse": weights(lambda w: w.update({"fc.2.weight": torch.zeros(32, 32).to_sparse()})),
    "weights without numbers": weights(lambda w: w.update({"fc.2.weight": torch.zeros(32, 32, device="meta")})),
    **{f"{name} {value}": flag(name, value) for name, value in HUGE.items()},
    "a flag of a thousand digits": flag("total_frames", 10**1000),
    "a flag of five thousand digits": flag("learning_rate", 10**5000),
    "a flag of a megabyte": flag("env", "x" * 2**20),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", list(DAMAGED))
@pytest.mark.parametrize("use", ["test", "resume"])
def test_a_damaged_checkpoint_gets_clear_lines_and_harms_nothing(run, tmp_path, damage, use, capfd):
    trap = tmp_path / "trap"
    DAMAGED[damage](run / "model.tar", trap)
    before = contents(run)
    args = ["--mode", "test", "--weight_path", str(run / "model.tar")] if use == "test" else ["--resume", str(run)]
    assert entry.main(args) == 2
    errors = capfd.readouterr().err
    assert "error: " in errors and "Traceback" not in errors
    assert all(len(line) < 400 for line in errors.splitlines())
    assert contents(run) == before
    assert not trap.exists()


RESUME_ONLY = {
    "no frames": changed(frames=None),
    "no optimiser": changed(optimizer_state_dict=None),
    "a damaged optimiser": changed(optimizer_state_dict={"state": {}, "param_groups": []}),
    "no source": changed(source=None),
    "a damaged source": changed(source={"actor": {}}),
    "source is a list": changed(source=[1, 2]),
    **{f"frames {str(value)[:9]}": changed(frames=value) for value in ("text", float("nan"), -5, 10**400, 24.0, True, 10**6)},
    **{f"incarnation {value!r}": changed(incarnation=value) for value in ("text", -1, 1.5)},
    **{f"weights_version {value}": changed(weights_version=value) for value in (2**70, 7, -2, "text")},
    "returns of another shape": changed(recent_returns=[[1.0, 2.0], [3.0, 4.0]]),
    "returns that are NaN": changed(recent_returns=[float("nan")]),
    "too many returns": changed(recent_returns=[0.5] * 101),
    "a schedule of another learning rate": entry_of("scheduler_state_dict", base_lrs=[5.0]),
    "a schedule ahead of the frames": entry_of("scheduler_state_dict", last_epoch=400),
    "a schedule that is text": entry_of("scheduler_state_dict", last_epoch="4"),
    "a schedule that would be replaced": entry_of("scheduler_state_dict", lr_lambdas=[{"base": 1}]),
    "no statistics": entry_of("optimizer_state_dict", state={}),
    "a flag less": lambda path, trap: without_flag(path, "batch_size"),
}


def test_a_hostile_checkpoint_is_refused_at_once(run, capfd):
    """Every one of them in a second or so, and without the memory that it asks for."""
    for make in (bomb, doubled, flag("state_embedding_dim", 10**9), flag("goal_dim", 10**11), flag("num_actors", 10**12)):
        whole = (run / "model.tar").read_bytes()
        make(run / "model.tar", run)
        memory, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        assert entry.main(["--resume", str(run)]) == 2
        assert time.monotonic() - start < 5, make
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 100 << 10, make  # KiB
        (run / "model.tar").write_bytes(whole)


SIZES = [
    "--state_embedding_dim 1000000000", "--goal_dim 100000000000", "--num_input_frames 1000000000",
    "--use_lstm --num_lstm_layers 10000000", "--unroll_length 10000000000", "--batch_size 1000000000",
    "--num_actors 1000000000", "--num_buffers 1000000000", "--keep_checkpoints 1000000000",
    "--num_actors 1000000000 --num_actor_processes 1000000000", "--num_threads 1000000", "--total_frames 1" + "0" * 400,
]  # fmt: skip


@pytest.mark.parametrize("more", SIZES)
def test_sizes_on_the_command_line_are_looked_at_before_anything_is_made(tmp_path, more, capfd):
    memory, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    assert entry.main(command(tmp_path / "runs", "--disable_cuda", *more.split())) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("check: ")]
    assert len(errors) == 1 and errors[0].startswith("error: ") and more.split()[-2][2:] in errors[0] and len(errors[0]) < 400
    assert time.monotonic() - start < 5 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 100 << 10  # KiB
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("value", ["1" + "0" * 15, "1" + "0" * 400])
def test_so_many_episodes_are_refused_before_anything_is_made(run, value, capfd):
    assert entry.main(["--mode", "test", "--weight_path", str(run), "--num_episodes", value]) == 2
    errors = capfd.readouterr().err
    assert errors.startswith("error: --num_episodes must ") and errors.count("\n") == 1 and len(errors) < 400


def test_what_a_network_takes_is_told_without_making_it():
    for more in ({}, {"use_lstm": True, "num_lstm_layers": 3}, {"goal_dim": 50, "state_embedding_dim": 300}):
        settings = settings_module.make({"env": "MiniGrid-Empty-5x5-v0", **more})
        task = recipe.probe(settings)
        student = recipe.Agent.make(settings, task).student
        size = sum(parameter.numel() for parameter in student.parameters())
        least = student.least_size(settings, task.frame_shape, task.num_actions)
        assert size - 60_000 < least <= size, "what it leaves out does not grow with a flag"


@pytest.mark.slow
def test_whatever_stands_in_a_checkpoint_is_refused_or_gone_on_from(every_run, capfd):
    """Every leaf in turn becomes something else, one in so many: one line and code 2, nothing written; or a sound run."""
    path, chance = every_run / "model.tar", random.Random(5)
    whole = {name: (every_run / name).read_bytes() for name in ("model.tar", "logs.csv", "meta.json")}
    state = torch.load(path, weights_only=True)
    tried = [(way, name, other) for way, value in leaves(state) for name, other in others(value, chance)]
    assert len(tried) > 3000
    for way, name, other in chance.sample(tried, SAMPLE):
        try:
            torch.save(replaced(state, way, other), path)
        except (ValueError, UnicodeEncodeError):  # not even written
            continue
        before = contents(every_run)
        code = entry.main(["--resume", str(every_run), "--total_frames", "72"])
        errors = capfd.readouterr().err
        assert code in (0, 2) and "Traceback" not in errors, (way, name, errors)
        if code == 2:
            assert len([line for line in errors.splitlines() if line.startswith("error: ")]) == 1, (way, name, errors)
            assert {**contents(every_run), ".lock": b""} == {**before, ".lock": b""}, (way, name)
        else:
            values = [value for row in rows(every_run) for value in row.values() if value is not None]
            assert all(map(math.isfinite, values)) and rows(every_run)[-1]["frames"] == 72, (way, name)
        for file, content in whole.items():
            (every_run / file).write_bytes(content)


@pytest.mark.slow
def test_whatever_stands_in_metadata_is_refused_or_read(run, tmp_path, capfd):
    (run / "meta.json").write_text(json.dumps({**json.loads((run / "meta.json").read_text()), "resumed": [RESUMED]}))
    meta, chance, model = json.loads((run / "meta.json").read_text()), random.Random(6), (run / "model.tar").read_bytes()
    log = (run / "logs.csv").read_bytes()
    tried = [(way, other) for way, value in leaves(meta) for _, other in others(value, chance)]
    for way, other in chance.sample(tried, SAMPLE):
        try:
            text = json.dumps(replaced(meta, way, other))
        except (TypeError, ValueError):
            continue
        for use in (["--resume", str(run), "--total_frames", "96"], None):
            (run / "meta.json").write_text(text)
            code = entry.main(use) if use else plot.main([str(run), "--out", str(tmp_path / "curve.png")])
            errors = capfd.readouterr().err
            assert code in (0, 2) and "Traceback" not in errors, (way, other)
            assert code == 0 or len([line for line in errors.splitlines() if "error: " in line]) == 1, (way, errors)
            (run / "model.tar").write_bytes(model)
            (run / "logs.csv").write_bytes(log)


def test_metadata_that_is_nested_beyond_reason(run, tmp_path, capfd):
    (run / "meta.json").write_text('{"resumed":' + "[" * 100_000 + "]" * 100_000 + "}")
    before = contents(run)
    assert entry.main(["--resume", str(run)]) == 2
    assert plot.main([str(run), "--out", str(tmp_path / "curve.png")]) == 2
    errors = capfd.readouterr().err
    assert errors.count("meta.json is damaged") == 2 and "Traceback" not in errors
    assert {**contents(run), ".lock": b""} == {**before, ".lock": b""}


def test_a_checkpoint_pickled_beyond_any_depth(run, capfd):
    """100,000 lists in each other, as no pickler writes them."""
    path = run / "model.tar"
    key = lambda name: b"X" + len(name).to_bytes(4, "little") + name  # noqa: E731
    lists = b"]" * 100_000 + b"a" * 99_999
    body = b"}(" + key(b"model_state_dict") + b"}" + key(b"flags") + b"}" + key(b"x") + lists + b"u."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + body)
        archive.writestr("archive/version", b"3\n")
    for args in (["--resume", str(run)], ["--mode", "test", "--weight_path", str(path)]):
        assert entry.main(args) == 2
        errors = capfd.readouterr().err
        assert "nested too deeply" in errors and errors.count("error: ") == 1


@pytest.mark.parametrize("damage", list(RESUME_ONLY))
def test_a_checkpoint_that_cannot_be_gone_on_from(run, tmp_path, damage, capfd):
    RESUME_ONLY[damage](run / "model.tar", tmp_path / "trap")
    before = contents(run)
    assert entry.main(["--resume", str(run)]) == 2
    errors = capfd.readouterr().err
    assert "error: " in errors and "Traceback" not in errors
    assert contents(run) == before


def test_a_checkpoint_without_what_its_variant_goes_on_with(every_run, capfd):
    """Each key of its own in turn, those that playing can do without among them."""
    path = every_run / "model.tar"
    whole, state = path.read_bytes(), checkpoint.load(path)
    settings = settings_module.make(settings_module.stored(state["flags"], path))
    motivation = recipe.Agent.make(settings, recipe.probe(settings)).motivation
    keys = [*motivation.state_dict(), *motivation.training_state_dict()]
    assert set(keys) <= state.keys()
    for key in keys:
        torch.save({name: value for name, value in state.items() if name != key}, path)
        before = contents(every_run)
        assert entry.main(["--resume", str(every_run)]) == 2, key
        errors = capfd.readouterr().err
        assert "error: --resume: " in errors and key in errors and "Traceback" not in errors
        assert contents(every_run) == before
    path.write_bytes(whole)


@pytest.mark.slow
@pytest.mark.parametrize("use", ["test", "resume"])
def test_any_flag_with_a_value_of_another_type_or_none_of_its_choices(run, tmp_path, use, capfd):
    whole = (run / "model.tar").read_bytes()
    flags = settings_module.flags()
    assert any(about.choices for about in flags.values())
    for name, about in flags.items():
        flag(name, "nonsense" if about.type is not str or about.choices else 7)(run / "model.tar", tmp_path)
        before = contents(run)
        path = str(run / "model.tar")
        assert entry.main(["--mode", "test", "--weight_path", path] if use == "test" else ["--resume", str(run)]) == 2
        errors = capfd.readouterr().err
        assert f"the checkpoint's flag {name} is " in errors and errors.count("error: ") == errors.count("\n") == 1
        assert contents(run) == before
        (run / "model.tar").write_bytes(whole)


LOGS = {
    "torn": (lambda text: text[:-20], 3),
    "with a foreign line": (lambda text: text.replace("\n1,", "\nhello\n1,", 1), 4),
    "with bytes that are no text": (lambda text: text + "\udcff\udcfe\n", 4),
    "empty": (lambda text: "", 0),
    "header only": (lambda text: text.splitlines()[0] + "\n", 0),
}


@pytest.mark.parametrize("damage", list(LOGS))
def test_a_damaged_log_is_mended_by_resuming(run, damage):
    change, kept = LOGS[damage]
    path = run / "logs.csv"
    path.write_text(change(path.read_text()), errors="surrogateescape")
    assert entry.main(["--resume", str(run), "--total_frames", "144"]) == 0
    assert [row["frames"] for row in rows(run)] == [24 * (i + 1) for i in range(kept)] + [120, 144]


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "\x00\x01", '{"resumed": 3}', '{"args": 3}', '{"args": [[1]]}'])
def test_damaged_metadata_is_refused(run, content, capfd):
    (run / "meta.json").write_text(content)
    before = contents(run)
    assert entry.main(["--resume", str(run)]) == 2
    assert "meta.json" in capfd.readouterr().err
    assert {k: v for k, v in contents(run).items() if k != ".lock"} == {k: v for k, v in before.items() if k != ".lock"}


def test_a_log_with_other_columns_is_refused(run, capfd):
    path = run / "logs.csv"
    path.write_text(path.read_text().replace("total_loss", "loss", 1))
    before = contents(run)
    assert entry.main(["--resume", str(run)]) == 2
    assert "other fields" in capfd.readouterr().err
    assert contents(run) == before


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, capfd):
    args = command(tmp_path, "--num_actor_processes", "0", "--checkpoint_minutes", "0.0001", "--keep_checkpoints", "3")
    assert entry.main(args) == 0
    run = tmp_path / "run"
    frames = [checkpoint.load(run / name)["frames"] for name in ("model.tar", "model-1.tar", "model-2.tar")]
    assert frames[0] == 480 and frames[0] >= frames[1] > frames[2] and not (run / "model-3.tar").exists()
    (run / "model.tar").write_bytes(b"damaged")
    older = frames[1]
    assert entry.main(["--resume", str(run)]) == 0
    errors = capfd.readouterr().err
    assert "trying the one before" in errors
    assert older == 480 or f"resumed at {older} frames" in errors
    assert [row["frames"] for row in rows(run)] == list(range(24, 481, 24))


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    args = command(tmp_path, "--num_actor_processes", "0", "--milestone_frames", "200")
    assert entry.main(args) == 0
    frames = [checkpoint.load(tmp_path / "run" / name)["frames"] for name in ("model.tar", "milestone-000000000216.tar")]
    assert frames == [480, 216] and (tmp_path / "run" / "model-1.tar").exists()


def test_milestones_stay(tmp_path):
    args = command(tmp_path, "--num_actor_processes", "0", "--milestone_frames", "100")
    assert entry.main(args) == 0
    names = sorted(path.name for path in (tmp_path / "run").glob("milestone-*.tar"))
    assert names == [f"milestone-{frames:012d}.tar" for frames in (120, 216, 312, 408)]
    assert [checkpoint.load(tmp_path / "run" / name)["frames"] for name in names] == [120, 216, 312, 408]


def test_metadata_tells_no_secrets_and_needs_no_repository(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert entry.main(command(tmp_path, "--total_frames", "24", "--num_actor_processes", "0")) == 0
    text = (tmp_path / "run" / "meta.json").read_text()
    assert "hunter2" not in text and "/home/somebody" not in text
    assert set(json.loads(text)["env"]) <= {
        "OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_PROCID",
        "SLURM_NTASKS", "WORLD_SIZE", "RANK", "LOCAL_RANK",
    }  # fmt: skip

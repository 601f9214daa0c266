"""Damaged, truncated, foreign and malicious files: a clear line each, nothing executed, nothing overwritten."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from main import main as entry
from main import settings as settings_module
from main.training import recipe
from tests.helpers.damage import changed, contents, flag
from tests.helpers.program import command, rows
from torchbeast.core import checkpoint
from utils_folder.motivations import MOTIVATIONS


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
    return folder / "run"


@pytest.fixture
def run(whole_run, tmp_path) -> Path:
    return Path(shutil.copytree(whole_run, tmp_path / "runs" / "run"))


@pytest.fixture(scope="module", params=list(MOTIVATIONS))
def every_run(request, tmp_path_factory) -> Path:
    """A run's folder, of each variant in turn; a test leaves it as it was."""
    folder, more = tmp_path_factory.mktemp("every"), ["--model", request.param, "--num_actor_processes", "0"]
    assert entry.main(command(folder, "--total_frames", "48", *more)) == 0
    return folder / "run"


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
}


@pytest.mark.parametrize("damage", list(RESUME_ONLY))
def test_a_checkpoint_that_cannot_be_gone_on_from(run, tmp_path, damage, capfd):
    RESUME_ONLY[damage](run / "model.tar", tmp_path / "trap")
    before = contents(run)
    assert entry.main(["--resume", str(run)]) == 2
    errors = capfd.readouterr().err
    assert "error: " in errors and "Traceback" not in errors
    assert contents(run) == before


def test_a_checkpoint_without_what_its_variant_goes_on_with(every_run, capfd):
    """Each key of its own in turn."""
    path = every_run / "model.tar"
    whole, state = path.read_bytes(), checkpoint.load(path)
    settings = settings_module.make(settings_module.stored(state["flags"]))
    keys = list(recipe.Agent.make(settings, recipe.probe(settings)).motivation.training_state_dict())
    assert set(keys) <= state.keys()
    for key in keys:
        torch.save({name: value for name, value in state.items() if name != key}, path)
        before = contents(every_run)
        assert entry.main(["--resume", str(every_run)]) == 2, key
        errors = capfd.readouterr().err
        assert "error: --resume: " in errors and key in errors and "Traceback" not in errors
        assert contents(every_run) == before
    path.write_bytes(whole)


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


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "\x00\x01", '{"resumed": 3}'])
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

"""Compiled functions: kept where there is a place, and made again from whatever is damaged."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.marks import rarer
from tests.helpers.program import ROOT
from torchbeast.core import compiled

MODULE = """
import logging, sys
logging.basicConfig(format="%(message)s")
from torchbeast.core.compiled import compiled

@compiled
def twice(x):
    return x + x

@compiled(nogil=True)
def more(x):
    return twice(x) + 1

if __name__ == "__main__":
    print([more(3), more(1.5)], sum(more.stats.cache_hits.values()), more.stats.cache_path)
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A module whose functions have been compiled, and kept in `kept` beside it."""
    path = tmp_path_factory.mktemp("compiled") / "module.py"
    path.write_text(MODULE)
    assert run(path).stdout.startswith("[7, 4.0] 0 ")
    assert run(path).stdout.startswith("[7, 4.0] 2 ")
    shutil.copytree(path.parent / "kept", path.parent / "copy")
    return path


@pytest.fixture
def module(whole) -> Path:
    """The same, whatever a test before has done to what is kept."""
    shutil.rmtree(whole.parent / "kept")
    shutil.copytree(whole.parent / "copy", whole.parent / "kept")
    return whole


def run(path: Path, **environment: str) -> subprocess.CompletedProcess:
    own = {"NUMBA_CACHE_DIR": str(path.parent / "kept"), "PYTHONPATH": str(ROOT)}
    environment = {name: value for name, value in {**os.environ, **own, **environment}.items() if value}
    return subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=True, env=environment)


DAMAGE = {
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "longer": lambda content: content + b"more",
    "zeros": lambda content: bytes(len(content)),
    "another byte": lambda content: content[:-200] + bytes([content[-200] ^ 255]) + content[-199:],
    "another pickle": lambda content: b"\x80\x04K\x07.",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nbi", "nbc"])
@pytest.mark.parametrize("damage", [*list(DAMAGE)[::2], *rarer(list(DAMAGE)[1::2])])
def test_damaged_code_is_compiled_again(module, kind, damage):
    for path in (module.parent / "kept").rglob(f"*.{kind}"):
        path.write_bytes(DAMAGE[damage](path.read_bytes()))
    again = run(module)
    assert again.stdout.startswith("[7, 4.0] ")
    if damage != "longer":
        assert "Traceback" not in again.stderr and ("compiling it again" in again.stderr or "[7, 4.0] 0 " in again.stdout)
    mended = run(module)
    assert mended.stdout.startswith("[7, 4.0] 2 ") and not mended.stderr  # it has been mended


def test_no_changed_byte_is_run(module):
    """Bytes of the machine code and of what is around it, here in this process."""
    sys.path.insert(0, str(module.parent))
    try:
        (data, _) = sorted((module.parent / "kept").rglob("module.more*.nbc"))
        content, chance = data.read_bytes(), random.Random(3)
        for _ in range(100):
            place = chance.randrange(len(content))
            data.write_bytes(content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :])
            assert loaded(module) in ("damaged", "same"), f"byte {place}"
    finally:
        sys.path.remove(str(module.parent))


def loaded(module: Path) -> str:
    """What becomes of the damaged code of `more(int64)`, read as a start reads it."""
    import numba
    from numba.core import config

    before, config.CACHE_DIR = config.CACHE_DIR, str(module.parent / "kept")
    try:
        more = __import__("module").more
        cache = compiled.Kept(more.py_func)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cache, "flush", lambda: None)
            found = cache.load_overload((numba.int64,), more.targetctx)
    finally:
        config.CACHE_DIR = before
    return "damaged" if found is None else "same" if found.signature.return_type == numba.int64 else "another"


@pytest.fixture
def clone(tmp_path):
    """Makes another copy of the module, whose functions take a constant from a file beside it."""

    def make(name: str, constant: str = "1", more: str = "") -> Path:
        (tmp_path / name).mkdir()
        (tmp_path / name / "numbers_of.py").write_text(f"ONE = {constant}")
        text = MODULE.replace("@compiled\n", "from numbers_of import ONE\n\n@compiled\n", 1).replace("x + x", "x + x + ONE - 1")
        (tmp_path / name / "module.py").write_text(text + more)
        return tmp_path / name / "module.py"

    return make


@pytest.mark.slow
@pytest.mark.parametrize("place", ["XDG_CACHE_HOME", *rarer(["NUMBA_CACHE_DIR"])])
def test_a_second_clone_finds_what_the_first_has_compiled(clone, tmp_path, place):
    """Of the same version; each of two versions finds its own."""
    where = {"NUMBA_CACHE_DIR": "", place: str(tmp_path / "cache")}
    assert run(clone("first"), **where).stdout.startswith("[7, 4.0] 0 ")
    assert run(clone("second"), **where).stdout.startswith("[7, 4.0] 2 ")
    assert not list(tmp_path.glob("*/__pycache__/*.nbi"))
    assert run(clone("other constant", "2"), **where).stdout.startswith("[8, 5.0] 0 ")
    assert run(clone("other source", more="# changed"), **where).stdout.startswith("[7, 4.0] 0 ")
    assert run(clone("third"), **where).stdout.startswith("[7, 4.0] 2 ")


@pytest.mark.slow
def test_where_nothing_can_be_written_a_private_folder_is_used(tmp_path):
    """In the place of home: a file, which is none's to write below, root's neither."""
    path = tmp_path / "program" / "module.py"
    path.parent.mkdir()
    path.write_text(MODULE)
    (path.parent / "__pycache__").write_text("")
    (tmp_path / "home").write_text("")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    elsewhere = {"NUMBA_CACHE_DIR": "", "XDG_CACHE_HOME": "", "HOME": str(tmp_path / "home"), "TMPDIR": str(temporary)}
    for hits in (0, 2):
        done = run(path, **elsewhere)
        assert done.stdout.startswith(f"[7, 4.0] {hits} ") and done.stderr.count("compiled code is kept in") == 1
    (folder,) = temporary.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700 and folder.name in done.stderr

    folder.chmod(0o777)  # anybody could have put code there
    done = run(path, **elsewhere)
    assert done.stdout.startswith("[7, 4.0] 0 None") and done.stderr.count("compiled code can be kept nowhere") == 1


def test_a_folder_that_was_named_and_cannot_be_used_is_told(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(MODULE)
    (tmp_path / "file").write_text("")
    done = run(path, NUMBA_CACHE_DIR=str(tmp_path / "file" / "kept"))
    assert done.stdout.startswith("[7, 4.0]") and done.stderr.count("cannot be written") == 1


def test_nothing_is_looked_for_until_something_is_called(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(MODULE.replace("__main__", "not now"))
    run(path)
    assert [p.name for p in tmp_path.iterdir()] == ["module.py"]

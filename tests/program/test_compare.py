"""The comparison of two trees finds nothing where they are the same, and what differs where they are not."""

from __future__ import annotations

import shutil

import pytest

from tests.helpers.marks import rarer
from tests.helpers.program import ROOT
from tests.program import compare

FRAMES = 1_600
CASE = next(name for name in compare.CASES if "its example" in name)


@pytest.mark.slow
@pytest.mark.parametrize("interrupted", [True, *rarer([False])])
def test_a_tree_equals_itself_and_not_one_with_another_loss(tmp_path, interrupted):
    tree = tmp_path / "tree"
    for folder in ("main", "models", "utils_folder", "torchbeast"):
        shutil.copytree(ROOT / folder, tree / folder)
    ours = compare.train(ROOT, tmp_path / "ours", compare.CASES[CASE], FRAMES, interrupted=interrupted, ranks=1)
    same = compare.train(tree, tmp_path / "same", compare.CASES[CASE], FRAMES, interrupted=interrupted, ranks=1)
    assert compare.differences(ours, same) == ([], [])
    losses = tree / "torchbeast/core/losses.py"
    losses.write_text(losses.read_text().replace("return 0.5 * _over", "return 0.5000001 * _over"))
    other = compare.train(tree, tmp_path / "other", compare.CASES[CASE], FRAMES, interrupted=interrupted, ranks=1)
    found, added = compare.differences(ours, other)
    assert any(path.startswith("/model_state_dict/") for path in found)
    assert any(path.startswith("logs.csv, row 0, baseline_loss") for path in found) and not added


def test_every_variant_is_compared_with_each_of_its_own_switches():
    for name, motivation in compare.MOTIVATIONS.items():
        words = compare.variations(motivation)
        assert sum(case.startswith(f"--model {name} ") for case in compare.CASES.values()) >= 1 + len(words)

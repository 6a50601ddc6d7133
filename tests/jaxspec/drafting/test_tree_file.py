"""A tree that was measured is read back, and nothing that is no tree."""

import json

import pytest

from jaxspec import digests
from jaxspec.drafting import static, tree_file

TREES = [
    {"num_nodes": 2, "parents": (-1, 0), "speedup": 1.5},
    {"num_nodes": 8, "parents": (-1, 0, 0, 1), "speedup": 1.25},
]


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "tree.json"
    tree_file.save(path, TREES, best=2, temperature=0.5, acceptance=[0.5, 0.25])
    return path


def write_again(path, record):
    """Writes a record with the digest that it has now."""
    path.write_text(digests.seal({k: v for k, v in record.items() if k != "sha256"}))


def test_the_tree_of_a_budget_is_read(saved):
    assert tree_file.load_tree(saved) == (-1, 0)
    assert tree_file.load_tree(saved, 8) == (-1, 0, 0, 1)
    assert static.static_tree(tree_file.load_tree(saved, 8)).num_nodes == 4
    assert json.loads(saved.read_text())["temperature"] == 0.5


def test_a_budget_that_was_not_measured_is_refused(saved):
    with pytest.raises(ValueError, match=r"trees of \[2, 8\] nodes, not of 4"):
        tree_file.load_tree(saved, 4)


@pytest.mark.parametrize(
    "parents", [[-1, 0, 0], [-1, 1], [0, 0], [-1], [], [2, 1], "x", None]
)
def test_what_is_no_tree_of_its_size_is_refused(saved, parents):
    record = json.loads(saved.read_text())
    record["trees"][0]["parents"] = parents
    write_again(saved, record)
    with pytest.raises(ValueError, match="tree.json holds no trees"):
        tree_file.load_tree(saved, 8)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": "jaxspec trees 1"}'])
def test_other_files_are_refused(saved, text):
    saved.write_text(text)
    with pytest.raises(ValueError, match="tree.json"):
        tree_file.load_tree(saved)


def test_another_tree_under_the_same_digest_is_refused(saved):
    saved.write_text(saved.read_text().replace("[-1, 0, 0, 1]", "[-1, 0, 0, 2]"))
    with pytest.raises(ValueError, match="tree.json is damaged: its sha256"):
        tree_file.load_tree(saved)


def test_acceptance_is_read(saved):
    assert tree_file.load_acceptance(saved) == (0.5, 0.25)


@pytest.mark.parametrize("shares", [[], [0.9, 0.2], [-0.1], None, ["x"]])
def test_what_is_no_acceptance_is_refused(saved, shares):
    write_again(saved, json.loads(saved.read_text()) | {"acceptance": shares})
    with pytest.raises(ValueError, match="tree.json holds no acceptance"):
        tree_file.load_acceptance(saved)

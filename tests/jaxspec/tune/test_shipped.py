"""The trees and vocabularies that ship are of the models that ship."""

import importlib.resources
import json

import numpy as np
import pytest

from jaxspec import pretrained, tokenizer_files
from jaxspec.drafting import sequoia, static, tree_file, vocabulary
from jaxspec.tune import prompts

FOLDER = importlib.resources.files("jaxspec.assets") / "tuned"
temperatures = pytest.mark.parametrize("temperature", [0, 1])


@pytest.fixture(scope="module")
def target():
    return pretrained.load("stdlib-8m")


@temperatures
def test_trees_are_the_best_of_what_was_measured(temperature, target):
    path = FOLDER / f"tree-T{temperature}.json"
    record = json.loads(path.read_text())
    assert record["tokenizer_hash"] == tokenizer_files.tokenizer_hash(target.tokenizer)
    assert record["temperature"] == temperature
    assert [tree["num_nodes"] for tree in record["trees"]] == [2, 4, 8, 16, 32, 64]
    curve = record["acceptance"]
    for tree in record["trees"]:
        parents = tree_file.load_tree(path, tree["num_nodes"])
        assert static.static_tree(parents, record["law"]).max_path <= record["max_path"]
        best = sequoia.best_shape(
            curve,
            {tree["num_nodes"]: record["verify_steps"][str(tree["num_nodes"])]},
            record["level_steps"],
            record["max_path"],
        )
        assert tree["speedup"] == pytest.approx(best.speed, rel=1e-3)
        assert sequoia.expected_tokens(parents, curve) == pytest.approx(
            tree["expected_tokens"], rel=1e-4
        )


@temperatures
def test_vocabularies_are_the_shipped_tokenizers(temperature, target):
    path = FOLDER / f"vocabulary-T{temperature}.json"
    found = vocabulary.load(path, tokenizer_files.tokenizer_hash(target.tokenizer))
    expected = vocabulary.select(found.counts, 1024, target.folder.special_tokens)
    np.testing.assert_array_equal(found.keep, expected)
    assert vocabulary.coverage(found.counts, found.keep) > 0.9


def test_they_are_small_and_disjoint_from_what_is_evaluated():
    for path in FOLDER.iterdir():
        assert len(path.read_bytes()) < 50_000
        assert len(json.loads(path.read_text())["text"]["disjoint_from"]) == 3


def test_the_prompts_of_this_python_are_disjoint_from_our_own():
    assert len(prompts.read(16)) == 16

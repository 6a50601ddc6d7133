"""Best-first trees against brute force."""

import numpy as np
import pytest

import growing
from jaxspec.drafting import best_first as module
from jaxspec.drafting.best_first import best_first

CASES = {  # num_nodes, width, depth: trimmed
    (9, 3, 2): False,
    (4, 3, 0): False,
    (6, 1, 5): False,
    (13, 3, 1): False,
    (22, 5, 1): True,
}
cases = pytest.mark.parametrize("sizes", CASES, ids=str)


def expand(row, path, score, width, trimmed):
    """The likeliest tokens after a path: `(score, path)`, the best first."""
    logits = growing.law_logits(row, path, trimmed)
    with np.errstate(divide="ignore"):
        scores = score + np.log(growing.law(logits))
    best = np.argsort(-scores, kind="stable")[:width]
    tokens = growing.tokens_of(trimmed)
    return [(scores[column], [*path, int(tokens[column])]) for column in best]


def best(nodes, count):
    return sorted(nodes, key=lambda node: -node[0])[:count]


def by_definition(row, num_nodes, width, depth, trimmed):
    """The paths that are kept, in the order in which they were found."""
    found = expand(row, [int(growing.ROOT[row])], 0.0, width, trimmed)
    pool = list(found)
    for _ in range(depth):
        level = [node for node in best(found, width) if node[0] > -np.inf]
        found = [
            node
            for score, path in level
            for node in expand(row, path, score, width, trimmed)
        ]
        pool += found
    kept = [node for node in best(pool, num_nodes - 1) if node[0] > -np.inf]
    return [path for _, path in pool if path in [path for _, path in kept]]


@cases
def test_the_best_of_what_is_found_is_kept(sizes):
    trimmed = CASES[sizes]
    draft = growing.grow(best_first(*sizes), trimmed).draft
    for row in range(growing.BATCH):
        expected = by_definition(row, *sizes, trimmed)
        count = len(expected)
        found = [growing.path(draft, row, node) for node in range(1, count + 1)]
        assert found == expected
        assert (draft.tree.parents[row, count + 1 :] == -1).all()


def test_all_of_a_tree_that_is_as_large_is_the_likeliest():
    """No node outside of the tree is likelier than one of the tree, if nothing is cut."""
    draft = growing.grow(best_first(9, 6, 1)).draft
    for row in range(growing.BATCH):
        root = [int(growing.ROOT[row])]
        paths = expand(row, root, 0.0, 6, False)
        paths += [
            n for score, path in paths for n in expand(row, path, score, 6, False)
        ]
        likeliest = [path for score, path in best(paths, 8) if score > -np.inf]
        nodes = np.flatnonzero(draft.tree.parents[row] >= 0)
        found = [growing.path(draft, row, node) for node in nodes]
        assert sorted(found) == sorted(likeliest)


def test_a_parent_is_kept_before_its_child_where_scores_tie(monkeypatch):
    """All tokens but one are impossible, so that a whole path has the score 0."""
    table = np.full_like(growing.TABLE, -np.inf)
    table[:, :, 3] = 0.0
    monkeypatch.setattr(growing, "TABLE", table)
    growing._compiled.cache_clear()
    module._best_first.cache_clear()
    tree = growing.grow(best_first(3, 2, 3)).draft.tree
    growing._compiled.cache_clear()
    assert tree.parents.tolist() == [[-1, 0, 1]] * growing.BATCH
    assert (tree.tokens[:, 1:] == 3).all()


@pytest.mark.parametrize(
    "sizes, message",
    [
        ((1, 2, 2), "num_nodes >= 2"),
        ((4, 0, 2), "width >= 1"),
        ((4, 2, -1), "depth >= 0"),
        ((8, 2, 1), "find 6"),
    ],
)
def test_bad_settings_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        best_first(*sizes)


def test_paths_are_as_long_as_the_tree_lets_them_be():
    assert best_first(9, 3, 2).max_path == 4
    assert best_first(3, 3, 2).max_path == 3

"""Budgets keep the best nodes of each row, and what they keep is a tree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from jaxspec import budgets, trees
from jaxspec.core import deterministic_draft
from jaxspec.drafting import survival
from jaxspec.trees import TokenTree

ROWS, SIZE = 6, 12


def random_draft(seed, levels=4):
    """Trees with padding, whose scores are of few values, so that many tie."""
    rng = np.random.default_rng(seed)
    tree = tiny.random_tree(rng, ROWS, SIZE, max_path=6)
    raw = rng.integers(1, levels + 1, (ROWS, SIZE)) / levels
    score = survival.ordered(tree, jnp.asarray(raw, jnp.float32))
    return deterministic_draft(tree, 6, score)


def kept_by_hand(draft, row, budget):
    """The best of what hangs from what is kept already, one after the other."""
    parents, score = np.asarray(draft.tree.parents)[row], np.asarray(draft.score)[row]
    kept = [0]
    while len(kept) <= budget:
        open_ = [n for n in range(1, SIZE) if parents[n] in kept and n not in kept]
        if not open_:
            break
        kept.append(max(open_, key=lambda n: (score[n], -n)))
    return sorted(kept)


def nodes(draft, row):
    parents = np.asarray(draft.tree.parents)[row]
    return [n for n in range(SIZE) if n == 0 or parents[n] >= 0]


@pytest.mark.parametrize("seed", range(4))
def test_the_best_nodes_stay(seed):
    draft = random_draft(seed)
    budget = np.array([0, 1, 3, 5, SIZE, 10**9], np.int32)
    left = jax.jit(budgets.limit)(draft, budget)
    trees.check(left.tree)
    for row in range(ROWS):
        assert nodes(left, row) == kept_by_hand(draft, row, budget[row])
        assert (np.asarray(left.score)[row] > 0).sum() == len(nodes(left, row))
    np.testing.assert_array_equal(left.tree.tokens, draft.tree.tokens)
    kept = np.asarray(left.tree.parents) >= 0
    np.testing.assert_array_equal(left.tree.parents[kept], draft.tree.parents[kept])


def test_a_larger_budget_keeps_what_a_smaller_keeps():
    draft = random_draft(9)
    before = [{0}] * ROWS
    for budget in range(SIZE + 1):
        left = budgets.limit(draft, jnp.full(ROWS, budget))
        now = [set(nodes(left, row)) for row in range(ROWS)]
        assert all(old <= new for old, new in zip(before, now, strict=True))
        before = now
    assert before == [set(nodes(draft, row)) for row in range(ROWS)]


def test_a_new_budget_compiles_nothing():
    limit, draft = jax.jit(lambda *args: budgets.limit(*args)), random_draft(1)
    for budget in range(3):
        limit(draft, jnp.arange(ROWS, dtype=jnp.int32) + budget)
    assert limit._cache_size() == 1


def test_rows_are_cut_by_themselves():
    draft, budget = random_draft(2), jnp.arange(ROWS, dtype=jnp.int32)
    together = budgets.limit(draft, budget)
    alone = jax.vmap(budgets.limit)(
        jax.tree.map(lambda leaf: leaf[:, None], draft), budget[:, None]
    )
    for one, other in zip(*map(jax.tree.leaves, (together, alone)), strict=True):
        np.testing.assert_array_equal(one, other[:, 0])


@pytest.mark.parametrize("bad", [jnp.nan, -1.0])
def test_what_is_no_score_goes_first(bad):
    tree = TokenTree(jnp.zeros((1, 4), jnp.int32), jnp.array([[-1, 0, 0, 0]]))
    draft = deterministic_draft(tree, 2)
    draft = draft.replace(score=jnp.array([[1.0, bad, 0.1, 0.2]]))
    assert budgets.limit(draft, jnp.array([2])).tree.parents.tolist() == [
        [-1, -1, 0, 0]
    ]


def test_a_node_goes_with_its_parent():
    """Scores that grow along a path, which no score should."""
    tree = trees.chain(jnp.zeros((1, 4), jnp.int32))
    draft = deterministic_draft(tree, 4, jnp.array([[1.0, 0.1, 0.2, 0.3]]))
    assert budgets.limit(draft, jnp.array([2])).tree.parents.tolist() == [[-1] * 4]


def test_one_budget_per_row_is_expected():
    for budget in (jnp.int32(3), jnp.zeros((ROWS + 1,), jnp.int32)):
        with pytest.raises(ValueError, match="a budget per row, 6 in all"):
            budgets.limit(random_draft(0), budget)


def test_a_draft_by_hand_is_cut_from_below():
    tree = TokenTree(
        jnp.zeros((1, 6), jnp.int32), jnp.array([[-1, 0, 1, 0, -1, 2]], jnp.int32)
    )
    draft = deterministic_draft(tree, 4)
    assert draft.score.tolist() == [[1.0, 0.5, 0.25, 0.5, 0.0, 0.125]]
    left = budgets.limit(draft, jnp.array([2]))
    assert left.tree.parents.tolist() == [[-1, 0, -1, 0, -1, -1]]

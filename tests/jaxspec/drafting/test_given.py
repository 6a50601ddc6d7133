"""A tree that is put into the state is what the next step proposes, once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
import texts
import tiny
from jaxspec.core import Verdict
from jaxspec.drafting.given import given
from jaxspec.drafting.ngram import ngram
from jaxspec.trees import check
from jaxspec.verification.sample_and_match import sample_and_match

ROOTS = jnp.array([7, 8, 9])


def random_tree(max_path=4):
    return tiny.random_tree(np.random.default_rng(0), 3, 9, max_path)


def propose(drafter, tree):
    return jax.jit(drafter.propose)(None, None, tree, ROOTS, None)[1]


def test_the_tree_is_proposed_below_the_root():
    tree = random_tree()
    draft = propose(given(9, 4), tree)
    np.testing.assert_array_equal(draft.tree.parents, tree.parents)
    np.testing.assert_array_equal(draft.tree.tokens[:, 1:], tree.tokens[:, 1:])
    np.testing.assert_array_equal(draft.tree.tokens[:, 0], ROOTS)
    assert draft.max_path == 4 and draft.draft_logits.size == 0


def test_what_is_too_deep_is_dropped():
    tree = random_tree(max_path=6)
    draft = propose(given(9, 3), tree)
    check(draft.tree)
    assert (draft.tree.parents != tree.parents).any()
    for row in range(3):
        shallow = [n for n in range(9) if 0 < len(tiny.path_of(tree, row, n)) <= 3]
        shallow = set(shallow) & set(tiny.real_nodes(tree, row))
        assert set(tiny.real_nodes(draft.tree, row)) == shallow


def test_at_first_there_is_no_tree():
    drafter = given(5, 3)
    tree = drafter.init(None, jnp.zeros((3, 2), jnp.int32), None, 10, None)
    assert tree.is_node.tolist() == [[True, *[False] * 4]] * 3
    assert (propose(drafter, tree).tree.parents == -1).all()


def test_a_tree_is_proposed_once_and_rows_that_are_done_keep_theirs():
    drafter, tree = given(9, 4), random_tree()
    path = jnp.array([[0, 1, -1, -1], [0, -1, -1, -1], [-1] * 4])
    verdict = Verdict(path, path[:, 0], path[:, 0], jnp.zeros(path.shape))
    after = drafter.observe(None, tree, propose(drafter, tree), verdict, None, None)
    assert (after.parents[:2] == -1).all()
    np.testing.assert_array_equal(after.parents[2], tree.parents[2])
    np.testing.assert_array_equal(after.tokens[2], tree.tokens[2])


@pytest.mark.parametrize("slots", [8, 10])
def test_other_slots_are_refused(slots):
    with pytest.raises(ValueError, match=f"3 x {slots} slots, got \\(3, 9\\)"):
        propose(given(slots, 4), random_tree())


@pytest.mark.parametrize("sizes", [(0, 2), (4, 1)])
def test_bad_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="Expected num_nodes"):
        given(*sizes)


def test_equal_sizes_give_equal_drafters():
    assert given(8, 4) == given(num_nodes=8, max_path=4) != given(8, 5)


@pytest.mark.parametrize("setting", ["sampled"])
def test_a_loop_that_gives_trees_writes_the_text_of_the_one_that_makes_them(setting):
    """Look-up outside of the step, and its tree given to the step."""
    size, model = (8, texts.MAX_PATH), texts.target()
    lookup, drafter = ngram(*size, min_match=1), given(*size)
    expected, report = texts.speculative(lookup, **texts.SETTINGS[setting])
    params, state = texts.start(drafter, **texts.SETTINGS[setting])

    @jax.jit
    def make(tokens, lengths, root):
        known = lookup.init(None, tokens, lengths, tokens.shape[1], None)
        return lookup.propose(None, None, known, root, None)[1].tree

    @jax.jit
    def step(params, state):
        records = {"target": model, "drafter": drafter, "verifier": sample_and_match()}
        return jaxspec.speculative_step(params, state, **records)

    total = 0
    while not state.done.all():
        tree = make(state.tokens, state.lengths, state.root)
        tree = jax.tree.map(np.asarray, tree)  # by way of the host
        state, info = step(params, state.replace(drafter=tree))
        total = info.target_calls + total
    texts.check_same(state, expected)
    np.testing.assert_array_equal(total, report.target_calls)
    assert (total < state.lengths - state.prompt_lengths).any()

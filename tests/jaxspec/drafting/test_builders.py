"""What every builder keeps to, whatever trees it grows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import growing
import texts
import tiny
from jaxspec import sharding, trees
from jaxspec.core import Draft
from jaxspec.drafting.beam import stochastic_beam
from jaxspec.drafting.best_first import best_first
from jaxspec.drafting.dyspec import dyspec
from jaxspec.drafting.model import draft_model
from jaxspec.drafting.static import static_tree

CASES = {  # builder, and whether its head is trimmed
    "static, iid": (static_tree((3, 2), "iid"), False),
    "static, top-k": (static_tree((3, 2)), True),
    "static, without replacement": (
        static_tree([-1, 0, 0, 0, 1, 1, 3, 4], "without_replacement"),
        True,
    ),
    "static, shared noise": (
        static_tree((3, 2), "without_replacement", "shared"),
        False,
    ),
    "beam": (stochastic_beam(5, 3), False),
    "beam, trimmed": (stochastic_beam(5, 2), True),
    "dyspec": (dyspec(9, max_path=4), False),
    "dyspec, in rounds": (dyspec(12, 4, 0.02, max_path=3, max_children=3), True),
    "dyspec, shared noise": (dyspec(8, 3, noise="shared"), True),
    "best first": (best_first(12, 3, 3), False),
    "best first, trimmed": (best_first(30, 5, 1), True),
}
cases = pytest.mark.parametrize("name", CASES)
ROWS = range(growing.BATCH)


def grown(name):
    builder, trimmed = CASES[name]
    return builder, growing.grow(builder, trimmed)


@cases
def test_trees_are_trees(name):
    builder, built = grown(name)
    draft = built.draft
    trees.check(jax.tree.map(jnp.asarray, draft.tree))
    assert draft.tree.num_nodes == builder.num_nodes
    assert draft.max_path == builder.max_path
    assert np.asarray(trees.depth(draft.tree)).max() + 1 <= builder.max_path
    np.testing.assert_array_equal(draft.tree.tokens[:, 0], growing.ROOT)
    assert ((draft.tree.parents >= 0).sum(axis=1) > 3).all()
    for row in ROWS:
        for node in tiny.real_nodes(draft.tree, row):
            below = growing.children(draft, row, node)
            tokens = draft.tree.tokens[row, below].tolist()
            assert set(tokens) <= set(growing.tokens_of(CASES[name][1]).tolist())
            assert len(set(tokens)) == len(tokens) or name == "static, iid"


@cases
def test_what_is_not_possible_is_not_drawn(name):
    """With two possible tokens, no node has more children than two."""
    built = grown(name)[1]
    (row,) = np.flatnonzero(growing.TOP_K)
    for node in tiny.real_nodes(built.draft.tree, row):
        logits = growing.law_logits(
            row, growing.path(built.draft, row, node), CASES[name][1]
        )
        possible = growing.tokens_of(CASES[name][1])[logits > -np.inf].tolist()
        below = growing.children(built.draft, row, node)
        assert set(built.draft.tree.tokens[row, below].tolist()) <= set(possible)
    counts = np.bincount(built.draft.tree.parents[row] + 1)[1:]
    assert counts.max() == (3 if name == "static, iid" else 2)


@cases
def test_nodes_are_on_the_tape_where_the_builder_says(name):
    builder, built = grown(name)
    draft = built.draft
    assert built.tape.shape == (growing.BATCH, builder.num_read)
    assert built.slots[:, 0].tolist() == [0] * growing.BATCH
    for row in ROWS:
        for node, slot in enumerate(built.slots[row].tolist()):
            if node not in tiny.real_nodes(draft.tree, row):
                assert slot == -1
            elif slot >= 0:
                assert built.tape[row, slot] == draft.tree.tokens[row, node]
            assert slot >= 0 or not growing.children(draft, row, node)
        known = built.slots[row][built.slots[row] >= 0].tolist()
        assert len(set(known)) == len(known)


@cases
def test_laws_are_those_that_children_were_drawn_from(name):
    built = grown(name)[1]
    draft, trimmed = built.draft, CASES[name][1]
    kinds = set(draft.kind.flatten().tolist())
    assert len(kinds) == 1
    if kinds == {Draft.DETERMINISTIC}:
        assert draft.draft_logits.shape[1] == 0
        return
    assert (draft.vocab_ids is not None) == trimmed
    assert (draft.draft_logits.max(axis=2) == 0.0).all()
    for row in ROWS:
        for node in tiny.real_nodes(draft.tree, row):
            if growing.children(draft, row, node):
                logits = growing.law_logits(
                    row, growing.path(draft, row, node), trimmed
                )
                found = draft.draft_logits[row, draft.logits_row[row, node]]
                np.testing.assert_allclose(found, logits - logits.max(), atol=1e-5)


@cases
def test_rows_are_independent(name):
    """Each row is the same among copies of itself."""
    builder, trimmed = CASES[name]
    together = growing.grow(builder, trimmed)
    for row in ROWS:
        same = np.full(growing.BATCH, row)
        keys, root, settings = jax.tree.map(
            lambda leaf, same=same: leaf[same],
            (growing.KEYS, growing.ROOT, growing.SETTINGS),
        )
        alone = growing.grow(builder, trimmed, keys, root, settings)
        one, other = (growing.as_lists(b.draft, row) for b in (alone, together))
        assert one == other
        np.testing.assert_array_equal(alone.slots[row], together.slots[row])
        np.testing.assert_allclose(
            alone.draft.draft_logits[row], together.draft.draft_logits[row], rtol=1e-6
        )


@pytest.mark.parametrize(
    "name", ["static, without replacement", "beam", "dyspec, in rounds", "best first"]
)
def test_a_mesh_grows_the_same_trees(name):
    builder, trimmed = CASES[name]
    expected = growing.grow(builder, trimmed)
    with sharding.mesh(data=2, tensor=2, devices=jax.devices()[:4]):
        built = growing.grow(builder, trimmed)
    for one, other in zip(*map(jax.tree.leaves, (built, expected)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize(
    "make, settings",
    [
        (static_tree, ((2, 1), "iid", "own")),
        (stochastic_beam, (3, 2)),
        (dyspec, (7, 2, 0.1, 3)),
        (best_first, (7, 2, 2)),
    ],
)
def test_equal_settings_give_equal_builders(make, settings):
    names = make.__code__.co_varnames
    named = dict(zip(names, settings, strict=False))
    assert make(*settings) is not None
    assert make(*settings) == make(**named)
    model = tiny.model("mamba2", max_path=4)
    assert draft_model(model, make(*settings)) == draft_model(model, make(**named))
    assert make(*settings) != make(*((4, 3) if make is not static_tree else ((1,),)))


# --- Texts ---

MIXED = {"temperature": jnp.array([0.8, 0.0, 1.3]), "top_k": jnp.array([0, 0, 9])}
WRITERS = {
    "static": static_tree((2, 2), "without_replacement", "shared"),
    "beam": stochastic_beam(2, 3),
    "dyspec": dyspec(6, 2),
    "dyspec, shared noise": dyspec(4, 1, noise="shared"),
    "best first": best_first(6, 2, 2),
}


@functools.cache
def expected():
    return texts.autoregressive(**MIXED)


@pytest.mark.parametrize("name", WRITERS)
def test_the_text_is_the_autoregressive_one(name):
    draft = tiny.model(texts.DRAFT, max_path=texts.MAX_PATH)
    drafter = draft_model(draft, WRITERS[name])
    state, _ = texts.speculative(drafter, tiny.params(texts.DRAFT), **MIXED)
    texts.check_same(state, expected())


def test_shared_noise_has_a_model_accept_itself():
    """The first child is what the target will emit: only what is not drafted is lost."""
    drafter = draft_model(texts.target(), dyspec(5, 1, 0.0, 5, 1, "shared"))
    state, info = texts.speculative(drafter, tiny.params(texts.TARGET), **MIXED)
    texts.check_same(state, expected())
    emitted = np.asarray(state.lengths - state.prompt_lengths)
    calls = np.asarray(info.target_calls)
    np.testing.assert_array_equal(calls, -(-emitted // 5))

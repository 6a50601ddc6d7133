"""Trees of one shape: their children are what a loop over the nodes draws."""

import jax
import numpy as np
import pytest

import growing
from jaxspec import sampling
from jaxspec.drafting.static import chain, static_tree

SHAPES = {"chain": (1, 1, 1), "tree": (3, 2), "ragged": (-1, 0, 0, 0, 1, 1, 3, 4)}
TRIMMED = [False, True, False]
shapes = pytest.mark.parametrize(
    "shape, trimmed",
    list(zip(SHAPES.values(), TRIMMED, strict=True)),
    ids=SHAPES.keys(),
)


def likeliest(scores, count):
    best = np.argsort(-scores, kind="stable")[:count]
    return [column for column in best if scores[column] > -np.inf]


def check(builder, shape, trimmed, choose):
    """`choose(row, node, depth, logits, count)` gives the columns of a node's children."""
    draft = growing.grow(builder, trimmed).draft
    below = growing.grow(static_tree(shape), trimmed).draft  # for the shape
    full = np.asarray(below.tree.parents[1])  # of a row where nothing is impossible
    tokens = growing.tokens_of(trimmed)
    for row in range(growing.BATCH):
        nodes = np.flatnonzero(draft.tree.parents[row] >= 0).tolist()
        for node in [0, *nodes]:
            path = growing.path(draft, row, node)
            logits = growing.law_logits(row, path, trimmed)
            slots = np.flatnonzero(full == node)
            columns = likeliest(logits, len(slots))
            if growing.TEMPERATURE[row] > 0.0:
                columns = choose(row, node, len(path) - 1, logits, len(slots))
            found = growing.children(draft, row, node)
            assert found == slots[: len(columns)].tolist()
            assert draft.tree.tokens[row, found].tolist() == tokens[columns].tolist()


@shapes
def test_top_k_takes_the_likeliest(shape, trimmed):
    def choose(row, node, depth, logits, count):
        return likeliest(logits, count)

    check(static_tree(shape), shape, trimmed, choose)


@shapes
def test_draws_without_replacement_are_in_order_of_their_noise(shape, trimmed):
    def choose(row, node, depth, logits, count):
        noise = jax.random.gumbel(growing.draft_key(row, node), logits.shape)
        return likeliest(logits + np.asarray(noise), count)

    check(static_tree(shape, "without_replacement"), shape, trimmed, choose)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2)])
def test_iid_children_are_each_drawn_from_the_law(shape):
    def choose(row, node, depth, logits, count):
        keys = jax.random.split(growing.draft_key(row, node), most[depth])[:count]
        return [int(sampling.draw(key, logits)) for key in keys]

    most = (*shape, 1)
    check(static_tree(shape, "iid"), shape, False, choose)


@pytest.mark.parametrize("trimmed", [False, True])
def test_shared_noise_is_that_of_the_emission(trimmed):
    def choose(row, node, depth, logits, count):
        noise = growing.emission_noise(row, depth, trimmed)
        return likeliest(logits + noise, count)

    builder = static_tree((3, 2), "without_replacement", "shared")
    assert growing.grow(builder, trimmed).draft.coupled
    check(builder, (3, 2), trimmed, choose)


def test_leaves_within_a_level_are_not_read_behind_the_last_parent():
    builder = static_tree((-1, 0, 0, 0, 1, 1, 2))
    assert builder.num_read == 3
    built = growing.grow(builder)
    assert built.slots[1].tolist() == [0, 1, 2, -1, -1, -1, -1]


def test_a_chain_is_a_tree_of_single_children():
    assert chain(3) == static_tree((1, 1, 1), "iid")
    assert chain(2, "top_k") == static_tree([-1, 0, 1])


@pytest.mark.parametrize(
    "settings, message",
    [
        (((2, 1), "greedy"), "'greedy' and 'own'"),
        (((2, 1), "iid", "none"), "'iid' and 'none'"),
        (((2, 1), "top_k", "shared"), "Shared noise"),
        (((2, 1), "iid", "shared"), "Shared noise"),
        (((),), "at least one level"),
        (((2, 0),), "at least 1"),
        (((-1,),), "at least two slots"),
        (((-1, 0, 2),), "Slot 2 of the topology has parent 2"),
        (((-1, 0, 1, 0),), "level by level"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        static_tree(*settings)

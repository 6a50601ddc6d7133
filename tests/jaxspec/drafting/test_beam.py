"""Stochastic beams against the definition, with the same noise, in float64."""

import jax
import numpy as np
import pytest

import growing
from jaxspec.drafting.beam import stochastic_beam

CASES = {(5, 3): False, (2, 3): False, (5, 2): True, (1, 2): True}  # sizes: trimmed
cases = pytest.mark.parametrize("sizes", CASES, ids=str)


def conditioned(free, top):
    """Gumbels whose largest is `top`, from free ones: as it is printed."""
    with np.errstate(divide="ignore"):
        return -np.log(np.exp(-top) - np.exp(-free.max()) + np.exp(-free))


def descend(row, slot, node, trimmed):
    """All children of a node: `(path, phi, G)`."""
    path, phi, top = node
    logits = growing.law_logits(row, path, trimmed)
    if top == -np.inf:
        logits = np.full(logits.shape, -np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        below = phi + np.log(growing.law(logits))
    values = below
    if top == -np.inf:
        values = logits
    elif growing.TEMPERATURE[row] > 0.0:
        noise = jax.random.gumbel(growing.draft_key(row, slot), logits.shape)
        values = conditioned(below + np.asarray(noise, np.float64), top)
        np.testing.assert_allclose(values.max(), top, atol=1e-9)
    paths = [[*path, token] for token in growing.tokens_of(trimmed).tolist()]
    return list(zip(paths, below, values, strict=True))


def by_definition(row, width, length, trimmed):
    """The paths of all nodes, in order; None where a slot is free."""
    level, nodes = [([int(growing.ROOT[row])], 0.0, 0.0)], []
    for _ in range(length):
        first = len(nodes)
        nodes += level
        found = [
            child
            for place, node in enumerate(level)
            for child in descend(row, first + place, node, trimmed)
        ]
        level = sorted(found, key=lambda node: -node[2])[:width]
    nodes += level
    return [path if value > -np.inf else None for path, _, value in nodes]


@cases
def test_the_largest_values_are_kept(sizes):
    trimmed = CASES[sizes]
    draft = growing.grow(stochastic_beam(*sizes), trimmed).draft
    for row in range(growing.BATCH):
        expected = by_definition(row, *sizes, trimmed)
        found = [
            growing.path(draft, row, node)
            if node == 0 or draft.tree.parents[row, node] >= 0
            else None
            for node in range(draft.tree.num_nodes)
        ]
        assert found[: len(expected)] == expected
        assert found[len(expected) :] == [None] * (len(found) - len(expected))


def test_a_level_is_no_wider_than_its_parents_can_make_it():
    """A trimmed head of four tokens, and a beam of five."""
    built = growing.grow(stochastic_beam(5, 2), trimmed=True)
    assert (built.draft.tree.parents[:, 1:5] == 0).sum(axis=1).tolist() == [4, 4, 2, 4]
    assert (built.draft.tree.parents[:, 5] > 0)[[0, 1, 3]].all()
    assert built.draft.draft_logits.shape == (growing.BATCH, 5, 4)


def test_noise_is_new_in_every_step():
    builder = stochastic_beam(2, 3)
    later = growing.SETTINGS._replace(position=growing.SETTINGS.position + 1)
    now = growing.grow(builder).draft.tree.tokens
    then = growing.grow(builder, settings=later).draft.tree.tokens
    assert (now[0] == then[0]).all()  # a greedy row
    assert (now[1:] != then[1:]).any()


@pytest.mark.parametrize("sizes", [(0, 2), (2, 0)])
def test_bad_settings_are_refused(sizes):
    with pytest.raises(ValueError, match="positive width and length"):
        stochastic_beam(*sizes)

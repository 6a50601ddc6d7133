"""What only Mamba-1 has: chains read in parallel, and a stack of bounded depth."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kernel_trees
from kernel_records import RECURRENCES
from kernel_trees import TREES, assert_close, definition, jitted, runnable
from pallas_kernels import tree_scan

CASE = RECURRENCES["scan"]


def make_chain(strength=1.0):
    """The arguments of `read_chain`."""
    _, *args, _ = CASE.make_args(TREES["chain"], strength=strength)
    return args


@pytest.mark.parametrize("strength", [1.0, 60.0])
@pytest.mark.parametrize("name", ["reference", "xla"])
def test_read_chain_matches_the_definition(name, strength):
    args = make_chain(strength)
    read_chain = jitted(tree_scan.read_chain, name)
    assert_close(read_chain(*args), definition(tree_scan.read_chain, *args))


def gradients(*args, implementation):
    def loss(*args):
        y, state = tree_scan.read_chain(*args, implementation=implementation)
        return jnp.sum(y**2) + jnp.sum(state**2)

    return jax.grad(loss, argnums=range(5))(*args)


@pytest.mark.parametrize("strength", [1.0, 60.0])
@pytest.mark.parametrize("name", ["reference", "xla"])
def test_gradients_match_the_definition(name, strength):
    args = make_chain(strength)
    assert_close(jitted(gradients, name)(*args), definition(gradients, *args))


def test_a_stack_without_levels_is_refused():
    with pytest.raises(ValueError, match="max_depth must be at least 1, got 0"):
        tree_scan.read(*CASE.make_args(TREES["star"]), max_depth=0)


@pytest.mark.parametrize("max_depth", [1, 2, 3])
@pytest.mark.parametrize("tree", ["caterpillar", "binary", "one per row"])
@pytest.mark.parametrize("name", runnable(tree_scan))
def test_nodes_too_deep_for_the_stack_disturb_no_other(name, tree, max_depth):
    args = CASE.make_args(TREES[tree])
    op = functools.partial(tree_scan.read, max_depth=max_depth, implementation=name)
    y = jax.jit(op)(*args)
    assert np.isfinite(y).all()
    shallow = kernel_trees.derive(TREES[tree]).depth < max_depth
    assert_close(y[shallow], definition(tree_scan.read, *args)[shallow])

"""What only Mamba-2 has: groups of heads, skips per head, gradients of a chunk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernel_records import DIM, HEADS, RECURRENCES
from kernel_trees import TREES, assert_close, definition, jitted, runnable
from pallas_kernels import tree_ssd

CASE = RECURRENCES["ssd, two groups"]
implementations = pytest.mark.parametrize("name", runnable(tree_ssd))


@implementations
def test_a_skip_per_head_is_one_per_channel(name):
    tree, inputs, A, C, D, *past = CASE.make_args(TREES["one per row"])
    read, D = jitted(tree_ssd.read, name), D[:HEADS]
    per_channel = read(tree, inputs, A, C, np.repeat(D, DIM), *past)
    np.testing.assert_array_equal(read(tree, inputs, A, C, D, *past), per_channel)


def gradients(tree, *args, implementation):
    def loss(inputs, A, C, D, state):
        y = tree_ssd.read(tree, inputs, A, C, D, state, implementation=implementation)
        state = tree_ssd.fold(state, A, inputs, implementation=implementation)
        return jnp.sum(y**2) + jnp.sum(state**2)

    return jax.grad(loss, argnums=range(5))(*args)


@pytest.mark.parametrize("strength", [1.0, 60.0])
@pytest.mark.parametrize("name", ["reference", "xla"])
def test_gradients_match_the_definition(name, strength):
    *args, _ = CASE.make_args(TREES["chain"], strength=strength)
    assert_close(jitted(gradients, name)(*args), definition(gradients, *args))


def test_groups_that_divide_no_heads_are_refused():
    tree, inputs, A, C, D, state, _ = CASE.make_args(TREES["star"])
    three = [np.tile(a, (1, 1, 2))[..., : 3 * state.shape[-1]] for a in (inputs.B, C)]
    with pytest.raises(ValueError, match="3 groups do not divide 4"):
        tree_ssd.read(tree, inputs._replace(B=three[0]), A, three[1], D, state)
    with pytest.raises(ValueError, match="C has shape"):  # C in 2 groups, B in 1
        half = inputs._replace(B=inputs.B[..., : state.shape[-1]])
        tree_ssd.read(tree, half, A, C, D, state)

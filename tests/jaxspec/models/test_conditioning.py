"""How far from float64 a model may be: as far as rounding its weights takes it.

A model of random weights can amplify a rounding error a thousandfold: large adapters make
the scores of attention large, and its softmax a switch. Neither the single steps nor the
trees and rings are then within 2e-5 of float64, nor of each other, and neither is wrong.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracle
import tiny
from jaxspec import trees
from rounds import MAX_PATH, TOLERANCE, model_and_params

LENGTH = 150
FACTOR = 8.0
TEXT = tiny.random_tokens(np.random.default_rng(0), LENGTH)


def params_of(scale):
    """Those of the tiny model, with adapters drawn anew where there is a scale."""
    rng = np.random.default_rng(0)

    def adapt(path, leaf):
        names = [str(getattr(key, "key", "")) for key in path]
        if scale is None or not any(name.endswith("_adapter") for name in names):
            return leaf
        return jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(adapt, tiny.params("shared"))


@functools.cache
def compiled():
    """All logits of a text, by chains under `"lazy"`, and token by token."""
    model, _ = model_and_params("shared", "lazy")
    path = jnp.arange(MAX_PATH, dtype=jnp.int32)[None]

    @jax.jit
    def by_chains(params):
        def body(carry, tokens):
            tree = trees.chain(tokens[None])
            carry, tape, hidden = model.scan_tree(params, carry, tree)
            return model.commit(carry, tape, path), model.logits(params, hidden)[0]

        carry = model.init_carry(params, 1, LENGTH)
        _, logits = jax.lax.scan(body, carry, TEXT.reshape(-1, MAX_PATH))
        return logits.reshape(LENGTH, -1)

    @jax.jit
    def by_steps(params):
        def body(carry, token):
            carry, hidden = model.step(params, carry, token[None])
            return carry, model.logits(params, hidden)[0]

        carry = model.init_carry(params, 1, LENGTH, speculative=False)
        return jax.lax.scan(body, carry, TEXT)[1]

    return by_chains, by_steps


@pytest.mark.parametrize("scale", [None, 1.0], ids=["small", "random adapters"])
def test_rings_and_steps_are_as_near_to_float64_as_rounded_weights(scale):
    params, tokens = params_of(scale), np.asarray(TEXT).tolist()
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    right = oracle.logits(tiny.CONFIGS["shared"], exact, tokens)
    rng, half = np.random.default_rng(1), np.finfo(np.float32).eps / 2
    rounded = jax.tree.map(
        lambda leaf: leaf * (1.0 + half * rng.choice([-1.0, 1.0], leaf.shape)), exact
    )
    rounded = oracle.logits(tiny.CONFIGS["shared"], rounded, tokens)
    amplified = tiny.relative_error(rounded, right)
    errors = [tiny.relative_error(run(params), right) for run in compiled()]
    if scale is None:
        assert max(errors) < TOLERANCE
    else:  # no promise in absolute terms is kept, by any of them
        assert min(amplified, *errors) > TOLERANCE
    assert max(errors) < FACTOR * amplified

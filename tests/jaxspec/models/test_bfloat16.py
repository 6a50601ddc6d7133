"""In bfloat16 a model stays close to float64, and its states and laws in float32."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from jaxspec import trees
from jaxspec.models import hybrid
from jaxspec.models.rollback import ROLLBACKS
from rounds import LENGTHS, MAX_PATH, NUM_NODES, pad_paths

CLOSE = 0.05  # of the largest logit; bfloat16 has 8 bits
NAME = "small-hybrid"


def make(name, rollback):
    config = dataclasses.replace(tiny.CONFIGS[name], dtype="bfloat16")
    return hybrid.language_model(config, rollback=rollback, max_path=MAX_PATH)


@pytest.mark.parametrize(
    "name, rollback", [*itertools.product([NAME], ROLLBACKS), ("delta", "lazy")]
)
def test_bfloat16_is_close_to_float64(name, rollback):
    """Also after a commit, whichever way the path was kept."""
    model = make(name, rollback)
    params, rng = tiny.params(name), np.random.default_rng(27)
    prompt = tiny.random_tokens(rng, 3, max(LENGTHS))
    tree = tiny.random_tree(rng, 3, NUM_NODES, MAX_PATH)
    deepest = [
        max((tiny.path_of(tree, row, n) for n in tiny.real_nodes(tree, row)), key=len)
        for row in range(3)
    ]

    @jax.jit
    def run(params, prompt, tree, path):
        carry = model.init_carry(params, 3, 40)
        carry, _ = model.scan(params, carry, prompt, jnp.array(LENGTHS))
        carry, tape, nodes = model.scan_tree(params, carry, tree)
        carry = model.commit(carry, tape, path)
        _, last = model.step(params, carry, prompt[:, 0])
        return model.logits(params, nodes), model.logits(params, last)

    nodes, last = run(params, prompt, tree, pad_paths(deepest))
    for row, path in enumerate(deepest):
        accepted = np.asarray(tree.tokens)[row, path]
        text = [*np.asarray(prompt[row, : LENGTHS[row]]), *accepted, prompt[row, 0]]
        expected = tiny.oracle_logits(name, text)
        assert tiny.relative_error(nodes[row, path[-1]], expected[-2]) < CLOSE
        assert tiny.relative_error(last[row], expected[-1]) < CLOSE


def test_bfloat16_keeps_states_and_laws_in_float32():
    model = make(NAME, "lazy")
    carry = model.init_carry(None, 2, 20)
    tree = trees.chain(jnp.ones((2, 3), jnp.int32))
    carry, _, hidden = jax.jit(model.scan_tree)(tiny.params(NAME), carry, tree)
    assert hidden.dtype == jnp.bfloat16
    assert model.logits(tiny.params(NAME), hidden).dtype == jnp.float32
    state = carry.blocks[0][0]
    assert (state.state.dtype, state.ring.dt.dtype) == (jnp.float32, jnp.float32)
    assert state.ring.x.dtype == state.tail.dtype == jnp.bfloat16


def test_what_the_delta_rule_writes_stays_in_float32():
    (delta, *_), *_ = make("delta", "lazy").init_carry(None, 2, 20).blocks
    written = delta.state, delta.ring.u, delta.ring.g
    assert all(leaf.dtype == jnp.float32 for leaf in written)
    assert delta.tail.dtype == delta.ring.k.dtype == jnp.bfloat16

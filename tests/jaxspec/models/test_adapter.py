"""A model of one's own, of which there is a step function and nothing else."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
from jaxspec import decoding, trees
from jaxspec.models.adapter import from_step

VOCAB, WIDTH = 12, 8


def step(params, state, token):
    x = params["embed"][token] + state["h"] @ params["mix"]
    h = jnp.tanh(x)
    return {"h": h, "count": state["count"] + 1}, h


def init_state(params, batch_size):
    count = jnp.zeros((batch_size,), jnp.int32)
    return {"h": jnp.zeros((batch_size, WIDTH)), "count": count}


def logits(params, hidden):
    return hidden @ params["embed"].T


MODEL = from_step(step, init_state, logits, vocab_size=VOCAB, max_path=4)


@functools.cache
def params():
    embed, mix = jax.random.split(jax.random.key(0))
    embed = 2.0 * jax.random.normal(embed, (VOCAB, WIDTH))
    return {"embed": embed, "mix": jax.random.normal(mix, (WIDTH, WIDTH))}


def tree():
    """Two rows, the second with padding."""
    parents = np.array([[-1, 0, 0, 1, 3, 2], [-1, 0, 1, -1, 2, -1]], np.int32)
    tokens = np.random.default_rng(0).integers(0, VOCAB, parents.shape, np.int32)
    return trees.TokenTree(jnp.array(tokens), jnp.array(parents))


def after_prompt():
    tokens = jnp.array([[1, 2, 3], [4, 5, 6]], jnp.int32)
    carry = MODEL.init_carry(params(), 2, 8)
    return MODEL.scan(params(), carry, tokens, jnp.array([3, 1]))[0]


def test_a_scan_is_steps_and_leaves_short_rows_alone():
    carry = after_prompt()
    assert carry["count"].tolist() == [3, 1]
    one = MODEL.init_carry(params(), 1, 8)
    for token in (1, 2, 3):
        one, _ = MODEL.step(params(), one, jnp.array([token]))
    np.testing.assert_allclose(carry["h"][0], one["h"][0], atol=1e-5)


@pytest.mark.parametrize("cuts", [(6,), (1, 3, 6)], ids=["at once", "in levels"])
def test_every_path_of_a_tree_is_steps(cuts):
    carry, drawn = after_prompt(), tree()
    tape, hidden, start = MODEL.init_tape(params(), 2, 6), [], 0
    for stop in cuts:
        tape, new = MODEL.extend_tree(params(), carry, tape, drawn, start, stop)
        hidden, start = [*hidden, new], stop
    hidden = np.concatenate(hidden, axis=1)
    for row in range(2):
        for node in np.flatnonzero(drawn.is_node[row]):
            path = trees.path_to(drawn, jnp.full(2, node, jnp.int32), 6)[row]
            own = jax.tree.map(lambda leaf, row=row: leaf[row : row + 1], carry)
            for slot in path[path >= 0]:
                own, expected = MODEL.step(params(), own, drawn.tokens[row, slot][None])
            np.testing.assert_allclose(hidden[row, node], expected[0], atol=1e-5)
            kept = MODEL.commit(carry, tape, jnp.stack([path, path]))
            np.testing.assert_allclose(kept["h"][row], own["h"][0], atol=1e-5)
            assert kept["count"][row] == own["count"][0]


def test_an_empty_path_changes_nothing():
    carry = after_prompt()
    _, tape, _ = MODEL.scan_tree(params(), carry, tree())
    kept = MODEL.commit(carry, tape, jnp.full((2, 4), -1, jnp.int32))
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), kept, carry))


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_it_is_target_and_draft_in_the_loop(temperature):
    drafter = jaxspec.draft_model(MODEL, (2, 1))
    both = jaxspec.Params(params(), jax.tree.map(lambda leaf: 1.1 * leaf, params()))
    prompt, settings = (
        jnp.array([[1, 2, 3], [4, 5, 6]], jnp.int32),
        {"temperature": temperature, "max_new_tokens": 16, "keys": jax.random.key(2)},
    )
    plain = jaxspec.init_state(both, prompt, target=MODEL, **settings)
    plain = decoding.generate(both, plain, target=MODEL)
    state = jaxspec.init_state(both, prompt, target=MODEL, drafter=drafter, **settings)
    state, info = decoding.speculative_generate(
        both, state, target=MODEL, drafter=drafter
    )
    np.testing.assert_array_equal(state.tokens, plain.tokens)
    assert int(info.target_calls.sum()) < 32


def test_the_same_functions_are_the_same_model():
    again = from_step(step, init_state, logits, vocab_size=VOCAB, max_path=4)
    assert again is MODEL  # so that a loop compiled for one serves the other


def test_a_state_that_changes_its_shape_is_refused():
    def grow(params, state, token):
        state, hidden = step(params, state, token)
        return {**state, "h": jnp.tile(hidden, (1, 2))}, hidden

    model = from_step(grow, init_state, logits, vocab_size=VOCAB)
    with pytest.raises(ValueError, match="keep the state's structure"):
        model.step(params(), model.init_carry(params(), 1, 4), jnp.array([0]))
    with pytest.raises(ValueError, match="made without `init`"):
        model.init(jax.random.key(0))
    with pytest.raises(ValueError, match="max_path must be positive"):
        from_step(step, init_state, logits, vocab_size=VOCAB, max_path=0)

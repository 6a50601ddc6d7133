"""Joint wraps any model: its commits cost nothing, and the next pass makes up for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
import rerooting
import tiny
from jaxspec import decoding
from jaxspec.models import joint
from rounds import (
    MAX_PATH,
    NO_PATH,
    NUM_NODES,
    check_nodes,
    commit_at_random,
    model_and_params,
)

VOCAB, WIDTH = 12, 8


def step(params, state, token):
    h = jnp.tanh(params["embed"][token] + state["h"] @ params["mix"])
    return {"h": h, "count": state["count"] + 1}, h


def init_state(params, batch_size):
    count = jnp.zeros((batch_size,), jnp.int32)
    return {"h": jnp.zeros((batch_size, WIDTH)), "count": count}


def logits(params, hidden):
    return hidden @ params["embed"].T


OWN = jaxspec.from_step(step, init_state, logits, vocab_size=VOCAB, max_path=10)
WRAPPED = jaxspec.joint(OWN, 5)


def own_params():
    embed, mix = jax.random.split(jax.random.key(0))
    embed = 2.0 * jax.random.normal(embed, (VOCAB, WIDTH))
    return {"embed": embed, "mix": jax.random.normal(mix, (WIDTH, WIDTH))}


def rounds(model, params):
    """Hidden of two rounds and a step, with the branch that goes on kept on the tape."""
    first, grown = (
        tree.replace(tokens=tree.tokens % VOCAB) for tree in rerooting.trees()
    )
    start, stop = rerooting.KEPT, rerooting.GROWN

    @jax.jit
    def run(params):
        carry = model.init_carry(params, 3, 20)
        tokens = jnp.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
        carry, read = model.scan(params, carry, tokens, jnp.array([3, 1, 0]))
        carry, tape, hidden = model.scan_tree(params, carry, first)
        carry = model.prepare(params, model.commit(carry, tape, rerooting.PATH))
        tape = model.keep(tape, rerooting.room())
        tape, more = model.extend_tree(params, carry, tape, grown, start, stop)
        carry = model.commit(carry, tape, rerooting.LATER)
        return read, hidden, more, model.step(params, carry, tokens[:, 0])[1]

    return run(params)


def test_a_model_of_ones_own_is_wrapped():
    params = own_params()
    for found, expected in zip(
        rounds(WRAPPED, params), rounds(OWN, params), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_commit_leaves_the_inner_past_alone():
    params, (first, _) = own_params(), rerooting.trees()
    first = first.replace(tokens=first.tokens % VOCAB)
    carry, tape, _ = WRAPPED.scan_tree(params, WRAPPED.init_carry(params, 3, 20), first)
    after = WRAPPED.commit(carry, tape, rerooting.PATH)
    assert all(after.past[name] is carry.past[name] for name in carry.past)
    assert after.num_pending.tolist() == [2, 1, 2]
    again = WRAPPED.prepare(params, after)
    assert again.past["count"].tolist() == [2, 1, 2]
    assert not again.num_pending.any()


@pytest.mark.parametrize("inner", ["snapshot", "lazy"])
def test_the_inner_model_may_roll_back_in_any_way(inner):
    _, params = model_and_params("small-hybrid")
    within = tiny.model("small-hybrid", rollback=inner, max_path=2 * MAX_PATH)
    model = jaxspec.joint(within, MAX_PATH)

    @jax.jit
    def round_(carry, tree, path):
        carry, tape, hidden = model.scan_tree(params, carry, tree)
        return model.commit(carry, tape, path), model.logits(params, hidden)

    carry, texts = model.init_carry(params, 3, 60), [[], [], []]
    carry = commit_at_random(round_, carry, texts, NUM_NODES, 9, seed=7)
    tree = tiny.random_tree(np.random.default_rng(8), 3, NUM_NODES, MAX_PATH)
    _, logits = round_(carry, tree, NO_PATH)
    check_nodes("small-hybrid", texts, tree, logits, lambda r: tiny.real_nodes(tree, r))


def test_a_wrapped_model_is_a_target_in_the_loop():
    params = jaxspec.Params(own_params())
    prompt = jnp.array([[1, 2, 3], [4, 5, 6]], jnp.int32)
    settings = {"max_new_tokens": 12, "temperature": 0.7, "keys": jax.random.key(2)}
    plain = jaxspec.init_state(params, prompt, target=OWN, **settings)
    plain = decoding.generate(params, plain, target=OWN)
    drafter = jaxspec.ngram(6, 5, min_match=1)
    records = {"target": WRAPPED, "drafter": drafter}
    state = jaxspec.init_state(params, prompt, **records, **settings)
    state, _ = decoding.speculative_generate(params, state, **records)
    np.testing.assert_array_equal(state.tokens, plain.tokens)


def test_equal_arguments_give_the_same_record():
    assert jaxspec.joint(OWN, 5) is WRAPPED
    assert hash(jaxspec.joint(OWN, 4)) != hash(WRAPPED)


@pytest.mark.parametrize("max_path, message", [(0, "positive"), (6, "at least 12")])
def test_an_inner_model_with_too_short_paths_is_refused(max_path, message):
    with pytest.raises(ValueError, match=message):
        joint.joint(OWN, max_path)
    with pytest.raises(ValueError, match="at most 5 nodes, got 6; raise"):
        WRAPPED.commit(None, None, jnp.zeros((1, 6), jnp.int32))

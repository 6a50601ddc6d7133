"""A branch of a tree is kept on the tape, and grown on after its root was committed."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rerooting
import tiny
from jaxspec.models.mtp import mtp_head
from jaxspec.models.rollback import ROLLBACKS
from rounds import (
    MAX_PATH,
    TOLERANCE,
    check_nodes,
    compiled_step,
    model_and_params,
    read_prompt,
)

thorough = pytest.mark.thorough


def cases():
    """Every mixer and rollback once; the rest is thorough."""
    names = "small-hybrid", "delta-hybrid", "falcon-h1", "shared", "experts"
    for case in itertools.product(names, ROLLBACKS, (False, True)):
        name, rollback, scanned = case
        quick = name == "small-hybrid" or (name == "delta-hybrid" and not scanned)
        yield pytest.param(*case, marks=[] if quick else thorough)


every = pytest.mark.parametrize("name, rollback, scanned", list(cases()))


@every
def test_a_tree_grows_on_below_a_kept_branch(name, rollback, scanned):
    """And what is committed of it, kept nodes and new ones, is a past like any other."""
    model, params = model_and_params(name, rollback, scanned)
    first, grown = rerooting.trees()
    start, stop = rerooting.KEPT, rerooting.GROWN

    @jax.jit
    def grow(params, carry):
        carry = model.prepare(params, carry)
        tape = model.init_tape(params, *first.parents.shape)
        tape, _ = model.extend_tree(params, carry, tape, first, 0, first.num_nodes)
        carry = model.commit(carry, tape, rerooting.PATH)
        carry, tape = model.prepare(params, carry), model.keep(tape, rerooting.room())
        tape, hidden = model.extend_tree(params, carry, tape, grown, start, stop)
        carry = model.commit(carry, tape, rerooting.LATER)
        return carry, model.logits(
            params, jnp.pad(hidden, ((0, 0), (start, 0), (0, 0)))
        )

    carry, texts, _ = read_prompt(name, rollback, scanned)
    carry, logits = grow(params, carry)
    texts = rerooting.follow(texts, first, rerooting.PATH)
    check_nodes(name, texts, grown, logits, rerooting.new_nodes)
    _, logits = compiled_step(name, rollback, scanned)(carry, jnp.array([7, 8, 9]))
    texts = rerooting.follow(texts, grown, rerooting.LATER)
    for row, text in enumerate(texts):
        expected = tiny.oracle_logits(name, [*text, 7 + row])[-1]
        assert tiny.relative_error(logits[row], expected) < TOLERANCE


@pytest.mark.parametrize("name", ["small-hybrid", "delta-hybrid"])
@pytest.mark.parametrize("rollback", ROLLBACKS)
def test_a_kept_path_is_committed_as_before(name, rollback):
    """Bit for bit, of the tape that `scan_tree` returns, at other slots."""
    model, params = model_and_params(name, rollback)
    first, _ = rerooting.trees()
    path = jnp.array([[0, 1, 3, 7, 9], [0, 1, 4, -1, -1], [0, 2, -1, -1, -1]])
    slots = jnp.array([[9, 0, 1, 3, 7, 6], [0, 4, 1, 3, -1, -1], [-1, 0, 5, 2, 8, -1]])
    moved = jnp.array([[1, 2, 3, 4, 0], [0, 2, 1, -1, -1], [1, 3, -1, -1, -1]])

    @jax.jit
    def keep(params, carry):
        carry, tape, _ = model.scan_tree(params, carry, first)
        kept = model.commit(carry, model.keep(tape, slots), moved)
        return kept, model.commit(carry, tape, path)

    carry, *_ = read_prompt(name, rollback)
    found, expected = keep(params, carry)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_kept_node_that_is_not_finite_spoils_what_is_grown_below_it():
    model, params = model_and_params("mamba2")
    first, grown = rerooting.trees()
    bad, good = 0, 1
    embedding = params["embed"]["embedding"].at[bad].set(jnp.nan)
    params = {**params, "embed": {"embedding": embedding}}
    tokens = jnp.full_like(first.tokens, good).at[0, 3].set(bad)  # row 0's next root
    first = first.replace(tokens=tokens)
    grown = grown.replace(tokens=jnp.full_like(grown.tokens, good))

    @jax.jit
    def grow(params):
        carry = model.init_carry(params, 3, 40)
        _, tape, _ = model.scan_tree(params, carry, first)
        tape = model.keep(tape, rerooting.room())
        return model.extend_tree(params, carry, tape, grown, 4, 8)[1]

    lost = np.isnan(grow(params)).any(axis=-1)
    assert lost[0].all()
    assert not lost[1:].any()


def test_a_head_grows_on_below_a_kept_branch():
    config = tiny.config("M*-", mtp="*-")
    head, (first, grown) = mtp_head(config), rerooting.trees()
    params = jax.jit(head.init)(jax.random.key(0))
    rng = np.random.default_rng(4)
    before = jnp.asarray(rng.normal(size=(3, 10, 16)), jnp.float32)
    later = jnp.asarray(rng.normal(size=(3, rerooting.GROWN, 16)), jnp.float32)
    texts = tiny.random_tokens(rng, 3, 6)
    told = jnp.array(
        [[1, 3], [1, -1], [2, 5]]
    )  # pairs below the root, the new one's too

    @jax.jit
    def grow(params):
        carry = head.init_carry(params, 3, 20)
        past = jnp.ones((3, 6, 16)) * before[:, :6]
        carry, _ = head.scan(params, carry, texts, past, jnp.array([6, 4, 0]))
        tape = head.init_tape(params, 3, 10)
        tape, _ = head.extend_tree(params, carry, tape, first, before[:, 1:], 1, 10)
        index = jnp.maximum(told, 0)
        pairs = jnp.take_along_axis(before, index[..., None], axis=1)
        tokens = jnp.take_along_axis(first.tokens, index, axis=1)
        lengths = jnp.sum(told >= 0, axis=1)
        carry, _ = head.scan(params, carry, tokens, pairs, lengths)
        tape = head.keep(tape, rerooting.room())
        own = jnp.maximum(rerooting.room(), 0)[..., None]
        pairs = jnp.take_along_axis(before, own, axis=1)
        is_kept = (rerooting.room() >= 0)[..., None]
        pairs = jnp.where(is_kept, pairs, later)
        _, found = head.extend_tree(params, carry, tape, grown, pairs[:, 4:], 4, 8)
        tape = head.init_tape(params, 3, 8)
        _, whole = head.extend_tree(params, carry, tape, grown, pairs[:, 1:], 1, 8)
        return found, whole

    found, whole = grow(params)
    for row in range(3):
        new = np.array(rerooting.new_nodes(row))
        error = tiny.relative_error(found[row, new - 4], whole[row, new - 1])
        assert error < TOLERANCE


@pytest.mark.parametrize("rollback", ROLLBACKS)
def test_a_shorter_path_is_committed_as_a_padded_one(rollback):
    """And with less work."""
    model, params = model_and_params("small-hybrid", rollback)
    carry, *_ = read_prompt("small-hybrid", rollback)
    first, _ = rerooting.trees()
    carry, tape, _ = jax.jit(model.scan_tree)(params, carry, first)
    short = jnp.array([[0, 2], [0, -1], [-1, -1]])
    padded = jnp.pad(short, ((0, 0), (0, MAX_PATH - 2)), constant_values=-1)
    commit = jax.jit(model.commit)
    found, expected = (commit(carry, tape, path) for path in (short, padded))
    step, token = compiled_step("small-hybrid", rollback), jnp.array([7, 8, 9])
    (_, found), (_, expected) = step(found, token), step(expected, token)
    np.testing.assert_array_equal(found, expected)
    costs = [
        commit.lower(carry, tape, path).cost_analysis()["bytes accessed"]
        for path in (short, padded)
    ]
    if rollback != "joint":  # which keeps tokens alone
        assert costs[0] < costs[1]

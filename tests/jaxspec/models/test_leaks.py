"""What must not see what: rows, siblings, slots, padding, texts before."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import tiny
from jaxspec.trees import TokenTree
from rounds import (
    HYBRID,
    LENGTHS,
    MAX_PATH,
    NO_PATH,
    NUM_NODES,
    check_nodes,
    compiled_round,
    compiled_scan,
    model_and_params,
    network_part,
    read_prompt,
    rollbacks,
    round_on_hybrid,
)


@rollbacks
def test_rows_do_not_touch_each_other(rollback):
    tree = tiny.random_tree(np.random.default_rng(14), 3, NUM_NODES, MAX_PATH)
    carry, _, _ = read_prompt("hybrid", rollback)
    logits = round_on_hybrid(carry, tree, rollback)
    other = tree.replace(
        tokens=tree.tokens.at[1].add(1) % tiny.VOCAB,
        parents=tree.parents.at[1, 1:].set(-1),
    )
    changed = round_on_hybrid(carry, other, rollback)
    for row in (0, 2):
        np.testing.assert_array_equal(changed[row], logits[row])
    assert not np.allclose(changed[1, 0], logits[1, 0])


@rollbacks
def test_siblings_share_no_state(rollback):
    """What a node sees does not depend on siblings that come before it."""
    carry, _, _ = read_prompt("hybrid", rollback)
    parents = jnp.array([[-1, 0, 0, 1, 2, -1, -1]] * 3)
    tokens = tiny.random_tokens(np.random.default_rng(15), 3, NUM_NODES)
    logits = round_on_hybrid(carry, TokenTree(tokens, parents), rollback)
    other = tokens.at[:, 1].add(1) % tiny.VOCAB
    changed = round_on_hybrid(carry, TokenTree(other, parents), rollback)
    for node in (0, 2, 4):
        np.testing.assert_array_equal(changed[:, node], logits[:, node])
    assert not np.allclose(changed[:, 3], logits[:, 3])


def test_rope_turns_by_depth_not_by_slot():
    """The same path gives the same logits wherever its nodes lie."""
    carry, _, _ = read_prompt("attention-window")
    tokens = tiny.random_tokens(np.random.default_rng(16), 3, NUM_NODES)
    early = jnp.array([[-1, 0, 1, 0, 0, 0, 0]] * 3)
    late = jnp.array([[-1, 0, 0, 0, 0, 0, 5]] * 3)
    moved = tokens.at[:, 5].set(tokens[:, 1]).at[:, 6].set(tokens[:, 2])
    round_ = compiled_round("attention-window")
    _, a = round_(carry, TokenTree(tokens, early), NO_PATH)
    _, b = round_(carry, TokenTree(moved, late), NO_PATH)
    np.testing.assert_allclose(a[:, 2], b[:, 6], rtol=1e-5, atol=1e-5)


@rollbacks
def test_a_reused_cache_remembers_nothing(rollback):
    """A slot that served another text, garbage and all, serves the next as if new."""
    model, params = model_and_params("hybrid", rollback)
    fresh = model.init_carry(params, 3, 40)
    used, _, _ = read_prompt("hybrid", rollback, seed=1)
    blocks = [network_part(carry).blocks for carry in (used, fresh)]
    stale = network_part(fresh)._replace(
        blocks=tuple(
            old if kind == "*" else new
            for kind, old, new in zip(HYBRID, *blocks, strict=True)
        )
    )
    garbage = [b for kind, b in zip(HYBRID, stale.blocks, strict=True) if kind == "*"]
    stale = fresh._replace(past=stale) if rollback == "joint" else stale
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(garbage))
    tokens = tiny.random_tokens(np.random.default_rng(17), 3, max(LENGTHS))
    tree = tiny.random_tree(np.random.default_rng(18), 3, NUM_NODES, MAX_PATH)
    seen = []
    for carry in (fresh, stale):
        carry, _ = compiled_scan("hybrid", rollback)(
            carry, tokens, jnp.array([6, 3, 1])
        )
        seen.append(round_on_hybrid(carry, tree, rollback))
    np.testing.assert_array_equal(seen[0], seen[1])


@rollbacks
def test_padding_may_hold_any_token_id(rollback):
    carry, texts, _ = read_prompt("hybrid", rollback)
    tree = tiny.random_tree(np.random.default_rng(19), 3, NUM_NODES, MAX_PATH, 0.5)
    any_id = [-1, 10**6, -(2**31), 2**31 - 1, tiny.VOCAB, -7, -tiny.VOCAB - 1]
    tokens = jnp.where(tree.is_node, tree.tokens, jnp.array([any_id], jnp.int32))
    assert (tokens < 0).any() and (tokens >= tiny.VOCAB).any()
    logits = round_on_hybrid(carry, tree.replace(tokens=tokens), rollback)
    nodes = functools.partial(tiny.real_nodes, tree)
    check_nodes("hybrid", texts, tree, logits, nodes)


@rollbacks
def test_commit_reads_nothing_off_the_path(rollback):
    """Of what a tree left behind, NaN anywhere else does not get into the past."""
    model, params = model_and_params("hybrid", rollback)
    carry, _, _ = read_prompt("hybrid", rollback)
    tokens = tiny.random_tokens(np.random.default_rng(23), 3, NUM_NODES)
    tree = TokenTree(tokens, jnp.array([[-1, 0, 0, 1, 2, -1, 4]] * 3))
    carry, tape, _ = jax.jit(model.scan_tree)(params, carry, tree)
    path = jnp.array([[0, 2, 4, -1, -1], [0, 1, -1, -1, -1], [-1] * 5])
    off = jnp.stack([~jnp.isin(jnp.arange(NUM_NODES), row) for row in path])

    def poison(leaf):
        if leaf.shape[:2] != off.shape:  # not per node
            return leaf
        worst = jnp.nan if leaf.dtype != jnp.int32 else -(2**31)
        wide = off.reshape(*off.shape, *[1] * (leaf.ndim - 2))
        return jnp.where(wide, jnp.array(worst, leaf.dtype), leaf)

    poisoned = jax.tree.map(poison, tape)
    blocks = jax.tree.leaves(network_part(poisoned).blocks)
    assert any(jnp.isnan(leaf).any() for leaf in blocks)
    commit = jax.jit(model.commit)
    clean, other = commit(carry, tape, path), commit(carry, poisoned, path)
    jax.tree.map(np.testing.assert_array_equal, clean, other)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(clean))

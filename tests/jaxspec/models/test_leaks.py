"""What must not see what: rows, siblings, slots, padding, texts before."""

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
    compiled_round,
    compiled_scan,
    model_and_params,
    read_prompt,
    round_on_hybrid,
)


def test_rows_do_not_touch_each_other():
    tree = tiny.random_tree(np.random.default_rng(14), 3, NUM_NODES, MAX_PATH)
    carry, _, _ = read_prompt("hybrid")
    logits = round_on_hybrid(carry, tree)
    other = tree.replace(
        tokens=tree.tokens.at[1].add(1) % tiny.VOCAB,
        parents=tree.parents.at[1, 1:].set(-1),
    )
    changed = round_on_hybrid(carry, other)
    for row in (0, 2):
        np.testing.assert_array_equal(changed[row], logits[row])
    assert not np.allclose(changed[1, 0], logits[1, 0])


def test_siblings_share_no_state():
    """What a node sees does not depend on siblings that come before it."""
    carry, _, _ = read_prompt("hybrid")
    parents = jnp.array([[-1, 0, 0, 1, 2, -1, -1]] * 3)
    tokens = tiny.random_tokens(np.random.default_rng(15), 3, NUM_NODES)
    logits = round_on_hybrid(carry, TokenTree(tokens, parents))
    other = tokens.at[:, 1].add(1) % tiny.VOCAB
    changed = round_on_hybrid(carry, TokenTree(other, parents))
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


def test_a_reused_cache_remembers_nothing():
    """A slot that served another text, garbage and all, serves the next as if new."""
    model, params = model_and_params("hybrid")
    fresh = model.init_carry(params, 3, 40)
    used, _, _ = read_prompt("hybrid", seed=1)
    stale = fresh._replace(
        blocks=tuple(
            old if kind == "*" else new
            for kind, old, new in zip(HYBRID, used.blocks, fresh.blocks, strict=True)
        )
    )
    garbage = [b for kind, b in zip(HYBRID, stale.blocks, strict=True) if kind == "*"]
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(garbage))
    tokens = tiny.random_tokens(np.random.default_rng(17), 3, max(LENGTHS))
    tree = tiny.random_tree(np.random.default_rng(18), 3, NUM_NODES, MAX_PATH)
    seen = []
    for carry in (fresh, stale):
        carry, _ = compiled_scan("hybrid")(carry, tokens, jnp.array([6, 3, 1]))
        seen.append(round_on_hybrid(carry, tree))
    np.testing.assert_array_equal(seen[0], seen[1])


def test_garbage_in_padding_stays_there():
    """An enormous embedding in padded nodes changes nothing that counts."""
    model, params = model_and_params("hybrid")
    carry, _, _ = read_prompt("hybrid")
    parents = jnp.array([[-1, 0, -1, 1, -1, -1, -1]] * 3)
    tokens = tiny.random_tokens(np.random.default_rng(19), 3, NUM_NODES) % 40
    padded = tokens.at[:, 2].set(45).at[:, 4].set(45)
    table = params["embed"]["embedding"].at[45].set(1e20)
    loud = params | {"embed": {"embedding": table}}
    path = jnp.array([[0, 1, 3, -1, -1]] * 3)
    round_ = compiled_round("hybrid").func
    quiet = round_(loud, carry, TokenTree(tokens, parents), path)
    noisy = round_(loud, carry, TokenTree(padded, parents), path)
    assert jnp.isfinite(noisy[1][..., :40]).all()
    jax.tree.map(np.testing.assert_array_equal, quiet[0], noisy[0])
    np.testing.assert_array_equal(
        quiet[1][:, jnp.array([0, 1, 3])], noisy[1][:, jnp.array([0, 1, 3])]
    )

"""After any commits the model is as if it had been run afresh on what was kept."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from jaxspec import trees
from jaxspec.trees import TokenTree
from rounds import (
    HYBRID,
    MAX_PATH,
    NO_PATH,
    NUM_NODES,
    TOLERANCE,
    check_nodes,
    compiled_round,
    compiled_step,
    grouped,
    model_and_params,
    read_prompt,
    rollbacks,
    tree_models,
)


def choose_path(rng, tree, row, turn):
    """A path to keep: all sorts in turn, at random otherwise."""
    nodes = tiny.real_nodes(tree, row)
    if turn % 5 == 1 and row == 0:
        return [0]  # everything rejected
    if turn % 5 == 2 and row == 1:
        return []  # the row is done
    if turn % 5 == 3:  # everything accepted
        return max((tiny.path_of(tree, row, n) for n in nodes), key=len)
    return tiny.path_of(tree, row, rng.choice(nodes))


def commit_at_random(round_, carry, texts, num_nodes, turns, seed):
    """Runs many rounds; every fourth no row has a draft, after accepted drafts."""
    rng = np.random.default_rng(seed)
    for turn in range(turns):
        padding = 1.0 if turn % 4 == 3 else 0.2
        tree = tiny.random_tree(rng, 3, num_nodes, MAX_PATH, padding)
        paths = [choose_path(rng, tree, row, turn) for row in range(3)]
        padded = jnp.array([tiny.pad_path(path, MAX_PATH) for path in paths])
        carry, _ = round_(carry, tree, padded)
        for row, path in enumerate(paths):
            texts[row] += np.asarray(tree.tokens)[row, path].tolist()
    return carry


@tree_models
@rollbacks
def test_after_any_commits_the_model_is_as_if_run_afresh(name, rollback):
    carry, texts, _ = read_prompt(name, rollback, max_length=60)
    round_ = compiled_round(name, rollback)
    carry = commit_at_random(round_, carry, texts, NUM_NODES, 11, seed=5)
    tree = tiny.random_tree(np.random.default_rng(6), 3, NUM_NODES, MAX_PATH)
    _, logits = round_(carry, tree, NO_PATH)
    nodes = functools.partial(tiny.real_nodes, tree)
    check_nodes(name, texts, tree, logits, nodes)


@rollbacks
def test_fewer_nodes_than_the_longest_path(rollback):
    carry, texts, _ = read_prompt("hybrid", rollback)
    round_ = compiled_round("hybrid", rollback)
    carry = commit_at_random(round_, carry, texts, 3, 6, seed=7)
    tree = tiny.random_tree(np.random.default_rng(8), 3, 3, MAX_PATH)
    _, logits = round_(carry, tree, NO_PATH)
    nodes = functools.partial(tiny.real_nodes, tree)
    check_nodes("hybrid", texts, tree, logits, nodes)


@rollbacks
def test_step_goes_on_from_any_commits(rollback):
    """With entries in the ring, or tokens pending."""
    carry, texts, _ = read_prompt("hybrid", rollback)
    round_ = compiled_round("hybrid", rollback)
    carry = commit_at_random(round_, carry, texts, NUM_NODES, 2, seed=9)
    _, logits = compiled_step("hybrid", rollback)(carry, jnp.array([7, 8, 9]))
    for row, text in enumerate(texts):
        expected = tiny.oracle_logits("hybrid", [*text, 7 + row])[-1]
        assert tiny.relative_error(logits[row], expected) < TOLERANCE


@rollbacks
def test_the_end_of_the_cache(rollback):
    """A row that fills its cache to the last token is right until then."""
    end = 26
    carry, texts, _ = read_prompt("hybrid", rollback, max_length=end)
    rng = np.random.default_rng(10)
    while min(map(len, texts)) < end:
        tree = tiny.random_tree(rng, 3, NUM_NODES, MAX_PATH)
        paths = [choose_path(rng, tree, row, 3) for row in range(3)]
        paths = [p[: end - len(t)] for p, t in zip(paths, texts, strict=True)]
        padded = jnp.array([tiny.pad_path(path, MAX_PATH) for path in paths])
        carry, logits = compiled_round("hybrid", rollback)(carry, tree, padded)
        for row, path in enumerate(paths):
            texts[row] += np.asarray(tree.tokens)[row, path].tolist()
            if path:
                expected = tiny.oracle_logits("hybrid", texts[row])[-1]
                error = tiny.relative_error(logits[row, path[-1]], expected)
                assert error < TOLERANCE


@rollbacks
def test_a_done_row_keeps_its_past(rollback):
    """Bit for bit in every state, tail and ring; caches beyond the text may change."""
    carry, _, _ = read_prompt("hybrid", rollback)
    tree = tiny.random_tree(np.random.default_rng(13), 3, NUM_NODES, MAX_PATH)
    after, _ = compiled_round("hybrid", rollback)(carry, tree, NO_PATH)
    pairs = zip(HYBRID, carry.blocks, after.blocks, strict=True)
    recurrent = [(a, b) for kind, a, b in pairs if kind in "Mm"]
    assert recurrent
    for before, now in recurrent:
        jax.tree.map(np.testing.assert_array_equal, before, now)
    np.testing.assert_array_equal(after.position, carry.position)


@pytest.mark.parametrize("name", grouped(["parallel", "hybrid"]))
@rollbacks
def test_extending_by_levels_is_scan_tree(name, rollback):
    model, params = model_and_params(name, rollback)
    carry, _, _ = read_prompt(name, rollback)
    parents = jnp.asarray(trees.from_branching((2, 2)))[None]
    tokens = tiny.random_tokens(np.random.default_rng(4), 3, NUM_NODES)
    tree = TokenTree(tokens, jnp.broadcast_to(parents, tokens.shape))
    path = jnp.broadcast_to(jnp.array([[0, 2, 5, -1, -1]]), (3, MAX_PATH))

    @jax.jit
    def by_levels(params, carry, tree, path):
        carry, levels = model.prepare(params, carry), []
        tape = model.init_tape(params, 3, NUM_NODES)
        for start, stop in ((0, 1), (1, 3), (3, 7)):
            tape, hidden = model.extend_tree(params, carry, tape, tree, start, stop)
            levels.append(hidden)
        logits = model.logits(params, jnp.concatenate(levels, axis=1))
        return model.commit(carry, tape, path), logits

    round_ = compiled_round(name, rollback)
    carries, logits = zip(
        by_levels(params, carry, tree, path), round_(carry, tree, path), strict=True
    )
    assert tiny.relative_error(logits[0], logits[1]) < TOLERANCE
    after = [round_(carry, tree, NO_PATH)[1] for carry in carries]
    assert tiny.relative_error(after[0], after[1]) < TOLERANCE

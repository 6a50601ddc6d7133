"""After any commits the model is as if it had been run afresh on what was kept."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from jaxspec import trees
from jaxspec.models.rollback import ROLLBACKS
from jaxspec.trees import TokenTree
from rounds import (
    HYBRID,
    MAX_PATH,
    NO_PATH,
    NUM_NODES,
    TOLERANCE,
    check_nodes,
    choose_path,
    commit_at_random,
    compiled_round,
    compiled_step,
    model_and_params,
    network_part,
    pad_paths,
    read_prompt,
    rollbacks,
    tree_models,
)


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


@pytest.mark.parametrize(
    "name, rollback",
    [*itertools.product(["mamba1", "mamba2-groups"], ROLLBACKS)]
    + [("delta", "replay"), ("delta", "lazy")],
)
def test_nothing_drifts_over_many_commits(name, rollback):
    carry, texts, _ = read_prompt(name, rollback, max_length=60)
    round_ = compiled_round(name, rollback)
    carry = commit_at_random(round_, carry, texts, NUM_NODES, 80, seed=24)
    assert min(map(len, texts)) > 120
    tree = tiny.random_tree(np.random.default_rng(25), 3, NUM_NODES, MAX_PATH)
    _, logits = round_(carry, tree, NO_PATH)
    nodes = functools.partial(tiny.real_nodes, tree)
    check_nodes(name, texts, tree, logits, nodes)


@pytest.mark.parametrize("name", ["parallel"])
@pytest.mark.parametrize("ring_size", [MAX_PATH, 3 * MAX_PATH + 2])
def test_a_ring_may_have_any_size_that_holds_a_path(name, ring_size):
    options = {"rollback": "lazy", "max_path": MAX_PATH, "ring_size": ring_size}
    model, params = tiny.model(name, **options), tiny.params(name)

    @jax.jit
    def round_(carry, tree, path):
        carry, tape, hidden = model.scan_tree(params, carry, tree)
        return model.commit(carry, tape, path), model.logits(params, hidden)

    carry, texts = model.init_carry(params, 3, 60), [[], [], []]
    carry = commit_at_random(round_, carry, texts, NUM_NODES, 12, seed=20)
    assert min(map(len, texts)) > ring_size
    tree = tiny.random_tree(np.random.default_rng(21), 3, NUM_NODES, MAX_PATH)
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
        round_ = compiled_round("hybrid", rollback)
        carry, logits = round_(carry, tree, pad_paths(paths))
        for row, path in enumerate(paths):
            texts[row] += np.asarray(tree.tokens)[row, path].tolist()
            if path:
                expected = tiny.oracle_logits("hybrid", texts[row])[-1]
                error = tiny.relative_error(logits[row, path[-1]], expected)
                assert error < TOLERANCE


@rollbacks
def test_a_done_row_keeps_its_past(rollback):
    """Bit for bit in every state, tail and ring, while the other rows go on."""
    carry, _, _ = read_prompt("hybrid", rollback)
    parents = jnp.array([[-1, 0, 1, 2, 3, -1, -1]] * 3)
    tokens = tiny.random_tokens(np.random.default_rng(13), 3, NUM_NODES)
    tree, round_ = TokenTree(tokens, parents), compiled_round("hybrid", rollback)
    others = [0, 1, 2, 3, 4]
    carry, _ = round_(carry, tree, pad_paths([[0, 1, 2], [0, 1], [0, 1, 2]]))
    before, _ = round_(carry, tree, pad_paths([others, [], others]))
    after = before
    for _ in range(2):
        after, _ = round_(after, tree, pad_paths([others, [], others]))
    if (
        rollback == "lazy"
    ):  # the row has entries in its ring, and the others were folded
        assert before.ring_length.tolist() == [8, 2, 8]
        assert after.ring_length.tolist() == [10, 2, 10]
    within = [network_part(carry) for carry in (before, after)]
    pairs = list(zip(HYBRID, *(carry.blocks for carry in within), strict=True))
    recurrent = [(a, b) for kind, a, b in pairs if kind in "Mm"]
    rest = tuple(carry._replace(blocks=()) for carry in within)
    if rollback == "joint":
        rest = tuple(
            c._replace(past=r) for c, r in zip((before, after), rest, strict=True)
        )
    for one, other in [*recurrent, rest]:
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1], b[1]), one, other)
        changed = jax.tree.map(lambda a, b: bool((a[0] != b[0]).any()), one, other)
        assert any(jax.tree.leaves(changed))


@pytest.mark.parametrize(
    "name, rollback",
    [*itertools.product(["falcon-h1", "delta-hybrid", "hybrid"], ROLLBACKS)]
    + [("shared", "replay")],
)
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

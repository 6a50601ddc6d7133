"""What every `LanguageModel` promises, against a float64 loop over tokens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from jaxspec import trees
from jaxspec.models import hybrid
from jaxspec.models.rollback import ROLLBACKS
from jaxspec.trees import TokenTree
from rounds import (
    MAX_PATH,
    NO_PATH,
    NUM_NODES,
    TOLERANCE,
    check_nodes,
    commit_at_random,
    compiled_round,
    compiled_scan,
    compiled_step,
    layouts,
    model_and_params,
    models,
    read_prompt,
    rollbacks,
    tree_models,
)


@models
@layouts
def test_scan_is_the_recurrence(name, scanned):
    _, texts, logits = read_prompt(name, scanned=scanned)
    for row, text in enumerate(texts[:2]):
        expected = tiny.oracle_logits(name, text)
        assert tiny.relative_error(logits[row, : len(text)], expected) < TOLERANCE


@models
@layouts
def test_step_is_the_recurrence(name, scanned):
    model, params = model_and_params(name, scanned=scanned)
    tokens = tiny.random_tokens(np.random.default_rng(0), 2, 12)
    carry, logits = model.init_carry(params, 2, 12, False), []
    for t in range(12):
        carry, seen = compiled_step(name, scanned=scanned)(carry, tokens[:, t])
        logits.append(seen)
    for row in range(2):
        expected = tiny.oracle_logits(name, np.asarray(tokens[row]))
        assert tiny.relative_error(jnp.stack(logits, 1)[row], expected) < TOLERANCE


@tree_models
def test_scan_goes_on_from_step_and_step_from_scan(name):
    model, params = model_and_params(name)
    scan, step = compiled_scan(name), compiled_step(name)
    tokens = tiny.random_tokens(np.random.default_rng(1), 1, 17)
    chunk = jnp.pad(tokens, ((0, 2), (0, 2)))  # the shape that is compiled already
    carry = model.init_carry(params, 3, 40)
    carry, _ = scan(carry, chunk, jnp.array([3, 1, 0]))
    carry, _ = step(carry, jnp.broadcast_to(tokens[:, 3], (3,)))
    chunk = jnp.roll(chunk, -4, axis=1)
    carry, _ = scan(carry, chunk, jnp.array([12, 0, 0]))
    _, logits = step(carry, jnp.broadcast_to(tokens[:, 16], (3,)))
    expected = tiny.oracle_logits(name, np.asarray(tokens[0]))[-1]
    assert tiny.relative_error(logits[0], expected) < TOLERANCE


@tree_models
@rollbacks
def test_scan_tree_on_a_chain_is_scan(name, rollback):
    carry, texts, _ = read_prompt(name, rollback)
    chain = trees.chain(tiny.random_tokens(np.random.default_rng(2), 3, NUM_NODES))
    parents = jnp.where(jnp.arange(NUM_NODES) < MAX_PATH, chain.parents[0], -1)
    chain = chain.replace(parents=jnp.broadcast_to(parents[None], (3, NUM_NODES)))
    _, logits = compiled_round(name, rollback)(carry, chain, NO_PATH)
    check_nodes(name, texts, chain, logits, lambda row: range(MAX_PATH))


@tree_models
@rollbacks
def test_scan_tree_is_scan_along_every_path(name, rollback):
    carry, texts, _ = read_prompt(name, rollback)
    tree = tiny.random_tree(np.random.default_rng(3), 3, NUM_NODES, MAX_PATH)
    _, logits = compiled_round(name, rollback)(carry, tree, NO_PATH)
    nodes = functools.partial(tiny.real_nodes, tree)
    check_nodes(name, texts, tree, logits, nodes)


@pytest.mark.parametrize(
    "name, rollback", [*(("hybrid", each) for each in ROLLBACKS), ("shared", "lazy")]
)
def test_scanned_layers_are_unrolled_layers(name, rollback):
    tree = tiny.random_tree(np.random.default_rng(11), 3, NUM_NODES, MAX_PATH)
    seen, kept = [], []
    for scanned in (False, True):
        carry, texts, _ = read_prompt(name, rollback, scanned, max_length=60)
        round_ = compiled_round(name, rollback, scanned)
        carry = commit_at_random(round_, carry, texts, NUM_NODES, 8, seed=12)
        seen.append(round_(carry, tree, NO_PATH)[1])
        kept.append(texts)
    assert kept[0] == kept[1]
    assert tiny.relative_error(seen[1], seen[0]) < TOLERANCE


def test_a_step_without_drafts_is_cheap():
    """One slot runs where no row has a draft, and all run where one row has."""
    carry, _, _ = read_prompt("hybrid")
    tokens = tiny.random_tokens(np.random.default_rng(26), 3, NUM_NODES)
    model, params = model_and_params("hybrid")
    run = jax.jit(model.scan_tree)
    for drafts in (False, True):
        parents = jnp.full((3, NUM_NODES), -1).at[2, 4].set(0 if drafts else -1)
        *_, hidden = run(params, carry, TokenTree(tokens, parents))
        runs = (hidden != 0).any(axis=2)
        assert runs[:, 0].all()
        assert (runs[:, 1:] == drafts).all()


@rollbacks
def test_an_outer_vmap_is_a_loop(rollback):
    model, params = model_and_params("small-hybrid", rollback)
    rng = np.random.default_rng(12)
    prompts = tiny.random_tokens(rng, 2, 3, 6)
    several = [tiny.random_tree(rng, 3, 4, MAX_PATH) for _ in range(2)]
    tree = jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)
    path = jnp.array([[[0, -1], [0, -1], [-1, -1]]] * 2, jnp.int32)

    def run(prompt, tree, path):
        carry = model.init_carry(params, 3, 20)
        carry, _ = model.scan(params, carry, prompt, jnp.array([6, 2, 0]))
        carry, tape, hidden = model.scan_tree(params, carry, tree)
        carry = model.commit(carry, tape, path)
        return hidden, model.step(params, carry, prompt[:, 0])[1]

    mapped = jax.jit(jax.vmap(run))(prompts, tree, path)
    alone = jax.jit(run)
    for i in range(2):
        single = alone(prompts[i], several[i], path[i])
        for a, b in zip(mapped, single, strict=True):
            assert tiny.relative_error(a[i], b) < TOLERANCE


def test_equal_configs_give_equal_records():
    config = tiny.CONFIGS["hybrid"]
    a, b = (hybrid.language_model(config, rollback="lazy") for _ in range(2))
    assert a == b and hash(a) == hash(b)
    assert a != hybrid.language_model(config, rollback="replay")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rollback": "magic"}, "Unknown rollback 'magic'"),
        ({"max_path": 0}, "max_path must be positive"),
        ({"max_path": 4, "ring_size": 3}, "must hold a path of 4"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        hybrid.language_model(tiny.CONFIGS["mamba2"], **options)


def test_bad_arguments():
    model, params = tiny.model("mamba2", max_path=2), tiny.params("mamba2")
    tree = trees.chain(jnp.zeros((1, 3), jnp.int32))
    carry = model.init_carry(params, 1, 8)
    tape = model.init_tape(params, 1, 3)
    with pytest.raises(ValueError, match="0 <= start < stop <= 3"):
        model.extend_tree(params, carry, tape, tree, 2, 4)
    with pytest.raises(ValueError, match="raise `max_path`"):
        model.commit(carry, tape, jnp.array([[0, 1, 2]]))
    with pytest.raises(ValueError, match="batch_size must be positive"):
        model.init_carry(params, 0, 8)

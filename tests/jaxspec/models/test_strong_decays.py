"""Single tokens, chunks and trees agree where some tokens erase the state."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracle
import tiny
from jaxspec import trees
from jaxspec.models import hybrid
from rounds import TOLERANCE

LENGTH, MAX_PATH = 48, 12
ERASING = 8  # tokens of the vocabulary
STRENGTH = 5e3
CONFIGS = {
    "mamba2": tiny.config("M", mamba2=dataclasses.replace(tiny.MAMBA2, chunk_size=64)),
    "delta": tiny.config("G", delta=dataclasses.replace(tiny.DELTA, chunk_size=64)),
}
every = pytest.mark.parametrize("name", CONFIGS)


@functools.cache
def make_params(name):
    """Log decays of the first tokens, and of those alone, are about `-4 STRENGTH`."""
    params = jax.jit(hybrid.language_model(CONFIGS[name]).init)(jax.random.key(0))
    marks = jnp.where(jnp.arange(tiny.VOCAB) < ERASING, 10.0, 0.0)
    embedding = params["embed"]["embedding"]
    params["embed"]["embedding"] = embedding.at[:, 0].set(marks)
    mixer = params["layers"][0][name]
    kernel, heads = mixer["in_proj"]["kernel"], mixer["A_log"].size
    mixer["in_proj"]["kernel"] = kernel.at[0, -heads:].set(STRENGTH)
    mixer["A_log"] = jnp.zeros_like(mixer["A_log"])
    return params


@functools.cache
def make_text(name):
    """Tokens that erase, then some of each kind; and the logits in float64."""
    rng = np.random.default_rng(0)
    erase = (np.arange(LENGTH) < LENGTH // 3) | (rng.random(LENGTH) < 0.2)
    ranges = np.where(erase, 0, ERASING), np.where(erase, ERASING, tiny.VOCAB)
    tokens = rng.integers(*ranges)
    return jnp.asarray(tokens, jnp.int32), expected_logits(name, tokens)


def expected_logits(name, tokens):
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), make_params(name))
    return oracle.logits(CONFIGS[name], params, tuple(np.asarray(tokens).tolist()))


def assert_exact(logits, expected):
    """Asserts it token by token: errors of some must not hide behind others."""
    error = np.abs(logits - expected).max(axis=-1) / np.abs(expected).max(axis=-1)
    assert error.max() < TOLERANCE


def step_by_step(model, params, carry, tokens):
    def body(carry, token):
        carry, hidden = model.step(params, carry, token)
        return carry, hidden[0]

    return jax.lax.scan(body, carry, tokens[:, None])[1][None]


def in_chunks(model, params, carry, tokens):
    return model.scan(params, carry, tokens[None], jnp.array([LENGTH]))[1]


def as_a_tree(model, params, carry, tokens):
    return model.scan_tree(params, carry, trees.chain(tokens[None]))[2]


@every
@pytest.mark.parametrize("read", [step_by_step, in_chunks, as_a_tree])
def test_every_way_to_read_a_text_is_exact(name, read):
    model = hybrid.language_model(CONFIGS[name], max_path=LENGTH)
    tokens, expected = make_text(name)

    @jax.jit
    def logits(params, carry):
        return model.logits(params, read(model, params, carry, tokens))[0]

    params = make_params(name)
    assert_exact(logits(params, model.init_carry(params, 1, LENGTH)), expected)


@every
def test_a_ring_of_strong_decays_is_read_exactly(name):
    """Two trees after each other: the path of the first lies in the ring of the second."""
    model = hybrid.language_model(CONFIGS[name], rollback="lazy", max_path=MAX_PATH)
    params, (text, _) = make_params(name), make_text(name)
    prompt, text = text[:24], list(text[:24])
    round_ = jax.jit(model.scan_tree)
    carry = model.init_carry(params, 1, 2 * LENGTH)
    carry, _ = jax.jit(model.scan)(params, carry, prompt[None], jnp.array([24]))
    for seed in range(3):
        rng = np.random.default_rng(seed)
        tree = tiny.random_tree(rng, 1, 2 * MAX_PATH, MAX_PATH, padding=0.0)
        erase = rng.random(tree.tokens.shape) < 0.4
        tree = tree.replace(tokens=jnp.where(erase, tree.tokens % ERASING, tree.tokens))
        carry, tape, hidden = round_(params, carry, tree)
        logits = np.asarray(model.logits(params, hidden))[0]
        paths = [tiny.path_of(tree, 0, node) for node in range(2 * MAX_PATH)]
        deepest = max(paths, key=len)
        for path in (deepest, paths[-1]):
            continued = text + [int(tree.tokens[0, slot]) for slot in path]
            expected = expected_logits(name, continued)[len(text) :]
            assert_exact(logits[path], expected)
        text += [int(tree.tokens[0, slot]) for slot in deepest]
        padded = jnp.asarray([tiny.pad_path(deepest, MAX_PATH)], jnp.int32)
        carry = model.commit(carry, tape, padded)

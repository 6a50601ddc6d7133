"""Converted models compute what transformers computes.

The oracle is transformers' forward pass over a whole text, without a cache: its steps and
windows from a cached state are wrong for some families.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
import published
import tiny
from jaxspec import metrics, trees

TOLERANCE = 1e-4  # of the largest logit
LENGTHS = np.array([11, 6, 1])
NODES, MAX_PATH, NEW = 8, 8, 64

families = pytest.mark.parametrize("name", published.names())


@functools.cache
def load(name):
    return jaxspec.load(published.converted(name), max_path=MAX_PATH)


def texts(rng, *shape):
    return rng.integers(0, published.VOCAB, shape).astype(np.int32)


def assert_close(found, expected):
    assert tiny.relative_error(found, expected) < TOLERANCE


@functools.cache
def jitted(name):
    """Prefill of ragged rows, and from there steps, or the nodes of a tree."""
    model, _, _ = load(name)

    def prefill(params, tokens):
        carry = model.init_carry(params, len(LENGTHS), 32)
        carry, hidden = model.scan(params, carry, tokens, jnp.asarray(LENGTHS))
        return carry, model.logits(params, hidden)

    def step(params, carry, token):
        carry, hidden = model.step(params, carry, token)
        return carry, model.logits(params, hidden)

    def nodes(params, carry, tree):
        _, _, hidden = model.scan_tree(params, carry, tree)
        return model.logits(params, hidden)

    return jax.jit(prefill), jax.jit(step), jax.jit(nodes)


@families
def test_prefill_and_steps(name):
    rng = np.random.default_rng(0)
    prefill, step, _ = jitted(name)
    params = load(name).params
    tokens, more = texts(rng, 3, LENGTHS.max()), texts(rng, 3, 3)
    carry, found = prefill(params, tokens)
    after = []
    for token in more.T:
        carry, out = step(params, carry, token)
        after.append(out)
    for row, length in enumerate(LENGTHS):
        text = np.concatenate([tokens[row, :length], more[row]])
        expected = published.logits(name, text[None])[0]
        assert_close(found[row, :length], expected[:length])
        assert_close([out[row] for out in after], expected[length:])


@families
@pytest.mark.parametrize("shape", ["window", "tree"])
def test_windows_and_trees(name, shape):
    rng = np.random.default_rng(1)
    prefill, _, nodes = jitted(name)
    params = load(name).params
    tokens = texts(rng, 3, LENGTHS.max())
    tree = tiny.random_tree(rng, 3, NODES, MAX_PATH)
    if shape == "window":
        tree = trees.chain(tree.tokens)
    found = nodes(params, prefill(params, tokens)[0], tree)
    for row, length in enumerate(LENGTHS):
        real = tiny.real_nodes(tree, row)
        paths = [tiny.path_of(tree, row, node) for node in real]
        padded = [np.pad(path, (0, NODES - len(path))) for path in paths]
        after = np.asarray(tree.tokens)[row, padded]
        prompt = np.broadcast_to(tokens[row, :length], (len(paths), length))
        expected = published.logits(name, np.concatenate([prompt, after], axis=1))
        ends = [length + len(path) - 1 for path in paths]
        assert_close(found[row, np.array(real)], expected[np.arange(len(paths)), ends])


PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [200], [31, 41, 59, 26, 53, 58, 97, 93, 23, 84, 62]]


@families
def test_greedy_text_is_what_transformers_prefers(name):
    """Token by token, so that its own greedy text is the same; or a near tie."""
    model, params, _ = load(name)
    tokens, lengths = jaxspec.pad_prompts(PROMPTS, multiple=16)
    weights = jaxspec.Params(params)
    state = jaxspec.init_state(
        weights, tokens, lengths, target=model, max_new_tokens=NEW
    )
    state = jaxspec.generate(weights, state, target=model)
    for row, prompt in enumerate(PROMPTS):
        text = np.asarray(state.tokens)[row, : len(prompt) + NEW]
        scores = published.logits(name, text[None])[0, len(prompt) - 1 : -1]
        chosen = scores[np.arange(NEW), text[len(prompt) :]]
        near = metrics.NEAR_TIE * np.abs(scores).max(axis=-1)
        assert (scores.max(axis=-1) - chosen <= near).all()

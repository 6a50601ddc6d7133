"""A model's functions compiled once per worker, and the ways tests call them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from jaxspec.models import hybrid
from jaxspec.models.rollback import ROLLBACKS

TOLERANCE = 2e-5
LENGTHS = (19, 7, 0)
MAX_PATH, NUM_NODES = 5, 7
NO_PATH = jnp.full((3, MAX_PATH), -1, jnp.int32)
HYBRID = tiny.CONFIGS["hybrid"].layers


def grouped(names):
    """One worker per model, so that what it compiled serves all tests of the model."""
    return [pytest.param(n, marks=pytest.mark.xdist_group(n)) for n in names]


models = pytest.mark.parametrize(
    "name", grouped([n for n in tiny.CONFIGS if n != "small-hybrid"])
)
rollbacks = pytest.mark.parametrize("rollback", ROLLBACKS)
layouts = pytest.mark.parametrize("scanned", [False, True], ids=["unrolled", "scanned"])
# Rollback and trees differ by mixer, not by its options.
tree_models = pytest.mark.parametrize(
    "name",
    grouped(["mamba1", "mamba2-groups", "attention-window", "parallel", "hybrid"]),
)


@functools.cache
def model_and_params(name, rollback="replay", scanned=False):
    model = tiny.model(name, rollback=rollback, max_path=MAX_PATH, scan_layers=scanned)
    params = tiny.params(name)
    if scanned:
        params = hybrid.stack_params(tiny.CONFIGS[name], params)
    return model, params


@functools.cache
def compiled_round(name, rollback="replay", scanned=False):
    """`(carry, tree, path) -> carry, logits`: one speculative step, compiled once."""
    model, params = model_and_params(name, rollback, scanned)

    @jax.jit
    def round_(params, carry, tree, path):
        carry, tape, hidden = model.scan_tree(params, carry, tree)
        return model.commit(carry, tape, path), model.logits(params, hidden)

    return functools.partial(round_, params)


@functools.cache
def compiled_scan(name, rollback="replay", scanned=False):
    model, params = model_and_params(name, rollback, scanned)

    @jax.jit
    def scan(params, carry, tokens, lengths):
        carry, hidden = model.scan(params, carry, tokens, lengths)
        return carry, model.logits(params, hidden)

    return functools.partial(scan, params)


@functools.cache
def compiled_step(name, rollback="replay", scanned=False):
    model, params = model_and_params(name, rollback, scanned)

    @jax.jit
    def step(params, carry, token):
        carry, hidden = model.step(params, carry, token)
        return carry, model.logits(params, hidden)

    return functools.partial(step, params)


def read_prompt(name, rollback="replay", scanned=False, max_length=40, seed=0):
    """A carry after ragged prompts, the prompts, and the logits of every token."""
    model, params = model_and_params(name, rollback, scanned)
    tokens = tiny.random_tokens(np.random.default_rng(seed), 3, max(LENGTHS))
    carry = model.init_carry(params, 3, max_length)
    carry, logits = compiled_scan(name, rollback, scanned)(
        carry, tokens, jnp.array(LENGTHS)
    )
    texts = [np.asarray(tokens[b, :n]).tolist() for b, n in enumerate(LENGTHS)]
    return carry, texts, logits


def check_nodes(name, texts, tree, logits, nodes):
    """The logits of some nodes are those of the text and the path to the node."""
    assert jnp.isfinite(logits).all()  # padding too
    for row, text in enumerate(texts):
        for node in nodes(row):
            path = np.asarray(tree.tokens)[row, tiny.path_of(tree, row, node)]
            expected = tiny.oracle_logits(name, [*text, *path])[-1]
            assert tiny.relative_error(logits[row, node], expected) < TOLERANCE


def round_on_hybrid(carry, tree):
    return compiled_round("hybrid")(carry, tree, NO_PATH)[1]

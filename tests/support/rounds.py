"""A model's functions compiled once per worker, and the ways tests call them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from jaxspec.models import forms, joint
from jaxspec.models.rollback import ROLLBACKS

TOLERANCE = 2e-5
LENGTHS = (19, 7, 0)
MAX_PATH, NUM_NODES = 5, 7
NO_PATH = jnp.full((3, MAX_PATH), -1, jnp.int32)
HYBRID = tiny.CONFIGS["hybrid"].layers


models = pytest.mark.parametrize(
    "name", [n for n in tiny.CONFIGS if n != "small-hybrid"]
)
rollbacks = pytest.mark.parametrize("rollback", ROLLBACKS)
layouts = pytest.mark.parametrize("scanned", [False, True], ids=["unrolled", "scanned"])
# Rollback and trees differ by mixer, not by its options.
tree_models = pytest.mark.parametrize(
    "name",
    ["mamba1", "mamba2-groups", "delta-hybrid"]
    + ["attention-window", "falcon-h1", "shared", "hybrid"],
)


@functools.cache
def model_and_params(name, rollback="replay", scanned=False):
    model = tiny.model(name, rollback=rollback, max_path=MAX_PATH, scan_layers=scanned)
    params = tiny.params(name)
    if scanned:
        params = forms.stack(tiny.CONFIGS[name], params)
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


def pad_paths(paths):
    return jnp.array([tiny.pad_path(path, MAX_PATH) for path in paths], jnp.int32)


def commit_at_random(round_, carry, texts, num_nodes, turns, seed):
    """Runs many rounds; every fourth no row has a draft, after accepted drafts."""
    rng = np.random.default_rng(seed)
    for turn in range(turns):
        padding = 1.0 if turn % 4 == 3 else 0.2
        tree = tiny.random_tree(rng, 3, num_nodes, MAX_PATH, padding)
        paths = [choose_path(rng, tree, row, turn) for row in range(3)]
        carry, _ = round_(carry, tree, pad_paths(paths))
        for row, path in enumerate(paths):
            texts[row] += np.asarray(tree.tokens)[row, path].tolist()
    return carry


def check_nodes(name, texts, tree, logits, nodes, tolerance=TOLERANCE):
    """The logits of some nodes are those of the text and the path to the node."""
    logits = np.asarray(logits)
    assert np.isfinite(logits).all()  # padding too
    tokens = np.asarray(tree.tokens)
    for row, text in enumerate(texts):
        paths = sorted((tiny.path_of(tree, row, n) for n in nodes(row)), key=len)
        while paths:  # the longest, and all that lie on it, in one run of the oracle
            longest = paths[-1]
            expected = tiny.oracle_logits(name, [*text, *tokens[row, longest]])
            expected = expected[len(text) :]
            on_it = [path for path in paths if path == longest[: len(path)]]
            for path in on_it:
                found = logits[row, path[-1]]
                error = tiny.relative_error(found, expected[len(path) - 1])
                assert error < tolerance
            paths = [path for path in paths if path not in on_it]


def network_part(past):
    """The network's own carry or tape, which joint wraps."""
    if isinstance(past, joint.Carry):
        return past.past
    return past.nodes if isinstance(past, joint.Tape) else past


def round_on_hybrid(carry, tree, rollback="replay"):
    return compiled_round("hybrid", rollback)(carry, tree, NO_PATH)[1]

"""Trees that builders grow by a table of logits, and what the table says, in numpy.

A node's logits are those of the pair of its parent's token and its own. Rows differ in all
that rows can: one is greedy, one has fewer possible tokens than nodes have children.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import contexts
import tiny
from jaxspec import sampling
from jaxspec.drafting.builder import Reader

VOCAB, BATCH = 6, 4
COLUMNS = np.array([0, 2, 3, 5])  # of a trimmed head
KEYS = jax.random.split(jax.random.key(0), BATCH)
ROOT = jnp.array([1, 2, 3, 2])
POSITION = [3, 9, 0, 7]
TEMPERATURE, TOP_K = [0.0, 1.0, 0.7, 1.5], [0, 0, 2, 0]
SETTINGS = tiny.settings(BATCH, TEMPERATURE, TOP_K, position=POSITION)
TABLE = np.random.default_rng(3).normal(size=(VOCAB,) * 3).astype(np.float32) * 2
BEFORE = 4  # the token before all roots


def tokens_of(trimmed):
    """The tokens of a head's columns."""
    return COLUMNS if trimmed else np.arange(VOCAB)


def _read(trimmed, tape, tree, start, stop):
    tokens, above = tree.tokens[:, start:stop], tree.parents[:, start:stop]
    before = jnp.take_along_axis(tree.tokens, jnp.maximum(above, 0), axis=1)
    before = jnp.where(above >= 0, before, BEFORE)
    logits = jnp.asarray(TABLE[:, :, tokens_of(trimmed)])[before, tokens]
    return tape.at[:, start:stop].set(tokens), logits


@functools.cache
def _compiled(builder, trimmed):
    vocab_ids = jnp.asarray(COLUMNS, jnp.int32) if trimmed else None
    reader = Reader(functools.partial(_read, trimmed), vocab_ids, VOCAB)

    def build(keys, root, settings):
        tape = jnp.full((BATCH, builder.num_read), -1)
        return builder.build(reader, tape, contexts.of_roots(root, keys, settings))

    return jax.jit(build)


def grow(builder, trimmed=False, keys=KEYS, root=ROOT, settings=SETTINGS):
    """What a builder builds, in numpy; its tape holds the tokens that were read."""
    built = _compiled(builder, trimmed)(keys, root, settings)
    return jax.tree.map(np.asarray, built)


def law_logits(row, path, trimmed=False):
    """Logits `[V']` that children of the node at the end of a path are drawn from."""
    before, token = [BEFORE, *path][-2:]
    logits = TABLE[before, token, tokens_of(trimmed)]
    if TEMPERATURE[row] == 0.0:
        return logits
    if TOP_K[row]:
        logits = np.where(logits >= np.sort(logits)[-TOP_K[row]], logits, -np.inf)
    return logits / np.float32(TEMPERATURE[row])


def law(logits):
    """Float64."""
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def children(draft, row, node):
    """Slots of a node's children, in order."""
    return np.flatnonzero(draft.tree.parents[row] == node).tolist()


def path(draft, row, node):
    """Tokens from the root to a node."""
    return draft.tree.tokens[row, tiny.path_of(draft.tree, row, node)].tolist()


def draft_key(row, slot):
    """The key of a draw."""
    key = sampling.noise_key(KEYS[row], sampling.Role.DRAFT, POSITION[row])
    return jax.random.fold_in(key, slot)


def emission_noise(row, depth, trimmed=False):
    """What the token after a node at a depth is emitted with."""
    position = POSITION[row] + depth + 1
    noise = sampling.emission_noise(KEYS[row], position, VOCAB)
    return np.asarray(noise)[tokens_of(trimmed)]


def as_lists(draft, row):
    """Parents and tokens of a row; the tokens of free slots are not told."""
    parents = draft.tree.parents[row]
    tokens = np.where((parents >= 0) | (np.arange(len(parents)) == 0), 1, 0)
    return parents.tolist(), (tokens * draft.tree.tokens[row]).tolist()

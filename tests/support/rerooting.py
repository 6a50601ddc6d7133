"""A tree whose winning branches are kept and grown on, with another branch in each row."""

import jax.numpy as jnp
import numpy as np

import tiny
from jaxspec.trees import TokenTree

PARENTS = jnp.array([[-1, 0, 0, 1, 1, 2, 3, 3, 5, 7]] * 3)
PATH = jnp.array([[0, 1], [0, -1], [0, 2]])  # committed, by the first tree
SLOTS = jnp.array(
    [[3, 6, 7, 9], [1, 4, 3, 7], [5, 8, -1, -1]]
)  # kept of it, new root first
KEPT, GROWN = 4, 8
BELOW = jnp.array(  # the kept nodes, and four new ones that hang from them
    [
        [-1, 0, 0, 2, 3, 1, 0, 3],
        [-1, 0, 0, 2, 3, 4, 1, -1],
        [-1, 0, -1, -1, 1, 0, -1, 4],
    ]
)
LATER = jnp.array([[0, 2, 3, 4, -1], [0, 2, 3, 4, 5], [0, 1, 4, 7, -1]])
"""A path of kept and new nodes, by the grown tree."""


def trees():
    """The first tree, and the one that is grown from what is kept of it."""
    rng = np.random.default_rng(3)
    first = TokenTree(tiny.random_tokens(rng, *PARENTS.shape), PARENTS)
    kept = jnp.take_along_axis(first.tokens, jnp.maximum(SLOTS, 0), axis=1)
    new = tiny.random_tokens(rng, len(SLOTS), GROWN - KEPT)
    return first, TokenTree(jnp.concatenate([kept, new], axis=1), BELOW)


def room():
    """The kept slots, and room for the new nodes."""
    return jnp.pad(SLOTS, ((0, 0), (0, GROWN - KEPT)), constant_values=-1)


def new_nodes(row):
    """The nodes of a row that are not kept ones."""
    return [n for n in range(KEPT, GROWN) if BELOW[row, n] >= 0]


def follow(texts, tree, path):
    """Texts with the tokens of a path after them."""
    tokens, path = np.asarray(tree.tokens), np.asarray(path)
    rows = zip(texts, tokens, path, strict=True)
    return [[*text, *own[slots[slots >= 0]].tolist()] for text, own, slots in rows]

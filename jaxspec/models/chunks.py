"""Long texts, a chunk of tokens at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def split(x: jax.Array, size: int) -> jax.Array:
    """Cuts `[B, T, ...]` into `[ceil(T / size), B, size, ...]`, padded with zeros."""
    pad = -x.shape[1] % size
    x = jnp.pad(x, ((0, 0), (0, pad), *[(0, 0)] * (x.ndim - 2)))
    return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)


def join(chunks: jax.Array, length: int) -> jax.Array:
    """Undoes `split`, dropping what lies beyond `length`."""
    x = jnp.moveaxis(chunks, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]


def scan(
    advance: Callable[[Any, Any], tuple[Any, jax.Array]],
    state: Any,
    tokens: Any,
    size: int,
) -> tuple[Any, jax.Array]:
    """Advances a state over tokens, a chunk at a time.

    Args:
        advance: `state, chunk -> state, y`.
        state: before the first token.
        tokens: arrays `[B, T, ...]`.
        size: tokens that a chunk has, if there are so many.

    Returns:
        The state after the last token, and `y` of all, `[B, T, ...]`.
    """
    length = jax.tree.leaves(tokens)[0].shape[1]
    size = min(size, length)
    pieces = jax.tree.map(lambda a: split(a, size), tokens)
    state, y = jax.lax.scan(advance, state, pieces)
    return state, join(y, length)

"""The cache that attention reads, as its implementations take it."""

from typing import NamedTuple

import jax


class Cache(NamedTuple):
    """Keys and values of the tokens before a tree, of all layers.

    Attributes:
        keys: `[L, B, M, K d]`, finite.
        values: `[L, B, M, K d]`, finite.
        length: `[B]` int32, live rows.
        layer: int32, the layer that is meant.
    """

    keys: jax.Array
    values: jax.Array
    length: jax.Array
    layer: jax.Array

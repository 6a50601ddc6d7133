"""Who sees whom: the cache up to a length, ancestors, and no further than a window."""

import jax
import jax.numpy as jnp

HIDDEN = -1e30  # a finite score: a padded node sees itself, never nothing


def of_tree(tree, queries, capacity, length, window) -> tuple[jax.Array, jax.Array]:
    """Masks `[B, n, M]` of the cache and `[B, n, N]` of the tree for its last nodes."""
    slots = jnp.arange(capacity, dtype=length.dtype)[None, None]
    length = length[:, None, None]
    on_cache = slots < length
    on_tree = tree.ancestors[:, -queries:]
    depth = tree.depth[:, -queries:, None]
    if window is not None:
        on_cache = on_cache & (slots > length + depth - window)
        on_tree = on_tree & (tree.depth[:, None] > depth - window)
    shape = (*depth.shape[:2], capacity)
    return jnp.broadcast_to(on_cache, shape), on_tree


def of_cache(index, start, capacity, window) -> jax.Array:
    """Mask `[B, T, M]` of rows at positions `start` and on, for those at `index`."""
    slots = jnp.arange(capacity, dtype=start.dtype)[None, None]
    slots = start[:, None, None] + slots
    index = index[:, :, None]
    seen = slots <= index
    if window is not None:
        seen &= slots > index - window
    return seen

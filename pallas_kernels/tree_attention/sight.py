"""Who sees whom: the cache up to a length, ancestors, and no further than a window."""

import jax
import jax.numpy as jnp

from pallas_kernels import stacked

HIDDEN = -1e30  # a finite score: a padded node sees itself, never nothing


def cut(caches, layer, *, end, queries, window):
    """Cuts a layer's rows that the `queries` positions from `end - queries` on can see.

    Args:
        caches: arrays `[L, B, M, K d]`.
        layer: index of the layer.
        end: `[B]` int32, the first row that none of them sees.
        queries: how many.
        window: how far each sees, or None.

    Returns:
        Arrays `[B, m, K d]`, and the row `[B]` that they start at: with a window, what a
        query costs does not grow with the cache.
    """
    _, batch, capacity, width = caches[0].shape
    span = capacity if window is None else max(window - 1 + queries, 1)
    if span >= capacity:
        return stacked.take(caches, layer), jnp.zeros_like(end)
    start = jnp.clip(end - span, 0, capacity - span)

    def rows(cache):
        def row(b):
            at = layer, b, start[b], 0
            return jax.lax.dynamic_slice(cache, at, (1, 1, span, width))[0, 0]

        if batch == 1:  # one contiguous copy; the general form is a gather
            return row(0)[None]
        return jax.vmap(row)(jnp.arange(batch))

    return jax.tree.map(rows, caches), start


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


def of_cache(index, start, queries, capacity, window) -> jax.Array:
    """Mask `[B, T, M]` of rows at positions `start` and on, for those from `index` on."""
    slots = jnp.arange(capacity, dtype=start.dtype)[None, None]
    slots = start[:, None, None] + slots
    index = index[:, None, None] + jnp.arange(queries, dtype=index.dtype)[None, :, None]
    seen = slots <= index
    if window is not None:
        seen &= slots > index - window
    return seen

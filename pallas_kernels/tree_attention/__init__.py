"""Attention to a cache: of consecutive tokens, and of the nodes of a token tree."""

import jax

from pallas_kernels import _dispatch
from pallas_kernels._shapes import check_shapes
from pallas_kernels.topology import Topology
from pallas_kernels.tree_attention import cpu, reference, xla

_TREE = {"reference": reference.attend, "xla": xla.attend, "cpu": cpu.attend}
_CACHE = {
    "reference": reference.attend_cache,
    "xla": xla.attend_cache,
    "cpu": cpu.attend_cache,
}


def attend(
    tree: Topology,
    q: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    cache_keys: jax.Array,
    cache_values: jax.Array,
    length: jax.Array,
    *,
    window: int | None = None,
    scale: float,
    implementation: _dispatch.Implementation | None = None,
) -> jax.Array:
    """Lets the last `n` nodes of a tree attend.

    Query heads `h` share the key and value head `h // (H / K)`. Scores and softmax are
    float32.

    Args:
        tree: topology of the `N` nodes.
        q: `[B, n, H, d]` queries, rotated by position (`length + depth`) already.
        keys: `[B, N, K, d]` keys of the nodes, rotated likewise.
        values: `[B, N, K, d]`.
        cache_keys: `[B, M, K, d]`, of which the first `length` rows are live.
        cache_values: `[B, M, K, d]`.
        length: `[B]` int32.
        window: a node sees the last `window` positions, its own included; `None` for all.
        scale: factor of the scores.
        implementation: `None` picks the fastest for the platform.

    Returns:
        `[B, n, H, d]` float32.

    Raises:
        ValueError: if the shapes disagree.
    """
    batch, num_nodes = tree.parents.shape
    (queries, heads, dim), kv_heads = q.shape[1:], keys.shape[2]
    nodes = (batch, num_nodes, kv_heads, dim)
    cache = (batch, cache_keys.shape[1], kv_heads, dim)
    check_shapes(
        q=(q, (batch, queries, heads, dim)),
        keys=(keys, nodes),
        values=(values, nodes),
        cache_keys=(cache_keys, cache),
        cache_values=(cache_values, cache),
        length=(length, (batch,)),
    )
    if heads % kv_heads or queries > num_nodes or (window is not None and window < 1):
        raise ValueError(
            f"Expected key heads that divide {heads}, at most {num_nodes} queries and a "
            f"window of at least 1; got {kv_heads}, {queries} and {window}."
        )
    return _dispatch.dispatch(
        _TREE,
        implementation,
        tree,
        q,
        keys,
        values,
        cache_keys,
        cache_values,
        length,
        window,
        scale,
    )


def attend_cache(
    q: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    index: jax.Array,
    start: jax.Array,
    *,
    window: int | None = None,
    scale: float,
    implementation: _dispatch.Implementation | None = None,
) -> jax.Array:
    """Lets tokens attend to the rows of a cache up to their own positions.

    Args:
        q: `[B, T, H, d]` queries.
        keys: `[B, M, K, d]`; row `r` holds position `start + r`.
        values: `[B, M, K, d]`.
        index: `[B, T]` int32 positions of the queries.
        start: `[B]` int32.
        window: as in `attend`.
        scale: factor of the scores.
        implementation: `None` picks the fastest for the platform.

    Returns:
        `[B, T, H, d]` float32.

    Raises:
        ValueError: if the shapes disagree.
    """
    batch, queries, heads, dim = q.shape
    rows, kv_heads = keys.shape[1:3]
    check_shapes(
        keys=(keys, (batch, rows, kv_heads, dim)),
        values=(values, (batch, rows, kv_heads, dim)),
        index=(index, (batch, queries)),
        start=(start, (batch,)),
    )
    if heads % kv_heads or (window is not None and window < 1):
        raise ValueError(
            f"Expected key heads that divide {heads} and a window of at least 1; got "
            f"{kv_heads} and {window}."
        )
    return _dispatch.dispatch(
        _CACHE, implementation, q, keys, values, index, start, window, scale
    )


def implementations() -> list[str]:
    """The implementations there are, the default first."""
    return _dispatch.default_first(_TREE)

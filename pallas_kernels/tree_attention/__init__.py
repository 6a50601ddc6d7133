"""Attention to a cache: of consecutive tokens, and of the nodes of a token tree.

`B` batch, `N` nodes, `H` query heads of width `d`, `K` heads of keys and values, `M` rows
of a cache. Heads are flat: `[B, N, H d]`. Query heads `h` share the key and value head
`h // (H / K)`. Scores and softmax are float32.
"""

import jax

from pallas_kernels import _dispatch, stacked
from pallas_kernels._dispatch import HEADS, LAYERS, ROWS, Layout
from pallas_kernels._shapes import check_shapes
from pallas_kernels.topology import Topology
from pallas_kernels.tree_attention import cpu, pallas_gpu, pallas_tpu, reference, xla
from pallas_kernels.tree_attention.cache import Cache

_MODULES = {
    "reference": reference,
    "xla": xla,
    "cpu": cpu,
    "pallas_tpu": pallas_tpu,
    "pallas_gpu": pallas_gpu,
}
_ROW, _NODE = Layout(ROWS), Layout(ROWS, None, HEADS)
_STACKED = Layout(LAYERS, *_NODE)
_ATTEND = _dispatch.op(
    "attend",
    _MODULES,
    (_ROW, _NODE, _NODE, _NODE, Cache(_STACKED, _STACKED, _ROW, Layout())),
    _NODE,
)
_ATTEND_CACHE = _dispatch.op(
    "attend_cache", _MODULES, (_NODE, _STACKED, _STACKED, _ROW, Layout()), _NODE
)


def attend(
    tree: Topology,
    q: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    cache_keys: jax.Array,
    cache_values: jax.Array,
    length: jax.Array,
    *,
    head_dim: int,
    window: int | None = None,
    scale: float,
    layer: jax.Array | None = None,
    implementation: _dispatch.Implementation | None = None,
) -> jax.Array:
    """Lets the last `n` nodes of a tree attend.

    Args:
        tree: topology of the `N` nodes.
        q: `[B, n, H d]` queries, rotated by position (`length + depth`) already.
        keys: `[B, N, K d]` keys of the nodes, rotated likewise.
        values: `[B, N, K d]`.
        cache_keys: `[B, M, K d]`, of which the first `length` rows are live; or of `L`
            layers, `[L, B, M, K d]`.
        cache_values: like `cache_keys`.
        length: `[B]` int32.
        head_dim: `d`.
        window: a node sees the last `window` positions, its own included; `None` for all.
        scale: factor of the scores.
        layer: index of the layer of the caches that is meant; None if there is one.
        implementation: `None` picks the fastest for the platform.

    Returns:
        `[B, n, H d]` float32.

    Raises:
        ValueError: if the shapes disagree.
    """
    batch, num_nodes = tree.parents.shape
    kv_heads = _check(q, keys, cache_keys, cache_values, head_dim, window, layer)
    check_shapes(
        keys=(keys, (batch, num_nodes, keys.shape[2])),
        values=(values, keys.shape),
        length=(length, (batch,)),
    )
    if q.shape[1] > num_nodes:
        raise ValueError(f"Expected at most {num_nodes} queries, got {q.shape[1]}.")
    layer, cache_keys, cache_values = stacked.make(layer, cache_keys, cache_values)
    return _dispatch.dispatch(
        _ATTEND,
        implementation,
        kv_heads,
        tree,
        q,
        keys,
        values,
        Cache(cache_keys, cache_values, length, layer),
        head_dim=head_dim,
        window=window,
        scale=scale,
    )


def attend_cache(
    q: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    index: jax.Array,
    *,
    head_dim: int,
    window: int | None = None,
    scale: float,
    layer: jax.Array | None = None,
    implementation: _dispatch.Implementation | None = None,
) -> jax.Array:
    """Lets consecutive tokens attend to the rows of a cache up to their own positions.

    Args:
        q: `[B, T, H d]` queries.
        keys: `[B, M, K d]`, row `r` at position `r`; or of `L` layers.
        values: like `keys`.
        index: `[B]` int32 position of the first query.
        head_dim: as in `attend`.
        window: as in `attend`.
        scale: as in `attend`.
        layer: as in `attend`.
        implementation: as in `attend`.

    Returns:
        `[B, T, H d]` float32.

    Raises:
        ValueError: if the shapes disagree.
    """
    kv_heads = _check(q, keys, keys, values, head_dim, window, layer)
    check_shapes(index=(index, q.shape[:1]))
    layer, keys, values = stacked.make(layer, keys, values)
    return _dispatch.dispatch(
        _ATTEND_CACHE,
        implementation,
        kv_heads,
        q,
        keys,
        values,
        index,
        layer,
        head_dim=head_dim,
        window=window,
        scale=scale,
    )


def implementations() -> list[str]:
    """The implementations there are, those made for a platform first."""
    return _dispatch.names(_MODULES)


def _check(q, keys, cache_keys, cache_values, head_dim, window, layer) -> int:
    """Checks heads, window and caches; the number of key heads."""
    batch, _, width = q.shape
    heads, kv_heads = width // head_dim, keys.shape[-1] // head_dim
    if width % head_dim or keys.shape[-1] % head_dim or heads % max(kv_heads, 1):
        raise ValueError(
            f"Expected heads of {head_dim} and key heads that divide the query heads; got "
            f"{width} and {keys.shape[-1]} channels."
        )
    if window is not None and window < 1:
        raise ValueError(f"Expected a window of at least 1, got {window}.")
    cache = stacked.shapes(cache_keys, layer)
    check_shapes(
        cache_keys=(cache, (batch, cache.shape[1], keys.shape[-1])),
        cache_values=(cache_values, cache_keys.shape),
    )
    return kv_heads

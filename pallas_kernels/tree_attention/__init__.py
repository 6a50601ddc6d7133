"""Attention of the nodes of a token tree to a cache and to their ancestors."""

import jax

from pallas_kernels import _dispatch
from pallas_kernels.topology import Topology
from pallas_kernels.tree_attention import reference, xla

_IMPLEMENTATIONS = {"reference": reference.attend, "xla": xla.attend}


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
        ValueError: if the heads disagree.
    """
    heads, kv_heads = q.shape[2], keys.shape[2]
    if heads % kv_heads or cache_keys.shape[2] != kv_heads:
        raise ValueError(
            f"Expected key heads that divide {heads}, the same in the cache; got "
            f"{kv_heads} and {cache_keys.shape[2]}."
        )
    op = _dispatch.dispatch(_IMPLEMENTATIONS, implementation)
    return op(tree, q, keys, values, cache_keys, cache_values, length, window, scale)


def implementations() -> list[str]:
    """The implementations there are, the default first."""
    return sorted(_IMPLEMENTATIONS, key=lambda name: name != "xla")

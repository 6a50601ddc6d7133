"""`attend` one key head at a time, for the CPU.

There XLA runs a batch of small matrix products as plain loops, five times slower than as
many products of two dimensions, which it hands to a library.
"""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.tree_attention import sight


def attend(tree, q, keys, values, cache, *, head_dim, window, scale):
    length = cache.length
    past, start = sight.cut(
        cache[:2], cache.layer, end=length, queries=0, window=window
    )
    capacity = past[0].shape[1]
    on_cache, on_tree = sight.of_tree(
        tree, q.shape[1], capacity, length - start, window
    )
    sources = [(*past, on_cache), (keys, values, on_tree)]
    return _by_head(q, sources, head_dim, scale)


def attend_cache(q, keys, values, index, layer, *, head_dim, window, scale):
    length = q.shape[1]
    cache, start = sight.cut(
        (keys, values), layer, end=index + length, queries=length, window=window
    )
    seen = sight.of_cache(index, start, length, cache[0].shape[1], window)
    return _by_head(q, [(*cache, seen)], head_dim, scale)


def _by_head(q, sources, head_dim, scale):
    """One softmax per query over several `(keys, values, seen)`."""
    batch, queries, width = q.shape
    kv_heads = sources[0][0].shape[2] // head_dim
    grouped = q.reshape(batch, queries, kv_heads, -1, head_dim)
    f32 = jnp.float32
    outputs = []
    for head in range(kv_heads):
        own = grouped[:, :, head].reshape(batch, -1, head_dim)  # [B, n G, d]
        mine = slice(head * head_dim, (head + 1) * head_dim)
        scores, tops = [], []
        for keys, _, seen in sources:
            s = jnp.einsum(
                "bid,bjd->bij", own, keys[:, :, mine], preferred_element_type=f32
            )
            s = s.reshape(batch, queries, -1, s.shape[-1]) * scale
            s = jnp.where(seen[:, :, None], s, sight.HIDDEN)
            scores.append(s)
            tops.append(jnp.max(s, axis=-1, keepdims=True))
        top = jax.lax.stop_gradient(functools.reduce(jnp.maximum, tops))
        total, y = 0.0, 0.0
        for s, (_, values, _) in zip(scores, sources, strict=True):
            weights = jnp.exp(s - top)
            total = total + jnp.sum(weights, axis=-1, keepdims=True)
            weights = weights.reshape(batch, -1, s.shape[-1]).astype(values.dtype)
            y = y + jnp.einsum(
                "bij,bjd->bid",
                weights,
                values[:, :, mine],
                preferred_element_type=f32,
            )
        outputs.append(y.reshape(batch, queries, -1, head_dim) / total)
    return jnp.concatenate(outputs, axis=2).reshape(batch, queries, width)

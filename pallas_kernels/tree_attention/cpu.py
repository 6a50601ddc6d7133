"""`attend` one key head at a time, for the CPU.

There XLA runs a batch of small matrix products as plain loops, five times slower than as
many products of two dimensions, which it hands to a library.
"""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.tree_attention import masks


def attend(tree, q, keys, values, cache_keys, cache_values, length, window, scale):
    shape = q.shape[1], cache_keys.shape[1]
    on_cache, on_tree = masks.of_tree(tree, *shape, length, window)
    past = (cache_keys, cache_values, on_cache)
    return _by_head(q, [past, (keys, values, on_tree)], scale)


def attend_cache(q, keys, values, index, start, window, scale):
    seen = masks.of_cache(index, start, keys.shape[1], window)
    return _by_head(q, [(keys, values, seen)], scale)


def _by_head(q, sources, scale):
    """One softmax per query over several `(keys, values, seen)`."""
    batch, queries, heads, dim = q.shape
    kv_heads = sources[0][0].shape[2]
    grouped = q.reshape(batch, queries, kv_heads, -1, dim)
    f32 = jnp.float32
    outputs = []
    for head in range(kv_heads):
        own = grouped[:, :, head].reshape(batch, -1, dim)  # [B, n G, d]
        scores, tops = [], []
        for keys, _, seen in sources:
            s = jnp.einsum(
                "bid,bjd->bij", own, keys[:, :, head], preferred_element_type=f32
            )
            s = s.reshape(batch, queries, -1, s.shape[-1]) * scale
            s = jnp.where(seen[:, :, None], s, masks.HIDDEN)
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
                values[:, :, head],
                preferred_element_type=f32,
            )
        outputs.append(y.reshape(batch, queries, -1, dim) / total)
    return jnp.concatenate(outputs, axis=2)

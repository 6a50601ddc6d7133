"""`attend` with one softmax over the cache and the tree, all heads at once."""

import jax
import jax.numpy as jnp

from pallas_kernels.tree_attention import sight


def attend(tree, q, keys, values, cache, *, head_dim, window, scale):
    length = cache.length
    (cache_keys, cache_values), start = sight.cut(
        cache[:2], cache.layer, end=length, queries=0, window=window
    )
    capacity = cache_keys.shape[1]
    seen = sight.of_tree(tree, q.shape[1], capacity, length - start, window)
    scores = [_score(q, k, head_dim, scale) for k in (cache_keys, keys)]
    weights = _softmax(*(jnp.concatenate(x, axis=-1) for x in (scores, seen)))
    y = _read(weights[..., :capacity], cache_values, head_dim)
    y += _read(weights[..., capacity:], values, head_dim)
    return y.reshape(q.shape)


def attend_cache(q, keys, values, index, layer, *, head_dim, window, scale):
    length = q.shape[1]
    (keys, values), start = sight.cut(
        (keys, values), layer, end=index + length, queries=length, window=window
    )
    seen = sight.of_cache(index, start, length, keys.shape[1], window)
    weights = _softmax(_score(q, keys, head_dim, scale), seen)
    return _read(weights, values, head_dim).reshape(q.shape)


def _score(q, keys, head_dim, scale):
    """Scores `[B, K, G, n, M]` of queries `[B, n, K G d]` and keys `[B, M, K d]`."""
    keys = keys.reshape(*keys.shape[:2], -1, head_dim)
    q = q.reshape(*q.shape[:2], keys.shape[2], -1, head_dim)
    scores = jnp.einsum(
        "bikgd,bjkd->bkgij", q, keys, preferred_element_type=jnp.float32
    )
    return scores * scale


def _softmax(scores, seen):
    return jax.nn.softmax(jnp.where(seen[:, None, None], scores, sight.HIDDEN), axis=-1)


def _read(weights, values, head_dim):
    weights = weights.astype(values.dtype)
    values = values.reshape(*values.shape[:2], -1, head_dim)
    return jnp.einsum(
        "bkgij,bjkd->bikgd", weights, values, preferred_element_type=jnp.float32
    )

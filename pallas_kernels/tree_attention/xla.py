"""`attend` with one softmax over the cache and the tree, all heads at once."""

import jax
import jax.numpy as jnp

from pallas_kernels.tree_attention import masks


def attend(tree, q, keys, values, cache_keys, cache_values, length, window, scale):
    capacity = cache_keys.shape[1]
    seen = masks.of_tree(tree, q.shape[1], capacity, length, window)
    scores = [_score(q, cache_keys, scale), _score(q, keys, scale)]
    weights = _softmax(*(jnp.concatenate(x, axis=-1) for x in (scores, seen)))
    y = _read(weights[..., :capacity], cache_values)
    y += _read(weights[..., capacity:], values)
    return y.reshape(q.shape)


def attend_cache(q, keys, values, index, start, window, scale):
    seen = masks.of_cache(index, start, keys.shape[1], window)
    return _read(_softmax(_score(q, keys, scale), seen), values).reshape(q.shape)


def _score(q, keys, scale):
    """Scores `[B, K, G, n, M]` of queries `[B, n, K G, d]` and keys `[B, M, K, d]`."""
    batch, queries, _, dim = q.shape
    q = q.reshape(batch, queries, keys.shape[2], -1, dim)
    scores = jnp.einsum(
        "bikgd,bjkd->bkgij", q, keys, preferred_element_type=jnp.float32
    )
    return scores * scale


def _softmax(scores, seen):
    return jax.nn.softmax(jnp.where(seen[:, None, None], scores, masks.HIDDEN), axis=-1)


def _read(weights, values):
    weights = weights.astype(values.dtype)
    return jnp.einsum(
        "bkgij,bjkd->bikgd", weights, values, preferred_element_type=jnp.float32
    )

"""The definition of `attend`: one query of one head at a time.

A node sees the live prefix of the cache and its own ancestors on the tree. With a sliding
window it sees, of those, the last `window` positions, its own included. Computes in
float32, or in float64 where the inputs are.
"""

import jax
import jax.numpy as jnp


def attend(tree, q, keys, values, cache, *, head_dim, window, scale):
    queries = q.shape[1]

    def row(tree, q, keys, values, cache_keys, cache_values, length):
        start = tree.depth.shape[0] - queries
        all_keys = jnp.concatenate([cache_keys, keys])
        all_values = jnp.concatenate([cache_values, values])
        slots = jnp.arange(cache_keys.shape[0])
        outputs = []
        for i in range(queries):
            position = length + tree.depth[start + i]
            positions = jnp.concatenate([slots, length + tree.depth])
            seen = jnp.concatenate([slots < length, tree.ancestors[start + i]])
            if window is not None:
                seen &= positions > position - window
            outputs.append(_heads(q[i], all_keys, all_values, seen, head_dim, scale))
        return jnp.stack(outputs)

    cache_keys, cache_values = cache.keys[cache.layer], cache.values[cache.layer]
    return jax.vmap(row)(tree, q, keys, values, cache_keys, cache_values, cache.length)


def attend_cache(q, keys, values, index, layer, *, head_dim, window, scale):
    def row(q, keys, values, index):
        positions = jnp.arange(keys.shape[0])
        outputs = []
        for i in range(q.shape[0]):
            seen = positions <= index + i
            if window is not None:
                seen &= positions > index + i - window
            outputs.append(_heads(q[i], keys, values, seen, head_dim, scale))
        return jnp.stack(outputs)

    return jax.vmap(row)(q, keys[layer], values[layer], index)


def _heads(q, keys, values, seen, head_dim, scale):
    """All heads of one query `[H d]` over keys and values `[M, K d]`."""
    dtype = jnp.float64 if q.dtype == jnp.float64 else jnp.float32
    q = q.astype(dtype).reshape(-1, head_dim)
    keys = keys.astype(dtype).reshape(len(keys), -1, head_dim)
    values = values.astype(dtype).reshape(len(values), -1, head_dim)
    group = len(q) // keys.shape[1]
    outputs = []
    for h in range(len(q)):
        scores = scale * (keys[:, h // group] @ q[h])
        weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf))
        outputs.append(weights @ values[:, h // group])
    return jnp.concatenate(outputs)

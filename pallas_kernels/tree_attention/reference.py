"""The definition of `attend`: one query of one head at a time.

A node sees the live prefix of the cache and its own ancestors on the tree. With a sliding
window it sees, of those, the last `window` positions, its own included. Computes in
float32, or in float64 where the inputs are.
"""

import jax
import jax.numpy as jnp


def attend(tree, q, keys, values, cache_keys, cache_values, length, window, scale):
    queries, heads = q.shape[1:3]
    group = heads // keys.shape[2]
    dtype = jnp.float64 if q.dtype == jnp.float64 else jnp.float32

    def row(tree, q, keys, values, cache_keys, cache_values, length):
        start = tree.depth.shape[0] - queries
        all_keys = jnp.concatenate([cache_keys, keys]).astype(dtype)
        all_values = jnp.concatenate([cache_values, values]).astype(dtype)
        slots = jnp.arange(cache_keys.shape[0])
        outputs = []
        for i in range(queries):
            position = length + tree.depth[start + i]
            positions = jnp.concatenate([slots, length + tree.depth])
            seen = jnp.concatenate([slots < length, tree.ancestors[start + i]])
            if window is not None:
                seen &= positions > position - window
            for h in range(heads):
                scores = scale * (all_keys[:, h // group] @ q[i, h].astype(dtype))
                weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf))
                outputs.append(weights @ all_values[:, h // group])
        return jnp.stack(outputs).reshape(queries, heads, -1)

    return jax.vmap(row)(tree, q, keys, values, cache_keys, cache_values, length)


def attend_cache(q, keys, values, index, start, window, scale):
    queries, heads = q.shape[1:3]
    group = heads // keys.shape[2]
    dtype = jnp.float64 if q.dtype == jnp.float64 else jnp.float32

    def row(q, keys, values, index, start):
        positions = start + jnp.arange(keys.shape[0])
        outputs = []
        for i in range(queries):
            seen = positions <= index[i]
            if window is not None:
                seen &= positions > index[i] - window
            for h in range(heads):
                own = keys[:, h // group].astype(dtype)
                scores = scale * (own @ q[i, h].astype(dtype))
                weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf))
                outputs.append(weights @ values[:, h // group].astype(dtype))
        return jnp.stack(outputs).reshape(queries, heads, -1)

    return jax.vmap(row)(q, keys, values, index, start)

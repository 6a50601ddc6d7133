"""`attend` with one softmax over the cache and the tree."""

import jax
import jax.numpy as jnp

_MASKED = -1e30  # finite: a padded node sees itself, never nothing


def attend(tree, q, keys, values, cache_keys, cache_values, length, window, scale):
    batch, queries, heads, dim = q.shape
    capacity, kv_heads = cache_keys.shape[1:3]
    q = q.reshape(batch, queries, kv_heads, -1, dim)
    f32 = jnp.float32

    def score(keys):
        s = jnp.einsum("bikgd,bjkd->bkgij", q, keys, preferred_element_type=f32)
        return s * scale

    slots = jnp.arange(capacity, dtype=length.dtype)[None, None]
    length = length[:, None, None]
    on_cache = slots < length  # [B, 1, S]
    on_tree = tree.ancestors[:, -queries:]  # [B, n, N]
    if window is not None:
        depth = tree.depth[:, -queries:, None]
        on_cache = on_cache & (slots > length + depth - window)
        on_tree = on_tree & (tree.depth[:, None] > depth - window)
    masks = jnp.broadcast_to(on_cache, (batch, queries, capacity)), on_tree
    seen = jnp.concatenate(masks, axis=-1)[:, None, None]
    scores = jnp.concatenate([score(cache_keys), score(keys)], axis=-1)
    weights = jax.nn.softmax(jnp.where(seen, scores, _MASKED), axis=-1)

    def read(weights, values):
        weights = weights.astype(values.dtype)
        return jnp.einsum(
            "bkgij,bjkd->bikgd", weights, values, preferred_element_type=f32
        )

    y = read(weights[..., :capacity], cache_values) + read(
        weights[..., capacity:], values
    )
    return y.reshape(batch, queries, heads, dim)

"""The ops on paths as gathers and writes."""

import jax
import jax.numpy as jnp


def take(nodes, path):
    kept = jnp.take_along_axis(nodes, jnp.maximum(path, 0)[..., None], axis=1)
    return jnp.where(path[..., None] >= 0, kept, jnp.zeros((), nodes.dtype))


def append(buffer, nodes, path, length):
    new = take(nodes, path).astype(buffer.dtype)
    if buffer.shape[0] == 1:  # one contiguous copy; the general form is a scatter
        return jax.lax.dynamic_update_slice_in_dim(buffer, new, length[0], axis=1)
    write = jax.lax.dynamic_update_slice_in_dim
    return jax.vmap(lambda b, n, s: write(b, n, s, axis=0))(buffer, new, length)

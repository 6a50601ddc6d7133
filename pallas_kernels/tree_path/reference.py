"""The definition of the ops on paths: one node at a time."""

import jax
import jax.numpy as jnp


def take(nodes, path):
    def row(nodes, path):
        kept = [jnp.where(path[d] >= 0, nodes[path[d]], 0) for d in range(len(path))]
        return jnp.stack(kept)

    return jax.vmap(row)(nodes, path)


def append(buffer, nodes, path, length):
    def row(buffer, new, length):
        for d in range(new.shape[0]):
            buffer = buffer.at[length + d].set(new[d].astype(buffer.dtype))
        return buffer

    return jax.vmap(row)(buffer, take(nodes, path), length)

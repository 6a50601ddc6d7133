"""Reading and writing ragged rows of a batch."""

import jax
import jax.numpy as jnp

Array = jax.Array


def write(buffer: Array, values: Array, start: Array) -> Array:
    """Writes `values` `[B, D, ...]` into `buffer` `[B, M, ...]` from `start` `[B]` on.

    `start + D` must not exceed `M`: the write would slide back silently.
    """
    values = values.astype(buffer.dtype)
    if buffer.shape[0] == 1:  # one contiguous copy; the general form is a scatter
        return jax.lax.dynamic_update_slice_in_dim(buffer, values, start[0], axis=1)
    return jax.vmap(
        lambda b, v, s: jax.lax.dynamic_update_slice_in_dim(b, v, s, axis=0)
    )(buffer, values, start)


def write_at(layer: Array, buffer: Array, values: Array, start: Array) -> Array:
    """`write` into one layer of a buffer `[L, B, M, ...]`."""
    values = values.astype(buffer.dtype)
    if buffer.shape[1] == 1:
        at = layer, 0, start[0], *[0] * (buffer.ndim - 3)
        return jax.lax.dynamic_update_slice(buffer, values[None], at)
    row = jnp.arange(buffer.shape[1])[:, None]
    slots = start[:, None] + jnp.arange(values.shape[1])[None]
    return buffer.at[layer, row, slots].set(values)


def take(buffer: Array, index: Array) -> Array:
    """Gathers entries `index` `[B, D]` of `buffer` `[B, M, ...]`."""
    index = index.reshape(*index.shape, *[1] * (buffer.ndim - 2))
    return jnp.take_along_axis(buffer, index, axis=1)


def take_one(buffer: Array, index: Array) -> Array:
    """Gathers entry `index` `[B]` of `buffer` `[B, M, ...]`."""
    return take(buffer, index[:, None])[:, 0]


def select(condition: Array, on_true: Array, on_false: Array) -> Array:
    """Chooses whole rows; `condition` is `[B]` bool."""
    condition = condition.reshape(-1, *[1] * (on_true.ndim - 1))
    return jnp.where(condition, on_true, on_false)

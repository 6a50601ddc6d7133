"""Arrays of one layer, or of all layers stacked: reading and writing a layer's part.

The functions take the index of a layer, or None where the arrays are that layer's alone.
"""

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import stacked


def at(arrays: Any, layer: jax.Array | None) -> Any:
    """One layer of arrays that are stacked if there is a layer."""
    return arrays if layer is None else stacked.take(arrays, layer)


def put(arrays: Any, value: Any, layer: jax.Array | None) -> Any:
    """Replaces that layer."""
    if layer is None:
        return value
    return jax.tree.map(lambda a, new: stacked.put(a, new, layer), arrays, value)


def join_slots(tape: Any, values: Any, start: int, layer: jax.Array | None) -> Any:
    """A layer's slots before `start` of a tape `[B, N, ...]`, and then the values."""

    def join(tape, new):
        new = new.astype(tape.dtype)
        if start == 0:
            return new
        return jnp.concatenate([at(tape, layer)[:, :start], new], axis=1)

    return jax.tree.map(join, tape, values)


def put_slots(tape: Any, values: Any, start: int, layer: jax.Array | None) -> tuple:
    """Writes slots `start, ...` of a layer's tape `[B, N, ...]`.

    Returns the tape, and the layer's slots up to the last one written.
    """

    def write(tape, new):
        if layer is None and new.shape == tape.shape:
            return new
        new = new if layer is None else new[None]
        first = (0,) if layer is None else (layer, 0)
        return jax.lax.dynamic_update_slice(
            tape, new, (*first, start, *[0] * (tape.ndim - len(first) - 1))
        )

    values = jax.tree.map(lambda tape, new: new.astype(tape.dtype), tape, values)
    tape = jax.tree.map(write, tape, values)
    if start == 0:
        return tape, values
    stop = start + jax.tree.leaves(values)[0].shape[1]
    return tape, jax.tree.map(lambda leaf: leaf[:, :stop], at(tape, layer))

"""Arrays of several layers, stacked along their first axis."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.inputs import Ring


def make(layer: jax.Array | None, *args: Any) -> tuple[Any, ...]:
    """Gives what is of one layer the axis that stacked arrays have, and an index into it.

    A ring's length is the same in all layers.
    """
    if layer is not None:
        return jnp.asarray(layer, jnp.int32), *args

    def one(arg):
        if isinstance(arg, Ring):
            return arg._replace(inputs=one(arg.inputs))
        return jax.tree.map(lambda leaf: leaf[None], arg)

    return jnp.int32(0), *map(one, args)


def shapes(arrays: Any, layer: jax.Array | None) -> Any:
    """The shapes of one layer of arrays that are stacked if a layer is given."""
    if layer is None:
        return arrays
    return jax.eval_shape(lambda stacked: take(stacked, 0), arrays)


def take(stacked: Any, layer: jax.Array | int) -> Any:
    """One layer."""
    return jax.tree.map(
        lambda leaf: jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False), stacked
    )


def map_layers(f: Callable[..., jax.Array], *args: Any) -> jax.Array:
    """Applies `f` to every layer."""
    if jax.tree.leaves(args)[0].shape[0] == 1:
        # A mapped axis, even of one, costs a CPU its fast products.
        return f(*jax.tree.map(lambda a: a[0], args))[None]
    return jax.vmap(f)(*args)


def put(stacked: jax.Array, value: jax.Array, layer: jax.Array) -> jax.Array:
    """Replaces one layer."""
    return jax.lax.dynamic_update_index_in_dim(stacked, value, layer, 0)

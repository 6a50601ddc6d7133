"""`vmap` of a batched op is the op on a larger batch, not a loop over calls."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

SHARED = -1  # the axis of arrays that all rows of a batch share


def merge_vmap(f: Callable[..., Any], in_axes: tuple, out_axes: Any) -> Callable:
    """Makes an outer `vmap` a part of the batch that `f` has anyway.

    Args:
        f: a function of pytrees of arrays.
        in_axes: per argument, a prefix of its pytree: which axis is the batch, or
            `SHARED`. Mapping what is shared leads to a loop over calls.
        out_axes: the same of what `f` returns.
    """

    @jax.custom_batching.custom_vmap
    def batched(*args):  # which binds the defaults of keywords as if they were arrays
        return f(*args)

    @batched.def_vmap
    def rule(size, mapped, *args):
        leaves, structure = jax.tree.flatten(args)
        is_mapped = jax.tree.leaves(mapped)
        axes = spread(in_axes, args)
        if any(m and a == SHARED for m, a in zip(is_mapped, axes, strict=True)):

            def call(i):
                row = [x[i] if m else x for x, m in zip(leaves, is_mapped, strict=True)]
                return batched(*structure.unflatten(row))

            outputs = jax.lax.map(call, jnp.arange(size))
        else:
            merged = map(functools.partial(_merge, size), leaves, is_mapped, axes)
            outputs = batched(*structure.unflatten(merged))
            leaves, structure = jax.tree.flatten(outputs)
            axes = spread(out_axes, outputs)
            outputs = structure.unflatten(
                map(functools.partial(_split, size), leaves, axes)
            )
        return outputs, jax.tree.map(lambda _: True, outputs)

    return batched


def spread(prefix: Any, tree: Any) -> list[int]:
    """An axis for each leaf of a pytree of which there is a prefix."""
    if tree is None:
        return []
    if isinstance(prefix, tuple):
        return [
            axis for pair in zip(prefix, tree, strict=True) for axis in spread(*pair)
        ]
    return [prefix] * len(jax.tree.leaves(tree))


def _merge(size: int, leaf: jax.Array, is_mapped: bool, axis: int) -> jax.Array:
    """`[V, ..., B, ...]`, or `[..., B, ...]` for all, to `[..., V B, ...]`."""
    if axis == SHARED:
        return leaf
    if is_mapped:
        leaf = jnp.moveaxis(leaf, 0, axis)
    else:
        shape = (*leaf.shape[:axis], size, *leaf.shape[axis:])
        leaf = jnp.broadcast_to(jnp.expand_dims(leaf, axis), shape)
    return leaf.reshape(*leaf.shape[:axis], -1, *leaf.shape[axis + 2 :])


def _split(size: int, leaf: jax.Array, axis: int) -> jax.Array:
    """Undoes `_merge`."""
    leaf = leaf.reshape(*leaf.shape[:axis], size, -1, *leaf.shape[axis + 1 :])
    return jnp.moveaxis(leaf, axis, 0)

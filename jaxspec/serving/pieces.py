"""Pasts of one text, cut at the borders of chunks.

A leaf of a past either grows with the room for the text, and then row `i` of it belongs to
token `i` or one near it, or it does not: then it is state, the whole past up to now. A
piece is what a chunk added to the leaves that grow; the state and the pieces up to a border
are the past there:

    past at k = state at k  +  pieces 1 .. k

Which leaves grow is found by evaluating shapes at two sizes. A drafter may write a token's
row a little later than the target does, so a piece begins `margin` rows early, and the next
one overwrites what was not yet there.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Cut(NamedTuple):
    """How pasts are cut.

    Attributes:
        axes: a pytree of the axis that grows, -1 where none does.
        chunk: tokens between two borders.
        margin: rows of the chunk before that a piece holds again.
    """

    axes: Any
    chunk: int
    margin: int


def cut(make: Callable[[int], Any], max_length: int, chunk: int, margin: int) -> Cut:
    """Finds out how the pasts that `make(max_length)` makes are cut.

    Raises:
        ValueError: if more than one axis of a leaf grows, or a leaf that grows has no
            room for a piece.
    """
    small = jax.eval_shape(lambda: make(max_length))
    large = jax.eval_shape(lambda: make(max_length + 64))
    axes = []
    for one, other in zip(*map(jax.tree.leaves, (small, large)), strict=True):
        grown = [i for i, n in enumerate(one.shape) if n != other.shape[i]]
        if len(grown) > 1 or (grown and one.shape[grown[0]] < chunk + margin):
            raise ValueError(
                f"Expected at most one axis that grows with the text, of at least "
                f"{chunk + margin} rows, got {one.shape} and {other.shape}."
            )
        axes.append(grown[0] if grown else -1)
    return Cut(jax.tree.structure(small).unflatten(axes), chunk, margin)


def state(cut: Cut, past: Any) -> list[Array]:
    """The leaves of a past that do not grow."""
    leaves, axes = jax.tree.leaves(past), jax.tree.leaves(cut.axes)
    return [leaf for leaf, axis in zip(leaves, axes, strict=True) if axis < 0]


def piece(cut: Cut, past: Any, at: Array) -> list[Array]:
    """What the chunk from token `at` on added to the leaves that grow."""
    leaves, axes = jax.tree.leaves(past), jax.tree.leaves(cut.axes)
    first = jnp.maximum(at - cut.margin, 0)
    size = cut.chunk + cut.margin
    return [
        jax.lax.dynamic_slice_in_dim(leaf, first, size, axis)
        for leaf, axis in zip(leaves, axes, strict=True)
        if axis >= 0
    ]


def shapes(cut: Cut, past: Any) -> tuple[list[Any], list[Any]]:
    """The shapes of a state and of a piece, on the same devices as those of a past."""

    def place(leaf, made):
        where = getattr(leaf, "sharding", None)
        return jax.ShapeDtypeStruct(made.shape, made.dtype, sharding=where)

    axes = jax.tree.leaves(cut.axes)
    grow = [x for x, axis in zip(jax.tree.leaves(past), axes, strict=True) if axis >= 0]
    rows = jax.eval_shape(lambda past: piece(cut, past, jnp.int32(0)), past)
    return state(cut, past), list(map(place, grow, rows))


def put_piece(cut: Cut, past: Any, rows: list[Array], at: Array) -> Any:
    """A past with what a chunk added; pieces are put in order."""
    first, rows = jnp.maximum(at - cut.margin, 0), iter(rows)

    def put(axis, leaf):
        if axis < 0:
            return leaf
        return jax.lax.dynamic_update_slice_in_dim(leaf, next(rows), first, axis)

    return jax.tree.map(put, cut.axes, past)


def put_state(cut: Cut, past: Any, leaves: list[Array]) -> Any:
    """A past with the leaves that do not grow put in."""
    new = iter(leaves)
    return jax.tree.map(
        lambda axis, leaf: next(new) if axis < 0 else leaf, cut.axes, past
    )

"""Rows of any past: taken out of a batch, put into another.

    axes = rows.axes(lambda b: empty_state(params, b, max_length, target=model))
    row = rows.take(axes, state, [2])         set aside: a preemption, an entry of a cache
    state = rows.put(axes, state, [0], row)   admitted into a running batch; twice: a fork

Which axis of a leaf is the batch's is not declared. It is found: exactly one axis grows
with the batch (and at most one with the length of the texts), whatever the model, stacked
layers included. A pool of slots is a state with more rows.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec import checks, compilation

Array = jax.Array


def axes(make: Callable[[int], Any]) -> Any:
    """Finds the axis of the rows in every leaf of a pytree.

    Nothing is computed: shapes are evaluated for batches of two sizes.

    Args:
        make: `batch_size -> pytree` of arrays, `init_carry` or `empty_state` say.

    Returns:
        A pytree of integers.

    Raises:
        ValueError: if a leaf has no axis that grows with the batch, or several.
    """
    small, large = (
        jax.tree_util.tree_leaves_with_path(jax.eval_shape(functools.partial(make, b)))
        for b in (3, 5)
    )
    structure = jax.tree.structure(jax.eval_shape(functools.partial(make, 3)))
    found = [
        _axis(jax.tree_util.keystr(path), leaf.shape, other.shape)
        for (path, leaf), (_, other) in zip(small, large, strict=True)
    ]
    return structure.unflatten(found)


def _axis(name: str, small: tuple[int, ...], large: tuple[int, ...]) -> int:
    sizes = zip(small, large, strict=True) if len(small) == len(large) else ()
    grown = [axis for axis, (a, b) in enumerate(sizes) if a != b]
    if len(grown) != 1 or (small[grown[0]], large[grown[0]]) != (3, 5):
        raise ValueError(
            f"Expected one axis that grows with the batch in {name or 'the leaf'}, got "
            f"shapes {small} for 3 rows and {large} for 5."
        )
    return grown[0]


def take(axes: Any, tree: Any, index: Sequence[int] | Array) -> Any:
    """Copies rows out of a batch.

    Args:
        axes: from `axes`.
        tree: the batch; it stays as it is.
        index: `[R]` rows; one that is named twice is copied twice.

    Returns:
        The same pytree with `R` rows.

    Raises:
        ValueError: on rows that the batch does not have, or a pytree of another structure.
    """
    index = _index(axes, tree, index)
    return _take(tree, index, axes=_Static(axes))


def put(axes: Any, tree: Any, index: Sequence[int] | Array, rows: Any) -> Any:
    """Overwrites rows of a batch. The batch is donated: use what is returned.

    Args:
        axes: from `axes`.
        tree: the batch.
        index: `[R]` rows, each once.
        rows: what they become, `R` rows; they stay as they are.

    Returns:
        The batch, in the memory of the old one.

    Raises:
        ValueError: on rows that the batch does not have, one that is named twice, or
            pytrees of other structures or shapes.
    """
    index = _index(axes, tree, index)
    if checks.is_known(index):
        checks.require(
            len(np.unique(np.asarray(index))) == len(index),
            f"Expected every row once, got {np.asarray(index).tolist()}.",
        )
    wanted = jax.eval_shape(functools.partial(_take, axes=_Static(axes)), tree, index)
    other = checks.difference(rows, wanted)
    checks.require(
        other is None, f"The rows are not of such a batch: {other}; see rows.take."
    )
    return _put(tree, index, rows, axes=_Static(axes))


def count(axes: Any, tree: Any) -> int:
    """Rows of a batch."""
    axis, leaf = jax.tree.leaves(axes)[0], jax.tree.leaves(tree)[0]
    return leaf.shape[axis]


class _Static:
    """A pytree of integers that a compiled program is made for."""

    def __init__(self, axes: Any):
        leaves, self.structure = jax.tree.flatten(axes)
        self.leaves = tuple(leaves)

    def __hash__(self):
        return hash((self.leaves, self.structure))

    def __eq__(self, other):
        mine, others = ((x.leaves, x.structure) for x in (self, other))
        return mine == others

    def map(self, f: Callable[..., Any], *trees: Any) -> Any:
        """`f(axis, leaf, ...)` of every leaf."""
        return jax.tree.map(f, self.structure.unflatten(self.leaves), *trees)


@functools.partial(compilation.jit, static_argnames=("axes",))
def _take(tree, index, *, axes):
    return axes.map(lambda axis, leaf: jnp.take(leaf, index, axis=axis), tree)


@functools.partial(
    compilation.jit, static_argnames=("axes",), donate_argnames=("tree",)
)
def _put(tree, index, rows, *, axes):
    def write(axis, leaf, new):
        at = (slice(None),) * axis + (index,)
        return leaf.at[at].set(new, unique_indices=True)

    return axes.map(write, tree, rows)


def _index(axes: Any, tree: Any, index: Sequence[int] | Array) -> Array:
    """The rows as an array, checked."""
    structures = [jax.tree.structure(each) for each in (axes, tree)]
    checks.require(
        structures[0] == structures[1],
        f"The axes are of another pytree: {structures[0]}, and {structures[1]} was given.",
    )
    found = checks.array("rows", index)
    checks.require(
        len(found.shape) == 1 and jnp.issubdtype(found.dtype, jnp.integer),
        f"Expected rows [R] of integers, got {found.dtype} of shape {found.shape}.",
    )
    if checks.is_known(found):
        known, most = np.asarray(found), count(axes, tree)
        checks.require(
            bool(((known >= 0) & (known < most)).all()),
            f"Expected rows from 0 to {most - 1}, got {known.tolist()}.",
        )
    return jnp.asarray(found, jnp.int32)

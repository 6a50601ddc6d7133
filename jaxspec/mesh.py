"""The ambient mesh, and what is done once per device on it.

A mesh (`jax.set_mesh`) has the axes `data`, over which rows of the batch are cut, and
`tensor`, over which heads, channels and the vocabulary are. Without a mesh, or without
one of the axes, the functions here do nothing.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec

DATA, TENSOR = AXES = "data", "tensor"


def sizes(mesh: Any = None) -> dict[str, int]:
    """Sizes of the two axes, 1 where a mesh (the ambient one by default) has none.

    An axis that is not the compiler's to use (of type `Auto`) does not count.
    """
    mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    kinds = mesh.axis_types or ()
    axes = zip(mesh.axis_names, mesh.axis_sizes, kinds, strict=True)
    free = {name: size for name, size, kind in axes if kind is AxisType.Auto}
    return {name: free.get(name, 1) for name in (DATA, TENSOR)}


def constrain(tree: Any, specs: Any) -> Any:
    """Asks the compiler to cut arrays over the ambient mesh as the specs say.

    Args:
        tree: a pytree of arrays.
        specs: the same pytree of `PartitionSpec`.
    """
    if max(sizes().values()) == 1:
        return tree
    return jax.tree.map(jax.lax.with_sharding_constraint, tree, specs)


def rows(num_rows: int, axes: dict[str, int]) -> str | None:
    """How to cut the rows of a batch: over `data`, where that divides them."""
    is_cut = axes[DATA] > 1 and num_rows % axes[DATA] == 0
    return DATA if is_cut else None


def constrain_rows(tree: Any) -> Any:
    """Asks for arrays `[B, ...]` whose rows are cut over `data`, and nothing else."""
    axes = sizes()
    return constrain(
        tree,
        jax.tree.map(lambda leaf: PartitionSpec(rows(leaf.shape[0], axes)), tree),
    )


def constrain_columns(array: jax.Array) -> jax.Array:
    """Asks for `[B, ..., V]` whose columns are cut over `tensor` too, if they can be."""
    axes = sizes()
    columns = TENSOR if array.shape[-1] % axes[TENSOR] == 0 else None
    between = [None] * (array.ndim - 2)
    spec = PartitionSpec(rows(array.shape[0], axes), *between, columns)
    return constrain(array, spec)


def by_rows(
    f: Callable[..., Any],
    *args: Any,
    shared: tuple = (),
    over: tuple[str, ...] = (DATA,),
) -> Any:
    """Calls `f(*args, *shared)`, which treats every row alone, once per device.

    The compiler does not see that a sort, or a loop, treats every row alone; here each
    device is given whole rows.

    Args:
        f: a function of arrays whose first axis are the rows, as are its results'.
        *args: such arrays, in pytrees; how they are cut otherwise is up to them.
        shared: what all rows have in common.
        over: axes over which rows are handed out, as far as they go round. What has rows
            cut over `data` and columns over `tensor` is best handed out over both.
    """
    axes = sizes()
    num_rows = jax.tree.leaves(args)[0].shape[0]
    while over and num_rows % math.prod(axes[name] for name in over):
        over = over[:-1]
    present = {name for name, size in axes.items() if size > 1}
    over = tuple(name for name in over if name in present)
    if not present or not over:
        return f(*args, *shared)

    def keep(leaf):
        rest = [PartitionSpec.UNCONSTRAINED] * (leaf.ndim - 1)
        spec = PartitionSpec(rows(num_rows, axes), *rest)
        return jax.lax.with_sharding_constraint(leaf, spec)

    whole, cut = PartitionSpec(), PartitionSpec(over)
    local = per_device(f, (cut,) * len(args) + (whole,) * len(shared), cut)
    return constrain_rows(local(*jax.tree.map(keep, args), *shared))


def per_device(f: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable:
    """Makes a function run once per device of the ambient mesh, on its parts of arrays.

    Args:
        f: a function of arrays, in pytrees.
        in_specs: how each argument is cut, a `PartitionSpec` for all of its arrays.
        out_specs: how what it returns is put together.
    """
    present = {name for name, size in sizes().items() if size > 1}
    if not present:
        return f
    return jax.shard_map(
        f,
        in_specs=in_specs,
        out_specs=out_specs,
        axis_names=present,
        check_vma=False,
    )

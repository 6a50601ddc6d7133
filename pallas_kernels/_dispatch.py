"""The only place that asks which implementation of an op to run, and on which device.

public function -> one call per shard of the mesh -> one call per outer vmap
                -> the implementation of the platform, or XLA where it refuses
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
from jax.sharding import AxisType, PartitionSpec

from pallas_kernels import _batching

Implementation = Literal[
    "reference",
    "xla",
    "cpu",
    "tpu",
    "pallas_tpu",
    "pallas_gpu",
    "pallas_tpu_interpret",
    "pallas_gpu_interpret",
]

PLATFORMS = {
    "cpu": "cpu",
    "tpu": "tpu",
    "pallas_tpu": "tpu",
    "pallas_gpu": "cuda",
}
"""Implementations made for one platform; all others run everywhere."""

ROWS, HEADS, LAYERS = "data", "tensor", "layers"
"""What the axes of an array mean. The first two are also the axes of a mesh."""


class Op(NamedTuple):
    """One function, implemented several times.

    Attributes:
        implementations: by name.
        refusals: by name, functions of the same arguments that give a reason why the
            implementation cannot take them, or None.
        layouts: per argument, a prefix of its pytree that holds a `Layout` per array.
        out: the same of what is returned.
        merge: the axis that takes in an outer `vmap`.
    """

    implementations: Mapping[str, Callable[..., Any]]
    refusals: Mapping[str, Callable[..., str | None]]
    layouts: tuple
    out: Any
    merge: str = ROWS


class Layout(tuple):
    """The role of each axis of an array (`ROWS`, `HEADS`, `LAYERS`), or None."""

    def __new__(cls, *axes: str | None):
        """Makes a layout of its axes."""
        return super().__new__(cls, axes)


def op(
    name: str, modules: Mapping[str, Any], layouts: tuple, out: Any, merge: str = ROWS
) -> Op:
    """Collects a function and its refusals from the modules that implement it.

    A module named after Pallas also serves interpreted, on any platform.
    """
    implementations, refusals = {}, {}
    for key, module in modules.items():
        if not hasattr(module, name):
            continue
        implementations[key] = getattr(module, name)
        if key.startswith("pallas"):
            refusals[key] = getattr(module, f"refuses_{name}")
            implementations[f"{key}_interpret"] = _interpreted(implementations[key])
    return Op(implementations, refusals, layouts, out, merge)


@functools.cache
def _interpreted(kernel: Callable[..., Any]) -> Callable[..., Any]:
    return functools.partial(kernel, interpret=True)


def names(modules: Mapping[str, Any]) -> list[str]:
    """Names of implementations: those made for a platform first, the definition last."""
    order = [*PLATFORMS, "xla", "reference"]
    kernels = [f"{name}_interpret" for name in modules if name.startswith("pallas")]
    return [*sorted(modules, key=order.index), *kernels]


def dispatch(
    op: Op,
    implementation: Implementation | None,
    parts: int,
    *args: Any,
    **static: Any,
) -> Any:
    """Calls the implementation asked for, or the one fit for the platform.

    XLA serves every platform, and an implementation made for a platform is preferred
    there, unless it refuses. The choice is made when the program is lowered, not when
    it is traced: it is right under `jax.export` and inside loops.

    Under a mesh (`jax.set_mesh`) with an axis `data` or `tensor`, every device is given
    its own rows and heads, where the sizes allow it, and all of them where they do not.

    Args:
        op: what to call.
        implementation: its name, or None.
        parts: how many equal parts the heads can be cut into.
        *args: arrays, in pytrees.
        **static: what is not an array.

    Raises:
        ValueError: if there is no such implementation, or it cannot take these shapes.
    """
    if implementation is not None and implementation not in op.implementations:
        raise ValueError(
            f"Unknown implementation {implementation!r}; expected one of "
            f"{sorted(op.implementations)}."
        )

    def local(*args):
        if implementation is not None:
            return _call(op, implementation, static, *args)
        return _by_platform(op, static, *args)

    mesh = jax.sharding.get_abstract_mesh()
    free = _free(mesh)
    if not free:
        return local(*args)
    axes = _shardable(free, op, parts, args)
    sharded = jax.shard_map(
        local,
        in_specs=tuple(map(functools.partial(_specs, axes), op.layouts, args)),
        out_specs=_specs(axes, op.out),
        axis_names=set(free),  # the compiler could not cut a kernel over the others
        check_vma=False,
    )
    return sharded(*args)


def _by_platform(op: Op, static: dict[str, Any], *args: Any) -> Any:
    fit = {
        PLATFORMS[name]: name
        for name in op.implementations
        if name in PLATFORMS and _is_offered(op, name, static, args)
    }
    if not fit:
        return _call(op, "xla", static, *args)
    leaves, structure = jax.tree.flatten(args)

    def over_leaves(name):
        return lambda *leaves: _call(op, name, static, *structure.unflatten(leaves))

    return jax.lax.platform_dependent(
        *leaves,
        default=over_leaves("xla"),
        **{platform: over_leaves(name) for platform, name in fit.items()},
    )


def _is_offered(op: Op, name: str, static: dict[str, Any], args: tuple) -> bool:
    if name == "pallas_gpu" and _has_old_gpu():
        return False
    return name not in op.refusals or op.refusals[name](*args, **static) is None


@functools.cache
def _has_old_gpu() -> bool:
    """Whether a GPU here is older than Hopper, for which Mosaic GPU has no code."""
    gpus = [device for device in jax.devices() if device.platform in ("gpu", "cuda")]
    return any(float(device.compute_capability) < 9 for device in gpus)


def _call(op: Op, name: str, static: dict[str, Any], *args: Any) -> Any:
    """One implementation; those for accelerators take an outer `vmap` as more rows."""
    if not name.startswith(("pallas", "tpu")):
        return op.implementations[name](*args, **static)
    reason = op.refusals[name](*args, **static) if name in op.refusals else None
    if reason is not None:
        raise ValueError(f"{name} cannot take this: {reason}")
    # A jitted kernel is traced once for each set of shapes, not once for each layer.
    kernel = _kernel(op.implementations[name], tuple(sorted(static.items())))
    in_axes = tuple(_axes_of(op.merge, layout) for layout in op.layouts)
    return _batching.merge_vmap(kernel, in_axes, _axes_of(op.merge, op.out))(*args)


@functools.cache
def _kernel(f: Callable[..., Any], static: tuple) -> Callable[..., Any]:
    return jax.jit(functools.partial(f, **dict(static)))


def _axes_of(name: str, layouts: Any) -> Any:
    if isinstance(layouts, Layout):
        return layouts.index(name) if name in layouts else _batching.SHARED
    return tuple(_axes_of(name, layout) for layout in layouts)


def _free(mesh: Any) -> dict[str, int]:
    """Sizes of the axes of a mesh that are the compiler's to use."""
    kinds = mesh.axis_types or ()
    axes = zip(mesh.axis_names, mesh.axis_sizes, kinds, strict=True)
    return {name: size for name, size, kind in axes if kind is AxisType.Auto}


def _shardable(free: dict[str, int], op: Op, parts: int, args: tuple) -> set[str]:
    """The axes over which a call can be cut evenly; over others it is repeated."""
    axes = set()
    for name, size in free.items():
        if name == HEADS and parts % size == 0:
            axes.add(name)
        if name == ROWS and _num_rows(op, args) % size == 0:
            axes.add(name)
    return axes


def _num_rows(op: Op, args: tuple) -> int:
    sizes = [
        leaf.shape[axis]
        for layout, arg in zip(op.layouts, args, strict=True)
        for leaf, axis in zip(
            jax.tree.leaves(arg),
            _batching.spread(_axes_of(ROWS, layout), arg),
            strict=True,
        )
        if axis != _batching.SHARED
    ]
    return sizes[0]


def _specs(axes: set[str], layouts: Any, arg: Any = ()) -> Any:
    """Layouts as `shard_map` takes them; an argument that is None has none."""
    if arg is None:
        return None
    if isinstance(layouts, Layout):
        return PartitionSpec(*(name if name in axes else None for name in layouts))
    args = arg or [()] * len(layouts)
    parts = tuple(_specs(axes, *pair) for pair in zip(layouts, args, strict=True))
    return type(layouts)(*parts) if hasattr(layouts, "_fields") else parts

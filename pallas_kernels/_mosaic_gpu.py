"""Launches Mosaic GPU kernels, on Hopper and Blackwell GPUs, and loads their operands."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax._src.state.discharge import discharge_state
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.extend.core import jaxpr_as_fun

SHARED_MEMORY = 222 * 1024
"""Bytes of a block's shared memory that a kernel may plan with.

Hopper and Blackwell grant 227 KiB, of which the compiler takes barriers and scratch space
for reductions.
"""


def launch(
    body: Callable[..., None],
    operands: Sequence[Any],
    out_type: Any = (),
    *,
    grid: Mapping[str, int],
    scratch: Sequence[Any] = (),
    name: str,
    cost: pl.CostEstimate,
    interpret: Any = False,
    **params: Any,
) -> Any:
    """Runs `body` once per point of a grid, by one warpgroup of 128 threads.

    Args:
        body: takes references to the operands, the outputs and the scratch memory.
        operands: pytrees of arrays, or of references from `in_place`, which it may write.
        out_type: shapes and dtypes of the outputs.
        grid: sizes of the named axes.
        scratch: types of the scratch memory.
        name: of the kernel in profiles.
        cost: what XLA should take it to cost.
        interpret: whether to interpret it on the host; or the parameters for that.
        **params: of `plgpu.CompilerParams`.
    """

    def kernel(*refs):
        pl.run_scoped(
            lambda *memory: body(*refs, *memory), *scratch, collective_axes=()
        )

    return pl.kernel(
        kernel,
        out_type=out_type,
        mesh=plgpu.Mesh(grid=tuple(grid.values()), grid_names=tuple(grid)),
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Lane, **params
        ),
        cost_estimate=cost,
        name=name,
        interpret=_interpret_params() if interpret is True else interpret,
    )(*operands)


def in_place(array: jax.Array) -> jax.Ref:
    """A reference that a kernel may write without making another array.

    What it does not write stays as it is. XLA copies the array first only if something
    uses it afterwards.
    """
    return jax.new_ref(array, memory_space=plgpu.GMEM)


def pure(f: Callable[..., Any]) -> Callable[..., Any]:
    """Turns the references that a function of arrays makes into values, in and out.

    JAX does so when it lowers a program, but not below `custom_vmap`.
    """

    @functools.wraps(f)
    def call(*args, **static):
        trace = jax.make_jaxpr(functools.partial(f, **static), return_shape=True)
        program, shapes = trace(*args)
        values = jaxpr_as_fun(discharge_state(program))(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), values)

    return call


def load(ref: Any, index: Any, layout: plgpu.Layout, interpret: Any) -> jax.Array:
    """Loads values as `layout` gives them to threads; jax 0.10 cannot interpret that."""
    if interpret:
        return ref[index]
    takes_index = "idx" in inspect.signature(plgpu.load).parameters  # jax 0.10
    whole = {"idx": ...} if takes_index else {}
    return plgpu.load(ref.at[index], **whole, layout=layout, optimized=False)


def spread(
    value: jax.Array, shape: tuple, axis: int, layout: plgpu.Layout, interpret: Any
) -> jax.Array:
    """Repeats a vector along all axes but `axis` of a shape."""
    value = jax.lax.broadcast_in_dim(value, shape, (axis,))
    return value if interpret else plgpu.layout_cast(value, layout)


def full(shape: tuple, value: Any, layout: plgpu.Layout, interpret: Any) -> jax.Array:
    """A float32 array of one value."""
    array = jnp.full(shape, value, jnp.float32)
    return array if interpret else plgpu.layout_cast(array, layout)


def iota(shape: tuple, axis: int, layout: plgpu.Layout, interpret: Any) -> jax.Array:
    """The index along an axis."""
    layout = None if interpret else layout
    return plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=layout)


def split(value: jax.Array, parts: int) -> list[jax.Array]:
    """Bfloat16 parts of a float32 array, the largest first; their sum is the array."""
    if value.dtype != jnp.float32:
        return [value]
    out = []
    for _ in range(parts):
        out.append(value.astype(jnp.bfloat16))
        value = value - out[-1].astype(value.dtype)
    return out


def num_bytes(*trees: Any) -> int:
    """Bytes of all arrays of pytrees."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(trees))


def _interpret_params() -> Any:
    if hasattr(plgpu, "InterpretGPUParams"):
        return plgpu.InterpretGPUParams()
    from jax._src.pallas.mosaic_gpu.interpret import params  # where jax 0.10 has them

    return params.InterpretGPUParams()

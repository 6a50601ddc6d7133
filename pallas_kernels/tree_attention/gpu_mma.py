"""The two products of attention on tensor cores, from registers to registers.

Hopper and Blackwell share one such instruction, `mma.sync` (64 queries times 16 times 8
for the four warps of a warpgroup), which is enough where memory is the limit. It wants
pairs of values along the contracted axis in one register: those of keys lie so in memory,
and pairs of rows of values are shuffled into each other. That leaves the columns of the
output in another order, evens before odds in every 16, until `finish`.

Operands of 16 bits are multiplied as they are. Those of 32 bits are split into three
parts of 16 bits, and the six products that matter to float32 are summed.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu.mma import MMALayouts
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.extend.mlir.dialects import vector

from pallas_kernels._mosaic_gpu import split

QUERIES = plgpu.Layout.WGMMA  # [64, d] queries, [64, m] weights and [64, d] outputs
PER_QUERY = QUERIES.reduce(1)

_ALL_WARPS = {"warp_dims": (plgpu.Replicated(4),)}
KEYS = plgpu.Layout.TILED(  # [m, d]
    plgpu.Tiling(((8, 16), (8, 8), (2,))),
    lane_dims=(-3, -2),
    vector_dim=-1,
    **_ALL_WARPS,
)
VALUES = plgpu.Layout.TILED(  # [m, d]
    plgpu.Tiling(((16, 16), (8, 16), (2, 2))),
    lane_dims=(-3, -4),
    vector_dim=-1,
    **_ALL_WARPS,
)
OUTPUTS = plgpu.Layout.TILED(  # [64, d]
    plgpu.Tiling(((64, 16), (16, 16), (8, 16), (4,))),
    warp_dims=(-7,),
    lane_dims=(-3, -2),
    vector_dim=-1,
)


def score(total: jax.Array, queries: jax.Array, keys: jax.Array, interpret: Any):
    """Adds `queries [64, d] keys [m, d]^T` to a total `[64, m]`."""
    if interpret:
        return total + _exact(queries, keys.T)
    return _sum_of_parts(total, queries, keys, KEYS, _transpose_keys)


def read(total: jax.Array, weights: jax.Array, values: jax.Array, interpret: Any):
    """Adds `weights [64, m] values [m, d]` to a total `[64, d]`, in another order."""
    if interpret:
        return total + _exact(weights.astype(values.dtype), values)
    if values.dtype != jnp.float32:
        weights = weights.astype(values.dtype)
    return _sum_of_parts(total, weights, values, VALUES, _pair_values)


def finish(total: jax.Array, interpret: Any) -> jax.Array:
    """A total of `read` `[64, d]` in order."""
    if interpret:
        return total

    @plgpu.inline_mgpu(
        arg_types=(QUERIES,),
        return_type=plgpu.ShapeDtypeStruct(total.shape, total.dtype, layout=OUTPUTS),
    )
    def interleave(_, total):
        halves = total.registers.reshape(-1, 2, 2)  # d / 16, evens or odds, row
        joined = halves[:, 0].copy()
        for tile, row in itertools.product(range(joined.shape[0]), range(2)):
            joined[tile, row] = vector.shuffle(*halves[tile, :, row], [0, 2, 1, 3])
        return _fragments(joined, OUTPUTS.to_mgpu(), total.shape)

    return interleave(total)


def _exact(a, b):
    highest = jax.lax.Precision.HIGHEST
    return jnp.dot(a, b, precision=highest, preferred_element_type=jnp.float32)


def _sum_of_parts(total, left, right, layout, arrange):
    @plgpu.inline_mgpu(
        arg_types=(QUERIES, QUERIES, layout),
        return_type=plgpu.ShapeDtypeStruct(total.shape, total.dtype, layout=QUERIES),
    )
    def multiply(_, total, left, right):
        layouts = MMALayouts(right.mlir_dtype)
        left = _fragments(left.registers, layouts.lhs, left.shape)
        return mgpu.mma(total, left, arrange(right, layouts.rhs))

    left, right = split(left, 3), split(right, 3)
    for i, a in reversed(list(enumerate(left))):
        for j, b in reversed(list(enumerate(right))):
            if i + j < len(left):
                total = multiply(total, a, b)
    return total


def _transpose_keys(keys, layout):
    """`[m, d]` to `[d, m]`: the same registers under other names."""
    m, d = keys.shape
    registers = keys.registers.reshape(m // 8, d // 16, 2).transpose(1, 0, 2)
    return _fragments(registers, layout, (d, m))


def _pair_values(values, layout):
    """Pairs `(v[j, c], v[j, c + 1])` of two rows to `(v[j, c], v[j + 1, c])` and so on."""
    m, d = values.shape
    rows = values.registers.reshape(m // 16, d // 16, 2, 2)  # ..., half, row of a pair
    pairs = rows.swapaxes(2, 3).copy()  # ..., evens or odds, half
    for tile, column, parity, half in itertools.product(*map(range, pairs.shape)):
        pairs[tile, column, parity, half] = vector.shuffle(
            *rows[tile, column, half], [parity, 2 + parity]
        )
    return _fragments(pairs, layout, values.shape)


def _fragments(registers, layout, shape):
    return mgpu.FragmentedArray(
        _registers=registers.reshape(layout.registers_shape(shape)),
        _layout=layout,
        _is_signed=None,
    )

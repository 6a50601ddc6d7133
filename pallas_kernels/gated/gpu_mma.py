"""Matrix products of one warpgroup, the same on Hopper and on Blackwell GPUs.

Both have the tensor cores' `mma.sync`, on operands in registers. It multiplies bfloat16
and sums in float32, so a float32 operand is split into bfloat16 parts, each holding what
the ones before it leave over: two of them keep 16 bits of it, three keep 24. A product
takes those pairs of parts that count.

A left operand `[M, K]` has `M = 64`, a right one `[K, N]` comes from an array `[N, K]` in
shared memory; `K` is a multiple of 16 and `N` of 8.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu.mma import MMALayouts
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import _mosaic_gpu

ROWS = plgpu.Layout.WGMMA  # of left operands and of sums
COLUMNS = plgpu.Layout.TILED(  # of right operands: every warp has all of them
    plgpu.Tiling(((16, 8), (8, 8), (2, 1))),
    warp_dims=(plgpu.Replicated(4),),
    lane_dims=(-3, -4),
    vector_dim=-2,
)


@dataclasses.dataclass(frozen=True)
class Warpgroup:
    """What a warpgroup does with matrices; in interpret mode, plain `jax.numpy`."""

    interpret: bool

    def memory(self, shape: tuple[int, int], dtype: Any) -> Any:
        """Shared memory for a matrix, swizzled against bank conflicts."""
        transforms = () if self.interpret else _transforms(shape[1], dtype)
        return plgpu.SMEM(shape, dtype, transforms=transforms)

    def zeros(self, shape: tuple[int, int]) -> jax.Array:
        return self.cast(jnp.zeros(shape, jnp.float32), ROWS)

    def cast(self, value: jax.Array, layout: Any) -> jax.Array:
        return value if self.interpret else plgpu.layout_cast(value, layout)

    def load(self, ref: Any) -> jax.Array:
        """Loads a matrix from shared memory."""
        return self.cast(ref[...], ROWS)

    def load_from(self, ref: Any, layout: Any = ROWS) -> jax.Array:
        """Loads a matrix from global memory, or a vector along an axis of matrices."""
        return _mosaic_gpu.load(ref, ..., layout, self.interpret)

    def load_transposed(self, ref: Any) -> jax.Array:
        """Loads `[K, M]` as a left operand `[M, K]`."""
        if self.interpret:
            return ref[...].T
        value = plgpu.layout_cast(ref.T[...], plgpu.Layout.WGMMA_TRANSPOSED)
        return plgpu.layout_cast(value, ROWS)

    def store_transposed(self, value: jax.Array, ref: Any) -> None:
        """Stores a sum `[M, N]` as `[N, M]`."""
        if self.interpret:
            ref[...] = value.T
        else:
            value = plgpu.layout_cast(value, plgpu.Layout.WGMMA_TRANSPOSED)
            ref.T[...] = value

    def load_right(self, ref: Any, width: int) -> jax.Array:
        """Loads `[N, K]`, some of the columns of `[N, width]`, as an operand `[K, N]`."""
        if self.interpret:
            return ref[...].T
        transforms = _transforms(width, ref.dtype)
        shape = ref.shape[::-1]

        @plgpu.inline_mgpu(
            arg_types=(plgpu.RefType(transforms),),
            return_type=plgpu.ShapeDtypeStruct(shape, ref.dtype, layout=COLUMNS),
        )
        def load(_, ref):
            return mgpu.FragmentedArray.load_tiled(
                mgpu.memref_transpose(ref, (1, 0, 3, 2)),
                swizzle=transforms[1].swizzle,
                layout=COLUMNS.to_mgpu(),
                optimized=False,
            )

        return load(ref)

    def spread(self, vector: jax.Array, shape: tuple[int, int], axis: int) -> jax.Array:
        """Repeats a vector that lies along `axis` of a matrix."""
        return self.cast(jax.lax.broadcast_in_dim(vector, shape, (axis,)), ROWS)

    def iota(self, shape: tuple[int, int], axis: int) -> jax.Array:
        return self.cast(jax.lax.broadcasted_iota(jnp.int32, shape, axis), ROWS)

    def add_product(
        self, total: jax.Array, left: list[jax.Array], right: list[jax.Array]
    ) -> jax.Array:
        """`total + left @ right` of split operands, the smallest products first."""
        for order in reversed(range(3)):
            for i, part in enumerate(left):
                if 0 <= order - i < len(right):
                    total = self._mma(total, part, right[order - i])
        return total

    def _mma(self, total, left, right):
        if self.interpret:
            return total + jnp.dot(left, right, preferred_element_type=jnp.float32)

        @plgpu.inline_mgpu(
            arg_types=(ROWS, ROWS, COLUMNS),
            return_type=plgpu.ShapeDtypeStruct(total.shape, total.dtype, layout=ROWS),
        )
        def multiply(_, total, left, right):
            layouts = MMALayouts(left.mlir_dtype)
            left, right = _view(left, layouts.lhs), _view(right, layouts.rhs)
            return mgpu.mma(total, left, right)

        return multiply(total, left, right)


def _view(value: Any, layout: Any) -> Any:
    """Another name for a layout that has the same values in the same registers."""
    registers = value.registers.reshape(layout.registers_shape(value.shape))
    return mgpu.FragmentedArray(_registers=registers, _layout=layout, _is_signed=None)


@functools.cache
def _transforms(width: int, dtype: Any) -> tuple[Any, ...]:
    swizzle = min(128, width * jnp.dtype(dtype).itemsize)
    tile = (8, swizzle // jnp.dtype(dtype).itemsize)
    return plgpu.TilingTransform(tile), plgpu.SwizzleTransform(swizzle)

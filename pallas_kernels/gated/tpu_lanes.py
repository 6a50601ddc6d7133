"""Products and layouts of TPU kernels whose heads lie side by side on the lanes.

Sums over paths, and the copies of a head's factors to its lanes, are products with 0/1
matrices: they are exact to float32, because the other operand is cut into three bfloat16
parts. All other products are in the dtype of the activations: in full float32, or, where
that is bfloat16, of one bfloat16 part or of two.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES = 128

NN = (((1,), (0,)), ((), ()))
NT = (((1,), (1,)), ((), ()))
TN = (((0,), (0,)), ((), ()))


def dot(a: jax.Array, b: jax.Array, dims: Any = NN) -> jax.Array:
    """A product accumulated in float32, and exact to it where the operands are."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(
        a, b, dims, precision=precision, preferred_element_type=jnp.float32
    )


def dot_parts(a: jax.Array, b: jax.Array, dtype: Any, dims: Any = NN) -> jax.Array:
    """A product of float32 numbers in a dtype: bfloat16 takes them in two parts.

    Exact to float32, or to 2^-16; an operand may be in that dtype already.
    """

    def cut(x):
        if x.dtype == dtype:
            return [x]
        return [part.astype(dtype) for part in parts(x, 2)]

    a, b = cut(a), cut(b)
    pairs = [(i, j) for i in range(len(a)) for j in range(len(b)) if i + j < 2]
    return sum(dot(a[i], b[j], dims) for i, j in pairs)


def parts(x: jax.Array, count: int) -> list[jax.Array]:
    """Cuts float32 into bfloat16-sized parts that sum to it, the largest first.

    By its bits: a compiler may see through a round trip of conversions.
    """
    cut = []
    for _ in range(count - 1):
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32) & jnp.uint32(0xFFFF0000)
        head = jax.lax.bitcast_convert_type(bits, jnp.float32)
        cut.append(head)
        x = x - head
    return [*cut, x]


def mask_sums(mask: jax.Array, x: jax.Array, count: int = 3) -> jax.Array:
    """`mask @ x` for a 0/1 mask in bfloat16, exact to so many parts: three are float32."""
    products = [dot(mask, part.astype(mask.dtype)) for part in parts(x, count)]
    return sum(reversed(products[:-1]), products[-1])


def store_columns(x: jax.Array, out: Any) -> None:
    """Stores `[T, H]` as the left operands of `spread`, `[blocks, T, 3 h]`."""
    blocks, _, width = out.shape
    heads = width // 3
    cut = parts(x, 3)
    for block in range(blocks):
        here = [part[:, block * heads : (block + 1) * heads] for part in cut]
        out[block] = jnp.concatenate(here, axis=1).astype(out.dtype)


def spread(columns: jax.Array, first: Any, count: int, copies: int) -> jax.Array:
    """Copies heads to lanes: `[i, h] -> [i, (h - first) * copies + c]`, exactly."""
    heads = columns.shape[1] // 3
    shape = (heads, count * copies)
    begin = (jax.lax.broadcasted_iota(jnp.int32, shape, 0) - first) * copies
    lane = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    owner = ((lane >= begin) & (lane < begin + copies)).astype(jnp.float32)
    owner = jnp.concatenate([owner] * 3, axis=0).astype(columns.dtype)
    return dot(columns, owner)


def select_heads(per_head: list[jax.Array], dim: int) -> jax.Array:
    """Takes the lanes of every head from its own `[i, u P]`."""
    out = per_head[0]
    lane = jax.lax.broadcasted_iota(jnp.int32, out.shape, 1)
    for h in range(1, len(per_head)):
        out = jnp.where(lane >= h * dim, per_head[h], out)
    return out


def block_diagonal(x: jax.Array, dim: int) -> jax.Array:
    """`[i, h P + p] -> [h' N + i, h P + p]`, zero where `h' != h`."""
    if x.shape[1] == dim:
        return x
    packed = x.dtype == jnp.bfloat16 and x.shape[0] % 16 == 0
    words = pltpu.bitcast(x, jnp.uint32) if packed else x
    lane = jax.lax.broadcasted_iota(jnp.int32, words.shape, 1)
    blocks = []
    for begin in range(0, x.shape[1], dim):
        own = (lane >= begin) & (lane < begin + dim)
        block = jnp.where(own, words, jnp.zeros_like(words))
        blocks.append(pltpu.bitcast(block, x.dtype) if packed else block)
    return jnp.concatenate(blocks, axis=0)


def pad_rows(x: jax.Array, rows: int) -> jax.Array:
    """Appends rows of zeros, up to `rows`."""
    if x.shape[0] == rows:
        return x
    zeros = jnp.zeros((rows - x.shape[0], x.shape[1]), jnp.float32)
    return jnp.concatenate([x.astype(jnp.float32), zeros], axis=0).astype(x.dtype)


def lanes(index: Any, size: int) -> Any:
    """`size` lanes or rows from `index * size` on, the index static or not."""
    if isinstance(index, int):
        return slice(index * size, (index + 1) * size)
    return pl.ds(pl.multiple_of(index * size, size), size)


def every(period: int, count: int, index: jax.Array, run: Callable[[], None]) -> None:
    """Runs at every `period`-th of `count` indices."""
    if period == 1 or count == 1:
        run()
    else:
        pl.when(jax.lax.rem(index, period) == 0)(run)

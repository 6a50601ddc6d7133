"""Runs every row through the experts that it chose; none is dropped.

    y[i] = sum_j weights[i, j] f(index[i, j], x[i])

Pairs of a row and an expert are sorted by expert, and each expert's are cut into tiles of
a few rows, the last of which may not be full. A tile has one expert: a loop over tiles
reads weights where they lie, those that nobody chose not at all, and a row meets no other
row. It is the grouped product of MegaBlocks (Gale et al. 2023). On a CPU it is faster for
any number of rows than `jax.lax.ragged_dot`, which multiplies all rows with all experts
there, and than gathering the weights of each row, which copies them.

Weights should be stored in the dtype of the activations, as XLA may convert all of them
rather than those it reads.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxspec.models import layers

TILE_ROWS = 8, 128
"""The fewest rows, which a TPU's registers hold anyway, and the most."""


class Tiles(NamedTuple):
    """Where the pairs lie, `R` of them in `N` tiles of `m` rows.

    Attributes:
        expert: `[N]` int32, each tile's; the last one's for tiles that are left over.
        slot: `[R]` int32, each pair's row among the `N m` of all tiles.
    """

    expert: jax.Array  # [N]
    slot: jax.Array  # [R]


def apply(
    f: Callable[[jax.Array, jax.Array], jax.Array],
    x: jax.Array,
    weights: jax.Array,
    index: jax.Array,
    num_experts: int,
) -> jax.Array:
    """Adds up what the chosen experts make of every row.

    Args:
        f: an expert's index, int32, and rows `[m, C]` to what it makes of them, `[m, C]`.
        x: `[R, C]` rows.
        weights: `[R, k]` float32, of the chosen experts.
        index: `[R, k]` int32, which they are, all different.
        num_experts: how many there are.

    Returns:
        `[R, C]` in the dtype of `x`; the sum is float32.
    """
    size = tile_rows(index.size, num_experts)
    tiles = sort(index.reshape(-1), num_experts, size)
    row = jnp.arange(index.size, dtype=jnp.int32) // index.shape[1]
    row = jnp.zeros((len(tiles.expert) * size,), jnp.int32).at[tiles.slot].set(row)
    y = jax.lax.map(
        lambda tile: f(*tile), (tiles.expert, x[row].reshape(-1, size, x.shape[1]))
    )
    y = y.reshape(len(row), -1)[tiles.slot].reshape(*index.shape, -1)
    return layers.einsum("rk,rkc->rc", weights, y.astype(jnp.float32)).astype(x.dtype)


def tile_rows(num_pairs: int, num_experts: int) -> int:
    """Rows of a tile: a power of two, no more than an expert has on average."""
    least, most = TILE_ROWS
    mean = max(num_pairs // num_experts, 1)
    return min(max(1 << (mean.bit_length() - 1), least), most)


def sort(index: jax.Array, num_experts: int, size: int) -> Tiles:
    """Cuts pairs, of which each has the expert `index` `[R]`, into tiles of `size` rows."""
    used = min(num_experts, len(index))  # each of them may waste all rows but one
    num_tiles = (len(index) + used * (size - 1)) // size
    counts = jnp.zeros((num_experts,), jnp.int32).at[index].add(1)
    tiles = -(-counts // size)
    stop = jnp.cumsum(tiles)
    expert = jnp.searchsorted(
        stop, jnp.arange(num_tiles, dtype=jnp.int32), side="right"
    )
    place = jnp.argsort(jnp.argsort(index)).astype(jnp.int32)  # among the sorted pairs
    shift = size * (stop - tiles) - (jnp.cumsum(counts) - counts)
    expert = jnp.minimum(expert.astype(jnp.int32), jnp.max(index))
    return Tiles(expert, place + shift[index])

"""How the TPU kernels of Mamba-1 hold tokens, and how they walk over them.

States have `S` sublanes and the channels on lanes. Channels are cut into tiles of 128
lanes, each with buffers of its own, for three reasons: the compiler sees that the tiles do
not depend on one another, and overlaps them; a row of a buffer one tile wide is loaded
into all sublanes at once; and the sums over `s` of eight tiles fold into one register.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.inputs import Inputs

LANES = 128
SUBLANES = 8
_ROWS = 16  # of a block of tokens: the register tile of 16-bit numbers


class Tile(NamedTuple):
    """Up to 128 channels of a block."""

    index: int
    lanes: slice

    @property
    def width(self) -> int:
        return self.lanes.stop - self.lanes.start


class Tokens(NamedTuple):
    """What a walk reads of every token.

    Attributes:
        dt: `[tiles, T, lanes]` step sizes.
        dt_x: `[tiles, T, lanes]` step sizes times values.
        B: `[T, S, lanes]` keys, the same in all lanes.
    """

    dt: Any
    dt_x: Any
    B: Any


def tiles_of(channels: int) -> list[Tile]:
    return [
        Tile(index, slice(start, min(start + LANES, channels)))
        for index, start in enumerate(range(0, channels, LANES))
    ]


def groups_of(tiles: list[Tile]) -> list[list[Tile]]:
    """Groups of 8, 4, 2 or 1 tiles of the same width."""
    groups = []
    while tiles:
        alike = sum(tile.width == tiles[0].width for tile in tiles)
        size = min(SUBLANES, 1 << alike.bit_length() - 1)
        groups.append(tiles[:size])
        tiles = tiles[size:]
    return groups


def for_rows(first: int, stop: int, visit: Callable[[Any, int], None]) -> None:
    """Calls `visit(start, rows)` for blocks of rows that lie in one register tile."""
    aligned = min(pl.cdiv(first, _ROWS) * _ROWS, stop)
    blocks, rest = divmod(stop - aligned, _ROWS)
    if aligned > first:
        visit(first, aligned - first)
    if blocks:

        @pl.loop(0, blocks)
        def _visit(block):
            visit(pl.multiple_of(aligned + block * _ROWS, _ROWS), _ROWS)

    if rest:
        visit(stop - rest, rest)


def for_each(count: int | jax.Array, visit: Callable[[Any], None]) -> None:
    """Calls `visit(i)` in order, by twos: the end of one overlaps the start of the next."""

    @pl.loop(0, count >> 1)
    def _visit(pair):
        visit(2 * pair)
        visit(2 * pair + 1)

    if not isinstance(count, int):
        pl.when((count & 1) == 1)(lambda: visit(count - 1))
    elif count & 1:
        visit(count - 1)


def spread_columns(rows_ref, planes_ref) -> None:
    """Spreads every row `[S]` over the lanes of a plane `[S, lanes]`."""

    def visit(start, rows):
        columns = rows_ref[pl.ds(start, rows)].astype(jnp.float32).T
        for row in range(rows):
            column = columns[:, row : row + 1]
            planes_ref[start + row] = jnp.broadcast_to(column, planes_ref.shape[1:])

    for_rows(0, rows_ref.shape[0], visit)


def spread_channels(inputs: Inputs, tokens: Tokens, tiles: list[Tile]) -> None:
    """Cuts the rows of a block of channels into tiles of float32."""

    def visit(start, rows):
        rows = pl.ds(start, rows)
        for tile in tiles:
            dt = inputs.dt[rows, tile.lanes]
            x = inputs.x[rows, tile.lanes].astype(jnp.float32)
            tokens.dt[tile.index, rows, : tile.width] = dt
            tokens.dt_x[tile.index, rows, : tile.width] = dt * x

    for_rows(0, inputs.x.shape[0], visit)


def advance(above: jax.Array, token, tokens: Tokens, rate_ref, tile: Tile) -> jax.Array:
    """The state `[S, width]` of a token from that above it; the rate is `A log2(e)`."""
    row = pl.ds(token, 1)
    dt = tokens.dt[tile.index, row, : tile.width]
    dt_x = tokens.dt_x[tile.index, row, : tile.width]
    B = tokens.B[token, :, : tile.width]
    return jnp.exp2(dt * rate_ref[:, tile.lanes]) * above + dt_x * B


def advance_chain(count, tokens: Tokens, rate_ref, states, tiles: list[Tile]) -> None:
    """Advances `states`, a `[S, width]` per tile, over the first `count` tokens."""

    def visit(token):
        for tile, state in zip(tiles, states, strict=True):
            state[...] = advance(state[...], token, tokens, rate_ref, tile)

    for_each(count, visit)


def sum_sublanes(parts: list[jax.Array]) -> jax.Array:
    """Sums each of 1, 2, 4 or 8 arrays `[S, width]` over `S`.

    Returns:
        `[8, width]`, whose row `k` is the sum of `parts[k]`.
    """
    parts = [_fold_sublanes(part) for part in parts]
    sublane = jax.lax.broadcasted_iota(jnp.int32, parts[0].shape, 0)
    for shift in (1, 2, 4):
        if (
            len(parts) > 1
        ):  # two by two: rows without the bit for one, with for the other
            own = (sublane & shift) == 0
            parts = [
                jnp.where(own, a, b) + pltpu.roll(jnp.where(own, b, a), shift, 0)
                for a, b in zip(parts[::2], parts[1::2], strict=True)
            ]
        else:
            parts = [parts[0] + pltpu.roll(parts[0], shift, 0)]
    return parts[0]


def _fold_sublanes(part: jax.Array) -> jax.Array:
    """Sums `[S, width]` into 8 sublanes."""
    rest = -part.shape[0] % SUBLANES
    if rest:
        part = jnp.concatenate([part, jnp.zeros((rest, part.shape[1]), part.dtype)])
    starts = range(0, part.shape[0], SUBLANES)
    return functools.reduce(jnp.add, [part[s : s + SUBLANES] for s in starts])

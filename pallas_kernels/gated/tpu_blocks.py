"""The blocks that a grid step of the TPU kernels serves: heads of one row.

A block is whole groups of heads, or a part of one; its heads lie side by side on the lanes,
cut into tiles of heads of one group.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jax.experimental import pallas as pl

from pallas_kernels.gated.tpu_lanes import LANES

QUERY_ROWS = 64  # scores of more rows than this do not fit the registers


class BlockShape(NamedTuple):
    """Static sizes of a grid step."""

    blocks: int  # of heads in a row
    heads: int  # of the block
    dim: int
    width: int
    groups: int  # of the block
    blocks_per_group: int  # 1 if a block has whole groups
    tile_heads: int  # heads of one group, side by side on the lanes
    nodes: int
    padded: int  # nodes that the scores have columns for
    queries: int

    @property
    def tile(self) -> int:
        return self.tile_heads * self.dim

    @property
    def tiles(self) -> int:
        return self.heads // self.tile_heads

    @property
    def score_heads(self) -> int:
        """Heads that share a row of scores: those of a tile where they are short."""
        return self.tile_heads if self.short else 1

    @property
    def short(self) -> bool:
        """Whether one tile of scores holds all nodes."""
        return self.padded <= QUERY_ROWS

    @property
    def first(self) -> int:
        """The first node that is queried."""
        return self.nodes - self.queries

    def group_of(self, tile: Any) -> Any:
        """The group of a tile, whose index is static or not."""
        if isinstance(tile, int):
            return tile * self.groups // self.tiles
        return jax.lax.div(tile * self.groups, self.tiles)

    def query_tiles(self) -> Iterator[tuple[slice, int]]:
        """Rows of queries, and how many nodes they may descend from."""
        for begin in range(0, self.queries, QUERY_ROWS):
            end = min(begin + QUERY_ROWS, self.queries)
            # Parents come first: no path leads beyond the tile's own nodes.
            last = self.first + end
            reach = self.padded if self.padded <= LANES else -(-last // LANES) * LANES
            yield slice(begin, end), reach


def block_shape(
    inputs: Any, state: jax.Array, queries: int, abreast: int, most_bytes: int = 2**19
) -> BlockShape:
    """Chooses the heads of a block: whole groups or parts of one.

    Args:
        inputs: records, whose first and last are values and keys.
        state: `[L, B, H, P, S]`.
        queries: how many of the last nodes are queried.
        abreast: heads of a group that a tile has, at most.
        most_bytes: of the block's states.
    """
    heads, dim, width = state.shape[2:]
    groups = inputs[2].shape[-1] // width
    per_group = heads // groups

    def fits(count):
        aligned = count == heads or count * dim % LANES == 0
        nested = per_group % count == 0 or count % per_group == 0
        keys = count // per_group * width % LANES == 0 or count == heads
        return (
            heads % count == 0 and aligned and nested and (keys or count <= per_group)
        )

    limit = max(1, most_bytes // (dim * width * 4))
    counts = [count for count in range(1, heads + 1) if fits(count)]
    count = max([c for c in counts if c <= limit], default=counts[0])
    nodes = inputs[0].shape[-2]
    rows = 8 if nodes <= QUERY_ROWS else LANES
    return BlockShape(
        blocks=heads // count,
        heads=count,
        dim=dim,
        width=width,
        groups=max(1, count // per_group),
        blocks_per_group=max(1, per_group // count),
        tile_heads=math.gcd(min(count, per_group), abreast),
        nodes=nodes,
        padded=-(-nodes // rows) * rows,
        queries=queries,
    )


class Specs(NamedTuple):
    """Blocks of a row: of all its lanes, or of a step's heads or groups."""

    shape: BlockShape

    def of_row(self, rows: int, width: int, of_layer: bool = False) -> pl.BlockSpec:
        """All lanes."""
        return self._of((rows, width), lambda block: (0, 0), of_layer)

    def of_heads(self, rows: int, of_layer: bool = False) -> pl.BlockSpec:
        """The channels of the step's heads."""
        width = self.shape.heads * self.shape.dim
        return self._of((rows, width), lambda block: (0, block), of_layer)

    def of_groups(self, rows: int, of_layer: bool = False) -> pl.BlockSpec:
        """The keys of their groups."""

        def index(block):
            return 0, jax.lax.div(block, self.shape.blocks_per_group)

        return self._of((rows, self.shape.groups * self.shape.width), index, of_layer)

    def of_inputs(self, length: int, heads: int, of_layer: bool = False) -> tuple:
        """Values, steps and keys."""
        steps = self.of_row(length, heads, of_layer)
        return self.of_heads(length, of_layer), steps, self.of_groups(length, of_layer)

    def of_state(self, of_layer: bool = False) -> pl.BlockSpec:
        """The states of the step's heads."""
        rows = self.shape.heads * self.shape.dim
        block = rows, self.shape.width
        return self._of(block, lambda block: (block, 0), of_layer)

    def _of(self, block, index, of_layer):
        def index_map(row, block, *scalars):
            lead = (scalars[0].layer[0], row) if of_layer else (row,)
            return *lead, *index(block)

        return pl.BlockSpec((*[None] * (1 + of_layer), *block), index_map)

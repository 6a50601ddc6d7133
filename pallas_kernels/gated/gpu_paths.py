"""The decays along a tree's paths, and what its nodes read of the states of a block.

`G` sums `g` over paths, in two parts (`digits`). They are subtracted apart, so that what
two long paths have in common costs no precision.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels._mosaic_gpu import split
from pallas_kernels.gated.digits import cut
from pallas_kernels.gated.gpu_block import (
    ALONG_COLUMNS,
    ALONG_ROWS,
    TILE,
    Block,
    Tokens,
    pad,
    round_up,
)
from pallas_kernels.topology import Topology


class Sums(NamedTuple):
    """Shared memory for sums over paths.

    Attributes:
        coarse: `[R]` sums of the coarse parts.
        fine: `[R]` sums of the others.
        decay: `[64]` of a tile of queries.
    """

    coarse: Any
    fine: Any
    decay: Any


class Paths(NamedTuple):
    """The paths of a tree, and who reads along them.

    Attributes:
        block: which reads.
        nodes: how the nodes are cut into tiles.
        num_rows: nodes whose paths are summed, and rows below them that are loaded with
            them: `R`.
    """

    block: Block
    nodes: Tokens
    num_rows: int

    @classmethod
    def of(cls, block: Block, nodes: Tokens, last: int) -> "Paths":
        """Those that are read in tiles of 64, of which the last starts at `last`."""
        return cls(block, nodes, max(last + TILE, round_up(nodes.padded, TILE)))

    def sees(self, tree: Topology) -> jax.Array:
        """`[B, R, slots]` int8, which nodes are on the path to which."""
        ancestors = tree.ancestors.astype(jnp.int8)
        return pad(pad(ancestors, 1, self.num_rows), 2, self.nodes.slots)

    def memory(self) -> Sums:
        sums = plgpu.SMEM((self.num_rows,), jnp.float32)
        return Sums(sums, sums, plgpu.SMEM((TILE,), jnp.float32))

    def add_up(self, g: Any, sees: Any, sums: Sums) -> None:
        """Sums log decays `[slots]` over paths, `sees` `[R, slots]`."""
        group = self.block.warpgroup
        shape = TILE, self.nodes.depth
        for row in range(0, round_up(self.nodes.padded, TILE), TILE):
            found = [None, None]
            for tile in range(min((row + TILE) // shape[1], self.nodes.num)):
                here = pl.ds(row, TILE), self.nodes.tile(tile)
                on_path = group.load_from(sees.at[here]) != 0
                term = group.load_from(g.at[here[1]], ALONG_COLUMNS)
                for i, part in enumerate(cut(term)):
                    part = jnp.where(on_path, group.spread(part, shape, 1), 0.0)
                    part = jnp.sum(part, axis=1)
                    found[i] = part if tile == 0 else found[i] + part
            sums.coarse[here[0]], sums.fine[here[0]] = found

    def read_state(
        self, state: Any, queries: Any, row: Any, parts: int, sums: Sums
    ) -> jax.Array:
        """`exp(G_i) S_0 q_i` of queries `[n, S]`, those of the nodes from `row` on.

        Returns `[P, n]`, of products of operands in so many `parts`.
        """
        group, path = self.block.warpgroup, pl.ds(row, TILE)
        path = [
            group.load_from(part.at[path], ALONG_ROWS)
            for part in (sums.coarse, sums.fine)
        ]
        sums.decay[...] = jnp.exp(path[0] + path[1])
        y = group.zeros((self.block.rows, queries.shape[0]))
        for piece in self.block.pieces(self.block.tile):
            left = split(group.load(state.at[:, piece]), parts)
            right = group.load_right(queries.at[:, piece], self.block.width)
            y = group.add_product(y, left, split(right, parts))
        decay = sums.decay.at[pl.ds(0, queries.shape[0])]
        decay = group.load_from(decay, ALONG_COLUMNS)
        return y * group.spread(decay, y.shape, 1)

    def weigh(
        self, queries: Any, keys: Any, here: Any, there: Any, sees: Any, sums: Sums
    ) -> jax.Array:
        """`M_ij exp(G_i - G_j) (q_i . k_j)`, `[64, T]`.

        Args:
            queries: `[64, S]`, of which rows below the last may hold anything.
            keys: `[T, S]`, the same.
            here: the slots of the queries' nodes.
            there: the slots of the keys' nodes.
            sees: `[R, slots]`.
            sums: what `add_up` has found.
        """
        group, parts = self.block.warpgroup, self.block.parts
        shape = TILE, keys.shape[0]
        weights = group.zeros(shape)
        for piece in self.block.pieces(self.block.tile):
            left = split(group.load(queries.at[:, piece]), parts)
            right = group.load_right(keys.at[:, piece], self.block.width)
            weights = group.add_product(weights, left, split(right, parts))
        exponent = group.zeros(shape)
        for part in (sums.coarse, sums.fine):
            below = group.load_from(part.at[here], ALONG_ROWS)
            above = group.load_from(part.at[there], ALONG_COLUMNS)
            exponent += group.spread(below, shape, 0) - group.spread(above, shape, 1)
        on_path = group.load_from(sees.at[here, there]) != 0
        weights = weights * jnp.exp(jnp.where(on_path, exponent, 0.0))
        return jnp.where(on_path, weights, 0.0)

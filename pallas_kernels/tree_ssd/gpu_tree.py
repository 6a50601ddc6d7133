"""The outputs of a tree's nodes, from the states of a block of a GPU.

    y_i^T = exp(L_i) S_0 C_i + sum_j x_j^T W_ij
    W_ij = M_ij exp(L_i - L_j) (C_i . B_j) dt_j

`L` sums `dt A` over paths. Its terms are cut at a multiple of 2^-8; sums of the coarse
parts are exact, and sums of the fine parts are small. They are subtracted apart, so that
what two long paths have in common costs no precision.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels._mma import split
from pallas_kernels.tree_ssd.gpu_block import (
    ALONG_COLUMNS,
    ALONG_ROWS,
    TILE,
    Block,
    Records,
    Tokens,
    repeat,
    round_up,
)

CUT = 1.5 * 2.0**15  # what is added to this is rounded to a multiple of 2^-8


class Refs(NamedTuple):
    """References of one row of a tree.

    Attributes:
        sees: `[R, slots]` int8, whether a node is on the path to another; below the
            nodes' rows, zeros.
        nodes: their records.
        C: `[n, G S]` queries of the last nodes.
        y: `[n, E]` outputs.
    """

    sees: Any
    nodes: Records
    C: Any
    y: Any


class Memory(NamedTuple):
    """Shared memory of a tree.

    Attributes:
        nodes: a tile of records.
        coarse: `[R]` sums of the coarse parts over paths.
        fine: `[R]` sums of the others.
        decay: of a tile of queries.
        C: a tile of queries.
        W: weights of a tile of nodes for a tile of queries.
        y: outputs of a tile of queries.
        loaded_dt: barrier.
        loaded: barrier.
        loaded_C: barrier.
    """

    nodes: Records
    coarse: Any
    fine: Any
    decay: Any
    C: Any
    W: Any
    y: Any
    loaded_dt: Any
    loaded: Any
    loaded_C: Any


class Reader(NamedTuple):
    """Reads the states at the last nodes of a tree.

    Attributes:
        block: which reads.
        nodes: how the nodes are cut into tiles.
        queries: the same of those that are queried.
        first: the first of those.
    """

    block: Block
    nodes: Tokens
    queries: Tokens
    first: int

    @property
    def num_rows(self) -> int:
        """Nodes whose paths are summed, and rows below them that are loaded with them."""
        last = self.first + (self.queries.num - 1) * self.queries.size
        return max(last + TILE, round_up(self.nodes.padded, TILE))

    def memory(self) -> Memory:
        group, size = self.block.warpgroup, self.queries.size
        sums = plgpu.SMEM((self.num_rows,), jnp.float32)
        return Memory(
            nodes=self.block.records_memory(self.nodes),
            coarse=sums,
            fine=sums,
            decay=plgpu.SMEM((TILE,), jnp.float32),
            C=group.memory((TILE, self.block.width), self.block.dtype),
            W=group.memory((TILE, self.nodes.depth), self.block.dtype),
            y=group.memory((size, self.block.rows), jnp.float32),
            loaded_dt=plgpu.Barrier(),
            loaded=plgpu.Barrier(num_arrivals=2),
            loaded_C=plgpu.Barrier(),
        )

    def start(self, tree: Refs, m: Memory) -> None:
        """Starts to copy the first tiles."""
        plgpu.copy_gmem_to_smem(tree.nodes.dt, m.nodes.dt, m.loaded_dt)
        self._fetch_queries(tree, 0, m)
        self.block.fetch(self.nodes, tree.nodes, 0, m.nodes, m.loaded)

    def read(
        self,
        A: jax.Array,
        tree: Refs,
        prepare_state: Callable[[], None],
        state: Any,
        m: Memory,
    ) -> None:
        """Writes the outputs, after `start`; has the state prepared when it needs it."""
        self._sum_paths(A, tree, m)
        several = self.queries.num > 1
        if several:
            prepare_state()

        def read_tile(q, _):
            plgpu.barrier_wait(m.loaded_C)
            if several:  # in this order no register is put away
                y = self._add_nodes(self._read_state(q, state, m), q, tree, m)
            else:  # the state arrives last
                size = self.block.rows, self.queries.size
                y = self._add_nodes(self.block.warpgroup.zeros(size), q, tree, m)
                prepare_state()
                y = y + self._read_state(q, state, m)
            if several:

                @pl.when(q + 1 < self.queries.num)
                def _():
                    self._fetch_queries(tree, q + 1, m)

                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            self.block.warpgroup.store_transposed(y, m.y)
            plgpu.commit_smem()
            out = self._rows(q), self.block.channels()
            plgpu.copy_smem_to_gmem(m.y, tree.y.at[out])
            return 0

        repeat(self.queries.num, read_tile)

    def _rows(self, q):
        return pl.ds(q * self.queries.size, self.queries.size)

    def _fetch_queries(self, tree, q, m):
        C = tree.C.at[self._rows(q), self.block.keys()]
        plgpu.copy_gmem_to_smem(C, m.C.at[self._rows(0)], m.loaded_C)

    def _sum_paths(self, A, tree, m):
        group = self.block.warpgroup
        shape = TILE, self.nodes.depth
        plgpu.barrier_wait(m.loaded_dt)
        for row in range(0, round_up(self.nodes.padded, TILE), TILE):
            sums = [None, None]
            for tile in range(min((row + TILE) // shape[1], self.nodes.num)):
                here = pl.ds(row, TILE), self.nodes.tile(tile)
                on_path = group.load_from(tree.sees.at[here]) != 0
                term = A * group.load_from(m.nodes.dt.at[here[1]], ALONG_COLUMNS)
                coarse = (term + CUT) - CUT
                for i, part in enumerate((coarse, term - coarse)):
                    part = jnp.where(on_path, group.spread(part, shape, 1), 0.0)
                    part = jnp.sum(part, axis=1)
                    sums[i] = part if tile == 0 else sums[i] + part
            m.coarse[here[0]], m.fine[here[0]] = sums

    def _read_state(self, q, state, m):
        """`exp(L_i) S_0 C_i` of a tile of queries."""
        group = self.block.warpgroup
        path = pl.ds(self.first + q * self.queries.size, TILE)
        path = [
            group.load_from(sums.at[path], ALONG_ROWS) for sums in (m.coarse, m.fine)
        ]
        m.decay[...] = jnp.exp(path[0] + path[1])
        y = group.zeros((self.block.rows, self.queries.size))
        for piece in self.block.pieces(self.block.tile):
            left = split(group.load(state.at[:, piece]), self.block.parts)
            right = group.load_right(m.C.at[self._rows(0), piece], self.block.width)
            y = group.add_product(y, left, split(right, self.block.parts))
        decay = group.load_from(m.decay.at[self._rows(0)], ALONG_COLUMNS)
        return y * group.spread(decay, y.shape, 1)

    def _add_nodes(self, y, q, tree, m):
        """Adds `sum_j x_j^T W_ij` of a tile of queries."""
        group, parts = self.block.warpgroup, self.block.parts
        row = self.first + q * self.queries.size
        num = self.nodes.num
        if num > 1:  # parents come before children
            num = jnp.minimum((row + self.queries.size - 1) // self.nodes.size + 1, num)

        def add_tile(k, y):
            plgpu.barrier_wait(m.loaded)
            weights = self._weights(row, k, tree, m)
            m.W[...] = weights.astype(self.block.dtype)
            left = split(self.block.load_tile(self.nodes, m.nodes.x), parts)
            right = group.load_right(m.W.at[self._rows(0)], self.nodes.depth)
            y = group.add_product(y, left, split(right, parts))
            if self.nodes.num > 1:

                @pl.when((k + 1 < num) | (q + 1 < self.queries.num))
                def _():
                    then = jnp.where(k + 1 < num, k + 1, 0)
                    self.block.fetch(self.nodes, tree.nodes, then, m.nodes, m.loaded)

            return y

        return repeat(num, add_tile, y)

    def _weights(self, row, k, tree, m):
        """`W` from a tile of nodes to 64 of them."""
        group, parts = self.block.warpgroup, self.block.parts
        shape = TILE, self.nodes.depth
        weights = group.zeros(shape)
        for piece in self.block.pieces(self.block.tile):
            left = split(group.load(m.C.at[:, piece]), parts)
            right = group.load_right(m.nodes.B.at[:, piece], self.block.width)
            weights = group.add_product(weights, left, split(right, parts))
        here, there = pl.ds(row, TILE), self.nodes.tile(k)
        exponent = group.zeros(shape)
        for sums in (m.coarse, m.fine):
            below = group.load_from(sums.at[here], ALONG_ROWS)
            above = group.load_from(sums.at[there], ALONG_COLUMNS)
            exponent += group.spread(below, shape, 0) - group.spread(above, shape, 1)
        on_path = group.load_from(tree.sees.at[here, there]) != 0
        dt = group.load_from(m.nodes.dt.at[there], ALONG_COLUMNS)
        weights = weights * jnp.exp(jnp.where(on_path, exponent, 0.0))
        return jnp.where(on_path, weights * group.spread(dt, shape, 1), 0.0)

"""The outputs of a tree's nodes, from the states of a block of a GPU.

y_i^T = exp(G_i) S_0 C_i + sum_j x_j^T W_ij
W_ij = M_ij exp(G_i - G_j) (C_i . B_j) dt_j
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels._mosaic_gpu import split
from pallas_kernels.gated.gpu_block import (
    ALONG_COLUMNS,
    TILE,
    Block,
    Records,
    Tokens,
    repeat,
)
from pallas_kernels.gated.gpu_paths import Paths, Sums


class Refs(NamedTuple):
    """References of the trees of all rows, or of one.

    Attributes:
        sees: `[B, R, slots]` int8, whether a node is on the path to another; below the
            nodes' rows, zeros.
        nodes: their records, `w` the step sizes.
        C: `[B, n, G S]` queries of the last nodes.
        y: `[B, n, E]` outputs.
    """

    sees: Any
    nodes: Records
    C: Any
    y: Any = None


class Memory(NamedTuple):
    """Shared memory of a tree.

    Attributes:
        nodes: a tile of records.
        sums: over paths.
        C: a tile of queries.
        W: weights of a tile of nodes for a tile of queries.
        y: outputs of a tile of queries.
        loaded_numbers: barrier.
        loaded: barrier.
        loaded_C: barrier.
    """

    nodes: Records
    sums: Sums
    C: Any
    W: Any
    y: Any
    loaded_numbers: Any
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
    def paths(self) -> Paths:
        last = self.first + (self.queries.num - 1) * self.queries.size
        return Paths.of(self.block, self.nodes, last)

    def memory(self) -> Memory:
        block, size = self.block, self.queries.size
        return Memory(
            nodes=block.records_memory(self.nodes),
            sums=self.paths.memory(),
            C=block.warpgroup.memory((TILE, block.width), block.dtype),
            W=block.warpgroup.memory((TILE, self.nodes.depth), block.dtype),
            y=block.warpgroup.memory((size, block.rows), jnp.float32),
            loaded_numbers=plgpu.Barrier(num_arrivals=2),
            loaded=plgpu.Barrier(num_arrivals=2),
            loaded_C=plgpu.Barrier(),
        )

    def of_row(self, trees: Refs, outputs: list[Any], row: Any, head: Any) -> Refs:
        """The tree of one row, as one head sees it."""
        (y,) = outputs
        nodes = trees.nodes.of_row(row, head)
        return Refs(trees.sees.at[row], nodes, trees.C.at[row], y.at[row])

    def start(self, tree: Refs, m: Memory) -> None:
        """Starts to copy the first tiles."""
        self.block.fetch_numbers(tree.nodes, m.nodes, m.loaded_numbers)
        self._fetch_queries(tree, 0, m)
        self.block.fetch(self.nodes, tree.nodes, 0, m.nodes, m.loaded)

    def read(
        self, tree: Refs, prepare_state: Callable[[], None], state: Any, m: Memory
    ) -> None:
        """Writes the outputs, after `start`; has the state prepared when it needs it."""
        plgpu.barrier_wait(m.loaded_numbers)
        self.paths.add_up(m.nodes.g, tree.sees, m.sums)
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

    def _read_state(self, q, state, m):
        """`exp(G_i) S_0 C_i` of a tile of queries."""
        C, row = m.C.at[self._rows(0)], self.first + q * self.queries.size
        return self.paths.read_state(state, C, row, self.block.parts, m.sums)

    def _add_nodes(self, y, q, tree, m):
        """Adds `sum_j x_j^T W_ij` of a tile of queries."""
        group, parts = self.block.warpgroup, self.block.parts
        row = self.first + q * self.queries.size
        num = self.nodes.num
        if num > 1:  # parents come before children
            num = jnp.minimum((row + self.queries.size - 1) // self.nodes.size + 1, num)

        def add_tile(k, y):
            plgpu.barrier_wait(m.loaded)
            here, there = pl.ds(row, TILE), self.nodes.tile(k)
            weights = self.paths.weigh(m.C, m.nodes.k, here, there, tree.sees, m.sums)
            dt = group.load_from(m.nodes.w.at[there], ALONG_COLUMNS)
            weights = weights * group.spread(dt, weights.shape, 1)
            m.W[...] = weights.astype(self.block.dtype)
            left = split(self.block.load_tile(self.nodes, m.nodes.v), parts)
            right = group.load_right(m.W.at[self._rows(0)], self.nodes.depth)
            y = group.add_product(y, left, split(right, parts))
            if self.nodes.num > 1:

                @pl.when((k + 1 < num) | (q + 1 < self.queries.num))
                def _():
                    then = jnp.where(k + 1 < num, k + 1, 0)
                    self.block.fetch(self.nodes, tree.nodes, then, m.nodes, m.loaded)

            return y

        return repeat(num, add_tile, y)

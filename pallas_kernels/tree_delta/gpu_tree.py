"""What a tree's nodes write and read, from the states of a block of a GPU.

    (I + A) U = beta (v - exp(G) S_0 k)       A_ij = M'_ij beta_i exp(G_i - G_j) k_i . k_j
    y_i = exp(G_i) S_0 q_i + sum_j Q_ij u_j   Q_ij = M_ij exp(G_i - G_j) q_i . k_j

The nodes, at most 64, come in blocks of 16, channels as rows. What earlier blocks write is
subtracted by products with the blocks of `A` below the diagonal, and a block of the
diagonal is substituted column by column: node after node is subtracted from those after
it, as exact as float32 is. Nothing is inverted and no series is summed.

`u` takes the place of `v` in shared memory, and the outputs that of `u`; `Q` that of `A`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels._mosaic_gpu import split
from pallas_kernels.gated.gpu_block import (
    ALONG_COLUMNS,
    PARTS,
    STEP,
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
        nodes: their records, with `beta` for weights; zero where `v` is `u` already.
        q: `[B, n, G S]` queries of the last nodes.
        u: `[B, N, E]` what is written.
        y: `[B, n, E]` outputs.
    """

    sees: Any
    nodes: Records
    q: Any
    u: Any = None
    y: Any = None


class Memory(NamedTuple):
    """Shared memory of a tree.

    Attributes:
        nodes: their records, keys with rows below them.
        sums: over paths.
        q: queries.
        weights: `[depth / 16 * 64, 16]`, the columns of `-A` or `Q` in blocks below each
            other.
        columns: `[16, 64]` the columns of the diagonal's blocks of `-A`.
        loaded_numbers: barrier.
        loaded: barrier.
        loaded_q: barrier.
    """

    nodes: Records
    sums: Sums
    q: Any
    weights: Any
    columns: Any
    loaded_numbers: Any
    loaded: Any
    loaded_q: Any


class Reader(NamedTuple):
    """Solves the last nodes of a tree and reads the states at them.

    Attributes:
        block: which does.
        nodes: in one tile.
        queries: in one tile.
        num_nodes: without padding.
        first: the first node that is new.
    """

    block: Block
    nodes: Tokens
    queries: Tokens
    num_nodes: int
    first: int

    @property
    def paths(self) -> Paths:
        last = self.first + self._query_tiles[-1][0]
        last = max(self.nodes.depth - self._tile, last)
        return Paths.of(self.block, self.nodes, last)

    def memory(self) -> Memory:
        block, group, depth = self.block, self.block.warpgroup, self.nodes.depth
        rows = group.memory((TILE, block.width), block.dtype)
        return Memory(
            nodes=block.records_memory(self.nodes)._replace(k=rows),
            sums=self.paths.memory(),
            q=rows,
            weights=group.memory((depth // STEP * TILE, STEP), jnp.float32),
            columns=plgpu.SMEM((STEP, TILE), jnp.float32),
            loaded_numbers=plgpu.Barrier(num_arrivals=2),
            loaded=plgpu.Barrier(num_arrivals=2),
            loaded_q=plgpu.Barrier(),
        )

    def of_row(self, trees: Refs, outputs: list[Any], row: Any, head: Any) -> Refs:
        """The tree of one row, as one head sees it."""
        nodes = trees.nodes.of_row(row, head)
        u, y = (out.at[row] for out in outputs)
        return Refs(trees.sees.at[row], nodes, trees.q.at[row], u, y)

    def start(self, tree: Refs, m: Memory) -> None:
        """Starts to copy what the block needs of the tree."""
        self.block.fetch_numbers(tree.nodes, m.nodes, m.loaded_numbers)
        self.block.fetch(self.nodes, tree.nodes, 0, m.nodes, m.loaded)
        queries = pl.ds(0, self.queries.size)
        q = tree.q.at[queries, self.block.keys()]
        plgpu.copy_gmem_to_smem(q, m.q.at[queries], m.loaded_q)

    def read(
        self, tree: Refs, prepare_state: Callable[[], None], state: Any, m: Memory
    ) -> None:
        """Writes `u` and `y`, after `start`; has the state prepared when it needs it."""
        channels = self.block.channels()
        plgpu.barrier_wait(m.loaded_numbers)
        self.paths.add_up(m.nodes.g, tree.sees, m.sums)
        plgpu.barrier_wait(m.loaded)
        self._store_system(tree, m)
        prepare_state()
        self._store_right(state, m)
        self._substitute(m)
        plgpu.commit_smem()
        nodes, queries = pl.ds(0, self.nodes.size), pl.ds(0, self.queries.size)
        plgpu.copy_smem_to_gmem(m.nodes.v.at[nodes], tree.u.at[nodes, channels])

        plgpu.barrier_wait(m.loaded_q)
        self._store_weights(tree, m)
        outputs = [self._outputs(*tile, state, m) for tile in self._query_tiles]
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        for (start, size), y in zip(self._query_tiles, outputs, strict=True):
            self.block.warpgroup.store_transposed(y, m.nodes.v.at[pl.ds(start, size)])
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(m.nodes.v.at[queries], tree.y.at[queries, channels])

    def _store_system(self, tree, m):
        """`-A` without `beta`, and the columns of its diagonal's blocks."""
        group, size = self.block.warpgroup, self._tile
        row = group.iota((TILE, STEP), 0)

        def store_tile(i, diagonal):
            start, k = i * size, m.nodes.k
            A = self._weigh(k, 0, start, tree, m)
            below, above = group.iota(A.shape, 0), group.iota(A.shape, 1) + start
            A = jnp.where((below > above) & (below >= self.first), -A, 0.0)
            for j, columns in enumerate(_store_panels(A, start, m)):
                diagonal = jnp.where(row >= start + j * STEP, columns, diagonal)
            return diagonal

        zeros = group.zeros((TILE, STEP))
        diagonal = repeat(self.nodes.depth // size, store_tile, zeros)
        group.store_transposed(diagonal, m.columns)

    def _store_right(self, state, m):
        """`v` less what the states answer to keys, in place of `v`."""
        group, size = self.block.warpgroup, self._tile

        def store_tile(i, _):
            start = i * size
            k, v = (ref.at[pl.ds(start, size)] for ref in (m.nodes.k, m.nodes.v))
            past = self.paths.read_state(state, k, start, PARTS, m.sums)
            node = group.iota(past.shape, 1) + start
            value = group.load_transposed(v)
            right = jnp.where(node < self.first, value, value - past)
            right = jnp.where(node < self.num_nodes, right, 0.0)
            group.store_transposed(right, v)
            return 0

        repeat(self.nodes.depth // size, store_tile)

    def _substitute(self, m):
        """`u` in place of the right side, block after block."""
        group = self.block.warpgroup
        for start in range(0, self.nodes.depth, STEP):
            if start + STEP > self.first:
                u = self._load_block(start, m)
                for above in range(0, start, STEP):
                    A = m.weights.at[pl.ds(above // STEP * TILE + start, STEP)]
                    right = split(group.load_right(A, STEP), PARTS)
                    left = split(self._load_block(above, m), PARTS)
                    u = group.add_product(u, left, right)
                u = self._substitute_block(start, u, m)
                group.store_transposed(u, m.nodes.v.at[pl.ds(start, STEP)])

    def _load_block(self, start, m):
        """Values of 16 nodes, `[P, 16]`."""
        return self.block.warpgroup.load_transposed(m.nodes.v.at[pl.ds(start, STEP)])

    def _substitute_block(self, start, right, m):
        """Solves 16 nodes `[P, 16]`, of which those that are known stay as they are."""
        group, here, shape = self.block.warpgroup, pl.ds(start, STEP), right.shape
        node = group.iota(shape, 1) + start
        beta = group.load_from(m.nodes.w.at[here], ALONG_COLUMNS)
        u = right * group.spread(beta, shape, 1)
        u = jnp.where(node < self.first, right, u)
        last = min(start + STEP, self.num_nodes) - 1  # no node comes after it

        def load_column(i):
            return group.load_from(m.columns.at[i - start, here], ALONG_COLUMNS)

        def subtract(i, carry):
            u, A = carry
            following = load_column(jnp.minimum(i + 1, last))
            solved = jnp.sum(jnp.where(node == i, u, 0.0), axis=1)
            A = group.spread(beta * A, shape, 1)
            return u + group.spread(solved, shape, 0) * A, following

        return jax.lax.fori_loop(start, last, subtract, (u, load_column(start)))[0]

    def _store_weights(self, tree, m):
        """`Q`."""

        def store_tile(i, _):
            start = i * self._tile
            _store_panels(self._weigh(m.q, self.first, start, tree, m), start, m)
            return 0

        repeat(self.nodes.depth // self._tile, store_tile)

    def _weigh(self, queries, first, start, tree, m):
        """Scores of 64 nodes from `first` on with a tile of them, decayed."""
        here, there = pl.ds(first, TILE), pl.ds(start, self._tile)
        keys = m.nodes.k.at[there]
        return self.paths.weigh(queries, keys, here, there, tree.sees, m.sums)

    def _outputs(self, start, size, state, m):
        """`y` `[P, size]` of some queries."""
        group, parts = self.block.warpgroup, self.block.parts
        q, row = m.q.at[pl.ds(start, size)], self.first + start
        y = self.paths.read_state(state, q, row, parts, m.sums)

        def add_block(i, y):
            Q = group.load_right(m.weights.at[pl.ds(i * TILE + start, size)], STEP)
            left = split(self._load_block(i * STEP, m), parts)
            return group.add_product(y, left, split(Q, parts))

        return repeat(self.nodes.depth // STEP, add_block, y)

    @property
    def _tile(self):
        """Nodes that are weighed together: few if their keys are in three parts."""
        return STEP if self.block.dtype == jnp.float32 else self.nodes.depth

    @property
    def _query_tiles(self):
        return _tiles(self.queries.size, self.block.tile)


def _tiles(count, largest):
    """Where tiles start, and their sizes."""
    starts = range(0, count, largest)
    return [(start, min(largest, count - start)) for start in starts]


def _store_panels(weights, start, m):
    """Stores `[64, T]`, the columns from `start` on, and returns them 16 by 16."""
    panels = []
    for i in range(0, weights.shape[1], STEP):
        panels.append(jax.lax.slice(weights, (0, i), (TILE, i + STEP)))
        m.weights[pl.ds((start + i) * (TILE // STEP), TILE)] = panels[-1]
    return panels

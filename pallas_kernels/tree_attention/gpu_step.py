"""A block's attention on a GPU: 64 rows of queries, and a part of the live cache.

The next keys and values are copied to shared memory while the present ones are multiplied.
It keeps the largest score of each row so far, and sums relative to that.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import _mosaic_gpu
from pallas_kernels.tree_attention import gpu_mma

ROWS = 64  # queries of a block
KEYS = {2: 64, 4: 16}  # copied at a time, by bytes of a value: parts need registers
STEP = 16  # keys multiplied at a time
BUFFERS = 2
HIDDEN = -1e30
LOWEST = HIDDEN / 2  # so that what is hidden weighs exp2(HIDDEN - LOWEST) = 0


class Rows(NamedTuple):
    """Queries by key head: `R` rows, those of nodes and the heads of a group."""

    q: Any  # [B, K, R, d]
    seen: Any  # [B, R, N] int8, which nodes each sees
    depth: Any  # [B, R]


class Tokens(NamedTuple):
    """Keys and values, `[B, N, K d]` of nodes or `[L, B, M, K d]` of a cache."""

    keys: Any
    values: Any


class Sums(NamedTuple):
    """What is known of rows after some keys, in float32; of `P` parts, to combine."""

    top: Any  # [B, K, P, R] largest score, to the base 2
    total: Any  # [B, K, P, R] of the weights relative to it
    y: Any  # [B, K, P, R, d], the same of weighted values; in a kernel, a list of columns


class Block(NamedTuple):
    """What a block has at hand."""

    q: Any  # [64, d] reference
    queries: list | None  # [64, c] arrays, some columns each, if registers hold them
    depth: Any  # [64] array
    seen: Any  # [64, N] reference
    buffers: Tokens  # [BUFFERS, keys, d] references to shared memory
    copied: Any  # a barrier for each buffer
    head: Any  # columns of the head


def num_keys(dtype):
    return KEYS[jnp.dtype(dtype).itemsize]


@dataclasses.dataclass(frozen=True)
class Step:
    """A block's attention, of 64 rows to a part of what they see.

    Attributes:
        head_dim: of queries, keys and values.
        window: positions that a node sees, or None for all.
        scale: of scores to the base 2.
        interpret: whether there are no threads for values to be laid out in.
    """

    head_dim: int
    window: int | None
    scale: float
    interpret: Any

    def attend(self, parts, rows, nodes, cache, top, total, y, *memory) -> None:
        """What a block does: the tree, if its part is the first, and some of the cache."""
        *buffers, copied = memory
        b, h = jax.lax.axis_index("batch"), jax.lax.axis_index("head")
        part = jax.lax.axis_index("part")
        tile = pl.ds(jax.lax.axis_index("tile") * ROWS, ROWS)
        q = rows.q.at[b, h, tile]
        block = Block(
            q,
            self._load_queries(q) if rows.q.dtype != jnp.float32 else None,
            self._load(rows.depth, (b, tile), gpu_mma.PER_QUERY),
            rows.seen.at[b, tile],
            Tokens(*buffers),
            copied,
            pl.ds(h * self.head_dim, self.head_dim),
        )
        sums = self._nothing(rows.q.dtype)
        sums = self._see_tree(block, sums, part, Tokens(*(x.at[b] for x in nodes)))
        keys, values, length, layer = cache
        cache = Tokens(keys.at[layer[0], b], values.at[layer[0], b])
        sums = self._see_cache(block, sums, part, parts, cache, length[b])
        top[b, h, part, tile], total[b, h, part, tile] = sums.top, sums.total
        for c, output in zip(self._columns(rows.q.dtype), sums.y, strict=True):
            y[b, h, part, tile, c] = gpu_mma.finish(output, self.interpret)

    def _see_tree(self, block, sums, part, nodes) -> Sums:
        num_nodes = nodes.keys.shape[0]
        size = min(num_keys(nodes.keys.dtype), num_nodes)

        def absorb(t, sums):
            start = self._copy(block, nodes, t, size, 0)
            plgpu.barrier_wait(block.copied.at[0])

            def is_seen(step, width):
                index = slice(None), pl.ds(start + step, width)
                seen = self._load(block.seen, index, gpu_mma.QUERIES) != 0
                return seen & (start + step + self._iota(width) >= t * size)

            return self._absorb(block, sums, 0, size, is_seen)

        count = jnp.where(part == 0, pl.cdiv(num_nodes, size), 0)
        return jax.lax.fori_loop(0, count, absorb, sums)

    def _see_cache(self, block, sums, part, parts, cache, length) -> Sums:
        capacity = cache.keys.shape[0]
        size = min(num_keys(cache.keys.dtype), capacity)
        oldest = 0  # that the root sees
        if self.window is not None:
            oldest = jnp.maximum(length - self.window + 1, 0)
        first, last = oldest // size, pl.cdiv(length, size)
        share = pl.cdiv(jnp.maximum(last - first, 0), parts)
        first = first + part * share
        last = jnp.minimum(first + share, last)

        def copy(j):
            self._copy(block, cache, j, size, jax.lax.rem(j - first, BUFFERS))

        def absorb(j, sums):
            slot = jax.lax.rem(j - first, BUFFERS)
            plgpu.barrier_wait(block.copied.at[slot])
            pl.when(j + 1 < last)(lambda: copy(j + 1))
            start = jnp.minimum(j * size, capacity - size)

            def is_seen(step, width):
                slots = start + step + self._iota(width)
                seen = (slots >= j * size) & (slots < length)
                if self.window is not None:
                    unseen = length + block.depth - self.window
                    seen &= slots > self._spread(unseen, width)
                return seen

            return self._absorb(block, sums, slot, size, is_seen)

        pl.when(first < last)(lambda: copy(first))
        return jax.lax.fori_loop(first, last, absorb, sums)

    def _copy(self, block, tokens, j, size, slot):
        """Starts to copy the `j`-th keys and values, or the last, if they are too few."""
        start = jnp.minimum(j * size, tokens.keys.shape[0] - size)
        plgpu.commit_smem()  # the copy comes after what was read from the buffer
        for source, buffer in zip(tokens, block.buffers, strict=True):
            plgpu.copy_gmem_to_smem(
                source.at[pl.ds(start, size), block.head],
                buffer.at[slot, pl.ds(0, size)],
                block.copied.at[slot],
            )
        return start

    def _absorb(self, block, sums, slot, size, is_seen) -> Sums:
        """Adds some keys and values in shared memory."""
        width = STEP if size % STEP == 0 else size
        steps = range(0, size, width)
        columns = self._columns(block.buffers.keys.dtype)
        queries = block.queries or self._load_queries(block.q)
        scores = []
        for step in steps:
            score = self._full((ROWS, width), 0.0, gpu_mma.QUERIES)
            for query, c in zip(queries, columns, strict=True):
                index = slot, pl.ds(step, width), c
                keys = self._load(block.buffers.keys, index, gpu_mma.KEYS)
                score = gpu_mma.score(score, query, keys, self.interpret)
            scores.append(jnp.where(is_seen(step, width), self.scale * score, HIDDEN))

        highest = jnp.max(functools.reduce(jnp.maximum, scores), axis=1)
        highest = jnp.maximum(sums.top, highest)
        weights = [jnp.exp2(score - self._spread(highest, width)) for score in scores]
        kept = jnp.exp2(sums.top - highest)
        total = jnp.sum(functools.reduce(jnp.add, weights), axis=1)
        y = []
        for output, c in zip(sums.y, columns, strict=True):
            output *= self._spread(kept, c.size)
            for step, weight in zip(steps, weights, strict=True):
                index = slot, pl.ds(step, width), c
                values = self._load(block.buffers.values, index, gpu_mma.VALUES)
                output = gpu_mma.read(output, weight, values, self.interpret)
            y.append(output)
        return Sums(highest, kept * sums.total + total, y)

    def _nothing(self, dtype) -> Sums:
        return Sums(
            self._full((ROWS,), LOWEST, gpu_mma.PER_QUERY),
            self._full((ROWS,), 0.0, gpu_mma.PER_QUERY),
            [
                self._full((ROWS, c.size), 0.0, gpu_mma.QUERIES)
                for c in self._columns(dtype)
            ],
        )

    def _columns(self, dtype):
        """Columns of a head that lie together in a swizzled buffer."""
        width = math.gcd(self.head_dim, 128 // jnp.dtype(dtype).itemsize)
        return [pl.ds(i, width) for i in range(0, self.head_dim, width)]

    def buffer(self, dtype):
        shape = BUFFERS, num_keys(dtype), self.head_dim
        if self.interpret:
            return plgpu.SMEM(shape, dtype)
        tile = plgpu.TilingTransform((8, 128 // jnp.dtype(dtype).itemsize))
        return plgpu.SMEM(shape, dtype, transforms=(tile, plgpu.SwizzleTransform(128)))

    def _load_queries(self, q):
        columns = self._columns(q.dtype)
        return [self._load(q, (slice(None), c), gpu_mma.QUERIES) for c in columns]

    def _load(self, ref, index, layout):
        return _mosaic_gpu.load(ref, index, layout, self.interpret)

    def _full(self, shape, value, layout):
        return _mosaic_gpu.full(shape, value, layout, self.interpret)

    def _spread(self, row, width):
        shape = ROWS, width
        return _mosaic_gpu.spread(row, shape, 0, gpu_mma.QUERIES, self.interpret)

    def _iota(self, width):
        return _mosaic_gpu.iota((ROWS, width), 1, gpu_mma.QUERIES, self.interpret)

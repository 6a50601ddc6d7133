"""`attend` on Hopper and Blackwell GPUs: one pass over the cache with an online softmax.

    y_i = sum_j exp(s_ij) v_j / sum_j exp(s_ij)          s_ij = scale q_i k_j

where `j` runs over the live cache and the tree. The queries of all nodes and of the heads
that share a key head are the rows of one matrix. A block has 64 of these rows and a part
of the live cache, of which the next keys and values are copied to shared memory while the
present ones are multiplied. It keeps the largest score of each row so far, and sums
relative to that; the parts are put together outside.

Scores, weights and sums are float32, with the hardware's `exp2` (2 ulp). Weights are
rounded to bfloat16 where the values are bfloat16. Forward only.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import _mosaic_gpu
from pallas_kernels.tree_attention import _mma

ROWS = 64  # queries of a block
KEY_BYTES = 128  # of a column of the keys copied at a time
STEP = 16  # keys multiplied at a time
BUFFERS = 2
BLOCKS = 264  # two for each multiprocessor of an H200
HIDDEN = -1e30
LOWEST = HIDDEN / 2  # so that what is hidden weighs exp2(HIDDEN - LOWEST) = 0
LOG2_E = 1 / math.log(2)


def attend(
    tree,
    q,
    keys,
    values,
    cache_keys,
    cache_values,
    length,
    layer,
    head_dim,
    window,
    scale,
    *,
    interpret=False,
):
    batch, queries, _ = q.shape
    kv_heads = keys.shape[2] // head_dim
    q = q.reshape(batch, queries, kv_heads, -1, head_dim)
    group = q.shape[3]
    rows = queries * group
    q = q.transpose(0, 2, 1, 3, 4).reshape(batch, kv_heads, rows, head_dim)

    seen = tree.ancestors[:, -queries:]
    depth = tree.depth[:, -queries:]
    if window is not None:
        seen &= tree.depth[:, None] > depth[..., None] - window
    seen = jnp.repeat(seen.astype(jnp.int8), group, axis=1)
    depth = jnp.repeat(depth, group, axis=1)

    kernel = _Kernel(head_dim, window, scale * LOG2_E, interpret)
    top, total, y = kernel(
        _pad(q, 2, ROWS),
        _pad(_pad(seen, 1, ROWS), 2, STEP),
        _pad(depth, 1, ROWS),
        _pad(keys, 1, STEP),
        _pad(values, 1, STEP),
        cache_keys,
        cache_values,
        length,
        layer.reshape(1),
    )
    weight = jnp.exp2(top - jnp.max(top, axis=2, keepdims=True))
    y = jnp.sum(weight[..., None] * y, axis=2)
    y = y / jnp.sum(weight * total, axis=2)[..., None]
    y = y[:, :, :rows].reshape(batch, kv_heads, queries, group, head_dim)
    return y.transpose(0, 2, 1, 3, 4).reshape(batch, queries, -1)


def refuses_attend(
    tree,
    q,
    keys,
    values,
    cache_keys,
    cache_values,
    length,
    layer,
    head_dim,
    window,
    scale,
):
    if q.dtype != cache_keys.dtype or keys.dtype != cache_keys.dtype:
        return f"queries are {q.dtype}, keys {keys.dtype}, cached {cache_keys.dtype}"
    if q.dtype not in (jnp.bfloat16, jnp.float32):
        return f"queries are {q.dtype}, not bfloat16 or float32"
    if head_dim not in (64, 128):
        return f"heads of {head_dim} are not of 64 or 128"
    if cache_keys.shape[2] < _num_keys(q.dtype):
        return f"a cache of {cache_keys.shape[2]} rows is less than a block"
    return None


def _num_keys(dtype):
    """Keys copied at a time, so that sums and operands fit into registers."""
    return KEY_BYTES // jnp.dtype(dtype).itemsize


def _pad(x, axis, multiple):
    missing = -x.shape[axis] % multiple
    if not missing:
        return x
    return jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)])


@dataclasses.dataclass(frozen=True)
class _Kernel:
    """Attention of rows of queries, in parts of the cache.

    Attributes:
        head_dim: of queries, keys and values.
        window: positions that a node sees, or all.
        scale: of scores to the base 2.
        interpret: whether there are no threads for values to be laid out in.
    """

    head_dim: int
    window: int | None
    scale: float
    interpret: Any

    def __call__(
        self, q, seen, depth, keys, values, cache_keys, cache_values, length, layer
    ):
        batch, kv_heads, rows, _ = q.shape
        block = min(_num_keys(q.dtype), cache_keys.shape[2])
        tiles = rows // ROWS
        parts = max(1, BLOCKS // (batch * kv_heads * tiles))
        parts = min(parts, pl.cdiv(cache_keys.shape[2], 4 * block))
        keys_seen = cache_keys.shape[2] + keys.shape[1]
        scores = batch * kv_heads * rows * keys_seen
        sums = jax.ShapeDtypeStruct((batch, kv_heads, parts, rows), jnp.float32)
        outputs = jax.ShapeDtypeStruct((*sums.shape, self.head_dim), jnp.float32)
        return _mosaic_gpu.launch(
            functools.partial(self._attend, block, parts),
            (q, seen, depth, keys, values, cache_keys, cache_values, length, layer),
            (sums, sums, outputs),
            grid={"batch": batch, "head": kv_heads, "tile": tiles, "part": parts},
            scratch=(
                self._buffers(cache_keys.dtype),
                self._buffers(cache_values.dtype),
                plgpu.Barrier(num_arrivals=2, num_barriers=BUFFERS),
            ),
            name="tree_attention",
            cost=pl.CostEstimate(
                flops=4 * self.head_dim * scores,
                bytes_accessed=_mosaic_gpu.num_bytes(q, seen, keys, values)
                + _mosaic_gpu.num_bytes(cache_keys, cache_values) // cache_keys.shape[0]
                + 4 * outputs.size,
                transcendentals=scores,
            ),
            interpret=self.interpret,
            approx_math=True,
        )

    def _buffers(self, dtype):
        shape = BUFFERS, _num_keys(dtype), self.head_dim
        if self.interpret:
            return plgpu.SMEM(shape, dtype)
        tile = plgpu.TilingTransform((8, 128 // jnp.dtype(dtype).itemsize))
        return plgpu.SMEM(shape, dtype, transforms=(tile, plgpu.SwizzleTransform(128)))

    def _attend(
        self,
        block,
        parts,
        q,
        seen,
        depth,
        keys,
        values,
        cache_keys,
        cache_values,
        length,
        layer,
        top,
        total,
        y,
        key_buffers,
        value_buffers,
        copied,
    ):
        """The kernel: the tree, where it is the first part, and a part of the cache."""
        b, h = jax.lax.axis_index("batch"), jax.lax.axis_index("head")
        part = jax.lax.axis_index("part")
        rows = pl.ds(jax.lax.axis_index("tile") * ROWS, ROWS)
        columns = pl.ds(h * self.head_dim, self.head_dim)
        length, layer = length[b], layer[0]
        buffers = key_buffers, value_buffers
        chunks = self._chunks(q.dtype)
        queries = [self._load(q, (b, h, rows, c), _mma.QUERIES) for c in chunks]
        depth = self._load(depth, (b, rows), _mma.PER_QUERY)

        def copy(sources, index, size, slot):
            for source, buffer in zip(sources, buffers, strict=True):
                plgpu.copy_gmem_to_smem(
                    source.at[(*index, columns)],
                    buffer.at[slot, pl.ds(0, size)],
                    copied.at[slot],
                )

        size = min(_num_keys(q.dtype), keys.shape[1])

        def absorb_tree(t, sums):
            start = jnp.minimum(t * size, keys.shape[1] - size)
            copy((keys, values), (b, pl.ds(start, size)), size, 0)
            plgpu.barrier_wait(copied.at[0])

            def visible(step, width):
                index = b, rows, pl.ds(start + step, width)
                mask = self._load(seen, index, _mma.QUERIES) != 0
                return mask & (start + step + self._iota(width) >= t * size)

            return self._absorb(sums, queries, buffers, 0, size, visible)

        def copy_cache(j, slot):
            start = jnp.minimum(j * block, cache_keys.shape[2] - block)
            index = layer, b, pl.ds(start, block)
            copy((cache_keys, cache_values), index, block, slot)
            return start

        first = 0 if self.window is None else _first(length, self.window) // block
        live = pl.cdiv(length, block)
        share = pl.cdiv(jnp.maximum(live - first, 0), parts)
        first = first + part * share
        last = jnp.minimum(first + share, live)

        def absorb_cache(j, sums):
            slot = jax.lax.rem(j - first, BUFFERS)
            plgpu.barrier_wait(copied.at[slot])

            @pl.when(j + 1 < last)
            def _():
                copy_cache(j + 1, jax.lax.rem(j + 1 - first, BUFFERS))

            start = jnp.minimum(j * block, cache_keys.shape[2] - block)

            def visible(step, width):
                slots = start + step + self._iota(width)
                mask = (slots >= j * block) & (slots < length)
                if self.window is not None:
                    oldest = length + depth - self.window
                    mask &= slots > self._spread(oldest, width)
                return mask

            return self._absorb(sums, queries, buffers, slot, block, visible)

        full = functools.partial(_mosaic_gpu.full, interpret=self.interpret)
        sums = (
            full((ROWS,), LOWEST, _mma.PER_QUERY),
            full((ROWS,), 0.0, _mma.PER_QUERY),
            *(full((ROWS, c.size), 0.0, _mma.QUERIES) for c in chunks),
        )
        tree_blocks = jnp.where(part == 0, pl.cdiv(keys.shape[1], size), 0)
        sums = jax.lax.fori_loop(0, tree_blocks, absorb_tree, sums)

        @pl.when(first < last)
        def _():
            copy_cache(first, 0)

        sums = jax.lax.fori_loop(first, last, absorb_cache, sums)
        top[b, h, part, rows], total[b, h, part, rows], *outputs = sums
        for c, output in zip(chunks, outputs, strict=True):
            y[b, h, part, rows, c] = _mma.finish(output, self.interpret)

    def _absorb(self, sums, queries, buffers, slot, size, visible):
        """Adds some keys and values in shared memory to the sums of the rows."""
        top, total, *outputs = sums
        chunks = self._chunks(buffers[0].dtype)
        width = STEP if size % STEP == 0 else size
        steps = range(0, size, width)
        scores = []
        for step in steps:
            score = _mosaic_gpu.full((ROWS, width), 0.0, _mma.QUERIES, self.interpret)
            for query, c in zip(queries, chunks, strict=True):
                index = slot, pl.ds(step, width), c
                key = self._load(buffers[0], index, _mma.KEYS)
                score = _mma.score(score, query, key, self.interpret)
            scores.append(jnp.where(visible(step, width), self.scale * score, HIDDEN))

        highest = jnp.max(functools.reduce(jnp.maximum, scores), axis=1)
        highest, previous = jnp.maximum(top, highest), top
        weights = [jnp.exp2(s - self._spread(highest, width)) for s in scores]
        kept = jnp.exp2(previous - highest)
        total = kept * total + jnp.sum(functools.reduce(jnp.add, weights), axis=1)
        for i, c in enumerate(chunks):
            outputs[i] = self._spread(kept, c.size) * outputs[i]
            for step, weight in zip(steps, weights, strict=True):
                index = slot, pl.ds(step, width), c
                value = self._load(buffers[1], index, _mma.VALUES)
                outputs[i] = _mma.read(outputs[i], weight, value, self.interpret)
        return highest, total, *outputs

    def _chunks(self, dtype):
        """Columns that lie together in a swizzled buffer."""
        width = math.gcd(self.head_dim, 128 // jnp.dtype(dtype).itemsize)
        return [pl.ds(i, width) for i in range(0, self.head_dim, width)]

    def _load(self, ref, index, layout):
        return _mosaic_gpu.load(ref, index, layout, self.interpret)

    def _spread(self, row, width):
        shape = ROWS, width
        return _mosaic_gpu.spread(row, shape, 0, _mma.QUERIES, self.interpret)

    def _iota(self, width):
        shape = ROWS, width
        return _mosaic_gpu.iota(shape, 1, _mma.QUERIES, self.interpret)


def _first(length, window):
    """The oldest slot that a node at the root sees."""
    return jnp.maximum(length - window + 1, 0)

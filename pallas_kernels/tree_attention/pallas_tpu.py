"""`attend` on TPU: one pass over the live blocks of the cache, online softmax.

With `s_ij = q_i . k_j` where `i` sees `j`, the softmax over any number of blocks of keys
needs only a running maximum, a running sum and a running read-out of each query,

    m' = max(m, max_j s_ij)         p_ij = exp(scale (s_ij - m'))
    l' = exp(scale (m - m')) l + sum_j p_ij
    a' = exp(scale (m - m')) a + sum_j p_ij v_j            y_i = a / l

which start on the nodes of the tree: every node sees itself, so that `m` is finite from
then on, and a block of which it sees nothing adds zeros.

The grid is (batch, blocks of key heads, blocks of cache rows). Its last extent is that of
the row with most live blocks, known when the kernel starts. A shorter row skips its last
steps; their index already is that of the block that comes next, so nothing is fetched
twice, and nothing beyond `length` or before the window, but for the rest of a block.

Numerics: products of float32 in full float32; of bfloat16 with float32 accumulation, the
probabilities rounded to bfloat16 as flash attention does; softmax in float32.

The contract of `attend` is in `tree_attention`; the cache is that of all layers (`cache`).
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.tree_attention import tpu_blocks, tpu_step
from pallas_kernels.tree_attention.tpu_blocks import LANES


def refuses_attend(tree, q, keys, values, cache, *, head_dim, window, scale):
    arrays = q, keys, values, cache.keys, cache.values
    dtypes = {jnp.dtype(x.dtype) for x in arrays}
    if dtypes not in ({jnp.dtype(jnp.float32)}, {jnp.dtype(jnp.bfloat16)}):
        names = sorted(dtype.name for dtype in dtypes)
        return f"activations and cache must be all float32 or all bfloat16, got {names}"
    if keys.shape[2] % LANES:
        return f"the minor dimension of a cache must be a multiple of {LANES}"
    if tpu_blocks.cut(q, keys, cache.keys, head_dim) is None:
        return (
            f"{q.shape[1]} queries of {keys.shape[1]} nodes exceed the on-chip memory"
        )
    return None


def attend(tree, q, keys, values, cache, *, head_dim, window, scale, interpret=False):
    cut = tpu_blocks.cut(q, keys, cache.keys, head_dim)
    batch, queries, width = q.shape
    first, count = _live_blocks(cache.length, cut, window)
    scalars = (jnp.reshape(cache.layer, (1,)), cache.length, first, count)
    scalars = [x.astype(jnp.int32) for x in scalars]
    masks = _masks(tree, cut, window)
    head_blocks = keys.shape[2] // (cut.heads * head_dim)

    def of_row(b, h, j, *scalars):
        return b, 0, 0

    def of_heads(b, h, j, *scalars):
        return b, 0, h

    def of_cache(b, h, j, layer, length, first, count):
        last = (b == batch - 1) & (h == head_blocks - 1)
        own = (j < count[b]) | last
        wraps = h == head_blocks - 1
        row = jnp.where(own, b, jnp.where(wraps, b + 1, b))
        head = jnp.where(own, h, jnp.where(wraps, 0, h + 1))
        step = jnp.where(own, jnp.minimum(j, jnp.maximum(count[b] - 1, 0)), 0)
        return layer[0], row, first[row] + step, head

    lanes = cut.heads * head_dim
    node_block = pl.BlockSpec((None, cut.nodes, lanes), of_heads)
    cache_block = pl.BlockSpec((None, None, cut.rows, lanes), of_cache)
    query_block = pl.BlockSpec((None, queries, lanes * cut.group), of_heads)
    stacked = cut.slabs * cut.stacked
    live = cut.capacity if window is None else min(cut.capacity, window + cut.rows)
    pairs = batch * queries * width * (live + cut.nodes)
    read = 2 * (live + cut.nodes) * keys.shape[2] + queries * width
    return pl.pallas_call(
        functools.partial(tpu_step.attend_kernel, cut=cut, window=window, scale=scale),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(batch, head_blocks, jnp.maximum(jnp.max(count), 1)),
            in_specs=[
                [pl.BlockSpec((None, *x.shape[1:]), of_row) for x in masks],
                query_block,
                node_block,
                node_block,
                cache_block,
                cache_block,
            ],
            out_specs=query_block,
            scratch_shapes=[
                pltpu.VMEM((stacked, cut.width), q.dtype),
                pltpu.VMEM((stacked, 1), jnp.float32),
                pltpu.VMEM((stacked, 1), jnp.float32),
                pltpu.VMEM((stacked, cut.width), jnp.float32),
            ],
        ),
        out_shape=jax.ShapeDtypeStruct(q.shape, jnp.float32),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        cost_estimate=pl.CostEstimate(
            flops=4 * pairs,
            bytes_accessed=batch * (read * q.dtype.itemsize + queries * width * 4),
            transcendentals=pairs // head_dim,
        ),
        name="tree_attention",
        interpret=interpret,
    )(*scalars, masks, q, keys, values, cache.keys, cache.values)


def _live_blocks(length, cut, window):
    """First block of each row of which something is seen, and how many there are.

    The node nearest to the root, at depth 0 or below, sees furthest back.
    """
    length = jnp.minimum(length, cut.capacity)
    past = -(-length // cut.rows)
    if window is None:
        return jnp.zeros_like(length), past
    last = -(-cut.capacity // cut.rows) - 1
    first = jnp.minimum(jnp.maximum(length - window + 1, 0) // cut.rows, last)
    return first, jnp.maximum(past - first, 0)


def _masks(tree, cut, window):
    """Who sees whom on the tree, `[B, n, N]`; with a window, also depths `[B, n, 1]`.

    Padded to whole registers of queries.
    """
    seen = tree.ancestors[:, -cut.queries :]
    rows = ((0, 0), (0, cut.padded - cut.queries), (0, 0))
    if window is None:
        return [jnp.pad(seen.astype(jnp.int8), rows)]
    depth = tree.depth[:, -cut.queries :, None]
    seen &= tree.depth[:, None] > depth - window
    return [jnp.pad(seen.astype(jnp.int8), rows), jnp.pad(depth, rows)]

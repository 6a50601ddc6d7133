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

The queries that share a key head are stacked as rows of one matrix. Heads narrower than
the 128 lanes of a register are taken several at once (a slab), each query with zeros in
the lanes of the other heads: those lanes would idle anyway, and the cache is never
shifted within a register.

Numerics: products of float32 in full float32; of bfloat16 with float32 accumulation, the
probabilities rounded to bfloat16 as flash attention does; softmax in float32.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.tree_attention import sight, tpu_blocks
from pallas_kernels.tree_attention.tpu_blocks import LANES


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
) -> str | None:
    """Why the kernel cannot serve these arguments, if it cannot."""
    dtypes = {jnp.dtype(x.dtype) for x in (q, keys, values, cache_keys, cache_values)}
    if dtypes not in ({jnp.dtype(jnp.float32)}, {jnp.dtype(jnp.bfloat16)}):
        names = sorted(dtype.name for dtype in dtypes)
        return f"activations and cache must be all float32 or all bfloat16, got {names}"
    if keys.shape[2] % LANES:
        return f"the minor dimension of a cache must be a multiple of {LANES}"
    if tpu_blocks.cut(q, keys, cache_keys, head_dim) is None:
        return (
            f"{q.shape[1]} queries of {keys.shape[1]} nodes exceed the on-chip memory"
        )
    return None


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
    interpret=False,
):
    """Lets the last nodes of a tree attend; the contract is in `tree_attention`.

    Args:
        tree: topology of `N` nodes.
        q: `[B, n, H d]`.
        keys: `[B, N, K d]`.
        values: `[B, N, K d]`.
        cache_keys: `[L, B, M, K d]`, finite.
        cache_values: `[L, B, M, K d]`, finite.
        length: `[B]` int32.
        layer: `[]` int32, which of the `L` caches.
        head_dim: `d`.
        window: positions that a node sees, or `None`.
        scale: factor of the scores, positive.
        interpret: as in `pl.pallas_call`.

    Returns:
        `[B, n, H d]` float32.
    """
    cut = tpu_blocks.cut(q, keys, cache_keys, head_dim)
    batch, queries, width = q.shape
    first, count = _live_blocks(length, cut, window)
    scalars = (jnp.reshape(layer, (1,)), length, first, count)
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
        functools.partial(_kernel, cut=cut, window=window, scale=scale),
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
    )(*scalars, masks, q, keys, values, cache_keys, cache_values)


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


def _kernel(
    layer_ref,
    length_ref,
    first_ref,
    count_ref,
    mask_refs,  # [padded n, N] int8; with a window, also depths [padded n, 1]
    q_ref,  # [n, query heads * d]
    keys_ref,  # [N, heads * d]
    values_ref,
    cache_keys_ref,  # [rows, heads * d]
    cache_values_ref,
    y_ref,  # [n, query heads * d]
    queries,  # [slabs * stacked, slab * d]
    top,  # [slabs * stacked, 1]
    total,  # [slabs * stacked, 1]
    acc,  # [slabs * stacked, slab * d]
    *,
    cut,
    window,
    scale,
):
    row, step = pl.program_id(0), pl.program_id(2)
    softmax = _Softmax(queries, top, total, acc)
    attend_to = functools.partial(_attend_to, softmax, cut, scale)

    @pl.when(step == 0)
    def _():
        if cut.slab > 1:
            queries[...] = jnp.zeros_like(queries)
        for rows, lanes, own in _places(cut):
            queries[rows, lanes] = q_ref[:, own]
        top[...] = jnp.full_like(top, sight.HIDDEN)
        total[...] = jnp.zeros_like(total)
        acc[...] = jnp.zeros_like(acc)
        seen = mask_refs[0][...].astype(jnp.int32) != 0
        attend_to(_Source(keys_ref, values_ref, seen, None))

    @pl.when(step < count_ref[row])
    def _():
        start = (first_ref[row] + step) * cut.rows
        slots = start + jax.lax.broadcasted_iota(jnp.int32, (1, cut.rows), 1)
        seen = slots < length_ref[row]
        if window is not None:
            seen &= slots > length_ref[row] + mask_refs[1][...] - window
        within = None
        if cut.capacity % cut.rows:  # the last block reaches beyond the array
            slots = start + jax.lax.broadcasted_iota(jnp.int32, (cut.rows, 1), 0)
            within = slots < cut.capacity
        attend_to(_Source(cache_keys_ref, cache_values_ref, seen, within))

    @pl.when(step == pl.num_programs(2) - 1)
    def _():
        for rows, lanes, own in _places(cut):
            y_ref[:, own] = acc[rows, lanes] * (1.0 / total[rows])


def _places(cut):
    """Rows and lanes of each query head in the scratch, and its lanes in `q`."""
    for head in range(cut.heads * cut.group):
        slab, place = divmod(head, cut.slab * cut.group)
        rows = pl.ds(slab * cut.stacked + place * cut.padded, cut.queries)
        lanes = pl.ds(place // cut.group * cut.dim, cut.dim)
        yield rows, lanes, pl.ds(head * cut.dim, cut.dim)


class _Softmax(NamedTuple):
    """The scratch of the online softmax: queries, `m`, `l` and `a`."""

    queries: jax.Array
    top: jax.Array
    total: jax.Array
    acc: jax.Array


class _Source(NamedTuple):
    """What is attended to.

    Attributes:
        keys: `[J, heads d]`.
        values: `[J, heads d]`.
        seen: `[padded n or 1, J]` bool.
        within: `[J, 1]` bool, where `values` is defined; `None` everywhere.
    """

    keys: jax.Array
    values: jax.Array
    seen: jax.Array
    within: jax.Array | None


def _attend_to(softmax, cut, scale, source):
    """One step of the online softmax, for all heads of a block."""
    for first in range(0, cut.slabs, cut.together):
        slabs = range(first, first + cut.together)
        update = functools.partial(_update, softmax, cut, scale, source, slabs)
        if cut.tiles == 1:
            update(0)
        else:
            pl.loop(0, cut.stacked, step=cut.tile)(update)


def _update(softmax, cut, scale, source, slabs, start):
    """One step for a tile of some slabs, each operation for all before the next.

    A slab alone would wait at every one of them for the result of the last.
    """
    tiles = [pl.ds(slab * cut.stacked + start, cut.tile) for slab in slabs]
    lanes = [pl.ds(slab * cut.width, cut.width) for slab in slabs]
    rows = pl.ds(slabs[0] * cut.stacked + start, len(slabs) * cut.tile)
    scores = [
        _dot(softmax.queries[own], source.keys[:, head], 1)
        for own, head in zip(tiles, lanes, strict=True)
    ]
    scores = jnp.concatenate(scores).reshape(-1, cut.padded, source.keys.shape[0])
    scores = jnp.where(source.seen[None], scores, sight.HIDDEN)
    scores = scores.reshape(-1, source.keys.shape[0])
    before = softmax.top[rows]
    now = jnp.maximum(before, jnp.max(scores, axis=1, keepdims=True))
    base2 = scale * math.log2(math.e)
    shrink = jnp.exp2((before - now) * base2)
    weights = jnp.exp2((scores - now) * base2)
    softmax.top[rows] = now
    sums = jnp.sum(weights, axis=1, keepdims=True)
    softmax.total[rows] = softmax.total[rows] * shrink + sums
    weights = weights.astype(source.values.dtype)
    read = []
    for i, head in enumerate(lanes):
        values = source.values[:, head]
        if source.within is not None:
            values = jnp.where(source.within, values, jnp.zeros_like(values))
        read.append(_dot(weights[i * cut.tile : (i + 1) * cut.tile], values, 0))
    softmax.acc[rows] = softmax.acc[rows] * shrink + jnp.concatenate(read)


def _dot(a, b, axis):
    """Contracts the last axis of `a` with an axis of `b`."""
    if 1 in b.shape:  # one key: no matrix product, and Mosaic has it in float32 only
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return jax.lax.dot_general(
        a,
        b,
        (((1,), (axis,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )

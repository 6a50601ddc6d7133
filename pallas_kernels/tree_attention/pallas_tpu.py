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
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.tree_attention import sight

LANES, SUBLANES = 128, 8
ROWS = (1024, 512, 256, 128)  # of the cache in a block
BLOCK_BYTES = 2**20  # of keys: beyond it, larger blocks do not read faster
SLABS = 8  # in a block: they are unrolled
TILE = 256  # queries at once
VMEM_BYTES = 11 * 2**20  # of the 15 MB that every TPU has, the rest to the compiler


class _Blocks(NamedTuple):
    """How the work is cut up; counts of heads are of key heads."""

    queries: int  # n
    nodes: int  # N
    group: int  # query heads to a key head
    dim: int  # of a head
    slab: int  # heads side by side in one product
    heads: int  # in a block
    rows: int  # of the cache in a block
    capacity: int  # M

    @property
    def padded(self) -> int:
        """`n` up to whole registers, of 16 rows of bfloat16 or half of one."""
        return SUBLANES if self.queries <= SUBLANES else _up(self.queries, 2 * SUBLANES)

    @property
    def tiles(self) -> int:
        """Parts of the stacked queries of a slab."""
        return -(-self.slab * self.group // max(1, TILE // self.padded))

    @property
    def tile(self) -> int:
        """Stacked queries at once: whole sets of nodes, as they share a mask."""
        sets = -(-self.slab * self.group // self.tiles)
        rows = self.padded * sets
        return rows if self.tiles == 1 else _up(rows, 2 * SUBLANES)

    @property
    def width(self) -> int:
        """Lanes of a slab."""
        return self.slab * self.dim

    @property
    def slabs(self) -> int:
        return self.heads // self.slab

    def vmem(self, itemsize: int) -> int:
        """Bytes of two buffers of every block, the scratch and one tile of scores."""
        width = self.heads * self.dim
        blocks = (2 * self.rows + 2 * self.nodes) * width * itemsize
        blocks += self.queries * self.group * width * (itemsize + 4)
        blocks += self.padded * (self.nodes + 4 * LANES)
        scratch = _up(self.width, LANES) * (itemsize + 4) + 2 * 4 * LANES
        scratch *= self.slabs * self.tiles * self.tile
        scores = self.tile * max(self.rows, self.nodes) * (8 + itemsize)
        return 2 * blocks + scratch + scores


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _cut(q, keys, cache_keys, head_dim) -> _Blocks | None:
    """The best blocks that fit, or `None`.

    Half a block is read in vain at the end of a cache, and a step costs as much as
    reading some 200 kB: 512 rows if possible, then many heads, then more rows.
    """
    heads = keys.shape[2] // head_dim
    slab = math.lcm(head_dim, LANES) // head_dim
    slab = slab if heads % slab == 0 else heads
    itemsize = jnp.dtype(keys.dtype).itemsize
    fit = []
    for count, rows in itertools.product(range(1, SLABS + 1), ROWS):
        blocks = _Blocks(
            queries=q.shape[1],
            nodes=keys.shape[1],
            group=q.shape[2] // keys.shape[2],
            dim=head_dim,
            slab=slab,
            heads=slab * count,
            rows=min(rows, cache_keys.shape[2]),
            capacity=cache_keys.shape[2],
        )
        size = blocks.rows * blocks.heads * head_dim * itemsize
        if heads % blocks.heads == 0 and (size <= BLOCK_BYTES or rows == ROWS[-1]):
            if blocks.vmem(itemsize) <= VMEM_BYTES:
                fit.append(((min(blocks.rows, 512), blocks.heads, blocks.rows), blocks))
    return max(fit)[1] if fit else None


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
    if _cut(q, keys, cache_keys, head_dim) is None:
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
    cut = _cut(q, keys, cache_keys, head_dim)
    batch, queries, width = q.shape
    first, count = _live_blocks(length, cut, window)
    scalars = (jnp.reshape(layer, (1,)), length, first, count)
    scalars = [x.astype(jnp.int32) for x in scalars]
    seen, depth = _masks(tree, cut, window)
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
    stack = (cut.slabs, cut.tiles * cut.tile)
    live = cut.capacity if window is None else min(cut.capacity, window + cut.rows)
    pairs = batch * queries * width * (live + cut.nodes)
    read = 2 * (live + cut.nodes) * keys.shape[2] + queries * width
    return pl.pallas_call(
        functools.partial(_kernel, cut=cut, window=window, scale=scale),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(batch, head_blocks, jnp.maximum(jnp.max(count), 1)),
            in_specs=[
                pl.BlockSpec((None, *seen.shape[1:]), of_row),
                pl.BlockSpec((None, *depth.shape[1:]), of_row),
                query_block,
                node_block,
                node_block,
                cache_block,
                cache_block,
            ],
            out_specs=query_block,
            scratch_shapes=[
                pltpu.VMEM((*stack, cut.width), q.dtype),
                pltpu.VMEM((*stack, 1), jnp.float32),
                pltpu.VMEM((*stack, 1), jnp.float32),
                pltpu.VMEM((*stack, cut.width), jnp.float32),
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
    )(*scalars, seen, depth, q, keys, values, cache_keys, cache_values)


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
    """Who sees whom on the tree, `[B, n, N]`, and depths `[B, n, 1]`, rows padded."""
    depth = tree.depth[:, -cut.queries :, None]
    seen = tree.ancestors[:, -cut.queries :]
    if window is not None:
        seen &= tree.depth[:, None] > depth - window
    rows = ((0, 0), (0, cut.padded - cut.queries), (0, 0))
    return jnp.pad(seen.astype(jnp.int8), rows), jnp.pad(depth, rows)


def _kernel(
    layer_ref,
    length_ref,
    first_ref,
    count_ref,
    seen_ref,  # [padded n, N] int8
    depth_ref,  # [padded n, 1]
    q_ref,  # [n, query heads * d]
    keys_ref,  # [N, heads * d]
    values_ref,
    cache_keys_ref,  # [rows, heads * d]
    cache_values_ref,
    y_ref,  # [n, query heads * d]
    queries,  # [slabs, stacked, slab * d]
    top,  # [slabs, stacked, 1]
    total,  # [slabs, stacked, 1]
    acc,  # [slabs, stacked, slab * d]
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
        for slab, rows, lanes, own in _places(cut):
            queries[slab, rows, lanes] = q_ref[:, own]
        top[...] = jnp.full_like(top, sight.HIDDEN)
        total[...] = jnp.zeros_like(total)
        acc[...] = jnp.zeros_like(acc)
        seen = seen_ref[...].astype(jnp.int32) != 0
        attend_to(keys_ref, values_ref, seen)

    @pl.when(step < count_ref[row])
    def _():
        start = (first_ref[row] + step) * cut.rows
        slots = start + jax.lax.broadcasted_iota(jnp.int32, (1, cut.rows), 1)
        seen = slots < length_ref[row]
        if window is not None:
            seen &= slots > length_ref[row] + depth_ref[...] - window
        within = None
        if cut.capacity % cut.rows:  # the last block reaches beyond the array
            slots = start + jax.lax.broadcasted_iota(jnp.int32, (cut.rows, 1), 0)
            within = slots < cut.capacity
        attend_to(cache_keys_ref, cache_values_ref, seen, within)

    @pl.when(step == pl.num_programs(2) - 1)
    def _():
        for slab, rows, lanes, own in _places(cut):
            y_ref[:, own] = acc[slab, rows, lanes] * (1.0 / total[slab, rows])


def _places(cut):
    """Where each query head lies: its slab, rows and lanes there, and lanes of `q`."""
    for head in range(cut.heads * cut.group):
        slab, place = divmod(head, cut.slab * cut.group)
        rows = pl.ds(place * cut.padded, cut.queries)
        lanes = pl.ds(place // cut.group * cut.dim, cut.dim)
        yield slab, rows, lanes, pl.ds(head * cut.dim, cut.dim)


class _Softmax(NamedTuple):
    """The scratch of the online softmax: queries, `m`, `l` and `a`."""

    queries: jax.Array
    top: jax.Array
    total: jax.Array
    acc: jax.Array


def _attend_to(softmax, cut, scale, keys_ref, values_ref, seen, within=None):
    """One step of the online softmax, for all heads of a block.

    Args:
        softmax: the scratch.
        cut: sizes.
        scale: factor of the scores.
        keys_ref: `[J, heads d]`.
        values_ref: `[J, heads d]`.
        seen: `[padded n or 1, J]` bool.
        within: `[J, 1]` bool, where `values` is defined; `None` everywhere.
    """
    for slab in range(cut.slabs):
        lanes = pl.ds(slab * cut.width, cut.width)
        keys, values = keys_ref[:, lanes], values_ref[:, lanes]
        if within is not None:
            values = jnp.where(within, values, jnp.zeros_like(values))

        def update(start, slab=slab, keys=keys, values=values):
            rows = pl.ds(start, cut.tile)
            before = softmax.top[slab, rows]
            scores = _score(softmax.queries[slab, rows], keys, seen, cut.padded)
            now = jnp.maximum(before, jnp.max(scores, axis=1, keepdims=True))
            base2 = scale * math.log2(math.e)
            shrink = jnp.exp2((before - now) * base2)
            weights = jnp.exp2((scores - now) * base2)
            sums = jnp.sum(weights, axis=1, keepdims=True)
            softmax.top[slab, rows] = now
            softmax.total[slab, rows] = softmax.total[slab, rows] * shrink + sums
            read = _dot(weights.astype(values.dtype), values, 0)
            softmax.acc[slab, rows] = softmax.acc[slab, rows] * shrink + read

        if cut.tiles == 1:
            update(0)
        else:
            pl.loop(0, cut.tiles * cut.tile, step=cut.tile)(update)


def _score(queries, keys, seen, nodes):
    """Masked scores `[tile, J]`; the mask is that of a set of nodes."""
    scores = _dot(queries, keys, 1)
    by_head = scores.reshape(-1, nodes, scores.shape[1])
    return jnp.where(seen[None], by_head, sight.HIDDEN).reshape(scores.shape)


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

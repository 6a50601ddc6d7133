"""A grid step of attention on TPU: the online softmax over one block of the cache.

The queries that share a key head are stacked as rows of one matrix. Heads narrower than
the 128 lanes of a register are taken several at once (a slab), each query with zeros in
the lanes of the other heads: those lanes would idle anyway, and the cache is never
shifted within a register.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.tree_attention import sight


def attend_kernel(
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
    """Attends to the nodes at a row's first step, and to a block of the cache at each."""
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

"""What one grid step of a TPU kernel does for a block of heads of one row.

The parts that differ between heads lie side by side on the lanes: a tile of values is
`[v_1 | v_2]`, and a state block is `[heads P, S]`, so that a product serves two heads of
64, or a whole block. What the heads of a row share is computed at the row's first block
and kept in scratch memory, already in the form in which the blocks take it.

Notation is that of `gated/xla.py`: a token decays the state by `exp(g)` and writes `v` with
the weight `w`. `steps` are `dt` of Mamba-2, with `g = dt A` and `w = dt`, where there are
`rates` `A`, and else `g` itself, with `w = 1`. `[T, H]` is a value of all heads, `h` the
heads of a block and `u` those of a tile.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.gated import tpu_decays, tpu_lanes
from pallas_kernels.gated.tpu_blocks import BlockShape
from pallas_kernels.gated.tpu_lanes import NT, TN, dot, lanes

HEADS_AXIS = 1  # of the grid


class Scalars(NamedTuple):
    """Known before a step begins; absent entries are `()`."""

    layer: Any  # [1]
    length: Any  # [B] of the ring
    fold: Any  # [B]


class Operands(NamedTuple):
    """The blocks that a step reads; absent entries are `()`."""

    state: Any  # [h P, S]
    mask: Any  # [N, N] ancestors, 0/1 in bfloat16
    values: Any  # [T, h P]
    steps: Any  # [T, H]
    keys: Any  # [T, g S]
    queries: Any  # [m, g S]
    rates: Any  # one of [1, H], or none
    own: Any  # the op's
    ring: Any  # values, steps and keys


class RingScratch(NamedTuple):
    """What is known of the ring, for all heads and for those of the block."""

    weights: Any  # [blocks, 8 + W, 3 h], see `store_weights`
    scores: Any  # [g, m, W]
    writes: Any  # [8 + W, h P], see `_store_writes`


class Scratch(NamedTuple):
    """Fast memory that is kept from step to step; absent entries are `()`."""

    own: Any  # the op's
    ring: Any
    folded: Any  # [h P, S], and the semaphore of its copy


class Op(NamedTuple):
    """How an op reads the state: functions of `shape, operands, scratch, ...`.

    Attributes:
        row: prepares what all heads of a row share.
        group: prepares what the heads of the block's groups share.
        block: reads, `..., outputs, ring, block`.
    """

    row: Callable[..., None]
    group: Callable[..., None]
    block: Callable[..., None]


def verify_kernel(op: Op, shape: BlockShape, scalars, operands, *rest) -> None:
    """Reads the state at the queries, and folds the ring into it where asked for."""
    *outputs, scratch = rest
    row, block = pl.program_id(0), pl.program_id(HEADS_AXIS)
    ring = scratch.ring or None
    ring_values, ring_steps, ring_keys = operands.ring or (None,) * 3

    def of_the_row():
        op.row(shape, operands, scratch.own)
        if ring:
            steps = ring_steps, operands.rates
            store_weights(scalars.length[row], *steps, ring.weights)

    def of_the_group():
        op.group(shape, operands, scratch.own)
        if ring:
            live = scalars.length[row]
            _store_ring_scores(shape, live, ring_keys, operands.queries, ring.scores)

    tpu_lanes.every(shape.blocks, shape.blocks, block, of_the_row)
    tpu_lanes.every(shape.blocks_per_group, shape.blocks, block, of_the_group)
    if ring:
        _store_writes(shape, ring.weights[block], ring_values, ring.writes)
    if scratch.folded:
        *outputs, state_out = outputs
        folded, semaphore = scratch.folded
        size = shape.heads * shape.dim
        out = state_out.at[scalars.layer[0], row, pl.ds(block * size, size)]
        copy = pltpu.make_async_copy(folded, out, semaphore)

        @pl.when(scalars.fold[row] != 0)
        def _():
            _fold_block(shape, operands.state, ring.writes, ring_keys, folded)
            copy.start()

    op.block(shape, operands, scratch.own, outputs, ring, block)
    if scratch.folded:

        @pl.when(scalars.fold[row] != 0)
        def _():
            copy.wait()


def fold_kernel(shape: BlockShape, state, inputs, rates, *rest) -> None:
    """Advances a state over a chain."""
    block = pl.program_id(HEADS_AXIS)
    values, steps, keys = inputs
    out, weights, writes = rest

    def of_the_row():
        store_weights(values.shape[0], steps, rates, weights)

    tpu_lanes.every(shape.blocks, shape.blocks, block, of_the_row)
    _store_writes(shape, weights[block], values, writes)
    _fold_block(shape, state, writes, keys, out)


def store_sources(shape: BlockShape, x: jax.Array, out: Any) -> None:
    """Stores `[N, H]` as rows of the tiles, `[tiles, u / v, v N]`.

    With `v` the heads that share a row of scores.
    """
    rows = x.T
    for t in range(out.shape[0]):
        mine = rows[t * shape.tile_heads : (t + 1) * shape.tile_heads]
        if shape.score_heads > 1:
            mine = jnp.concatenate([mine] * shape.score_heads, axis=1)
            mine = [mine[h : h + 1] for h in range(shape.score_heads)]
            mine = tpu_lanes.select_heads(mine, shape.padded)
        out[t] = mine


def on_paths(shape: BlockShape, mask: Any) -> jax.Array:
    """`[n, N]`, one where a node is an ancestor of a query, or it, and else zero."""
    return mask[...].astype(jnp.float32)[shape.first : shape.nodes]


def store_scores(shape: BlockShape, seen: jax.Array, queries, keys, out) -> None:
    """`q . k` where a node is seen, of every group of the block, `[g, m, v N]`."""
    for g in range(shape.groups):
        here = lanes(g, shape.width)
        score = dot(
            queries[:, here], tpu_lanes.pad_rows(keys[:, here], shape.padded), NT
        )
        score = jnp.where(seen > 0, score, 0.0)
        out[g] = jnp.concatenate([score] * shape.score_heads, axis=1)


def _store_ring_scores(shape, length, keys, queries, scores):
    """`q . k` of the ring's live tokens, `[g, m, W]`."""
    for g in range(shape.groups):
        here = lanes(g, shape.width)
        score = dot(queries[:, here], keys[:, here], NT)
        slot = jax.lax.broadcasted_iota(jnp.int32, score.shape, 1)
        scores[g] = jnp.where(slot < length, score, 0.0).astype(scores.dtype)


def store_weights(length: Any, steps: Any, rates: Any, columns: Any) -> None:
    """Decay from the initial state, and from each write, to the end of the chain.

    columns `[blocks, 8 + W, 3 h]`: eight rows `exp(R)`, then one `exp(R_k) w_k` a token.
    """
    steps = steps[...]
    shape = (steps.shape[0], steps.shape[0])
    after = jax.lax.broadcasted_iota(jnp.int32, shape, 1) > (
        jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    )
    after = after.astype(jnp.float32).astype(jnp.bfloat16)
    live = jax.lax.broadcasted_iota(jnp.int32, steps.shape, 0) < length
    steps = jnp.where(live, steps, 0.0)
    decays = tpu_decays.log_decays(steps, rates)
    total = jnp.exp2(jnp.sum(decays, axis=0, keepdims=True))
    weights = jnp.exp2(tpu_lanes.mask_sums(after, decays))
    weights = weights * steps if rates else jnp.where(live, weights, 0.0)
    total = jnp.broadcast_to(total, (8, steps.shape[1]))
    tpu_lanes.store_columns(jnp.concatenate([total, weights], axis=0), columns)


def _store_writes(shape, columns, values, writes):
    """The weights of a chain on the lanes of their heads, its tokens' times `v`."""
    for t in range(shape.tiles):
        here, head = lanes(t, shape.tile), t * shape.tile_heads
        factors = tpu_lanes.spread(columns, head, shape.tile_heads, shape.dim)
        writes[:8, here] = factors[:8]
        writes[8:, here] = values[:, here].astype(jnp.float32) * factors[8:]


def _fold_block(shape, state, writes, keys, out):
    """`exp(R) S_0 + sum_k exp(R_k) w_k v_k k_k^T`, `[h P, S]`."""
    for t in range(shape.tiles):
        key = keys[:, lanes(shape.group_of(t), shape.width)]
        values = writes[8:, lanes(t, shape.tile)]
        update = tpu_lanes.dot_parts(values, key, key.dtype, TN)
        for h in range(shape.tile_heads):
            begin = t * shape.tile + h * shape.dim
            here = slice(begin, begin + shape.dim)
            own = slice(h * shape.dim, (h + 1) * shape.dim)
            out[here] = writes[:1, begin : begin + 1] * state[here] + update[own]


def read_past(shape: BlockShape, t: Any, operands: Operands, ring: Any) -> jax.Array:
    """What the state and the ring give for the queries in tile `t`, `[m, u P]`.

    At the root: the decay of a query's path is left to be applied.
    """
    here, group = lanes(t, shape.tile), shape.group_of(t)
    query, state = operands.queries[:, lanes(group, shape.width)], operands.state[here]
    past = tpu_lanes.dot_parts(query, state, query.dtype, NT)
    if ring:
        scores, writes = ring.scores[group], ring.writes[8:, here]
        past *= ring.writes[:1, here]
        past += tpu_lanes.dot_parts(scores, writes.astype(scores.dtype), query.dtype)
    return past

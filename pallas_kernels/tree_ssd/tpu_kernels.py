"""What one grid step of the TPU kernels does: a block of heads of one row.

The parts that differ between heads lie side by side on the lanes: a tile of values is
`[x_1 | x_2]`, and a state block is `[heads P, S]`, so that a product serves two heads of
64, or a whole block. What the heads of a row share is computed at the row's first block
and kept in scratch memory, already in the form in which the blocks take it.

`shape` holds the static sizes, `[T, H]` is a value of all heads, `h` the heads of a block
and `u` those of a tile.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

HEADS_AXIS = 1  # of the grid
LANES = 128
QUERY_ROWS = 64  # scores of more rows than this do not fit the registers

_NN = (((1,), (0,)), ((), ()))
_NT = (((1,), (1,)), ((), ()))
_TN = (((0,), (0,)), ((), ()))

_UNDERFLOW = -300.0  # 2^-300 is zero in float32: a stronger decay changes nothing


class BlockShape(NamedTuple):
    """Static sizes of a grid step."""

    blocks: int  # of heads in a row
    heads: int  # of the block
    dim: int
    width: int
    groups: int  # of the block
    blocks_per_group: int  # 1 if a block has whole groups
    tile_heads: int  # heads of one group, side by side on the lanes
    nodes: int
    padded: int  # nodes that the scores have columns for
    queries: int

    @property
    def tile(self) -> int:
        return self.tile_heads * self.dim

    @property
    def tiles(self) -> int:
        return self.heads // self.tile_heads

    @property
    def score_heads(self) -> int:
        """Heads that share a row of scores: those of a tile where they are short."""
        return self.tile_heads if self.short else 1

    @property
    def short(self) -> bool:
        """Whether one tile of scores holds all nodes."""
        return self.padded <= QUERY_ROWS


def _dot(a, b, dims):
    """A product accumulated in float32, and exact to it where the operands are."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(
        a, b, dims, precision=precision, preferred_element_type=jnp.float32
    )


def _parts(x, count):
    """Cuts float32 into bfloat16-sized parts that sum to it, the largest first.

    By its bits: a compiler may see through a round trip of conversions.
    """
    parts = []
    for _ in range(count - 1):
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32) & jnp.uint32(0xFFFF0000)
        head = jax.lax.bitcast_convert_type(bits, jnp.float32)
        parts.append(head)
        x = x - head
    return [*parts, x]


def _mask_sums(mask, x):
    """`mask @ x` for a 0/1 mask in bfloat16, exact to float32."""
    products = [_dot(mask, part.astype(mask.dtype), _NN) for part in _parts(x, 3)]
    return products[2] + products[1] + products[0]


def _log_decays(dt, A):
    """`log2` of the decay of every token, `[T, H]`, never above 0."""
    return jnp.clip(dt * (A * math.log2(math.e)), _UNDERFLOW, 0.0)


def _store_columns(x, out):
    """Stores `[T, H]` as the left operands of `_spread`, `[blocks, T, 3 h]`."""
    blocks, _, width = out.shape
    heads = width // 3
    parts = _parts(x, 3)
    for block in range(blocks):
        here = [part[:, block * heads : (block + 1) * heads] for part in parts]
        out[block] = jnp.concatenate(here, axis=1).astype(out.dtype)


def _spread(columns, first, count, copies):
    """Copies heads to lanes: `[i, h] -> [i, (h - first) * copies + c]`, exactly."""
    heads = columns.shape[1] // 3
    shape = (heads, count * copies)
    begin = (jax.lax.broadcasted_iota(jnp.int32, shape, 0) - first) * copies
    lane = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    owner = ((lane >= begin) & (lane < begin + copies)).astype(jnp.float32)
    owner = jnp.concatenate([owner] * 3, axis=0).astype(columns.dtype)
    return _dot(columns, owner, _NN)


def _select_heads(per_head, dim):
    """Takes the lanes of every head from its own `[i, u P]`."""
    out = per_head[0]
    lane = jax.lax.broadcasted_iota(jnp.int32, out.shape, 1)
    for h in range(1, len(per_head)):
        out = jnp.where(lane >= h * dim, per_head[h], out)
    return out


def _block_diagonal(x, dim):
    """`[i, h P + p] -> [h' N + i, h P + p]`, zero where `h' != h`."""
    if x.shape[1] == dim:
        return x
    packed = x.dtype == jnp.bfloat16 and x.shape[0] % 16 == 0
    words = pltpu.bitcast(x, jnp.uint32) if packed else x
    lane = jax.lax.broadcasted_iota(jnp.int32, words.shape, 1)
    blocks = []
    for begin in range(0, x.shape[1], dim):
        own = (lane >= begin) & (lane < begin + dim)
        block = jnp.where(own, words, jnp.zeros_like(words))
        blocks.append(pltpu.bitcast(block, x.dtype) if packed else block)
    return jnp.concatenate(blocks, axis=0)


def _pad_rows(x, rows):
    if x.shape[0] == rows:
        return x
    zeros = jnp.zeros((rows - x.shape[0], x.shape[1]), jnp.float32)
    return jnp.concatenate([x.astype(jnp.float32), zeros], axis=0).astype(x.dtype)


def _lanes(index, size):
    """`size` lanes or rows from `index * size` on, the index static or not."""
    if isinstance(index, int):
        return slice(index * size, (index + 1) * size)
    return pl.ds(pl.multiple_of(index * size, size), size)


def _every(period, block, shape, run):
    """Runs at every `period`-th block of a row."""
    if period == 1 or shape.blocks == 1:
        run()
    else:
        pl.when(jax.lax.rem(block, period) == 0)(run)


def _query_tiles(shape):
    """Rows of queries, and how many nodes they may descend from."""
    for begin in range(0, shape.queries, QUERY_ROWS):
        end = min(begin + QUERY_ROWS, shape.queries)
        # Parents come first: no path leads beyond the tile's own nodes.
        last = shape.nodes - shape.queries + end
        reach = shape.padded if shape.padded <= LANES else -(-last // LANES) * LANES
        yield slice(begin, end), reach


def _store_paths(shape, mask, dt, A, columns, sources):
    """Stores the path sums `L_i` of the queries, and `L_j` and `dt_j` of the nodes.

    columns `[blocks, n, 3 h]`; sources `[2, blocks * tiles, u / v, v N]` with `v` the
    heads that share a row of scores.
    """
    dt = _pad_rows(dt[...], shape.padded)
    paths = _mask_sums(mask[...], _log_decays(dt, A[...]))
    _store_columns(paths[shape.nodes - shape.queries : shape.nodes], columns)
    for i, rows in enumerate((paths.T, dt.T)):
        for t in range(sources.shape[1]):
            mine = rows[t * shape.tile_heads : (t + 1) * shape.tile_heads]
            if shape.score_heads > 1:
                mine = jnp.concatenate([mine] * shape.score_heads, axis=1)
                mine = [mine[h : h + 1] for h in range(shape.score_heads)]
                mine = _select_heads(mine, shape.padded)
            sources[i, t] = mine


def _store_scores(shape, mask, B, C, scores):
    """`M (C . B)` of every group of the block, `[g, n, v N]`."""
    first = shape.nodes - shape.queries
    on_path = mask[...].astype(jnp.float32)[first : shape.nodes] > 0
    for g in range(shape.groups):
        here = _lanes(g, shape.width)
        score = _dot(C[:, here], _pad_rows(B[:, here], shape.padded), _NT)
        score = jnp.where(on_path, score, 0.0)
        scores[g] = jnp.concatenate([score] * shape.score_heads, axis=1)


def _store_ring_scores(shape, length, B, C, scores):
    """`C . B` of the ring's live tokens, `[g, n, W]`."""
    for g in range(shape.groups):
        here = _lanes(g, shape.width)
        score = _dot(C[:, here], B[:, here], _NT)
        slot = jax.lax.broadcasted_iota(jnp.int32, score.shape, 1)
        scores[g] = jnp.where(slot < length, score, 0.0).astype(scores.dtype)


def _store_weights(length, dt, A, columns):
    """What is left at a chain's end of the state before it, and of every write.

    columns `[blocks, 8 + W, 3 h]`: eight rows `exp(R)`, then one `exp(R_k) dt_k` a token.
    """
    dt = dt[...]
    shape = (dt.shape[0], dt.shape[0])
    after = jax.lax.broadcasted_iota(jnp.int32, shape, 1) > (
        jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    )
    after = after.astype(jnp.float32).astype(jnp.bfloat16)
    live = jax.lax.broadcasted_iota(jnp.int32, dt.shape, 0) < length
    dt = jnp.where(live, dt, 0.0)
    decays = _log_decays(dt, A[...])
    total = jnp.exp2(jnp.sum(decays, axis=0, keepdims=True))
    weights = jnp.exp2(_mask_sums(after, decays)) * dt
    total = jnp.broadcast_to(total, (8, dt.shape[1]))
    _store_columns(jnp.concatenate([total, weights], axis=0), columns)


def _store_writes(shape, columns, x, writes):
    """The weights of a chain on the lanes of their heads, its tokens' times `x`."""
    for t in range(shape.tiles):
        here = _lanes(t, shape.tile)
        factors = _spread(columns, t * shape.tile_heads, shape.tile_heads, shape.dim)
        writes[:8, here] = factors[:8]
        writes[8:, here] = x[:, here].astype(jnp.float32) * factors[8:]


def _fold_block(shape, state, writes, B, out):
    """`exp(R) S_0 + sum_k exp(R_k) dt_k x_k B_k^T`, `[h P, S]`."""
    for t in range(shape.tiles):
        group = t * shape.groups // shape.tiles
        keys = B[:, _lanes(group, shape.width)]
        values = writes[8:, _lanes(t, shape.tile)]
        if keys.dtype == jnp.float32:
            update = _dot(values, keys, _TN)
        else:
            parts = [part.astype(keys.dtype) for part in _parts(values, 2)]
            update = sum(_dot(part, keys, _TN) for part in parts)
        for h in range(shape.tile_heads):
            begin = t * shape.tile + h * shape.dim
            here = slice(begin, begin + shape.dim)
            own = slice(h * shape.dim, (h + 1) * shape.dim)
            out[here] = writes[:1, begin : begin + 1] * state[here] + update[own]


def _weigh(shape, path, source, scores, out_dtype, rows, reach):
    """Weights `M_ij (C_i . B_j) exp(L_i - L_j) dt_j` of a tile of heads.

    path `[i, u c]`, `c` copies a head; source `L_j` and `dt_j`, `[u / v, v N]`; scores
    `[n, v N]`. Returns `[i, u N]`, or heads below each other, `[u i, reach]`, where the
    rows are long.
    """

    def weigh(path, head, lanes):
        above, dt = (a[head : head + 1, :lanes] for a in source)
        decay = jnp.exp2(jnp.minimum(path - above, 0.0))
        return (scores[rows, :lanes] * (decay * dt)).astype(out_dtype)

    if shape.short:
        return weigh(path, 0, path.shape[1])
    copies = path.shape[1] // shape.tile_heads
    weighed = []
    for h in range(shape.tile_heads):
        own = path[:, h * copies : (h + 1) * copies]
        weighed.append(
            weigh(jnp.concatenate([own] * (reach // copies), axis=1), h, reach)
        )
    return jnp.concatenate(weighed, axis=0)


def _sum_values(shape, weighed, values):
    """`sum_j w_ij x_j`, with weights as `_weigh` returns them."""
    if shape.short:
        return _dot(weighed, _block_diagonal(values, shape.dim), _NN)
    count, reach = weighed.shape[0] // shape.tile_heads, weighed.shape[1]
    heads = [slice(h * count, (h + 1) * count) for h in range(shape.tile_heads)]
    if shape.dim % LANES == 0:
        own = [values[:reach, _lanes(h, shape.dim)] for h in range(shape.tile_heads)]
        outs = [_dot(weighed[i], x, _NN) for i, x in zip(heads, own, strict=True)]
        return jnp.concatenate(outs, axis=1)
    # One pass over the values serves all heads, each with the others' lanes to spare.
    outs = _dot(weighed, values[:reach], _NN)
    return _select_heads([outs[i] for i in heads], shape.dim)


def _weigh_tile(shape, t, columns, source, scores, y, dtype):
    """Weights of the nodes for the heads of tile `t`; leaves `exp(L_i)` in `y`."""
    head = t * shape.tile_heads
    tiles = []
    for rows, reach in _query_tiles(shape):
        copies = min(reach, LANES)
        path = _spread(columns[rows], head, shape.tile_heads, copies)
        tiles.append(_weigh(shape, path, source, scores, dtype, rows, reach))
        if copies != shape.dim:
            path = _spread(columns[rows], head, shape.tile_heads, shape.dim)
        y[rows, _lanes(t, shape.tile)] = jnp.exp2(path)
    return tiles


def _read_tile(shape, t, weighed, x, query, D, state, ring, y):
    """Outputs of the heads of tile `t`, from what `_weigh_tile` left."""
    here = _lanes(t, shape.tile)
    if query.dtype == jnp.float32:
        above = _dot(query, state[here], _NT)
    else:
        parts = [part.astype(query.dtype) for part in _parts(state[here], 2)]
        above = sum(_dot(query, part, _NT) for part in parts)
    if ring is not None:
        ring_scores, writes = ring
        above *= writes[:1, here]
        above += _dot(ring_scores, writes[8:, here].astype(query.dtype), _NN)
    values = _pad_rows(x[:, here], shape.padded)
    first = shape.nodes - shape.queries
    skip = D[:, here] * values[first : shape.nodes].astype(jnp.float32)
    for (rows, _), weights in zip(_query_tiles(shape), weighed, strict=True):
        out = _sum_values(shape, weights, values)
        y[rows, here] = out + y[rows, here] * above[rows] + skip[rows]


def verify_kernel(shape: BlockShape, has_ring, has_fold, *refs):
    """Reads the state at the queries, and folds the ring into it where asked for."""
    refs = iter(refs)
    layer = next(refs)
    length = next(refs) if has_ring else None
    fold = next(refs) if has_fold else None
    mask, x, dt, B, C, A, D, state = (next(refs) for _ in range(8))
    ring_x, ring_dt, ring_B = (next(refs) if has_ring else None for _ in range(3))
    y = next(refs)
    state_out = next(refs) if has_fold else None
    columns, sources, scores = (next(refs) for _ in range(3))
    weighed = next(refs) if shape.short else None
    row, block = pl.program_id(0), pl.program_id(HEADS_AXIS)

    if has_ring:
        weights, ring_scores, writes = (next(refs) for _ in range(3))

    def of_the_row():
        _store_paths(shape, mask, dt, A, columns, sources)
        if has_ring:
            _store_weights(length[row], ring_dt, A, weights)

    def of_the_group():
        _store_scores(shape, mask, B, C, scores)
        if has_ring:
            _store_ring_scores(shape, length[row], ring_B, C, ring_scores)

    _every(shape.blocks, block, shape, of_the_row)
    _every(shape.blocks_per_group, block, shape, of_the_group)

    if has_ring:
        _store_writes(shape, weights[block], ring_x, writes)
    if has_fold:
        folded, semaphore = next(refs), next(refs)
        size = shape.heads * shape.dim
        out = state_out.at[layer[0], row, pl.ds(block * size, size)]
        copy = pltpu.make_async_copy(folded, out, semaphore)

        @pl.when(fold[row] != 0)
        def _():
            _fold_block(shape, state, writes, ring_B, folded)
            copy.start()

    block_columns = columns[block]
    first_tile = block * shape.tiles

    def group(t):
        if isinstance(t, int):
            return t * shape.groups // shape.tiles
        return jax.lax.div(t * shape.groups, shape.tiles)

    def weigh(t):
        source = sources[0, first_tile + t], sources[1, first_tile + t]
        return _weigh_tile(
            shape, t, block_columns, source, scores.at[group(t)], y, x.dtype
        )

    def read(t, weights):
        query = C[:, _lanes(group(t), shape.width)]
        ring = (ring_scores[group(t)], writes) if has_ring else None
        _read_tile(shape, t, weights, x, query, D, state, ring, y)

    if shape.short:
        # In two passes, for the first has long chains of steps, which tiles then share.
        for t in range(shape.tiles):
            (weighed[t],) = weigh(t)
        for t in range(shape.tiles):
            read(t, [weighed[t]])
    elif shape.tile % LANES == 0:
        # A loop: scores of more nodes, for every tile, would be a program too long.
        jax.lax.fori_loop(
            0, shape.tiles, lambda t, _: read(t, weigh(t)), None, unroll=2
        )
    else:
        for t in range(shape.tiles):
            read(t, weigh(t))

    if has_fold:

        @pl.when(fold[row] != 0)
        def _():
            copy.wait()


def fold_kernel(shape: BlockShape, A, x, dt, B, state, out, weights, writes):
    """Advances a state over a chain."""
    block = pl.program_id(HEADS_AXIS)

    def of_the_row():
        _store_weights(x.shape[0], dt, A, weights)

    _every(shape.blocks, block, shape, of_the_row)
    _store_writes(shape, weights[block], x, writes)
    _fold_block(shape, state, writes, B, out)

"""The Mamba-2 ops on a TPU: one pass over the checkpoint, no state per node.

With path sums `L_i` of `dt A` over the ancestors `M` of node `i`, and a ring whose tokens
`k` are ancestors of every node (`R_k` sums `dt A` over the tokens after `k`, `R` over all),

    y_i = exp(L_i) (exp(R) S_0 C_i + sum_k (C_i . B_k) exp(R_k) dt_k x_k)
          + sum_j M_ij (C_i . B_j) exp(L_i - L_j) dt_j x_j + D x_i

    S   = exp(R) S_0 + sum_k exp(R_k) dt_k x_k B_k^T          (the fold, where asked for)

One grid step serves a block of heads of one row. The parts that differ between heads lie
side by side on the lanes: scores are `[W_1 | W_2]`, values `diag(x_1, x_2)`, and a state
block is `[heads P, S]`, so that a product serves two heads of 64 or a whole block.

Numbers: `M (C . B)` is masked before it meets a decay, and the exponent is
`L_i - (L_j - log dt_j)`, bounded above where a pair is not on a path, in base 2. Sums over
paths, and the copies of a head's factors to its lanes, are products with 0/1 matrices:
they are exact, because the other operand is cut into three bfloat16 parts. With float32
activations every other product is in full float32. With bfloat16 activations the scores
are rounded to bfloat16, as flash attention rounds its probabilities, and what is read from
or written to a state in two bfloat16 parts, which leaves 2^-16 of it.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.inputs import Inputs
from pallas_kernels.topology import Topology

_NN = (((1,), (0,)), ((), ()))
_NT = (((1,), (1,)), ((), ()))
_TN = (((0,), (0,)), ((), ()))

_HEADS_AXIS = 1  # of the grid
_LANES = 128
_QUERY_ROWS = 64  # scores of more rows than this do not fit the registers
_STATE_BLOCK_BYTES = 512 * 1024
_UNDERFLOW = -300.0  # 2^-300 is zero in float32: a stronger decay changes nothing
_OVERFLOW = 126.0


class _Shape(NamedTuple):
    """Static sizes of one grid step."""

    heads: int  # of the block
    dim: int
    width: int
    groups: int  # of the block
    side_by_side: int  # heads that share a tile of lanes
    nodes: int
    queries: int


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


def _path_sums(mask, x):
    """`mask @ x` for a 0/1 mask in bfloat16, exact to float32."""
    products = [_dot(mask, part.astype(mask.dtype), _NN) for part in _parts(x, 3)]
    return products[2] + products[1] + products[0]


def _log_decays(dt, A):
    """`log2` of the decay of every token, `[T, H]`, never above 0."""
    return jnp.clip(dt * (A * math.log2(math.e)), _UNDERFLOW, 0.0)


def _block_rows(x, scratch):
    """Columns of `x` `[T, H]` that belong to this step's block of heads, as rows.

    The block is not known to the compiler, and only a leading index may be: `scratch` is
    `[blocks, h, T]`.
    """
    columns = x.T
    blocks, heads, _ = scratch.shape
    if blocks == 1:
        return columns
    for block in range(blocks):
        scratch[block] = columns[block * heads : (block + 1) * heads]
    return scratch[pl.program_id(_HEADS_AXIS)]


def _stack_parts(rows):
    """The operand of `_spread`: the parts of `[h, i]` below each other."""
    return jnp.concatenate(_parts(rows, 3), axis=0).astype(jnp.bfloat16)


def _spread(stacked, first, count, copies):
    """Copies some heads to lanes: `[h, i] -> [i, (h - first) * copies + c]`."""
    heads = stacked.shape[0] // 3
    shape = (heads, count * copies)
    begin = (jax.lax.broadcasted_iota(jnp.int32, shape, 0) - first) * copies
    lane = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    owner = ((lane >= begin) & (lane < begin + copies)).astype(jnp.float32)
    owner = jnp.concatenate([owner] * 3, axis=0).astype(stacked.dtype)
    return _dot(stacked, owner, _TN)


def _side_by_side(rows, width):
    """Rows `[h, i]` as one row of lanes, `width` a head."""
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, rows.shape[0] * width), 1)
    tiled = jnp.concatenate([rows] * rows.shape[0], axis=1)
    row = tiled[:1]
    for h in range(1, rows.shape[0]):
        row = jnp.where(lane >= h * width, tiled[h : h + 1], row)
    return row


def _block_diagonal(x, heads):
    """`[i, h * P + p] -> [h' * N + i, h * P + p]`, zero where `h' != h`."""
    if heads == 1:
        return x
    dim = x.shape[1] // heads
    lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    owned = [(lane >= h * dim) & (lane < (h + 1) * dim) for h in range(heads)]
    blocks = [jnp.where(here, x, jnp.zeros_like(x)) for here in owned]
    return jnp.concatenate(blocks, axis=0)


def _pad_rows(x, rows):
    if x.shape[0] == rows:
        return x
    zeros = jnp.zeros((rows - x.shape[0], x.shape[1]), jnp.float32)
    return jnp.concatenate([x.astype(jnp.float32), zeros], axis=0).astype(x.dtype)


def _ring_weights(dt, A, length, scratch):
    """What is left of a ring's writes, and of the state before it, at its end.

    Returns:
        `[h, 8 + k]`: column 0 the decay of the whole ring, then one a token.
    """
    slots = dt.shape[0]
    shape = (slots, slots)
    after = jax.lax.broadcasted_iota(jnp.int32, shape, 1) > (
        jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    )
    after = after.astype(jnp.float32).astype(jnp.bfloat16)
    live = jax.lax.broadcasted_iota(jnp.int32, dt.shape, 0) < length
    dt = jnp.where(live, dt, 0.0)
    decays = _log_decays(dt, A)
    total = jnp.exp2(jnp.sum(decays, axis=0, keepdims=True))
    weights = jnp.exp2(_path_sums(after, decays)) * dt
    rows = [jnp.broadcast_to(total, (8, dt.shape[1])), weights]
    return _block_rows(jnp.concatenate(rows, axis=0), scratch)


def _fold_block(shape, state, weights, values, keys, out):
    """`out = decay S_0 + values^T B` for the heads of a block.

    state and out `[h P, S]`, weights as `_ring_weights` has them, values `[T, h P]`
    float32, already weighted, keys `[T, g S]`.
    """
    tile = shape.side_by_side * shape.dim
    for begin in range(0, shape.heads * shape.dim, tile):
        group = begin // shape.dim * shape.groups // shape.heads
        key = keys[:, group * shape.width : (group + 1) * shape.width]
        value = values[:, begin : begin + tile]
        if key.dtype == jnp.float32:
            update = _dot(value, key, _TN)
        else:
            update = sum(_dot(v.astype(key.dtype), key, _TN) for v in _parts(value, 2))
        for h in range(shape.side_by_side):
            row = begin // shape.dim + h
            here = slice(begin + h * shape.dim, begin + (h + 1) * shape.dim)
            kept = weights[row : row + 1, :1] * state[here]
            out[here] = kept + update[h * shape.dim : (h + 1) * shape.dim]


def _verify_kernel(shape: _Shape, has_ring, has_fold, *refs):
    refs = iter(refs)
    layer = next(refs)
    length = next(refs) if has_ring else None
    fold = next(refs) if has_fold else None
    mask, x, dt, B, C, A, D, state = (next(refs) for _ in range(8))
    if has_ring:
        ring_x, ring_dt, ring_B = (next(refs) for _ in range(3))
    y = next(refs)
    state_out = next(refs) if has_fold else None
    path_rows, bias_rows = next(refs), next(refs)
    if has_ring:
        ring_rows, ring_values = next(refs), next(refs)
    if has_fold:
        folded, semaphore = next(refs), next(refs)

    batch, block = pl.program_id(0), pl.program_id(_HEADS_AXIS)
    dtype = x.dtype
    tile_heads, dim, width = shape.side_by_side, shape.dim, shape.width
    tile = tile_heads * dim

    if has_ring:
        weights = _ring_weights(ring_dt[...], A[...], length[batch], ring_rows)
        stacked = _stack_parts(weights)
        kept = []
        for t in range(shape.heads // tile_heads):
            lanes = slice(t * tile, (t + 1) * tile)
            factors = _spread(stacked, t * tile_heads, tile_heads, dim)
            ring_values[:, lanes] = ring_x[:, lanes].astype(jnp.float32) * factors[8:]
            kept.append(factors[:1])
    if has_fold:
        here = pl.ds(block * shape.heads * dim, shape.heads * dim)
        copy = pltpu.make_async_copy(
            folded, state_out.at[layer[0], batch, here], semaphore
        )

        @pl.when(fold[batch] != 0)
        def _():
            _fold_block(shape, state, weights, ring_values, ring_B, folded)
            copy.start()

    nodes = mask.shape[1]
    mask_all = mask[...]
    dt_all = _pad_rows(dt[...], nodes)
    paths = _path_sums(mask_all, _log_decays(dt_all, A[...]))
    # A step of zero writes nothing to speak of; its logarithm must be finite.
    biases = jnp.log2(jnp.maximum(dt_all, 1e-37)) - paths
    paths = _block_rows(paths, path_rows)
    biases = _block_rows(biases, bias_rows)

    first_query = shape.nodes - shape.queries
    tiles = []
    for begin in range(0, shape.queries, _QUERY_ROWS):
        end = min(begin + _QUERY_ROWS, shape.queries)
        rows = slice(begin, end)
        slots = slice(first_query + begin, first_query + end)
        # Parents come first: no path leads beyond the tile's own nodes.
        reach = nodes if nodes <= _LANES else -(-slots.stop // _LANES) * _LANES
        on_path = mask_all.astype(jnp.float32)[slots, :reach] > 0
        scores, ring_scores = [], []
        for g in range(shape.groups):
            query = C[rows, g * width : (g + 1) * width]
            key = _pad_rows(B[:, g * width : (g + 1) * width], nodes)[:reach]
            score = jnp.where(on_path, _dot(query, key, _NT), 0.0)
            scores.append(jnp.concatenate([score] * tile_heads, axis=1))
            if has_ring:
                score = _dot(query, ring_B[:, g * width : (g + 1) * width], _NT)
                slot = jax.lax.broadcasted_iota(jnp.int32, score.shape, 1)
                score = jnp.where(slot < length[batch], score, 0.0)
                ring_scores.append(score.astype(dtype))
        stacked = _stack_parts(paths[:, slots])
        tiles.append((rows, slots, reach, scores, ring_scores, stacked))

    for t in range(shape.heads // tile_heads):
        lanes = slice(t * tile, (t + 1) * tile)
        head = t * tile_heads
        group = head * shape.groups // shape.heads
        values = _pad_rows(x[:, lanes], nodes)
        if dtype == jnp.float32:
            states = [state[lanes]]
        else:
            states = [part.astype(dtype) for part in _parts(state[lanes], 2)]
        for rows, slots, reach, scores, ring_scores, stacked in tiles:
            copies = min(reach, _LANES)
            path = _spread(stacked, head, tile_heads, copies)
            exponent = jnp.concatenate(
                [
                    path[:, h * copies : (h + 1) * copies]
                    for h in range(tile_heads)
                    for _ in range(reach // copies)
                ],
                axis=1,
            )
            bias = _side_by_side(biases[head : head + tile_heads, :reach], reach)
            decay = jnp.exp2(jnp.minimum(exponent + bias, _OVERFLOW))
            score = (scores[group] * decay).astype(dtype)
            out = _dot(score, _block_diagonal(values[:reach], tile_heads), _NN)
            query = C[rows, group * width : (group + 1) * width]
            above = sum(_dot(query, part, _NT) for part in states)
            if has_ring:
                above = above * kept[t]
                above += _dot(
                    ring_scores[group], ring_values[:, lanes].astype(dtype), _NN
                )
            if copies != dim:
                path = _spread(stacked, head, tile_heads, dim)
            out += jnp.exp2(path) * above
            y[rows, lanes] = out + D[:, lanes] * values[slots].astype(jnp.float32)

    if has_fold:

        @pl.when(fold[batch] != 0)
        def _():
            copy.wait()


def _fold_kernel(shape: _Shape, layer, A, x, dt, B, state, out, rows, values):
    del layer
    weights = _ring_weights(dt[...], A[...], x.shape[0], rows)
    stacked = _stack_parts(weights)
    tile = shape.side_by_side * shape.dim
    for t in range(shape.heads // shape.side_by_side):
        lanes = slice(t * tile, (t + 1) * tile)
        head = t * shape.side_by_side
        factors = _spread(stacked, head, shape.side_by_side, shape.dim)[8:]
        values[:, lanes] = x[:, lanes].astype(jnp.float32) * factors
    _fold_block(shape, state, weights, values, B, out)


def _block_shape(x, B, state, queries) -> _Shape:
    """Chooses the heads of a block: whole groups or parts of one, a state of 512 KB."""
    heads, dim, width = state.shape[2:]
    groups = B.shape[-1] // width
    per_group = heads // groups

    def fits(count):
        aligned = count == heads or count * dim % _LANES == 0
        nested = per_group % count == 0 or count % per_group == 0
        lanes_of_keys = count <= per_group or count // per_group * width % _LANES == 0
        return heads % count == 0 and aligned and nested and lanes_of_keys

    limit = max(1, _STATE_BLOCK_BYTES // (dim * width * 4))
    counts = [count for count in range(1, heads + 1) if fits(count)]
    count = max([c for c in counts if c <= limit], default=counts[0])
    together = math.gcd(min(count, per_group), max(2, _LANES // dim))
    block_groups = max(1, count // per_group)
    return _Shape(count, dim, width, block_groups, together, x.shape[-2], queries)


def _verify(tree, inputs, A, C, D, state, ring, fold, layer, interpret):
    batch, num_nodes, inner = inputs.x.shape
    layers, _, heads, dim, width = state.shape
    queries = C.shape[1]
    shape = _block_shape(inputs.x, inputs.B, state, queries)
    padded = _padded(num_nodes)
    mask = jnp.pad(
        tree.ancestors.astype(jnp.bfloat16),
        ((0, 0), (0, padded - num_nodes), (0, padded - num_nodes)),
    )
    blocks = heads // shape.heads
    lanes, keys = shape.heads * dim, shape.groups * width
    groups = inputs.B.shape[2] // width

    def group(block):
        return jax.lax.div(block * groups, blocks * shape.groups)

    def whole(b, h, *_):
        return b, 0, 0

    def by_head(b, h, *_):
        return b, 0, h

    def by_group(b, h, *_):
        return b, 0, group(h)

    prefetch = [jnp.reshape(layer, (1,)).astype(jnp.int32)]
    operands = [
        (mask, (None, padded, padded), whole),
        (inputs.x, (None, num_nodes, lanes), by_head),
        (inputs.dt, (None, num_nodes, heads), whole),
        (inputs.B, (None, num_nodes, keys), by_group),
        (C, (None, queries, keys), by_group),
        (A[None], (1, heads), lambda b, h, *_: (0, 0)),
        (D[None], (1, lanes), lambda b, h, *_: (0, h)),
        (
            state.reshape(layers, batch, inner, width),
            (None, None, lanes, width),
            lambda b, h, layer, *_: (layer[0], b, h, 0),
        ),
    ]
    out_shape = [jax.ShapeDtypeStruct((batch, queries, inner), jnp.float32)]
    out_specs = [pl.BlockSpec((None, queries, lanes), by_head)]
    scratch = [pltpu.VMEM((blocks, shape.heads, padded), jnp.float32)] * 2
    slots = 0
    if ring is not None:
        slots = ring.inputs.x.shape[2]
        prefetch.append(ring.length.astype(jnp.int32))
        operands += [
            (
                ring.inputs.x,
                (None, None, slots, lanes),
                lambda b, h, layer, *_: (layer[0], b, 0, h),
            ),
            (
                ring.inputs.dt,
                (None, None, slots, heads),
                lambda b, h, layer, *_: (layer[0], b, 0, 0),
            ),
            (
                ring.inputs.B,
                (None, None, slots, keys),
                lambda b, h, layer, *_: (layer[0], b, 0, group(h)),
            ),
        ]
        scratch += [
            pltpu.VMEM((blocks, shape.heads, 8 + slots), jnp.float32),
            pltpu.VMEM((slots, lanes), jnp.float32),
        ]
    aliases = {}
    if fold is not None:
        prefetch.append(fold.astype(jnp.int32))
        out_shape.append(jax.ShapeDtypeStruct(operands[7][0].shape, jnp.float32))
        out_specs.append(pl.BlockSpec(memory_space=pl.ANY))
        scratch += [pltpu.VMEM((lanes, width), jnp.float32), pltpu.SemaphoreType.DMA]
        aliases = {len(prefetch) + 7: 1}
    outputs = pl.pallas_call(
        functools.partial(_verify_kernel, shape, ring is not None, fold is not None),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(prefetch),
            grid=(batch, blocks),
            in_specs=[pl.BlockSpec(block, index) for _, block, index in operands],
            out_specs=out_specs,
            scratch_shapes=scratch,
        ),
        out_shape=out_shape,
        input_output_aliases=aliases,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel")
        ),
        cost_estimate=_cost(
            batch * heads,
            shape,
            num_nodes + slots,
            [operand for operand, _, _ in operands if operand.ndim == 3],
            ring and ring.inputs,
            layers,
        ),
        name="tree_ssd_verify" if fold is not None else "tree_ssd_read",
        interpret=interpret,
    )(*prefetch, *(operand for operand, _, _ in operands))
    if fold is None:
        return outputs[0]
    return outputs[0], outputs[1].reshape(state.shape)


def _padded(num_nodes):
    """Rows that the scores are padded to: of a sublane tile, or of a lane tile."""
    tile = 8 if num_nodes <= _QUERY_ROWS else _LANES
    return -(-num_nodes // tile) * tile


def _cost(heads, shape, tokens, per_step, ring, layers):
    """What `heads` heads of one layer cost when nothing is folded."""
    queries, dim, width = shape.queries, shape.dim, shape.width
    moved = sum(a.size * a.dtype.itemsize for a in per_step)
    moved += sum(a.size * a.dtype.itemsize // layers for a in ring or ())
    return pl.CostEstimate(
        flops=2 * heads * queries * (dim * width + tokens * dim),
        bytes_accessed=moved + 4 * heads * dim * (width + queries),
        transcendentals=heads * queries * (shape.nodes + dim),
    )


def read(
    tree: Topology,
    inputs: Inputs,
    A: jax.Array,
    C: jax.Array,
    D: jax.Array,
    state: jax.Array,
    ring: Any,
    layer: jax.Array,
    *,
    interpret: Any = False,
) -> jax.Array:
    """Reads the state at the last `n` nodes of a tree: one read of the checkpoint.

    Args:
        tree: topology of the `N` nodes.
        inputs: records of the `N` nodes.
        A: `[H]` float32, negative.
        C: `[B, n, G * S]` queries of the last `n` nodes.
        D: `[H * P]` float32, the skip connection.
        state: `[L, B, H, P, S]` float32 checkpoints, before the ring and the root.
        ring: `Ring` of every layer's tokens between `state` and the root, or `None`.
        layer: int32, the layer to read.
        interpret: whether to interpret the kernel, or how.

    Returns:
        `[B, n, H * P]` float32 outputs.
    """
    return _verify(tree, inputs, A, C, D, state, ring, None, layer, interpret)


def verify(
    tree: Topology,
    inputs: Inputs,
    A: jax.Array,
    C: jax.Array,
    D: jax.Array,
    state: jax.Array,
    ring: Any,
    fold: jax.Array,
    layer: jax.Array,
    *,
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array]:
    """Reads the state at all nodes, and folds the ring into it in some rows.

    The states of the other rows, and of other layers, are not written: `state` stays
    where it is, so donate it or carry it through a loop.

    Args:
        tree: as in `read`.
        inputs: as in `read`.
        A: as in `read`.
        C: as in `read`, of all nodes.
        D: as in `read`.
        state: as in `read`.
        ring: as in `read`, not `None`.
        fold: `[B]` bool, the rows whose state takes up the ring.
        layer: as in `read`.
        interpret: as in `read`.

    Returns:
        Outputs as of `read`, the same whether a row folds or not, and the states.
    """
    return _verify(tree, inputs, A, C, D, state, ring, fold, layer, interpret)


def fold(
    state: jax.Array, A: jax.Array, inputs: Inputs, *, interpret: Any = False
) -> jax.Array:
    """Advances the states of all layers over a chain of tokens, in place.

    Args:
        state: `[L, B, H, P, S]` float32.
        A: `[L, H]` float32, negative.
        inputs: records `[L, B, T, ...]`, oldest first.
        interpret: whether to interpret the kernel, or how.

    Returns:
        `[L, B, H, P, S]` states after the last token.
    """
    layers, batch, heads, dim, width = state.shape
    length, inner = inputs.x.shape[2:]
    shape = _block_shape(inputs.x, inputs.B, state, 0)
    lanes, keys = shape.heads * dim, shape.groups * width
    blocks = heads // shape.heads
    groups = inputs.B.shape[3] // width
    flat = state.reshape(layers, batch, inner, width)
    out = pl.pallas_call(
        functools.partial(_fold_kernel, shape, None),
        grid=(batch, blocks, layers),
        in_specs=[
            pl.BlockSpec((None, 1, heads), lambda b, h, m: (m, 0, 0)),
            pl.BlockSpec((None, None, length, lanes), lambda b, h, m: (m, b, 0, h)),
            pl.BlockSpec((None, None, length, heads), lambda b, h, m: (m, b, 0, 0)),
            pl.BlockSpec(
                (None, None, length, keys),
                lambda b, h, m: (
                    m,
                    b,
                    0,
                    jax.lax.div(h * groups, blocks * shape.groups),
                ),
            ),
            pl.BlockSpec((None, None, lanes, width), lambda b, h, m: (m, b, h, 0)),
        ],
        out_specs=pl.BlockSpec(
            (None, None, lanes, width), lambda b, h, m: (m, b, h, 0)
        ),
        out_shape=jax.ShapeDtypeStruct(flat.shape, jnp.float32),
        scratch_shapes=[
            pltpu.VMEM((blocks, shape.heads, 8 + length), jnp.float32),
            pltpu.VMEM((length, lanes), jnp.float32),
        ],
        input_output_aliases={4: 0},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",) * 3),
        cost_estimate=pl.CostEstimate(
            flops=2 * length * flat.size,
            bytes_accessed=2 * flat.nbytes
            + sum(a.size * a.dtype.itemsize for a in inputs),
            transcendentals=inputs.dt.size,
        ),
        name="tree_ssd_fold",
        interpret=interpret,
    )(A[:, None], inputs.x, inputs.dt, inputs.B, flat)
    return out.reshape(state.shape)


def refuses_read(tree, inputs, A, C, D, state, ring, layer) -> str | None:
    """Why the kernel cannot take these arguments on a TPU, if it cannot."""
    return _refuses(inputs, state)


def refuses_verify(tree, inputs, A, C, D, state, ring, fold, layer) -> str | None:
    """As `refuses_read`."""
    return _refuses(inputs, state)


def refuses_fold(state, A, inputs) -> str | None:
    """As `refuses_read`."""
    return _refuses(inputs, state)


def _refuses(inputs, state):
    dim, width = state.shape[3:]
    if width % _LANES:
        return f"a state width of {width} is not a multiple of {_LANES} lanes"
    if dim % 8:
        return f"heads of width {dim} are not a multiple of 8 sublanes"
    if inputs.x.dtype not in (jnp.float32, jnp.bfloat16):
        return f"activations are {inputs.x.dtype}, not float32 or bfloat16"
    return None

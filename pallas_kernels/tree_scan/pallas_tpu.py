"""The Mamba-1 ops on TPU: one walk over the nodes with a stack of states on the chip.

The decay differs per channel `e` and state `s`, so no matrix product serves many nodes
at once, and a state per node would be `N` times the bytes of the checkpoint. Instead the
nodes are visited depth first. With `d` the depth of node `i`, the state above it lies at
level `d` of a stack, left there by its parent whatever was visited in between:

    level[d + 1] = exp2(dt_i A log2(e)) level[d] + (dt_i x_i) B_i

    y_i[e] = sum_s level[d + 1][e, s] C_i[s] + D x_i

The ring is a chain that ends in level 0. One program serves one row and a block of
channels: it reads the checkpoint once, and writes it only where the ring is folded.

States have `S` sublanes and the channels on lanes. Channels are cut into tiles of 128
lanes, each with a stack and buffers of its own, for three reasons: the compiler sees that
the tiles do not depend on one another and overlaps them; a row of a buffer one tile wide
is loaded into all sublanes at once; and the sums over `s` of eight tiles fold together
into one register, a sublane a tile, at a third of the work of eight separate sums.

Computes in float32 whatever the activations.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.inputs import Inputs

_LANES = 128
_SUBLANES = 8
_ROWS = 16  # of a block of tokens: the tile of a 16-bit array
_MAX_BLOCK = 1536  # channels; wider blocks gain little and overlap less with the copies
_VMEM_BYTES = 12 * 2**20  # of the 15 MiB that a kernel may use on the smallest chip
_SMEM_BYTES = 900 * 2**10
_LOG2_E = math.log2(math.e)


class _Tile(NamedTuple):
    """Up to 128 channels of a block."""

    index: int
    start: int
    width: int

    @property
    def lanes(self) -> slice:
        return slice(self.start, self.start + self.width)


class _Tokens(NamedTuple):
    """What a walk reads of every token: rows and columns spread over whole registers."""

    dt: Any  # [tiles, T, lanes]
    dt_x: Any  # [tiles, T, lanes]
    B: Any  # [T, S, lanes]


class _Scratch(NamedTuple):
    rate: Any  # [S, block], A log2(e)
    tokens: _Tokens  # of the ring, then of the nodes
    C: Any  # [n, S, lanes]
    stack: list[Any]  # of each tile, [levels, S, width]
    sums: list[Any]  # of each group of tiles, [N * 8, width]: a row per node and tile
    semaphore: Any


def _tiles(channels: int) -> list[_Tile]:
    starts = range(0, channels, _LANES)
    return [_Tile(k, e, min(_LANES, channels - e)) for k, e in enumerate(starts)]


def _groups(tiles: list[_Tile]) -> list[list[_Tile]]:
    """Groups of 8, 4, 2 or 1 tiles of the same width."""
    groups = []
    while tiles:
        full = sum(tile.width == tiles[0].width for tile in tiles)
        size = min(_SUBLANES, 1 << full.bit_length() - 1)
        groups.append(tiles[:size])
        tiles = tiles[size:]
    return groups


def _for_rows(first: int, stop: int, visit) -> None:
    """Calls `visit(start, rows)` for blocks of rows that do not straddle a tile."""
    aligned = min(pl.cdiv(first, _ROWS) * _ROWS, stop)
    blocks, rest = divmod(stop - aligned, _ROWS)
    if aligned > first:
        visit(first, aligned - first)
    if blocks:

        @pl.loop(0, blocks)
        def _visit(block):
            visit(pl.multiple_of(aligned + block * _ROWS, _ROWS), _ROWS)

    if rest:
        visit(stop - rest, rest)


def _for_each(count, visit) -> None:
    """Calls `visit(i)` in order, by twos: the end of one overlaps the start of the next."""

    @pl.loop(0, count >> 1)
    def _visit(pair):
        visit(2 * pair)
        visit(2 * pair + 1)

    if isinstance(count, int):
        if count & 1:
            visit(count - 1)
    else:
        pl.when((count & 1) == 1)(lambda: visit(count - 1))


def _spread_columns(rows_ref, planes_ref) -> None:
    """Spreads every row `[S]` over the lanes of a plane `[S, lanes]`."""
    plane = planes_ref.shape[1:]

    def visit(start, rows):
        columns = rows_ref[pl.ds(start, rows)].astype(jnp.float32).T
        for row in range(rows):
            column = jnp.broadcast_to(columns[:, row : row + 1], plane)
            planes_ref[start + row] = column

    _for_rows(0, rows_ref.shape[0], visit)


def _prepare(inputs: Inputs, tokens: _Tokens, tiles: list[_Tile]) -> None:
    """Brings the tokens into the form that a walk reads, all rows at once."""

    def visit(start, rows):
        rows = pl.ds(start, rows)
        for tile in tiles:
            dt = inputs.dt[rows, tile.lanes]
            dt_x = dt * inputs.x[rows, tile.lanes].astype(jnp.float32)
            tokens.dt[tile.index, rows, : tile.width] = dt
            tokens.dt_x[tile.index, rows, : tile.width] = dt_x

    _for_rows(0, inputs.x.shape[0], visit)
    _spread_columns(inputs.B, tokens.B)


def _advance(above, token, tokens: _Tokens, rate_ref, tile: _Tile):
    """The state `[S, width]` of a token from that above it."""
    row = pl.ds(token, 1)
    dt = tokens.dt[tile.index, row, : tile.width]
    dt_x = tokens.dt_x[tile.index, row, : tile.width]
    B = tokens.B[token, :, : tile.width]
    return jnp.exp2(dt * rate_ref[:, tile.lanes]) * above + dt_x * B


def _fold_chain(count, tokens: _Tokens, rate_ref, states, tiles: list[_Tile]) -> None:
    """Advances `states`, a `[S, width]` per tile, over the first `count` tokens."""

    def visit(token):
        for tile, state in zip(tiles, states, strict=True):
            state[...] = _advance(state[...], token, tokens, rate_ref, tile)

    _for_each(count, visit)


def _sum_sublanes(parts: list[jax.Array]) -> jax.Array:
    """Sums each of 1, 2, 4 or 8 arrays `[S, width]` over `S`.

    Returns:
        `[8, width]`, whose row `k` is the sum of `parts[k]`.
    """
    parts = [_fold_to_sublanes(part) for part in parts]
    sublane = jax.lax.broadcasted_iota(jnp.int32, parts[0].shape, 0)
    for shift in (1, 2, 4):
        if (
            len(parts) > 1
        ):  # two by two: rows without the bit for one, with for the other
            own = (sublane & shift) == 0
            parts = [
                jnp.where(own, a, b) + pltpu.roll(jnp.where(own, b, a), shift, 0)
                for a, b in zip(parts[::2], parts[1::2], strict=True)
            ]
        else:
            parts = [parts[0] + pltpu.roll(parts[0], shift, 0)]
    return parts[0]


def _fold_to_sublanes(part: jax.Array) -> jax.Array:
    rest = -part.shape[0] % _SUBLANES
    if rest:
        part = jnp.concatenate([part, jnp.zeros((rest, part.shape[1]), part.dtype)])
    starts = range(0, part.shape[0], _SUBLANES)
    return functools.reduce(jnp.add, [part[s : s + _SUBLANES] for s in starts])


def _walk_kernel(
    layer_ref,  # [1]
    preorder_ref,  # [B * N]
    depth_ref,  # [B * N]
    length_ref,  # [B]
    fold_ref,  # [B]
    inputs,  # x [N, block], dt [N, block], B [N, S]
    ring,  # of W slots, or None
    A_ref,  # [S, block]
    C_ref,  # [n, S]
    D_ref,  # [1, block]
    state_ref,  # [S, block]
    y_ref,  # [n, block]
    folded_ref,  # [L, B, S, E] in HBM, or None
    scratch: _Scratch,
):
    block, row = pl.program_id(0), pl.program_id(1)
    num_nodes, num_queries = inputs.x.shape[0], y_ref.shape[0]
    first = num_nodes - num_queries
    tiles = _tiles(y_ref.shape[1])
    groups = _groups(tiles)
    roots = [stack.at[0] for stack in scratch.stack]
    deepest = scratch.stack[0].shape[0] - 1

    scratch.rate[...] = A_ref[...] * _LOG2_E
    for tile, root in zip(tiles, roots, strict=True):
        root[...] = state_ref[:, tile.lanes]
    if ring is not None:
        _prepare(ring, scratch.tokens, tiles)
        _fold_chain(length_ref[row], scratch.tokens, scratch.rate, roots, tiles)

    def write_back():
        start = pl.multiple_of(block * y_ref.shape[1], _LANES)
        for tile, root in zip(tiles, roots, strict=True):
            lanes = pl.ds(start + tile.start, tile.width)
            target = folded_ref.at[layer_ref[0], row, :, lanes]
            yield pltpu.make_async_copy(root, target, scratch.semaphore)

    if folded_ref is not None:

        @pl.when(fold_ref[row] != 0)
        def _start():
            for copy in write_back():
                copy.start()

    _prepare(inputs, scratch.tokens, tiles)
    _spread_columns(C_ref, scratch.C)

    def visit(position):
        node = preorder_ref[row * num_nodes + position]
        depth = depth_ref[row * num_nodes + node]
        above, here = jnp.minimum(depth, deepest), jnp.minimum(depth + 1, deepest)
        C = scratch.C[jnp.maximum(node - first, 0)]
        for group, sums in zip(groups, scratch.sums, strict=True):
            parts = []
            for tile in group:
                stack = scratch.stack[tile.index]
                state = _advance(stack[above], node, scratch.tokens, scratch.rate, tile)
                stack[here] = state
                parts.append(state * C[:, : tile.width])
            rows = pl.ds(pl.multiple_of(node * _SUBLANES, _SUBLANES), _SUBLANES)
            sums[rows] = _sum_sublanes(parts)

    _for_each(num_nodes, visit)

    def read_out(start, rows):
        for group, sums in zip(groups, scratch.sums, strict=True):
            for k, tile in enumerate(group):
                row = start * _SUBLANES + k
                y = sums[pl.ds(row, rows, stride=_SUBLANES)]
                x = inputs.x[pl.ds(start, rows), tile.lanes].astype(jnp.float32)
                y = y + D_ref[:, tile.lanes] * x
                y_ref[pl.ds(start - first, rows), tile.lanes] = y

    _for_rows(first, num_nodes, read_out)

    if folded_ref is not None:

        @pl.when(fold_ref[row] != 0)
        def _wait():
            for copy in write_back():
                copy.wait()


def _fold_kernel(inputs, A_ref, state_ref, folded_ref, scratch: _Scratch):
    """Inputs of T tokens, x and dt `[T, block]`, B `[T, S]`; the others `[S, block]`."""
    tiles = _tiles(folded_ref.shape[1])
    scratch.rate[...] = A_ref[...] * _LOG2_E
    folded_ref[...] = state_ref[...]
    _prepare(inputs, scratch.tokens, tiles)
    states = [folded_ref.at[:, tile.lanes] for tile in tiles]
    num_tokens = inputs.x.shape[0]
    _fold_chain(num_tokens, scratch.tokens, scratch.rate, states, tiles)


def _scratch(block, width, num_tokens, num_nodes, num_queries, levels) -> _Scratch:
    """Buffers for a block of channels; those of the tree only if there is one."""
    tiles, lanes = _tiles(block), min(block, _LANES)

    def buffer(*shape):
        return pltpu.VMEM(shape, jnp.float32)

    rows = buffer(len(tiles), num_tokens, lanes)
    tokens = _Tokens(dt=rows, dt_x=rows, B=buffer(num_tokens, width, lanes))
    rate = buffer(width, block)
    if not num_nodes:
        return _Scratch(rate, tokens, None, [], [], None)
    return _Scratch(
        rate,
        tokens,
        C=buffer(num_queries, width, lanes),
        stack=[buffer(levels, width, tile.width) for tile in tiles],
        sums=[buffer(num_nodes * _SUBLANES, g[0].width) for g in _groups(tiles)],
        semaphore=pltpu.SemaphoreType.DMA(()),
    )


def _bytes(shape: tuple[int, ...], dtype: jax.typing.DTypeLike = jnp.float32) -> int:
    """What an array takes in the registers' tiles."""
    *leading, rows, lanes = shape
    rows = pl.cdiv(rows * jnp.dtype(dtype).itemsize, 32) * 32
    return math.prod(leading) * rows * pl.cdiv(lanes, _LANES) * _LANES


def _token_bytes(inputs: Inputs, block: int) -> int:
    """What the block of `inputs` takes, `B` included."""
    length, width = inputs.B.shape[-2:]
    return (
        _bytes((length, block), inputs.x.dtype)
        + _bytes((length, block), inputs.dt.dtype)
        + _bytes((length, width), inputs.B.dtype)
    )


def _scratch_bytes(scratch: _Scratch) -> int:
    buffers = jax.tree.leaves(scratch._replace(semaphore=None))
    return sum(_bytes(buffer.shape) for buffer in buffers)


def _largest_block(channels: int, vmem_bytes) -> int | None:
    """The widest block of whole tiles that divides the channels and fits the chip."""
    if channels % _LANES:
        blocks = [channels]
    else:
        widest = min(channels, _MAX_BLOCK)
        blocks = range(widest - widest % _LANES, 0, -_LANES)
    for block in blocks:
        if channels % block == 0 and vmem_bytes(block) <= _VMEM_BYTES:
            return block
    return None


def _walk_scratch(tree, inputs, C, ring, max_depth, block: int) -> _Scratch:
    num_nodes = tree.parents.shape[1]
    slots = 0 if ring is None else ring.inputs.x.shape[2]
    levels = num_nodes if max_depth is None else min(max_depth, num_nodes)
    num_tokens, num_queries, width = max(num_nodes, slots), *C.shape[1:]
    return _scratch(block, width, num_tokens, num_nodes, num_queries, levels + 1)


def _walk_block(tree, inputs, C, state, ring, max_depth) -> int | None:
    num_queries, width = C.shape[1:]

    def vmem_bytes(block):
        copied = (
            _token_bytes(inputs, block)
            + (0 if ring is None else _token_bytes(ring.inputs, block))
            + _bytes((num_queries, width), C.dtype)
            + 2 * _bytes((width, block))  # A, state
            + _bytes((1, block))  # D
            + _bytes((num_queries, block))  # outputs
        )
        scratch = _walk_scratch(tree, inputs, C, ring, max_depth, block)
        return 2 * copied + _scratch_bytes(scratch)

    return _largest_block(state.shape[-1], vmem_bytes)


def _fold_block(state, inputs) -> int | None:
    width, channels = state.shape[2:]

    def vmem_bytes(block):
        copied = _token_bytes(inputs, block) + 3 * _bytes((width, block))
        scratch = _scratch(block, width, inputs.x.shape[2], 0, 0, 0)
        return 2 * copied + _scratch_bytes(scratch)

    return _largest_block(channels, vmem_bytes)


def _cost(state_elements, tokens, *moved) -> pl.CostEstimate:
    """Of a walk over `tokens` of each row, which moves these arrays."""
    steps = state_elements * tokens
    return pl.CostEstimate(
        flops=7 * steps,
        transcendentals=steps,
        bytes_accessed=sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(moved)),
    )


def _layer(stacked):
    """The shape of what is read of arrays stacked over layers."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), stacked)


def _walk(tree, inputs, A, C, D, state, ring, fold, layer, max_depth, interpret):
    """`read`, and `verify` if `fold` is not None: outputs and the aliased state."""
    batch, num_nodes = tree.parents.shape
    num_queries, (width, channels) = C.shape[1], A.shape
    slots = 0 if ring is None else ring.inputs.x.shape[2]
    block = _walk_block(tree, inputs, C, state, ring, max_depth)

    def shared(rows):
        return pl.BlockSpec((rows, block), lambda e, b, *_: (0, e))

    def per_row(rows, columns):
        return pl.BlockSpec((None, rows, columns), lambda e, b, *_: (b, 0, 0))

    def per_channel(rows):
        return pl.BlockSpec((None, rows, block), lambda e, b, *_: (b, 0, e))

    def stacked(spec):
        def index_map(e, b, layer, *_):
            return layer[0], *spec.index_map(e, b)

        return pl.BlockSpec((None, *spec.block_shape), index_map)

    def tokens(rows):
        return Inputs(per_channel(rows), per_channel(rows), per_row(rows, width))

    none = jnp.zeros((batch,), jnp.int32)
    y = jax.ShapeDtypeStruct((batch, num_queries, channels), jnp.float32)
    scalars = (
        jnp.asarray(layer, jnp.int32).reshape(1),
        tree.preorder.reshape(-1),
        tree.depth.reshape(-1),
        ring.length if slots else none,
        none if fold is None else fold.astype(jnp.int32),
    )
    arrays = (inputs, ring.inputs if slots else None, A, C, D[None], state)
    last = len(jax.tree.leaves((scalars, arrays))) - 1
    outputs, state = pl.pallas_call(
        _walk_kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(channels // block, batch),  # A and D stay from row to row
            in_specs=(
                tokens(num_nodes),
                jax.tree.map(stacked, tokens(slots)) if slots else None,
                shared(width),
                per_row(num_queries, width),
                shared(1),
                stacked(per_channel(width)),
            ),
            out_specs=(
                per_channel(num_queries),
                None if fold is None else pl.BlockSpec(memory_space=pl.ANY),
            ),
            scratch_shapes=(_walk_scratch(tree, inputs, C, ring, max_depth, block),),
        ),
        out_shape=(y, None if fold is None else jax.typeof(state)),
        input_output_aliases={} if fold is None else {last: 1},
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel")
        ),
        cost_estimate=_cost(
            batch * A.size,
            slots + num_nodes,
            inputs,
            A,
            C,
            D,
            y,
            _layer(state),
            _layer(ring.inputs) if slots else None,
        ),
        interpret=interpret,
        name="tree_scan_read" if fold is None else "tree_scan_verify",
    )(*scalars, *arrays)
    return outputs, state


def read(tree, inputs, A, C, D, state, ring, layer, max_depth, *, interpret=False):
    outputs, _ = _walk(
        tree, inputs, A, C, D, state, ring, None, layer, max_depth, interpret
    )
    return outputs


def verify(
    tree, inputs, A, C, D, state, ring, fold, layer, max_depth, *, interpret=False
):
    return _walk(tree, inputs, A, C, D, state, ring, fold, layer, max_depth, interpret)


def fold(state, A, inputs, *, interpret=False):
    layers, batch, width, channels = state.shape
    length = inputs.x.shape[2]
    block = _fold_block(state, inputs)

    def per_channel(rows):
        return pl.BlockSpec((None, None, rows, block), lambda m, e, b: (m, b, 0, e))

    return pl.pallas_call(
        _fold_kernel,
        grid=(layers, channels // block, batch),
        in_specs=(
            Inputs(
                per_channel(length),
                per_channel(length),
                pl.BlockSpec((None, None, length, width), lambda m, e, b: (m, b, 0, 0)),
            ),
            pl.BlockSpec((None, width, block), lambda m, e, b: (m, 0, e)),
            per_channel(width),
        ),
        out_specs=per_channel(width),
        scratch_shapes=(_scratch(block, width, length, 0, 0, 0),),
        out_shape=jax.typeof(state),
        input_output_aliases={4: 0},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",) * 3),
        cost_estimate=_cost(state.size, length, inputs, A, state, state),
        interpret=interpret,
        name="tree_scan_fold",
    )(inputs, A, state)


def refuses_read(tree, inputs, A, C, D, state, ring, layer, max_depth) -> str | None:
    if 8 * tree.parents.size > _SMEM_BYTES:
        batch, num_nodes = tree.parents.shape
        return f"{batch} trees of {num_nodes} nodes exceed the scalar memory."
    if _walk_block(tree, inputs, C, state, ring, max_depth) is None:
        return _too_much(state, inputs.x.shape[1], f"max_depth={max_depth}")
    return None


def refuses_verify(
    tree, inputs, A, C, D, state, ring, fold, layer, max_depth
) -> str | None:
    if state.shape[-1] % _LANES:
        return f"{state.shape[-1]} channels are no multiple of {_LANES}."
    return refuses_read(tree, inputs, A, C, D, state, ring, layer, max_depth)


def refuses_fold(state, A, inputs) -> str | None:
    if _fold_block(state, inputs) is None:
        return _too_much(state, inputs.x.shape[2], "one level")
    return None


def _too_much(state, num_tokens, levels) -> str:
    width, channels = state.shape[2:]
    return (
        f"{num_tokens} tokens and {levels} of states [{width}, {channels}] exceed the "
        f"vector memory ({channels} channels are cut only if a multiple of {_LANES})."
    )

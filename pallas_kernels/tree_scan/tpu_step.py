"""A grid step of the TPU kernels of Mamba-1, for a block of channels of one row.

A walk visits the nodes depth first, and leaves every state one level below that above it in
a stack; a chain needs no stack.
"""

import math

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.tree_scan import tpu_memory, tpu_tokens
from pallas_kernels.tree_scan.tpu_tokens import LANES, SUBLANES

_LOG2_E = math.log2(math.e)


def walk_kernel(
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
    scratch: tpu_memory.WalkScratch,
):
    """Reads a tree's nodes after its ring, and writes the state back where asked for."""
    row, block = pl.program_id(0), pl.program_id(1)
    tiles = tpu_tokens.tiles_of(y_ref.shape[1])
    roots = [stack.at[0] for stack in scratch.stack]

    @pl.when((block == 0) | (pl.num_programs(0) == 1))
    def _serve_all_blocks_of_the_row():
        tpu_tokens.spread_columns(inputs.B, scratch.nodes.B)
        tpu_tokens.spread_columns(C_ref, scratch.C)
        if ring is not None:
            tpu_tokens.spread_columns(ring.B, scratch.ring.B)

    scratch.rate[...] = A_ref[...] * _LOG2_E
    for tile, root in zip(tiles, roots, strict=True):
        root[...] = state_ref[:, tile.lanes]
    if ring is not None:
        tpu_tokens.spread_channels(ring, scratch.ring, tiles)
        tpu_tokens.advance_chain(
            length_ref[row], scratch.ring, scratch.rate, roots, tiles
        )

    def write_back(act):
        """Starts or awaits the copies of level 0, which no node overwrites."""
        first = pl.multiple_of(block * y_ref.shape[1], LANES)
        if folded_ref is not None:

            @pl.when(fold_ref[row] != 0)
            def _copy():
                for tile, root in zip(tiles, roots, strict=True):
                    lanes = pl.ds(first + tile.lanes.start, tile.width)
                    target = folded_ref.at[layer_ref[0], row, :, lanes]
                    act(pltpu.make_async_copy(root, target, scratch.written))

    write_back(lambda copy: copy.start())
    tpu_tokens.spread_channels(inputs, scratch.nodes, tiles)
    _visit_nodes(preorder_ref, depth_ref, inputs.x.shape[0], scratch, tiles)
    _read_out(inputs.x, D_ref, y_ref, scratch, tiles)
    write_back(lambda copy: copy.wait())


def _visit_nodes(
    preorder_ref, depth_ref, num_nodes, scratch: tpu_memory.WalkScratch, tiles
):
    """Leaves the outputs of the queried nodes, but for `D x`, in `scratch.sums`."""
    groups = tpu_tokens.groups_of(tiles)
    first_query = num_nodes - scratch.C.shape[0]
    root = pl.program_id(0) * num_nodes
    deepest = scratch.stack[0].shape[0] - 2  # a deeper node disturbs no shallower one

    def visit(position):
        node = preorder_ref[root + position]
        above = jnp.minimum(depth_ref[root + node], deepest)
        C = scratch.C[jnp.maximum(node - first_query, 0)]
        for group, sums in zip(groups, scratch.sums, strict=True):
            parts = []
            for tile in group:
                stack = scratch.stack[tile.index]
                state = tpu_tokens.advance(
                    stack[above], node, scratch.nodes, scratch.rate, tile
                )
                stack[above + 1] = state
                parts.append(state * C[:, : tile.width])
            rows = pl.ds(pl.multiple_of(node * SUBLANES, SUBLANES), SUBLANES)
            sums[rows] = tpu_tokens.sum_sublanes(parts)

    tpu_tokens.for_each(num_nodes, visit)


def _read_out(x_ref, D_ref, y_ref, scratch: tpu_memory.WalkScratch, tiles):
    """Adds `D x` to the outputs of the queried nodes, and brings them into rows."""
    groups = tpu_tokens.groups_of(tiles)
    num_nodes = x_ref.shape[0]
    first = num_nodes - y_ref.shape[0]

    def visit(start, rows):
        for group, sums in zip(groups, scratch.sums, strict=True):
            for k, tile in enumerate(group):
                y = sums[pl.ds(start * SUBLANES + k, rows, stride=SUBLANES)]
                x = x_ref[pl.ds(start, rows), tile.lanes].astype(jnp.float32)
                y = y + D_ref[:, tile.lanes] * x
                y_ref[pl.ds(start - first, rows), tile.lanes] = y

    tpu_tokens.for_rows(first, num_nodes, visit)


def chain_kernel(
    inputs,  # x [T, block], dt [T, block], B [T, S]
    A_ref,  # [S, block]
    state_ref,  # [S, block]
    folded_ref,  # [S, block]
    scratch: tpu_memory.ChainScratch,
):
    """Advances a state over a chain."""
    tiles = tpu_tokens.tiles_of(folded_ref.shape[1])
    states = [folded_ref.at[:, tile.lanes] for tile in tiles]
    scratch.rate[...] = A_ref[...] * _LOG2_E
    folded_ref[...] = state_ref[...]
    tpu_tokens.spread_columns(inputs.B, scratch.tokens.B)
    tpu_tokens.spread_channels(inputs, scratch.tokens, tiles)
    num_tokens = inputs.x.shape[0]
    tpu_tokens.advance_chain(num_tokens, scratch.tokens, scratch.rate, states, tiles)

"""The Mamba-1 ops on TPU: one walk over the nodes with a stack of states on the chip.

The decay differs per channel `e` and state `s`, so no matrix product serves many nodes
at once, and a state per node would be `N` times the bytes of the checkpoint. Instead the
nodes are visited depth first. With `d` the depth of node `i`, the state above it lies at
level `d` of a stack, left there by its parent whatever was visited in between:

    level[d + 1] = exp2(dt_i A log2(e)) level[d] + (dt_i x_i) B_i

    y_i[e] = sum_s level[d + 1][e, s] C_i[s] + D x_i

The ring is a chain that ends in level 0. One grid step serves a block of channels of one
row: it reads the checkpoint once, and writes it only where the ring is folded.

Computes in float32 whatever the activations.

The contract of `read`, `verify` and `fold` is in `tree_scan`; states and rings are of all
layers (`past`).
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.inputs import Inputs
from pallas_kernels.tree_scan import tpu_memory, tpu_step
from pallas_kernels.tree_scan.tpu_tokens import LANES

_SMEM_BYTES = 900 * 2**10  # of the MiB on the chip


def _walk_scratch(tree, C, past, max_depth):
    nodes, (queries, width) = tree.parents.shape[1], C.shape[1:]
    levels = 1 + (nodes if max_depth is None else min(max_depth, nodes))
    return functools.partial(
        tpu_memory.walk_scratch,
        width=width,
        slots=past.num_slots,
        nodes=nodes,
        queries=queries,
        levels=levels,
    )


def _walk_block(tree, inputs, C, past, max_depth) -> int | None:
    def copied(block):
        queries, width = C.shape[1:]
        records = [inputs] if past.ring is None else [inputs, past.ring.inputs]
        rows = width, width, 1, queries  # A, state, D, outputs
        return (
            [tpu_memory.blocks_of_tokens(each, block) for each in records],
            [jax.ShapeDtypeStruct((r, block), jnp.float32) for r in rows],
            jax.ShapeDtypeStruct((queries, width), C.dtype),
        )

    scratch = _walk_scratch(tree, C, past, max_depth)
    return tpu_memory.widest_block(past.state.shape[-1], copied, scratch)


def _chain_scratch(state, inputs):
    width, length = state.shape[2], inputs.x.shape[2]
    return functools.partial(tpu_memory.chain_scratch, width=width, length=length)


def _chain_block(state, inputs) -> int | None:
    def copied(block):
        states = [jax.ShapeDtypeStruct((state.shape[2], block), state.dtype)] * 3
        return tpu_memory.blocks_of_tokens(inputs, block), states

    scratch = _chain_scratch(state, inputs)
    return tpu_memory.widest_block(state.shape[-1], copied, scratch)


def _cost(elements: int, tokens: int, *moved: Any) -> pl.CostEstimate:
    """Of advancing states of so many elements over so many tokens."""
    arrays = jax.tree.leaves(moved)
    return pl.CostEstimate(
        flops=7 * elements * tokens,
        transcendentals=elements * tokens,
        bytes_accessed=sum(math.prod(a.shape) * a.dtype.itemsize for a in arrays),
    )


def _one_layer(stacked: Any) -> Any:
    """The shapes of arrays without the axis of layers."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), stacked)


def verify(tree, inputs, A, C, D, past, *, max_depth=None, interpret=False):
    """Returns the outputs and the aliased state; None where no row may be folded."""
    batch, num_nodes = tree.parents.shape
    num_queries, (width, channels) = C.shape[1], A.shape
    slots = past.num_slots
    past = past if slots else past._replace(ring=None)
    state, ring, fold, layer = past
    block = _walk_block(tree, inputs, C, past, max_depth)
    scratch = _walk_scratch(tree, C, past, max_depth)(block)

    def of_all(rows):
        return pl.BlockSpec((rows, block), lambda b, e, *_: (0, e))

    def of_row(rows, last=block):
        return pl.BlockSpec(
            (None, rows, last), lambda b, e, *_: (b, 0, e if last == block else 0)
        )

    def of_layer(spec):
        def index_map(b, e, layer, *_):
            return layer[0], *spec.index_map(b, e)

        return pl.BlockSpec((None, *spec.block_shape), index_map)

    def tokens(rows):
        return Inputs(of_row(rows), of_row(rows), of_row(rows, width))

    none = jnp.zeros((batch,), jnp.int32)
    y = jax.ShapeDtypeStruct((batch, num_queries, channels), jnp.float32)
    scalars = (
        jnp.asarray(layer, jnp.int32).reshape(1),
        tree.preorder.reshape(-1),
        tree.depth.reshape(-1),
        none if ring is None else ring.length,
        none if fold is None else fold.astype(jnp.int32),
    )
    arrays = (inputs, None if ring is None else ring.inputs, A, C, D[None], state)
    moved = inputs, C, y, [A] * batch, _one_layer((arrays[1], state))
    return pl.pallas_call(
        tpu_step.walk_kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(batch, channels // block),
            in_specs=(
                tokens(num_nodes),
                None if ring is None else jax.tree.map(of_layer, tokens(slots)),
                of_all(width),
                of_row(num_queries, width),
                of_all(1),
                of_layer(of_row(width)),
            ),
            out_specs=(
                of_row(num_queries),
                None if fold is None else pl.BlockSpec(memory_space=pl.ANY),
            ),
            scratch_shapes=(scratch,),
        ),
        out_shape=(y, None if fold is None else jax.typeof(state)),
        input_output_aliases=(
            {} if fold is None else {len(jax.tree.leaves((scalars, arrays))) - 1: 1}
        ),
        compiler_params=pltpu.CompilerParams(
            # A row's first block spreads `B` and `C` for the others. The cores of a chip
            # share the rows, or the blocks of a single one.
            dimension_semantics=("parallel", "parallel" if batch == 1 else "arbitrary")
        ),
        cost_estimate=_cost(state[0].size, slots + num_nodes, *moved),
        interpret=interpret,
        name="tree_scan_read" if fold is None else "tree_scan_verify",
    )(*scalars, *arrays)


def read(tree, inputs, A, C, D, past, *, max_depth=None, interpret=False):
    y, _ = verify(tree, inputs, A, C, D, past, max_depth=max_depth, interpret=interpret)
    return y


def fold(state, A, inputs, *, interpret=False):
    layers, batch, width, channels = state.shape
    length = inputs.x.shape[2]
    block = _chain_block(state, inputs)

    def channels_of_row(rows):
        return pl.BlockSpec((None, None, rows, block), lambda m, e, b: (m, b, 0, e))

    keys = pl.BlockSpec((None, None, length, width), lambda m, e, b: (m, b, 0, 0))
    return pl.pallas_call(
        tpu_step.chain_kernel,
        grid=(layers, channels // block, batch),  # A stays from row to row
        in_specs=(
            Inputs(channels_of_row(length), channels_of_row(length), keys),
            pl.BlockSpec((None, width, block), lambda m, e, b: (m, 0, e)),
            channels_of_row(width),
        ),
        out_specs=channels_of_row(width),
        scratch_shapes=(_chain_scratch(state, inputs)(block),),
        out_shape=jax.typeof(state),
        input_output_aliases={len(Inputs._fields) + 1: 0},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",) * 3),
        cost_estimate=_cost(state.size, length, inputs, A, state, state),
        interpret=interpret,
        name="tree_scan_fold",
    )(inputs, A, state)


def refuses_read(tree, inputs, A, C, D, past, *, max_depth=None):
    if 8 * tree.parents.size > _SMEM_BYTES:
        batch, num_nodes = tree.parents.shape
        return f"{batch} trees of {num_nodes} nodes exceed the scalar memory."
    if _walk_block(tree, inputs, C, past, max_depth) is None:
        nodes, levels = tree.parents.shape[1], max_depth or tree.parents.shape[1]
        return _exceeds(f"{nodes} nodes on {levels} levels", past.state)
    return None


def refuses_verify(tree, inputs, A, C, D, past, *, max_depth=None):
    channels = past.state.shape[-1]
    if channels % LANES:
        return f"{channels} channels are not a multiple of {LANES}."
    return refuses_read(tree, inputs, A, C, D, past, max_depth=max_depth)


def refuses_fold(state, A, inputs):
    if _chain_block(state, inputs) is None:
        return _exceeds(f"{inputs.x.shape[2]} tokens", state)
    return None


def _exceeds(walk: str, state) -> str:
    width, channels = state.shape[2:]
    return (
        f"{walk} with states [{width}, {channels}] exceed the vector memory; channels "
        f"are cut only if a multiple of {LANES}."
    )

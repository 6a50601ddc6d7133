"""The Mamba-2 ops on Hopper and Blackwell GPUs: a block reads one head's state once.

With path sums `L_i` of `dt A` over the ancestors `M` of node `i`, and the ring folded
into the state `S_0` on chip,

    y_i^T = exp(L_i) S_0 C_i + sum_j x_j^T W_ij + D x_i
    W_ij = M_ij exp(L_i - L_j) (C_i . B_j) dt_j

A block has one row of the batch and 64 channels of a head. Their states are copied to
shared memory, where the ring is folded into them, and back in the rows that are to be
folded. All products are those of tensor cores, with channels as rows, so that few nodes
make small products; `D x` is left to XLA, which fuses it with what comes next.

With bfloat16 activations the products with the state keep 16 bits of it and `W` is
rounded to bfloat16. Products of float32 activations, and what is added to the state, keep
float32's precision (`_mma`). Forward only.

Nodes in multiples of 8 (beyond 64, of 64) and slots of a ring in multiples of 8 (beyond
32, of 32) are taken as they are; others are padded first, the ring's in all layers.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import _mosaic_gpu
from pallas_kernels.tree_ssd import gpu_chain, gpu_tree
from pallas_kernels.tree_ssd.gpu_block import STEP, TILE, Block, Records, Tokens, pad

CHAIN_TILE = 32  # tokens that are folded together, at most
MAX_TOKENS = 256  # whose step sizes the engine copies at once
PARAMS = {"approx_math": True}  # `exp` is the hardware's


def read(tree, inputs, A, C, D, state, ring, layer, *, interpret=False):
    args = (tree, inputs, A, C, D, state, ring, None, layer)
    return _walk(*args, interpret=interpret)


@_mosaic_gpu.pure
def verify(tree, inputs, A, C, D, state, ring, fold, layer, *, interpret=False):
    state = _mosaic_gpu.in_place(state)
    args = (tree, inputs, A, C, D, state, ring, fold, layer)
    return _walk(*args, interpret=interpret), state[...]


@_mosaic_gpu.pure
def fold(state, A, inputs, *, interpret=False):
    block, tokens, memory = _plan_fold(state, inputs, interpret)
    x, B = (tokens.pad(array, axis=2) for array in (inputs.x, inputs.B))
    chain = Records(tokens.times(inputs.dt), x, B)

    def body(A, chain, states, state_s, chain_s, loaded):
        layer, b, h = map(jax.lax.axis_index, ("layer", "batch", "head"))
        here = block.states(states, layer)
        chain = Records(*(ref.at[layer, b] for ref in chain))
        chain = chain._replace(dt=chain.dt.at[h])
        plgpu.copy_gmem_to_smem(here, state_s, loaded)
        gpu_chain.start(block, tokens, chain, chain_s)
        plgpu.barrier_wait(loaded)
        gpu_chain.fold(block, tokens, A[layer, h], chain, state_s, chain_s)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(state_s, here)
        plgpu.wait_smem_to_gmem(0)

    states = _mosaic_gpu.in_place(state)
    _mosaic_gpu.launch(
        body,
        (A, chain, states),
        grid={"layer": state.shape[0], **block.grid(state.shape[1])},
        scratch=memory,
        name="tree_ssd_fold",
        cost=pl.CostEstimate(
            flops=2 * state.size * tokens.padded,
            bytes_accessed=_mosaic_gpu.num_bytes(state, state, chain),
            transcendentals=chain.dt.size,
        ),
        interpret=interpret,
        **PARAMS,
    )
    return states[...]


def refuses_read(tree, inputs, A, C, D, state, ring, layer):
    lengths = [inputs.x.shape[1]]
    if ring is not None:
        lengths.append(ring.inputs.x.shape[2])
    reason = _refuses(inputs, state, max(lengths))
    return reason or _refuses_size(_plan(inputs, C, state, ring)[-1])


def refuses_verify(tree, inputs, A, C, D, state, ring, fold, layer):
    return refuses_read(tree, inputs, A, C, D, state, ring, layer)


def refuses_fold(state, A, inputs):
    reason = _refuses(inputs, state, inputs.x.shape[2])
    return reason or _refuses_size(_plan_fold(state, inputs)[-1])


def _walk(tree, inputs, A, C, D, state, ring, fold, layer, *, interpret):
    batch, num_queries = C.shape[:2]
    reader, slots, memory = _plan(inputs, C, state, ring, interpret)
    block, nodes, queries, first = reader
    sees = pad(tree.ancestors.astype(jnp.int8), 1, reader.num_rows)
    sees = pad(sees, 2, nodes.slots)
    x, B = (nodes.pad(array, axis=1) for array in (inputs.x, inputs.B))
    rows = sees, Records(nodes.times(inputs.dt), x, B), queries.pad(C, axis=1)
    chain = None if ring is None else _records(ring, slots, layer)

    def body(layer, A, rows, chain, fold, states, y, state_s, tree_s, chain_s, loaded):
        b, h, layer = jax.lax.axis_index("batch"), jax.lax.axis_index("head"), layer[0]
        here = block.states(states, layer)
        sees, token, C = rows
        token = Records(token.dt.at[b, h], token.x.at[b], token.B.at[b])
        tree = gpu_tree.Refs(sees.at[b], token, C.at[b], y.at[b])
        plgpu.copy_gmem_to_smem(here, state_s, loaded)
        reader.start(tree, tree_s)
        if chain is not None:
            x, B = chain.x.at[layer, b], chain.B.at[layer, b]
            chain = Records(chain.dt.at[b, h], x, B)
            gpu_chain.start(block, slots, chain, chain_s)

        def prepare_state():
            plgpu.barrier_wait(loaded)
            if chain is not None:
                gpu_chain.fold(block, slots, A[h], chain, state_s, chain_s)
            if fold is not None:

                @pl.when(fold[b])
                def _():
                    plgpu.commit_smem()
                    plgpu.copy_smem_to_gmem(state_s, here)

        reader.read(A[h], tree, prepare_state, state_s, tree_s)
        plgpu.wait_smem_to_gmem(0)

    channels = inputs.x.shape[2]
    y = _mosaic_gpu.launch(
        body,
        (layer[None], A, rows, chain, fold, state),
        jax.ShapeDtypeStruct(
            (batch, queries.num * queries.size, channels), jnp.float32
        ),
        grid=block.grid(batch),
        scratch=memory,
        name="tree_ssd_read" if fold is None else "tree_ssd_verify",
        cost=_cost(reader, slots, rows),
        interpret=interpret,
        **PARAMS,
    )
    return y[:, :num_queries] + D[None, None] * inputs.x[:, first:].astype(D.dtype)


def _plan_fold(state, inputs, interpret=False):
    """How tokens are cut into tiles, and the memory for them."""
    block = Block.of(state, inputs, interpret)
    tokens = Tokens.of(inputs.x.shape[2], CHAIN_TILE)
    chain = gpu_chain.memory(block, tokens)
    return block, tokens, (block.state_memory(), chain, plgpu.Barrier())


def _plan(inputs, C, state, ring, interpret=False):
    """How tokens are cut, into the largest tiles of nodes that fit; and the memory."""
    block = Block.of(state, inputs, interpret)
    num_nodes, num_queries = inputs.x.shape[1], C.shape[1]
    slots, chain = None, None
    if ring is not None:
        slots = Tokens.of(ring.inputs.x.shape[2], CHAIN_TILE)
        chain = gpu_chain.memory(block, slots)
    for size in (block.tile, block.tile // 2, STEP):
        tiles = Tokens.of(num_nodes, size), Tokens.of(num_queries, block.tile)
        reader = gpu_tree.Reader(block, *tiles, num_nodes - num_queries)
        memory = block.state_memory(), reader.memory(), chain, plgpu.Barrier()
        if _bytes(memory) <= _mosaic_gpu.SHARED_MEMORY:
            break
    return reader, slots, memory


def _records(ring, tokens, layer):
    """The records of a ring, `dt` those of one layer."""
    inputs = ring.inputs
    dt = jax.lax.dynamic_index_in_dim(inputs.dt, layer, keepdims=False)
    live = jnp.arange(dt.shape[1])[None] < ring.length[:, None]
    dt = tokens.times(jnp.where(live[..., None], dt, 0))
    return Records(dt, tokens.pad(inputs.x, axis=2), tokens.pad(inputs.B, axis=2))


def _cost(reader, slots, rows):
    """What a call is to XLA; a state that is written back is not counted."""
    block = reader.block
    channels = block.heads * block.dim
    batch = rows[0].shape[0]
    queries = reader.queries.num * reader.queries.size
    chain = 0 if slots is None else slots.padded
    flops = channels * block.width * (queries + chain)
    flops += queries * reader.nodes.padded * (block.heads * block.width + channels)
    return pl.CostEstimate(
        flops=2 * batch * flops,
        bytes_accessed=4 * batch * channels * (block.width + queries)
        + _mosaic_gpu.num_bytes(rows),
        transcendentals=batch * block.heads * queries * reader.nodes.padded,
    )


def _refuses(inputs: Any, state: Any, length: int) -> str | None:
    dim, width = state.shape[3:]
    if dim % TILE or width % TILE:
        return f"heads {dim} wide and states {width} wide; it takes multiples of {TILE}"
    if inputs.x.dtype not in (jnp.bfloat16, jnp.float32):
        return f"{inputs.x.dtype} activations; it takes bfloat16 and float32"
    if length > MAX_TOKENS:
        return f"{length} tokens; it takes {MAX_TOKENS}"
    return None


def _refuses_size(memory: Any) -> str | None:
    if (size := _bytes(memory)) > _mosaic_gpu.SHARED_MEMORY:
        return f"{size} bytes of shared memory, more than there are"
    return None


def _bytes(memory: Any) -> int:
    leaves = jax.tree.leaves(memory)
    arrays = [leaf for leaf in leaves if hasattr(leaf, "dtype")]
    return sum(math.prod(a.shape) * jnp.dtype(a.dtype).itemsize for a in arrays)

"""The Mamba-2 ops on Hopper and Blackwell GPUs: a block reads one head's state once.

With path sums `G_i` of `dt A` over the ancestors `M` of node `i`, and the ring folded
into the state `S_0` on chip,

    y_i^T = exp(G_i) S_0 C_i + sum_j x_j^T W_ij + D x_i
    W_ij = M_ij exp(G_i - G_j) (C_i . B_j) dt_j

A block has one row of the batch and 64 channels of a head. Their states are copied to
shared memory, where the ring is folded into them, and back in the rows that are to be
folded. All products are those of tensor cores, with channels as rows, so that few nodes
make small products; `D x` is left to XLA, which fuses it with what comes next.

With bfloat16 activations the products with the state keep 16 bits of it and `W` is
rounded to bfloat16. Products of float32 activations, and what is added to the state, keep
float32's precision (`gpu_mma`). Forward only.

Nodes in multiples of 8 (beyond 64, of 64) and slots of a ring in multiples of 8 (beyond
32, of 32) are taken as they are; others are padded first, the ring's in all layers.

The contract of `read`, `verify` and `fold` is in `tree_ssd`; states and rings are of all
layers (`past`).
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels import _mosaic_gpu, stacked
from pallas_kernels.gated import gpu_call
from pallas_kernels.gated.gpu_block import STEP, Block, Tokens
from pallas_kernels.gated.gpu_call import Chains
from pallas_kernels.tree_ssd import gpu_tree


def read(tree, inputs, A, C, D, past, *, interpret=False):
    batch, num_queries = C.shape[:2]
    reader, slots = _plan(inputs, C, past, interpret)
    nodes, queries = reader.nodes, reader.queries
    sees = reader.paths.sees(tree)
    records = _records(nodes, inputs.dt, A[None, None], inputs)
    trees = gpu_tree.Refs(sees, records, queries.pad(C, axis=1))
    chain, ring = None, past.ring
    if ring is not None:
        dt = stacked.take(ring.inputs.dt, past.layer)
        live = jnp.arange(dt.shape[1])[None] < ring.length[:, None]
        dt = jnp.where(live[..., None], dt, 0)
        chain = Chains(slots, _records(slots, dt, A[None, None], ring.inputs))
    channels = inputs.x.shape[2]
    y = gpu_call.walk(
        reader,
        trees,
        chain,
        past,
        jax.ShapeDtypeStruct(
            (batch, queries.num * queries.size, channels), jnp.float32
        ),
        name="tree_ssd_read" if past.fold is None else "tree_ssd_verify",
        cost=_cost(reader, slots, trees),
        interpret=interpret,
    )
    x = inputs.x[:, reader.first :].astype(D.dtype)
    return y[:, :num_queries] + D[None, None] * x


@_mosaic_gpu.pure
def verify(tree, inputs, A, C, D, past, *, interpret=False):
    past = past._replace(state=_mosaic_gpu.in_place(past.state))
    y = read(tree, inputs, A, C, D, past, interpret=interpret)
    return y, past.state[...]


@_mosaic_gpu.pure
def fold(state, A, inputs, *, interpret=False):
    block, tokens = _plan_fold(state, inputs, interpret)
    chain = Chains(tokens, _records(tokens, inputs.dt, A[:, None, None], inputs))
    name = "tree_ssd_fold"
    return gpu_call.fold(block, chain, state, name=name, interpret=interpret)


def refuses_read(tree, inputs, A, C, D, past):
    length = max(inputs.x.shape[1], past.num_slots)
    reason = gpu_call.refuses(past.state, inputs.B, length)
    return reason or gpu_call.refuses_memory(gpu_call.memory(*_plan(inputs, C, past)))


def refuses_verify(tree, inputs, A, C, D, past):
    return refuses_read(tree, inputs, A, C, D, past)


def refuses_fold(state, A, inputs):
    reason = gpu_call.refuses(state, inputs.B, inputs.x.shape[2])
    return reason or gpu_call.refuses_memory(
        gpu_call.fold_memory(*_plan_fold(state, inputs))
    )


def _records(tokens, dt, A, inputs):
    """What tokens write, with `A` in as many axes as `dt` `[..., T, H]`."""
    return tokens.records(dt * A, dt, inputs.x, inputs.B)


def _plan_fold(state, inputs, interpret=False):
    """A block, and how tokens are cut into tiles."""
    block = Block.of(state, inputs.x, inputs.B, interpret)
    return block, Tokens.of(inputs.x.shape[2], gpu_call.CHAIN_TILE)


def _plan(inputs, C, past, interpret=False):
    """How tokens are cut, into the largest tiles of nodes that fit; a ring's slots."""
    block = Block.of(past.state, inputs.x, inputs.B, interpret)
    num_nodes, num_queries = inputs.x.shape[1], C.shape[1]
    slots = None
    if past.ring is not None:
        slots = Tokens.of(past.num_slots, gpu_call.CHAIN_TILE)
    for size in (block.tile, block.tile // 2, STEP):
        reader = gpu_tree.Reader(
            block,
            nodes=Tokens.of(num_nodes, size),
            queries=Tokens.of(num_queries, block.tile),
            first=num_nodes - num_queries,
        )
        if gpu_call.refuses_memory(gpu_call.memory(reader, slots)) is None:
            break
    return reader, slots


def _cost(reader, slots, trees):
    """What a call is to XLA; a state that is written back is not counted."""
    block = reader.block
    channels = block.heads * block.dim
    batch = trees.C.shape[0]
    queries = reader.queries.num * reader.queries.size
    chain = 0 if slots is None else slots.padded
    flops = channels * block.width * (queries + chain)
    flops += queries * reader.nodes.padded * (block.heads * block.width + channels)
    return pl.CostEstimate(
        flops=2 * batch * flops,
        bytes_accessed=4 * batch * channels * (block.width + queries)
        + _mosaic_gpu.num_bytes(trees),
        transcendentals=batch * block.heads * queries * reader.nodes.padded,
    )

"""The gated delta rule's ops on Hopper and Blackwell GPUs: a state is read once.

With path sums `G_i` of `g` over the ancestors `M` of node `i`, its strict ones `M'`, and
the ring folded into the state `S_0` on chip,

    (I + A) U = beta (v - exp(G) S_0 k)       A_ij = M'_ij beta_i exp(G_i - G_j) k_i . k_j
    y_i = exp(G_i) S_0 q_i + sum_j Q_ij u_j   Q_ij = M_ij exp(G_i - G_j) q_i . k_j

A block has one row of the batch and 64 channels of a head. Their states are copied to
shared memory, where the ring is folded into them, and back in the rows that are to be
folded. It solves for its own channels (`gpu_tree`): two blocks of a head 128 wide make the
same `A`. All products are those of tensor cores, with channels as rows.

What is written, `u` and the folded state, keeps float32's precision (`gpu_mma`); with
bfloat16 keys what is read keeps 16 bits of the state, of `u` and of `Q`. Forward only.

It takes trees of at most 64 nodes, whose system fits beside the state. Nodes in multiples
of 8 and slots of a ring in multiples of 8 (beyond 32, of 32) are taken as they are; others
are padded first, the ring's in all layers.

The contract of `read`, `verify` and `fold` is in `tree_delta`; states and rings are of all
layers (`past`).
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels import _mosaic_gpu, stacked
from pallas_kernels.gated import gpu_call
from pallas_kernels.gated.gpu_block import TILE, Block, Tokens
from pallas_kernels.gated.gpu_call import CHAIN_TILE, Chains
from pallas_kernels.tree_delta import gpu_tree


def read(tree, inputs, beta, q, past, *, interpret=False):
    (batch, num_nodes, channels), num_queries = inputs.u.shape, q.shape[1]
    reader, slots = _plan(inputs, q, past, interpret)
    v, g, k = inputs
    beta = jnp.pad(beta, ((0, 0), (reader.first, 0), (0, 0)))
    records = reader.nodes.records(g, beta, v, k)
    q = reader.queries.pad(q, axis=1)
    trees = gpu_tree.Refs(reader.paths.sees(tree), records, q)
    chain, ring = None, past.ring
    if ring is not None:
        g = stacked.take(ring.inputs.g, past.layer)
        live = jnp.arange(g.shape[1])[None, :, None] < ring.length[:, None, None]
        g = jnp.where(live, g, 0)
        live = jnp.broadcast_to(live, g.shape).astype(g.dtype)
        records = slots.records(g, live, ring.inputs.u, ring.inputs.k)
        chain = Chains(slots, records)
    u, y = gpu_call.walk(
        reader,
        trees,
        chain,
        past,
        [
            jax.ShapeDtypeStruct((batch, tokens.size, channels), jnp.float32)
            for tokens in (reader.nodes, reader.queries)
        ],
        name="tree_delta_read" if past.fold is None else "tree_delta_verify",
        cost=_cost(reader, slots, trees),
        interpret=interpret,
    )
    return u[:, reader.first : num_nodes], y[:, :num_queries]


@_mosaic_gpu.pure
def verify(tree, inputs, beta, q, past, *, interpret=False):
    past = past._replace(state=_mosaic_gpu.in_place(past.state))
    found = read(tree, inputs, beta, q, past, interpret=interpret)
    return found, past.state[...]


@_mosaic_gpu.pure
def fold(state, inputs, *, interpret=False):
    block, tokens = _plan_fold(state, inputs, interpret)
    u, g, k = inputs
    chain = Chains(tokens, tokens.records(g, jnp.ones_like(g), u, k))
    name = "tree_delta_fold"
    return gpu_call.fold(block, chain, state, name=name, interpret=interpret)


def refuses_read(tree, inputs, beta, q, past):
    num_nodes = inputs.u.shape[1]
    if num_nodes > TILE:
        return f"{num_nodes} nodes; it takes {TILE}"
    length = num_nodes if past.ring is None else past.num_slots
    reason = gpu_call.refuses(past.state, inputs.k, length)
    return reason or gpu_call.refuses_memory(gpu_call.memory(*_plan(inputs, q, past)))


def refuses_verify(tree, inputs, beta, q, past):
    return refuses_read(tree, inputs, beta, q, past)


def refuses_fold(state, inputs):
    reason = gpu_call.refuses(state, inputs.k, inputs.u.shape[2])
    return reason or gpu_call.refuses_memory(
        gpu_call.fold_memory(*_plan_fold(state, inputs))
    )


def _plan_fold(state, inputs, interpret=False):
    """A block, and how tokens are cut into tiles."""
    block = Block.of(state, inputs.u, inputs.k, interpret)
    return block, Tokens.of(inputs.u.shape[2], CHAIN_TILE)


def _plan(inputs, q, past, interpret=False):
    """Who reads a tree, and how a ring's slots are cut into tiles."""
    block = Block.of(past.state, inputs.u, inputs.k, interpret)
    num_nodes, num_queries = inputs.u.shape[1], q.shape[1]
    reader = gpu_tree.Reader(
        block,
        nodes=Tokens.of(num_nodes, TILE),
        queries=Tokens.of(num_queries, TILE),
        num_nodes=num_nodes,
        first=num_nodes - num_queries,
    )
    if past.ring is None:
        return reader, None
    return reader, Tokens.of(past.num_slots, CHAIN_TILE)


def _cost(reader, slots, trees):
    """What a call is to XLA; a state that is written back is not counted."""
    block, nodes, queries = reader.block, reader.nodes.size, reader.queries.size
    channels = block.heads * block.dim
    batch = trees.q.shape[0]
    chain = 0 if slots is None else slots.padded
    flops = channels * block.width * (nodes + queries + chain)
    flops += nodes * (nodes + queries) * (block.heads * block.width + channels)
    return pl.CostEstimate(
        flops=2 * batch * flops,
        bytes_accessed=4 * batch * channels * (block.width + nodes + queries)
        + _mosaic_gpu.num_bytes(trees),
        transcendentals=batch * block.heads * nodes * (nodes + queries),
    )

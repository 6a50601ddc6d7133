"""The gated delta rule's ops on a TPU: one pass over the checkpoint, no state per node.

With path sums `G_i` of `g` over the ancestors `M` of node `i`, strict ones `M'`, and with
`hw(z)` what the state and the ring before the root give for `z`,

    (I + A) U = beta (v - exp(G) hw(k))       A_ij = M'_ij beta_i exp(G_i - G_j) k_i . k_j

    y_i = exp(G_i) hw(q_i) + sum_j M_ij exp(G_i - G_j) (q_i . k_j) u_j

The kernels are those of `gated/tpu_call.py`: a ring of `u` is one of Mamba-2's `dt x`. The
state is read for keys and queries at once, and products of keys serve all heads of a group.

Numbers: an error in `u` would stay in the state. Whatever the activations, the system is
built and solved in full float32, by substitution, and its right side is exact to 2^-16 at
least. In `y` the weights are rounded to the keys' dtype. Only sums of strong decays round
more beside bfloat16 keys (`tpu_decays`): `u` by 5e-4 of the largest, where 128 tokens
that erase the state come before 128 others.

The contract of `read`, `verify` and `fold` is in `tree_delta`; states and rings are of all
layers (`past`).
"""

import math

import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.gated import tpu_blocks, tpu_call
from pallas_kernels.gated.tpu_decays import sum_parts
from pallas_kernels.gated.tpu_lanes import LANES
from pallas_kernels.tree_delta import tpu_kernels

_NAME = "tree_delta"
_LONG_HEADS = 2  # whose systems are solved at once where rows are long


def _block_shape(inputs, state, queries):
    """A head a tile; fewer heads where scores are large, for the sake of memory."""
    size = 2**19 if inputs.u.shape[-2] <= tpu_blocks.QUERY_ROWS else 2**18
    return tpu_blocks.block_shape(inputs, state, queries, abreast=1, most_bytes=size)


def _verify(tree, inputs, beta, q, past, interpret):
    batch, num_nodes, inner = inputs.u.shape
    heads, dim, width = past.state.shape[2:]
    queries = q.shape[1]
    shape = _block_shape(inputs, past.state, queries)
    kq = jnp.concatenate([inputs.k[:, shape.first :], q], axis=1)
    abreast = shape.tiles if shape.short else math.gcd(shape.tiles, _LONG_HEADS)
    padded, parts = shape.padded, sum_parts(q.dtype)
    rows = (parts + 1) * queries
    scratch = tpu_kernels.Scratch(
        pltpu.VMEM((shape.blocks, rows, 3 * shape.heads), jnp.bfloat16),
        pltpu.VMEM((parts, heads, 1, padded), jnp.float32),
        pltpu.VMEM((shape.groups, 2 * queries, padded), jnp.float32),
        pltpu.VMEM((abreast, queries, padded), jnp.float32),
        pltpu.VMEM((abreast, queries, padded), q.dtype),
        pltpu.VMEM((abreast, queries, dim), jnp.float32),
        pltpu.VMEM((abreast, padded, dim), jnp.float32),
    )
    call = tpu_call.Call(
        op=tpu_kernels.OP,
        name=_NAME,
        rates=(),
        own=((beta, tpu_blocks.Specs(shape).of_row(queries, heads)),),
        scratch=scratch,
        scores_dtype=jnp.float32,
        outputs=2,
        flops=4 * batch * inner * queries * (width + num_nodes + past.num_slots),
        transcendentals=batch * queries * (heads * num_nodes + inner),
    )
    return tpu_call.verify(call, shape, tree, inputs, kq, past, interpret)


def read(tree, inputs, beta, q, past, *, interpret=False):
    return _verify(tree, inputs, beta, q, past, interpret)


def verify(tree, inputs, beta, q, past, *, interpret=False):
    u, y, states = _verify(tree, inputs, beta, q, past, interpret)
    return (u, y), states


def fold(state, inputs, *, interpret=False):
    shape = _block_shape(inputs, state, 0)
    return tpu_call.fold(_NAME, shape, state, inputs, (), interpret)


def refuses_read(tree, inputs, beta, q, past):
    return _refuses(inputs, past.state)


def refuses_verify(tree, inputs, beta, q, past):
    return _refuses(inputs, past.state)


def refuses_fold(state, inputs):
    return _refuses(inputs, state)


def _refuses(inputs, state):
    dim, width = state.shape[3:]
    if width % LANES:
        return f"a state width of {width} is not a multiple of {LANES} lanes"
    if dim % 8:
        return f"heads of width {dim} are not a multiple of 8 sublanes"
    if inputs.k.dtype not in (jnp.float32, jnp.bfloat16):
        return f"keys are {inputs.k.dtype}, not float32 or bfloat16"
    return None

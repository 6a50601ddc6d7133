"""The Mamba-2 ops on a TPU: one pass over the checkpoint, no state per node.

With path sums `L_i` of `dt A` over the ancestors `M` of node `i`, and a ring whose tokens
`k` are ancestors of every node (`R_k` sums `dt A` over the tokens after `k`, `R` over all),

    y_i = exp(L_i) (exp(R) S_0 C_i + sum_k (C_i . B_k) exp(R_k) dt_k x_k)
          + sum_j M_ij (C_i . B_j) exp(L_i - L_j) dt_j x_j + D x_i

    S   = exp(R) S_0 + sum_k exp(R_k) dt_k x_k B_k^T          (the fold, where asked for)

The kernels are those of `gated/tpu_call.py`. Scores and a ring's writes are rounded to the
activations' dtype where they are read, as flash attention rounds its probabilities.

The contract of `read`, `verify` and `fold` is in `tree_ssd`; states and rings are of all
layers (`past`).
"""

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.gated import tpu_blocks, tpu_call
from pallas_kernels.gated.tpu_decays import sum_parts
from pallas_kernels.gated.tpu_lanes import LANES
from pallas_kernels.tree_ssd import tpu_kernels

_NAME = "tree_ssd"


def _block_shape(inputs, state, queries):
    """Two heads abreast, or as many as fill the lanes."""
    abreast = max(2, LANES // state.shape[3])
    return tpu_blocks.block_shape(inputs, state, queries, abreast)


def _verify(tree, inputs, A, C, D, past, interpret):
    batch, num_nodes, inner = inputs.x.shape
    heads, width, queries = A.shape[0], past.state.shape[4], C.shape[1]
    shape = _block_shape(inputs, past.state, queries)
    score_lanes = shape.score_heads * shape.padded
    source_rows = shape.tile_heads // shape.score_heads
    parts = sum_parts(inputs.B.dtype)
    sources = parts + 1, shape.blocks * shape.tiles, source_rows, score_lanes
    weighed = pltpu.VMEM((shape.tiles, queries, score_lanes), C.dtype)
    scratch = tpu_kernels.Scratch(
        pltpu.VMEM((shape.blocks, parts * queries, 3 * shape.heads), jnp.bfloat16),
        pltpu.VMEM(sources, jnp.float32),
        pltpu.VMEM((shape.groups, queries, score_lanes), jnp.float32),
        weighed if shape.short else (),
    )
    lanes = shape.heads * shape.dim
    skip = pl.BlockSpec((1, lanes), lambda row, block, *_: (0, block))
    call = tpu_call.Call(
        op=tpu_kernels.OP,
        name=_NAME,
        rates=(A[None],),
        own=((D[None], skip),),
        scratch=scratch,
        scores_dtype=C.dtype,
        outputs=1,
        flops=2 * batch * inner * queries * (width + num_nodes + past.num_slots),
        transcendentals=batch * queries * (heads * num_nodes + inner),
    )
    return tpu_call.verify(call, shape, tree, inputs, C, past, interpret)


def read(tree, inputs, A, C, D, past, *, interpret=False):
    return _verify(tree, inputs, A, C, D, past, interpret)[0]


def verify(tree, inputs, A, C, D, past, *, interpret=False):
    return _verify(tree, inputs, A, C, D, past, interpret)


def fold(state, A, inputs, *, interpret=False):
    shape = _block_shape(inputs, state, 0)
    return tpu_call.fold(_NAME, shape, state, inputs, (A,), interpret)


def refuses_read(tree, inputs, A, C, D, past):
    return _refuses(inputs, past.state)


def refuses_verify(tree, inputs, A, C, D, past):
    return _refuses(inputs, past.state)


def refuses_fold(state, A, inputs):
    return _refuses(inputs, state)


def _refuses(inputs, state):
    dim, width = state.shape[3:]
    if width % LANES:
        return f"a state width of {width} is not a multiple of {LANES} lanes"
    if dim % 8:
        return f"heads of width {dim} are not a multiple of 8 sublanes"
    if inputs.x.dtype not in (jnp.float32, jnp.bfloat16):
        return f"activations are {inputs.x.dtype}, not float32 or bfloat16"
    return None

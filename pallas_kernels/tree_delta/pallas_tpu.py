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
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.gated import tpu_call
from pallas_kernels.gated.tpu_decays import sum_parts
from pallas_kernels.gated.tpu_lanes import LANES
from pallas_kernels.gated.tpu_step import QUERY_ROWS
from pallas_kernels.inputs import DeltaInputs, Ring
from pallas_kernels.topology import Topology
from pallas_kernels.tree_delta import tpu_kernels

_NAME = "tree_delta"
_LONG_HEADS = 2  # whose systems are solved at once where rows are long


def _block_shape(inputs, state, queries):
    """A head a tile; fewer heads where scores are large, for the sake of memory."""
    size = 2**19 if inputs.u.shape[-2] <= QUERY_ROWS else 2**18
    return tpu_call.block_shape(inputs, state, queries, abreast=1, most_bytes=size)


def _verify(tree, inputs, beta, q, state, ring, fold, layer, interpret):
    batch, num_nodes, inner = inputs.u.shape
    heads, dim, width = state.shape[2:]
    queries = q.shape[1]
    shape = _block_shape(inputs, state, queries)
    kq = jnp.concatenate([inputs.k[:, shape.first :], q], axis=1)
    slots = ring.inputs.u.shape[2] if ring is not None else 0
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
        own=((beta, tpu_call.Specs(shape).of_row(queries, heads)),),
        scratch=scratch,
        scores_dtype=jnp.float32,
        outputs=2,
        flops=4 * batch * inner * queries * (width + num_nodes + slots),
        transcendentals=batch * queries * (heads * num_nodes + inner),
    )
    args = tree, inputs, kq, state, ring, fold, layer
    return tpu_call.verify(call, shape, *args, interpret)


def read(
    tree: Topology,
    inputs: DeltaInputs,
    beta: jax.Array,
    q: jax.Array,
    state: jax.Array,
    ring: Ring | None,
    layer: jax.Array,
    *,
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array]:
    """Solves for what the last `n` nodes write and reads the state at them.

    Args:
        tree: topology of the `N` nodes.
        inputs: records of the `N` nodes; those of the last `n` hold `v` in place of `u`.
        beta: `[B, n, H]` float32.
        q: `[B, n, G * S]` queries of the last `n` nodes.
        state: `[L, B, H, P, S]` float32 checkpoints, before the ring and the root.
        ring: of every layer's tokens between `state` and the root, or `None`.
        layer: int32, the layer to read.
        interpret: whether to interpret the kernel, or how.

    Returns:
        `u` and the outputs, `[B, n, H * P]` float32.
    """
    args = tree, inputs, beta, q, state, ring, None, layer
    return _verify(*args, interpret)


def verify(
    tree: Topology,
    inputs: DeltaInputs,
    beta: jax.Array,
    q: jax.Array,
    state: jax.Array,
    ring: Ring,
    fold: jax.Array,
    layer: jax.Array,
    *,
    interpret: Any = False,
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """Solves and reads all nodes, and folds the ring into the state in some rows.

    The states of the other rows, and of other layers, are not written: `state` stays
    where it is, so donate it or carry it through a loop.

    Args:
        tree: as in `read`.
        inputs: as in `read`.
        beta: as in `read`, of all nodes.
        q: as in `read`, of all nodes.
        state: as in `read`.
        ring: as in `read`, not `None`.
        fold: `[B]` bool, the rows whose state takes up the ring.
        layer: as in `read`.
        interpret: as in `read`.

    Returns:
        What `read` returns, the same whether a row folds or not, and the states.
    """
    args = tree, inputs, beta, q, state, ring, fold, layer
    u, y, states = _verify(*args, interpret)
    return (u, y), states


def fold(state: jax.Array, inputs: DeltaInputs, *, interpret: Any = False) -> jax.Array:
    """Advances the states of all layers over a chain of tokens, in place.

    Args:
        state: `[L, B, H, P, S]` float32.
        inputs: complete records `[L, B, T, ...]`, oldest first.
        interpret: whether to interpret the kernel, or how.

    Returns:
        `[L, B, H, P, S]` states after the last token.
    """
    shape = _block_shape(inputs, state, 0)
    return tpu_call.fold(_NAME, shape, state, inputs, (), interpret)


def refuses_read(tree, inputs, beta, q, state, ring, layer) -> str | None:
    """Why the kernel cannot take these arguments on a TPU, if it cannot."""
    return _refuses(inputs, state)


def refuses_verify(tree, inputs, beta, q, state, ring, fold, layer) -> str | None:
    """As `refuses_read`."""
    return _refuses(inputs, state)


def refuses_fold(state, inputs) -> str | None:
    """As `refuses_read`."""
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

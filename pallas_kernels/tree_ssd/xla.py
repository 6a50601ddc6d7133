"""The Mamba-2 ops in matrix form: no state per node.

A token decays the state by `g = dt A` and writes `x` with the weight `dt`; the rest is
`gated/xla.py`.
"""

import jax.numpy as jnp

from pallas_kernels import stacked
from pallas_kernels.gated import xla as gated
from pallas_kernels.gated.xla import Writes


def _writes(inputs, A, state):
    """Records as writes on states `[B, H, P, S]`."""
    leading, (heads, dim, width) = inputs.x.shape[:2], state.shape[1:]
    return Writes(
        v=inputs.x.astype(state.dtype).reshape(*leading, heads, dim),
        k=inputs.B.astype(state.dtype).reshape(*leading, -1, width),
        g=inputs.dt * A[None, None],
        w=inputs.dt,
    )


def _fold(state, A, inputs):
    return gated.fold(state, _writes(inputs, A, state))


def fold(state, A, inputs):
    return stacked.map_layers(_fold, state, A, inputs)


def node_states(parents, inputs, A, state, known):
    writes = _writes(inputs, A, state)
    k = jnp.repeat(writes.k, state.shape[1] // writes.k.shape[2], axis=2)
    decay = jnp.exp(writes.g)

    def advance(i, above):
        w, v = writes.w[:, i], writes.v[:, i]
        update = gated.einsum("bh,bhp,bhs->bhps", w, v, k[:, i])
        return decay[:, i, :, None, None] * above + update

    return gated.visit(parents, state, known, advance)


def read(tree, inputs, A, C, D, past):
    state, ring = stacked.take(past.state, past.layer), past.ring_of_layer()
    return _read(tree, inputs, A, C, D, state, ring)


def verify(tree, inputs, A, C, D, past):
    # Written in all rows, and read only then: else XLA copies the state of all layers.
    before, ring = stacked.take(past.state, past.layer), past.ring_of_layer()
    folded = _fold(before, A, ring.live())
    kept, rest = gated.choose(past.fold, folded, before, ring)
    y = _read(tree, inputs, A, C, D, kept, rest)
    return y, stacked.put(past.state, kept, past.layer)


def _read(tree, inputs, A, C, D, state, ring):
    batch, queries = C.shape[:2]
    writes = _writes(inputs, A, state)
    C = C.astype(state.dtype).reshape(batch, queries, -1, state.shape[3])
    sums = gated.path_sums(tree, writes.g)
    decay = gated.decays(tree, sums, queries)
    decay = decay * jnp.swapaxes(writes.w, 1, 2)[:, :, None]
    chain = None if ring is None else _writes(ring.live(), A, state)
    y = gated.mix(gated.weigh(decay, gated.scores(C, writes.k)), writes.v)
    y = y + gated.read_past(C, sums.total[:, :, -queries:], state, chain)
    x = inputs.x[:, -queries:].astype(state.dtype)
    return y.reshape(batch, queries, -1) + D[None, None] * x

"""The definition of the Mamba-2 ops: one node at a time.

State space duality (Dao and Gu 2024, section 6) on a tree (STree 2025, eqs. 2-6). With
`p` the parent of node `i`, every head keeps

    S_i = exp(dt_i A) S_p + dt_i x_i B_i^T        y_i = S_i C_i + D x_i

and the ring is a chain of ancestors above the root. Computes in the state's dtype.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.gated.reference import advance, per_head


def _advance(state, A, x, dt, B):
    """One token of one row: state `[H, P, S]`, x `[H P]`, dt `[H]`, B `[G S]`."""
    x, dt, B = (a.astype(state.dtype) for a in (x, dt, B))
    return advance(state, dt * A, jnp.repeat(dt, state.shape[1]) * x, B)


def _fold(state, A, inputs):
    def row(state, inputs):
        for t in range(inputs.x.shape[0]):
            state = _advance(state, A, inputs.x[t], inputs.dt[t], inputs.B[t])
        return state

    return jax.vmap(row)(state, inputs)


def fold(state, A, inputs):
    return jax.vmap(_fold)(state, A, inputs)


def node_states(parents, inputs, A, state, known):
    def row(parents, inputs, state, known):
        states = [state, *known]
        for i in range(parents.shape[0]):
            above = jnp.stack(states)[parents[i] + 1]
            states.append(_advance(above, A, inputs.x[i], inputs.dt[i], inputs.B[i]))
        return jnp.stack(states[1 + known.shape[0] :])

    return jax.vmap(row)(parents, inputs, state, known)


def read(tree, inputs, A, C, D, past):
    state, ring = past.state[past.layer], past.ring_of_layer()
    if ring is not None:
        state = _fold(state, A, ring.live())
    batch, queries = C.shape[:2]
    heads, width = state.shape[1], state.shape[3]
    states = node_states(tree.parents, inputs, A, state, state[:, None][:, :0])
    C = per_head(C.astype(state.dtype).reshape(batch, queries, -1, width), heads)
    y = jnp.einsum("bihps,bihs->bihp", states[:, -queries:], C)
    x = inputs.x[:, -queries:].astype(state.dtype)
    return y.reshape(x.shape) + jnp.einsum("e,bie->bie", D, x)


def verify(tree, inputs, A, C, D, past):
    y, ring = read(tree, inputs, A, C, D, past), past.ring_of_layer()
    state, _, fold, layer = past
    folded = _fold(state[layer], A, ring.live())
    folded = jnp.where(fold[:, None, None, None], folded, state[layer])
    return y, state.at[layer].set(folded)

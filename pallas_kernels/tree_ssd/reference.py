"""The definition of the Mamba-2 ops: one node at a time.

State space duality (Dao and Gu 2024, section 6) on a tree (STree 2025, eqs. 2-6). With
`p` the parent of node `i`, every head keeps

    S_i = exp(dt_i A) S_p + dt_i x_i B_i^T        y_i = S_i C_i + D x_i

and the ring is a chain of ancestors above the root. Computes in the state's dtype.
"""

import jax
import jax.numpy as jnp


def _advance(state, A, x, dt, B):
    """One token of one row: state `[H, P, S]`, x `[H, P]`, dt `[H]`, B `[G, S]`."""
    x, dt, B = (a.astype(state.dtype) for a in (x, dt, B))
    B = jnp.repeat(B, x.shape[0] // B.shape[0], axis=0)
    decay = jnp.exp(dt * A)
    return decay[:, None, None] * state + jnp.einsum("h,hp,hs->hps", dt, x, B)


def fold(state, A, inputs):
    def row(state, inputs):
        for t in range(inputs.x.shape[0]):
            state = _advance(state, A, inputs.x[t], inputs.dt[t], inputs.B[t])
        return state

    return jax.vmap(row)(state, inputs)


def node_states(parents, inputs, A, state, known):
    def row(parents, inputs, state, known):
        states = [state, *known]
        for i in range(parents.shape[0]):
            above = jnp.stack(states)[parents[i] + 1]
            states.append(_advance(above, A, inputs.x[i], inputs.dt[i], inputs.B[i]))
        return jnp.stack(states[1 + known.shape[0] :])

    return jax.vmap(row)(parents, inputs, state, known)


def read(tree, inputs, A, C, D, state, ring):
    if ring is not None:
        state = fold(state, A, ring)
    queries = C.shape[1]
    states = node_states(tree.parents, inputs, A, state, state[:, None][:, :0])
    C = jnp.repeat(C.astype(state.dtype), A.shape[0] // C.shape[2], axis=2)
    x = inputs.x[:, -queries:].astype(state.dtype)
    y = jnp.einsum("bihps,bihs->bihp", states[:, -queries:], C)
    return y + jnp.einsum("hp,bihp->bihp", D, x)

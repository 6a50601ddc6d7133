"""The definition of the Mamba-1 ops: one node at a time.

The selective scan (Gu and Dao 2023, algorithm 2) on a tree (STree 2025, eqs. 2-6). With
`p` the parent of node `i`, every channel `e` and state `s` keep

    h_i = exp(dt_i A) h_p + dt_i x_i B_i          y_i[e] = sum_s h_i[s, e] C_i[s] + D x_i

and the ring is a chain of ancestors above the root. Computes in the state's dtype.
"""

import jax
import jax.numpy as jnp


def _advance(state, A, x, dt, B):
    """One token of one row: state and A `[S, E]`, x and dt `[E]`, B `[S]`."""
    x, dt, B = (a.astype(state.dtype) for a in (x, dt, B))
    return jnp.exp(dt[None] * A) * state + jnp.outer(B, dt * x)


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


def _read_out(states, x, C, D):
    y = jnp.einsum("bise,bis->bie", states, C.astype(states.dtype))
    return y + jnp.einsum("e,bie->bie", D, x.astype(states.dtype))


def read(tree, inputs, A, C, D, past, *, max_depth):
    state, ring = past.state[past.layer], past.ring_of_layer()
    if ring is not None:
        state = _fold(state, A, ring.live())
    queries = C.shape[1]
    states = node_states(tree.parents, inputs, A, state, state[:, None][:, :0])
    return _read_out(states[:, -queries:], inputs.x[:, -queries:], C, D)


def verify(tree, inputs, A, C, D, past, *, max_depth):
    y = read(tree, inputs, A, C, D, past, max_depth=max_depth)
    ring = past.ring_of_layer()
    state, _, fold, layer = past
    folded = _fold(state[layer], A, ring.live())
    folded = jnp.where(fold[:, None, None], folded, state[layer])
    return y, state.at[layer].set(folded)


def read_chain(inputs, A, C, D, state):
    batch, length, _ = inputs.x.shape
    parents = jnp.broadcast_to(jnp.arange(length)[None] - 1, (batch, length))
    states = node_states(parents, inputs, A, state, state[:, None][:, :0])
    return _read_out(states, inputs.x, C, D), states[:, -1]

"""The definition of the gated delta rule's ops: one node at a time.

Gated DeltaNet (Yang et al. 2024, eq. 10) on a tree. With `p` the parent of node `i`, every
head keeps

    S' = exp(g_i) S_p        u_i = beta_i (v_i - S' k_i)
    S_i = S' + u_i k_i^T     y_i = S_i q_i

and the ring is a chain of ancestors above the root. Computes in the state's dtype.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.gated.reference import advance, per_head


def _solve(state, v, g, k, beta):
    """What one token of one row writes on a state `[H, P, S]`: `[H P]`."""
    heads, dim, width = state.shape
    k = per_head(k.reshape(-1, width), heads)
    seen = jnp.einsum("h,hps,hs->hp", jnp.exp(g), state, k)
    return (beta[:, None] * (v.reshape(heads, dim) - seen)).reshape(-1)


def _cast(state, inputs):
    return jax.tree.map(lambda a: a.astype(state.dtype), inputs)


def _fold(state, inputs):
    def row(state, inputs):
        for u, g, k in zip(*inputs, strict=True):
            state = advance(state, g, u, k)
        return state

    return jax.vmap(row)(state, _cast(state, inputs))


def fold(state, inputs):
    return jax.vmap(_fold)(state, inputs)


def _visit(parents, inputs, beta, state, known):
    """What nodes write, `[B, n, H P]`, and the states after them."""

    def row(parents, inputs, beta, state, known):
        states, writes = [state, *known], []
        for i in range(parents.shape[0]):
            above = jnp.stack(states)[parents[i] + 1]
            v, g, k = (a[i] for a in inputs)
            writes.append(_solve(above, v, g, k, beta[i]))
            states.append(advance(above, g, writes[-1], k))
        return jnp.stack(writes), jnp.stack(states[1 + known.shape[0] :])

    inputs, beta = _cast(state, (inputs, beta))
    return jax.vmap(row)(parents, inputs, beta, state, known)


def node_states(parents, inputs, beta, state, known):
    return _visit(parents, inputs, beta, state, known)[1]


def read(tree, inputs, beta, q, past):
    state, ring = past.state[past.layer], past.ring_of_layer()
    if ring is not None:
        state = _fold(state, ring.live())
    (batch, queries), (heads, width) = q.shape[:2], state.shape[1::2]
    before = tree.parents.shape[1] - queries
    known = _known(tree.parents[:, :before], inputs, state)
    new = jax.tree.map(lambda a: a[:, before:], inputs)
    u, states = _visit(tree.parents[:, before:], new, beta, state, known)
    q = per_head(q.astype(state.dtype).reshape(batch, queries, -1, width), heads)
    y = jnp.einsum("bihps,bihs->bihp", states, q)
    return u, y.reshape(u.shape)


def _known(parents, inputs, state):
    """States after the nodes whose writes are known."""

    def row(parents, inputs, state):
        states = [state]
        for i in range(parents.shape[0]):
            u, g, k = (a[i] for a in inputs)
            states.append(advance(jnp.stack(states)[parents[i] + 1], g, u, k))
        return jnp.stack(states)[1:]

    return jax.vmap(row)(parents, _cast(state, inputs), state)


def verify(tree, inputs, beta, q, past):
    (u, y), ring = read(tree, inputs, beta, q, past), past.ring_of_layer()
    state, _, fold, layer = past
    folded = _fold(state[layer], ring.live())
    folded = jnp.where(fold[:, None, None, None], folded, state[layer])
    return (u, y), state.at[layer].set(folded)

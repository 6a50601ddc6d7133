"""The Mamba-1 ops, by walking the nodes.

The decay differs per channel and state, so a matrix form,

    exp(A (L_i - L_j))  with path sums L of dt, shape [N, N, S, E], would cost N times more

than walking the nodes in their order, parents before children.
"""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels import stacked

_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def _fold(state, A, inputs):
    slots = jnp.arange(inputs.dt.shape[1])
    after = (slots[:, None] > slots[None]).astype(inputs.dt.dtype)
    suffix = _einsum("kt,bke->bte", after, inputs.dt)
    total = jnp.sum(inputs.dt, axis=1)
    A = A[None]
    u = inputs.dt * inputs.x.astype(state.dtype)
    B = inputs.B.astype(state.dtype)
    update = jnp.exp(suffix[:, :, None] * A[None]) * u[:, :, None] * B[..., None]
    return jnp.exp(total[:, None] * A) * state + jnp.sum(update, axis=1)


def fold(state, A, inputs):
    if state.shape[0] == 1:  # a mapped axis, even of one, costs a CPU its fast products
        layer = jax.tree.map(lambda a: a[0], (state, A, inputs))
        return _fold(*layer)[None]
    return jax.vmap(_fold)(state, A, inputs)


def node_states(parents, inputs, A, state, known):
    u = inputs.dt * inputs.x.astype(state.dtype)
    B, A = inputs.B.astype(state.dtype), A[None]
    first = 1 + known.shape[1]

    def visit(i, states):
        slot = (parents[:, i] + 1)[:, None, None, None]
        above = jnp.take_along_axis(states, slot, axis=1)[:, 0]
        decay = jnp.exp(inputs.dt[:, i, None] * A)
        here = decay * above + u[:, i, None] * B[:, i, :, None]
        return jax.lax.dynamic_update_index_in_dim(states, here, first + i, axis=1)

    new = jnp.zeros((*parents.shape, *state.shape[1:]), state.dtype)
    states = jnp.concatenate([state[:, None], known, new], axis=1)
    return jax.lax.fori_loop(0, parents.shape[1], visit, states)[:, first:]


def _read_out(states, x, C, D):
    y = _einsum("bise,bis->bie", states, C.astype(states.dtype))
    return y + D[None, None] * x.astype(states.dtype)


def _read(tree, inputs, A, C, D, state):
    queries = C.shape[1]
    states = node_states(tree.parents, inputs, A, state, state[:, None][:, :0])
    return _read_out(states[:, -queries:], inputs.x[:, -queries:], C, D)


def read(tree, inputs, A, C, D, past, *, max_depth):
    state, ring = stacked.take(past.state, past.layer), past.ring_of_layer()
    if ring is not None:
        state = _fold(state, A, ring.live())
    return _read(tree, inputs, A, C, D, state)


def verify(tree, inputs, A, C, D, past, *, max_depth):
    before, ring = stacked.take(past.state, past.layer), past.ring_of_layer()
    folded = _fold(before, A, ring.live())
    y = _read(tree, inputs, A, C, D, folded)
    # Written in all rows: XLA's conditional would copy the state of all layers instead.
    kept = jnp.where(past.fold[:, None, None], folded, before)
    return y, stacked.put(past.state, kept, past.layer)


def read_chain(inputs, A, C, D, state):
    u = inputs.dt * inputs.x.astype(state.dtype)
    decay = jnp.exp(inputs.dt[:, :, None] * A[None, None])
    update = u[:, :, None] * inputs.B.astype(state.dtype)[..., None]
    update = update.at[:, 0].add(decay[:, 0] * state)

    def compose(first, second):
        return first[0] * second[0], second[0] * first[1] + second[1]

    _, states = jax.lax.associative_scan(compose, (decay, update), axis=1)
    return _read_out(states, inputs.x, C, D), states[:, -1]

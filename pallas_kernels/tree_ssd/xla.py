"""The Mamba-2 ops in matrix form: no state per node.

With path sums `L_i` of `dt A` over the ancestors `M` of node `i`,

    y_i = exp(L_i) S_0 C_i + sum_j M_ij exp(L_i - L_j) (C_i . B_j) dt_j x_j + D x_i

Off the path `L_i - L_j` may be large and positive: it is masked before `exp`. All products
are in full float32, the path sums too, which are products with a 0/1 matrix. Their
differences round by `|L|` times 6e-8: relative to the largest output 4e-6 on a chain of 64
with every `dt A` in [-16, 0], 3e-5 in [-60, 0].
"""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels import stacked

_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def _suffix_decays(A, dt):
    """Log decay from just after each of a chain's tokens to its end, and of the whole.

    dt `[B, T, H]`; returns `[B, H, T]` and `[B, H]`.
    """
    slots = jnp.arange(dt.shape[1])
    after = (slots[:, None] > slots[None]).astype(dt.dtype)
    suffix = _einsum("kt,bkh->bht", after, dt)
    A = A[None]
    return A[:, :, None] * suffix, A * jnp.sum(dt, axis=1)


def _fold(state, A, inputs):
    suffix, total = _suffix_decays(A, inputs.dt)
    scale = jnp.exp(suffix) * jnp.swapaxes(inputs.dt, 1, 2)  # [B, H, T]
    batch, length = inputs.B.shape[:2]
    B = inputs.B.astype(state.dtype).reshape(batch, length, -1, state.shape[3])
    groups = B.shape[2]
    x = inputs.x.astype(state.dtype).reshape(batch, length, groups, -1, state.shape[2])
    scale = scale.reshape(batch, groups, -1, length)
    update = _einsum("bgmt,btgmp,btgs->bgmps", scale, x, B)
    return jnp.exp(total)[:, :, None, None] * state + update.reshape(state.shape)


def fold(state, A, inputs):
    if state.shape[0] == 1:  # a mapped axis, even of one, costs a CPU its fast products
        layer = jax.tree.map(lambda a: a[0], (state, A, inputs))
        return _fold(*layer)[None]
    return jax.vmap(_fold)(state, A, inputs)


def node_states(parents, inputs, A, state, known):
    batch, num_nodes = parents.shape
    heads, dim, width = state.shape[1:]
    x = inputs.x.astype(state.dtype).reshape(batch, num_nodes, heads, dim)
    B = inputs.B.astype(state.dtype).reshape(batch, num_nodes, -1, width)
    B = jnp.repeat(B, heads // B.shape[2], axis=2)
    decay = jnp.exp(inputs.dt * A[None, None])
    first = 1 + known.shape[1]

    def visit(i, states):
        slot = (parents[:, i] + 1)[:, None, None, None, None]
        above = jnp.take_along_axis(states, slot, axis=1)[:, 0]
        update = _einsum("bh,bhp,bhs->bhps", inputs.dt[:, i], x[:, i], B[:, i])
        here = decay[:, i, :, None, None] * above + update
        return jax.lax.dynamic_update_index_in_dim(states, here, first + i, axis=1)

    new = jnp.zeros((*parents.shape, *state.shape[1:]), state.dtype)
    states = jnp.concatenate([state[:, None], known, new], axis=1)
    return jax.lax.fori_loop(0, parents.shape[1], visit, states)[:, first:]


def read(tree, inputs, A, C, D, state, ring, layer):
    state = stacked.take(state, layer)
    if ring is not None:
        ring = ring._replace(inputs=stacked.take(ring.inputs, layer)).live()
    return _read(tree, inputs, A, C, D, state, ring)


def verify(tree, inputs, A, C, D, state, ring, fold, layer):
    # Written in all rows, and read only then: else XLA copies the state of all layers.
    before = stacked.take(state, layer)
    ring = ring._replace(inputs=stacked.take(ring.inputs, layer))
    folded = _fold(before, A, ring.live())
    kept = jnp.where(fold[:, None, None, None], folded, before)
    rest = ring._replace(length=jnp.where(fold, 0, ring.length)).live()
    return _read(tree, inputs, A, C, D, kept, rest), stacked.put(state, kept, layer)


def _read(tree, inputs, A, C, D, state, ring):
    batch, queries = C.shape[:2]
    heads, dim, width = state.shape[1:]
    x, dt = inputs.x.astype(state.dtype), inputs.dt
    C = C.astype(state.dtype).reshape(batch, queries, -1, width)
    groups = C.shape[2]
    A = A[None, :, None]

    path_dt = _einsum("bij,bjh->bhi", tree.ancestors.astype(dt.dtype), dt)
    path = A * path_dt  # [B, H, N]
    head = path[:, :, -queries:]
    on_path = tree.ancestors[:, None, -queries:]
    exponent = jnp.where(on_path, head[:, :, :, None] - path[:, :, None], -jnp.inf)
    decay = jnp.exp(exponent) * jnp.swapaxes(dt, 1, 2)[:, :, None]  # [B, H, n, N]

    def attend(decay, B, x):
        """Sum over tokens `j` of `decay_hij (C_i . B_j) x_jh`."""
        B = B.astype(state.dtype).reshape(batch, -1, groups, width)
        scores = _einsum("bigs,bjgs->bgij", C, B)
        decay = decay.reshape(batch, groups, -1, *decay.shape[2:])
        x = x.astype(state.dtype).reshape(batch, x.shape[1], groups, -1, dim)
        y = _einsum("bgmij,bjgmp->bigmp", decay * scores[:, :, None], x)
        return y.reshape(batch, queries, heads, dim)

    y = attend(decay, inputs.B, x)
    if ring is not None:
        suffix, total = _suffix_decays(A[0, :, 0], ring.dt)
        exponent = head[:, :, :, None] + suffix[:, :, None]
        decay = jnp.exp(exponent) * jnp.swapaxes(ring.dt, 1, 2)[:, :, None]
        y += attend(decay, ring.B, ring.x)
        head = head + total[:, :, None]

    grouped = state.reshape(batch, groups, -1, dim, width)
    from_state = _einsum("bigs,bgmps->bigmp", C, grouped)
    from_state = from_state.reshape(batch, queries, heads, dim)
    y += jnp.swapaxes(jnp.exp(head), 1, 2)[..., None] * from_state
    return y.reshape(batch, queries, -1) + D[None, None] * x[:, -queries:]

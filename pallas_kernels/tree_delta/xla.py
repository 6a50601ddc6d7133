"""The gated delta rule's ops in matrix form: no state per node.

With `hw(z)` what the state and the ring before the root give for a query `z`, with path
sums `G_i` of `g`, and with the strict ancestors `M'` of a node,

    (I + A) U = beta (v - exp(G) hw(k))       A_ij = M'_ij beta_i exp(G_i - G_j) k_i . k_j

is unit triangular, because parents come before children. Once `U` is known the rest is
`gated/xla.py`. Nodes whose `u` is known are moved to the right side.

The inverse is built by doubling the blocks of the diagonal that are inverted already. It
is as exact as substitution, 4e-7 of the largest `u` at 64 nodes; a Neumann series, however
it is squared, is not: with keys that resemble each other its terms grow as binomials before
they cancel, and on a chain of 32 repeated tokens nothing is left of float32.
"""

import jax.numpy as jnp

from pallas_kernels import stacked
from pallas_kernels.gated import xla as gated
from pallas_kernels.gated.xla import Writes


def inverse(A):
    """Inverts `I + A`, of whose A `[..., n, n]` what is below the diagonal is meant.

    Of two neighbouring blocks, `[[X, 0], [C, Y]]^-1 = [[X', 0], [-Y' C X', Y']]`: all
    pairs at once, because products of block diagonals are theirs.
    """
    slots = jnp.arange(A.shape[-1])
    X = jnp.broadcast_to(jnp.eye(slots.size, dtype=A.dtype), A.shape)
    for level in range((slots.size - 1).bit_length()):
        block = slots >> level
        below = (block % 2 == 1)[:, None] & (block[:, None] - 1 == block[None])
        C = jnp.where(jnp.expand_dims(below, range(A.ndim - 2)), A, 0)
        X = X - gated.einsum("...ij,...jk,...kl->...il", X, C, X)
    return X


def _writes(inputs, state):
    """Records as writes on states `[B, H, P, S]`."""
    leading, (heads, dim, width) = inputs.u.shape[:2], state.shape[1:]
    return Writes(
        v=inputs.u.astype(state.dtype).reshape(*leading, heads, dim),
        k=inputs.k.astype(state.dtype).reshape(*leading, -1, width),
        g=inputs.g,
        w=jnp.ones_like(inputs.g),
    )


def _fold(state, inputs):
    return gated.fold(state, _writes(inputs, state))


def fold(state, inputs):
    return stacked.map_layers(_fold, state, inputs)


def node_states(parents, inputs, beta, state, known):
    writes = _writes(inputs, state)
    k = jnp.repeat(writes.k, state.shape[1] // writes.k.shape[2], axis=2)
    decay = jnp.exp(writes.g)

    def advance(i, above):
        above = decay[:, i, :, None, None] * above
        seen = gated.einsum("bhps,bhs->bhp", above, k[:, i])
        u = beta[:, i, :, None] * (writes.v[:, i] - seen)
        return above + gated.einsum("bhp,bhs->bhps", u, k[:, i])

    return gated.visit(parents, state, known, advance)


def read(tree, inputs, beta, q, past):
    state, ring = stacked.take(past.state, past.layer), past.ring_of_layer()
    return _read(tree, inputs, beta, q, state, ring)


def verify(tree, inputs, beta, q, past):
    # Written in all rows, and read only then: else XLA copies the state of all layers.
    before, ring = stacked.take(past.state, past.layer), past.ring_of_layer()
    folded = _fold(before, ring.live())
    kept, rest = gated.choose(past.fold, folded, before, ring)
    found = _read(tree, inputs, beta, q, kept, rest)
    return found, stacked.put(past.state, kept, past.layer)


def _read(tree, inputs, beta, q, state, ring):
    batch, queries = q.shape[:2]
    before = tree.parents.shape[1] - queries  # nodes whose `u` is known
    writes = _writes(inputs, state)
    q = q.astype(state.dtype).reshape(batch, queries, -1, state.shape[3])
    beta = jnp.swapaxes(beta, 1, 2)[..., None]  # [B, H, n, 1]
    sums = gated.path_sums(tree, writes.g)
    decay = gated.decays(tree, sums, queries)

    # The state is read once, for the keys and the queries of the new nodes.
    kq = jnp.concatenate([writes.k[:, before:], q], axis=1)
    chain = None if ring is None else _writes(ring.live(), state)
    twice = jnp.tile(sums.total[:, :, before:], (1, 1, 2))
    from_past = gated.read_past(kq, twice, state, chain)
    scores = gated.scores(kq, writes.k)

    on_path = tree.ancestors[:, None, before:]
    A = beta * jnp.where(on_path, gated.weigh(decay, scores[:, :, :queries]), 0)
    known, v = writes.v[:, :before], writes.v[:, before:]
    right = jnp.swapaxes(beta, 1, 2) * (v - from_past[:, :queries])
    right = right - gated.mix(A[..., :before], known)
    u = gated.mix(inverse(A[..., before:]), right)

    weights = gated.weigh(decay, scores[:, :, queries:])
    y = gated.mix(weights, jnp.concatenate([known, u], axis=1))
    y = y + from_past[:, queries:]
    return u.reshape(batch, queries, -1), y.reshape(batch, queries, -1)

"""States with one decay a token, in matrix form: what Mamba-2 and the delta rule share.

Whatever decides what is written, along the paths of a tree every head keeps

    S_i = exp(g_i) S_p + w_i v_i k_i^T                          y_i = S_i q_i

(gated linear attention, Yang et al. 2024, with a scalar gate.) With path sums `G_i` of `g`
over the ancestors `M` of node `i`, and no state per node,

    y_i = exp(G_i) S_0 q_i + sum_j M_ij exp(G_i - G_j) (q_i . k_j) w_j v_j

A ring is a chain of ancestors above the root: every node sees all of it. Off the path
`G_i - G_j` may be large and positive: it is masked before `exp`. All products are in full
float32, the path sums too, which are products with a 0/1 matrix.

Sums of log decays are kept in two parts (`digits`).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.gated.digits import cut
from pallas_kernels.inputs import Ring
from pallas_kernels.topology import Topology

einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


class Writes(NamedTuple):
    """What `T` tokens write, in the state's dtype.

    Attributes:
        v: `[B, T, H, P]` values.
        k: `[B, T, G, S]` keys of groups of heads.
        g: `[B, T, H]` log decays.
        w: `[B, T, H]` weights.
    """

    v: jax.Array
    k: jax.Array
    g: jax.Array
    w: jax.Array


class PathSums(NamedTuple):
    """Sums of log decays over paths, `[B, H, N]`, in two parts.

    Attributes:
        coarse: sums of the coarse parts, exact.
        fine: sums of what those leave over, small.
    """

    coarse: jax.Array
    fine: jax.Array

    @property
    def total(self) -> jax.Array:
        return self.coarse + self.fine


def choose(
    chosen: jax.Array, folded: jax.Array, state: jax.Array, ring: Ring
) -> tuple[jax.Array, Ring]:
    """The folded states of the chosen rows `[B]`, whose rings are then empty."""
    kept = jnp.where(chosen[:, None, None, None], folded, state)
    return kept, ring._replace(length=jnp.where(chosen, 0, ring.length))


def suffix_decays(g: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log decay from just after each of a chain's tokens to its end, and of the whole.

    g `[B, T, H]`; returns `[B, H, T]` and `[B, H]`.
    """
    slots = jnp.arange(g.shape[1])
    after = (slots[:, None] > slots[None]).astype(g.dtype)
    return einsum("kt,bkh->bht", after, g), jnp.sum(g, axis=1)


def fold(state: jax.Array, writes: Writes) -> jax.Array:
    """Advances states `[B, H, P, S]` over a chain, oldest first."""
    suffix, total = suffix_decays(writes.g)
    scale = jnp.exp(suffix) * jnp.swapaxes(writes.w, 1, 2)  # [B, H, T]
    batch, length, groups = writes.k.shape[:3]
    v = writes.v.reshape(batch, length, groups, -1, state.shape[2])
    scale = scale.reshape(batch, groups, -1, length)
    update = einsum("bgmt,btgmp,btgs->bgmps", scale, v, writes.k)
    return jnp.exp(total)[:, :, None, None] * state + update.reshape(state.shape)


def path_sums(tree: Topology, g: jax.Array) -> PathSums:
    """Sums g `[B, N, H]` over each node's ancestors and itself."""
    ancestors = tree.ancestors.astype(g.dtype)
    return PathSums(*(einsum("bij,bjh->bhi", ancestors, part) for part in cut(g)))


def decays(tree: Topology, sums: PathSums, queries: int) -> jax.Array:
    """Decay from every node to each of the last, 0 off its path: `[B, H, n, N]`."""
    on_path = tree.ancestors[:, None, -queries:]
    coarse, fine = (part[:, :, -queries:, None] - part[:, :, None] for part in sums)
    return jnp.exp(jnp.where(on_path, coarse + fine, -jnp.inf))


def scores(q: jax.Array, k: jax.Array) -> jax.Array:
    """Products of queries `[B, n, G, S]` with keys `[B, T, G, S]`, `[B, G, n, T]`."""
    return einsum("bigs,bjgs->bgij", q, k)


def weigh(decay: jax.Array, scores: jax.Array) -> jax.Array:
    """Decays `[B, H, n, T]` times the scores of the heads' groups `[B, G, n, T]`."""
    batch, groups = scores.shape[:2]
    by_group = decay.reshape(batch, groups, -1, *decay.shape[2:])
    return (by_group * scores[:, :, None]).reshape(decay.shape)


def mix(weights: jax.Array, v: jax.Array) -> jax.Array:
    """Sums values `[B, T, H, P]` by weights `[B, H, n, T]`: `[B, n, H, P]`."""
    return einsum("bhij,bjhp->bihp", weights, v)


def read_past(
    q: jax.Array, sums: jax.Array, state: jax.Array, ring: Writes | None
) -> jax.Array:
    """Reads what came before the root, decayed to where the queries stand.

    Args:
        q: `[B, n, G, S]`.
        sums: `[B, H, n]` path sums of the queries' nodes.
        state: `[B, H, P, S]`.
        ring: writes of the tokens between the state and the root, if there are any.

    Returns:
        `[B, n, H, P]`.
    """
    batch, queries, groups = q.shape[:3]
    from_ring = 0.0
    if ring is not None:
        suffix, total = suffix_decays(ring.g)
        decay = jnp.exp(sums[:, :, :, None] + suffix[:, :, None])
        decay = decay * jnp.swapaxes(ring.w, 1, 2)[:, :, None]
        from_ring = mix(weigh(decay, scores(q, ring.k)), ring.v)
        sums = sums + total[:, :, None]
    grouped = state.reshape(batch, groups, -1, *state.shape[2:])
    y = einsum("bigs,bgmps->bigmp", q, grouped)
    y = y.reshape(batch, queries, *state.shape[1:3])
    return jnp.swapaxes(jnp.exp(sums), 1, 2)[..., None] * y + from_ring


def visit(parents, state, known, advance):
    """States `[B, n, H, P, S]` after each of some nodes, one after another.

    Args:
        parents: `[B, n]` int32, slots among the `m` known nodes and these.
        state: `[B, H, P, S]`, before the root.
        known: `[B, m, H, P, S]`, after the nodes before these.
        advance: `i, state above -> state` of all rows' node `i`.
    """
    first = 1 + known.shape[1]

    def body(i, states):
        slot = (parents[:, i] + 1)[:, None, None, None, None]
        above = jnp.take_along_axis(states, slot, axis=1)[:, 0]
        here = advance(i, above)
        return jax.lax.dynamic_update_index_in_dim(states, here, first + i, axis=1)

    new = jnp.zeros((*parents.shape, *state.shape[1:]), state.dtype)
    states = jnp.concatenate([state[:, None], known, new], axis=1)
    return jax.lax.fori_loop(0, parents.shape[1], body, states)[:, first:]

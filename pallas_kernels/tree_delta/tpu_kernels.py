"""What the gated delta rule does in a grid step of the TPU kernels: solve, then read.

Every head has a tile of its own. The queries of the past are the new nodes' keys, then
their queries: `m = 2 n` rows, and so are the scores.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.gated import tpu_decays, tpu_lanes, tpu_step
from pallas_kernels.gated.tpu_lanes import LANES, dot, lanes

SOLVED_ROWS = 16  # by substitution, between two products
_SUBLANES = 8
_PER_HEAD = (((2,), (1,)), ((0,), (0,)))  # a product of a head's matrices, for each


class Scratch(NamedTuple):
    """What the heads of a row share, and what is under way in `s` of them.

    `s` is all heads of the block, or some where rows are long.

    Attributes:
        columns: `[blocks, (c + 1) n, 3 h]`, path sums of the new nodes in `c` parts, then
            their `beta`.
        sources: `[c, blocks * h, 1, N]`, path sums of all nodes.
        scores: `[g, m, N]`, `M' (k . k)` and `M (q . k)`.
        system: `[s, n, N]` float32, `A`.
        weighed: `[s, n, N]`, `M (q . k) exp(G_i - G_j)`.
        right: `[s, n, P]` float32, `beta`, and then the right side.
        writes: `[s, N, P]` float32, the `u` that are known, zero where they are not.
    """

    columns: Any
    sources: Any
    scores: Any
    system: Any
    weighed: Any
    right: Any
    writes: Any


def _row(shape, operands, scratch):
    (beta,) = operands.own
    paths = tpu_decays.path_sums(shape, operands)
    new = [part[shape.first : shape.nodes] for part in paths]
    factors = jnp.concatenate([*new, beta[...]], axis=0)
    tpu_lanes.store_columns(factors, scratch.columns)
    for i, part in enumerate(paths):
        tpu_step.store_sources(shape, part, scratch.sources.at[i])


def _group(shape, operands, scratch):
    on_paths = tpu_step.on_paths(shape, operands.mask)
    node = jax.lax.broadcasted_iota(jnp.int32, on_paths.shape, 0) + shape.first
    source = jax.lax.broadcasted_iota(jnp.int32, on_paths.shape, 1)
    above = jnp.where(node == source, 0.0, on_paths)
    seen = jnp.concatenate([above, on_paths], axis=0)
    queries, keys = operands.queries, operands.keys
    tpu_step.store_scores(shape, seen, queries, keys, scratch.scores)


def _weigh(shape, t, slot, columns, source, scratch, y):
    """Stores `A` and the weights of head `t`; leaves `beta`, and `exp(G_i)` in `y`."""
    scores, n = scratch.scores.at[shape.group_of(t)], shape.queries
    copies = max(shape.dim, min(shape.padded, LANES))
    factors = tpu_lanes.spread(columns, t, 1, copies)
    *path, beta = (factors[i : i + n] for i in range(0, factors.shape[0], n))
    scratch.right[slot] = beta[:, : shape.dim]
    y[:, lanes(t, shape.dim)] = jnp.exp2(sum(path)[:, : shape.dim])
    for rows, reach in shape.query_tiles():
        below = slice(n + rows.start, n + rows.stop)
        here = [_repeat(part[rows], reach) for part in path]
        decay = tpu_decays.decays(here, source[:, :, :reach])
        scaled = decay * _repeat(beta[rows], reach)
        scratch.system[slot, rows, :reach] = scores[rows, :reach] * scaled
        weights = scores[below, :reach] * decay
        scratch.weighed[slot, rows, :reach] = weights.astype(scratch.weighed.dtype)


def _repeat(x, width):
    """As many lanes as asked for of equal ones."""
    copies = -(-width // x.shape[1])
    return jnp.concatenate([x] * copies, axis=1)[:, :width]


def _read(shape, t, slot, operands, scratch, y, ring):
    """What is known before the solve: the right side, and the past's part of `y`."""
    here, n = lanes(t, shape.dim), shape.queries
    past = tpu_step.read_past(shape, t, operands, ring)
    values = operands.values[:, here]
    decay = y[:, here]
    scratch.right[slot] *= values[shape.first :] - decay * past[:n]
    y[:, here] = decay * past[n:]
    scratch.writes[slot] = jnp.zeros(scratch.writes.shape[1:], jnp.float32)
    if shape.first:
        scratch.writes[slot, : shape.first] = values[: shape.first]


def _solve(shape, scratch):
    """Solves `(I + A) U = right` for the heads under way; `u` is left in the writes.

    Forward substitution by blocks of rows: a product subtracts what is solved, and the
    block's own rows follow one by one. Heads go together, for a head's rows wait for each
    other.
    """
    for begin in range(0, shape.queries, SOLVED_ROWS):
        rows = slice(begin, min(begin + SOLVED_ROWS, shape.queries))
        first, stop = shape.first + begin, shape.first + rows.stop
        A, right = scratch.system[:, rows], scratch.right[:, rows]
        if first:
            reach = min(-(-first // SOLVED_ROWS) * SOLVED_ROWS, shape.padded)
            right -= dot(A[:, :, :reach], scratch.writes[:, :reach], _PER_HEAD)
        u = _substitute(A[:, :, first:stop], right)
        scratch.writes[:, first:stop] = u


def _substitute(A, right):
    """Solves `(I + A) u = right` row by row, `[s, i, j]` and `[s, i, P]`."""
    count = right.shape[1]
    pieces = [slice(i, i + _SUBLANES) for i in range(0, count, _SUBLANES)]
    A, u = ([a[:, rows] for rows in pieces] for a in (A, right))
    for j in range(count - 1):
        own, row = divmod(j, _SUBLANES)
        solved = u[own][:, row : row + 1]
        for i in range((j + 1) // _SUBLANES, len(pieces)):
            u[i] -= A[i][:, :, j : j + 1] * solved
    return jnp.concatenate(u, axis=1)


def _finish(shape, t, slot, scratch, u, y):
    """Puts `u` in its place, and adds what the nodes read of each other."""
    here, dtype = lanes(t, shape.dim), scratch.weighed.dtype
    u[:, here] = scratch.writes[slot, shape.first : shape.nodes]
    for rows, reach in shape.query_tiles():
        weights = scratch.weighed[slot, rows, :reach]
        writes = scratch.writes[slot, :reach]
        y[rows, here] += tpu_lanes.dot_parts(weights, writes, dtype)


def _block(shape, operands, scratch, outputs, ring, block):
    u, y = outputs
    columns, first = scratch.columns[block], block * shape.tiles
    abreast = scratch.system.shape[0]

    def heads(i, _=None):
        slots = [(i * abreast + slot, slot) for slot in range(abreast)]
        for t, slot in slots:
            _weigh(shape, t, slot, columns, scratch.sources[:, first + t], scratch, y)
        for t, slot in slots:
            _read(shape, t, slot, operands, scratch, y, ring)
        _solve(shape, scratch)
        for t, slot in slots:
            _finish(shape, t, slot, scratch, u, y)

    count = shape.tiles // abreast
    if count == 1 or shape.dim % LANES:
        for i in range(count):
            heads(i)
    else:
        jax.lax.fori_loop(0, count, heads, None)


OP = tpu_step.Op(_row, _group, _block)

"""What the gated delta rule does in a grid step of the TPU kernels: solve, then read.

Every head has a tile of its own. The queries of the past are the new nodes' keys, then
their queries: `m = 2 n` rows, and so are the scores.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import _tpu_heads, _tpu_lanes
from pallas_kernels._tpu_lanes import LANES, dot, lanes

SOLVED_ROWS = 16  # by substitution, between two products
_SUBLANES = 8


class Scratch(NamedTuple):
    """What the heads of a row share, and what is under way in `s` of them.

    `s` is all heads of the block, or one where rows are long.

    Attributes:
        columns: `[blocks, m, 3 h]`, path sums of the new nodes, then their `beta`.
        sources: `[blocks * h, 1, N]`, path sums of all nodes.
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
    paths = _tpu_heads.path_sums(shape, operands)
    factors = jnp.concatenate([paths[shape.first : shape.nodes], beta[...]], axis=0)
    _tpu_lanes.store_columns(factors, scratch.columns)
    _tpu_heads.store_sources(shape, paths, scratch.sources)


def _group(shape, operands, scratch):
    on_paths = _tpu_heads.on_paths(shape, operands.mask)
    node = jax.lax.broadcasted_iota(jnp.int32, on_paths.shape, 0) + shape.first
    source = jax.lax.broadcasted_iota(jnp.int32, on_paths.shape, 1)
    seen = jnp.concatenate([on_paths & (node != source), on_paths], axis=0)
    queries, keys = operands.queries, operands.keys
    _tpu_heads.store_scores(shape, seen, queries, keys, scratch.scores)


def _weigh(shape, t, slot, columns, source, scratch, y):
    """Stores `A` and the weights of head `t`; leaves `beta`, and `exp(G_i)` in `y`."""
    scores, n = scratch.scores.at[shape.group_of(t)], shape.queries
    for rows, reach in shape.query_tiles():
        copies = max(shape.dim, min(reach, LANES))
        below = slice(n + rows.start, n + rows.stop)
        path, beta = (
            _tpu_lanes.spread(columns[i], t, 1, copies) for i in (rows, below)
        )
        scratch.right[slot, rows] = beta[:, : shape.dim]
        y[rows, lanes(t, shape.dim)] = jnp.exp2(path[:, : shape.dim])
        path, beta = (_repeat(a, reach) for a in (path, beta))
        decay = _tpu_heads.decays(path, source[:, :reach])
        scratch.system[slot, rows, :reach] = scores[rows, :reach] * decay * beta
        weights = scores[below, :reach] * decay
        scratch.weighed[slot, rows, :reach] = weights.astype(scratch.weighed.dtype)


def _repeat(x, width):
    """As many lanes as asked for of equal ones."""
    copies = -(-width // x.shape[1])
    return jnp.concatenate([x] * copies, axis=1)[:, :width]


def _read(shape, t, slot, operands, scratch, y, ring):
    """What is known before the solve: the right side, and the past's part of `y`."""
    here, n = lanes(t, shape.dim), shape.queries
    past = _tpu_heads.read_past(shape, t, operands, ring)
    values = operands.values[:, here]
    decay = y[:, here]
    scratch.right[slot] *= values[shape.first :] - decay * past[:n]
    y[:, here] = decay * past[n:]
    scratch.writes[slot] = jnp.zeros(scratch.writes.shape[1:], jnp.float32)
    if shape.first:
        scratch.writes[slot, : shape.first] = values[: shape.first]


def _solve(shape, heads, scratch, u):
    """Solves `(I + A) U = right` for some heads, `(tile, slot)`.

    Rows that are solved are taken from the next ones with a product, which then solve
    themselves one by one. Heads take turns, for one's rows wait for each other.
    """
    for begin in range(0, shape.queries, SOLVED_ROWS):
        rows = slice(begin, min(begin + SOLVED_ROWS, shape.queries))
        first = shape.first + begin
        solved = []
        for _, slot in heads:
            A, right = scratch.system[slot, rows], scratch.right[slot, rows]
            if first:
                reach = min(-(-first // SOLVED_ROWS) * SOLVED_ROWS, shape.padded)
                right -= dot(A[:, :reach], scratch.writes[slot, :reach])
            A = A[:, first : first + right.shape[0]]
            solved.append((_pieces(A), _pieces(right)))
        _substitute(solved)
        for (t, slot), (_, pieces) in zip(heads, solved, strict=True):
            found = jnp.concatenate(pieces, axis=0)
            u[rows, lanes(t, shape.dim)] = found
            scratch.writes[slot, first : first + found.shape[0]] = found


def _pieces(x):
    return [x[i : i + _SUBLANES] for i in range(0, x.shape[0], _SUBLANES)]


def _substitute(systems):
    """Forward substitution, in place, of pieces of rows `(A, right)`."""
    count = sum(piece.shape[0] for piece in systems[0][1])
    for j in range(count - 1):
        own, row = divmod(j, _SUBLANES)
        for A, right in systems:
            u = right[own][row : row + 1]
            for i in range((j + 1) // _SUBLANES, len(right)):
                right[i] = right[i] - A[i][:, j : j + 1] * u


def _finish(shape, t, slot, scratch, y):
    """Adds what the nodes read of each other."""
    here, dtype = lanes(t, shape.dim), scratch.weighed.dtype
    for rows, reach in shape.query_tiles():
        weights = scratch.weighed[slot, rows, :reach]
        y[rows, here] += dot(weights, scratch.writes[slot, :reach].astype(dtype))


def _block(shape, operands, scratch, outputs, ring, block):
    u, y = outputs
    columns, first = scratch.columns.at[block], block * shape.tiles

    def prepare(t, slot):
        source = scratch.sources[first + t]
        _weigh(shape, t, slot, columns, source, scratch, y)

    def head(t, _=None):
        prepare(t, 0)
        _read(shape, t, 0, operands, scratch, y, ring)
        _solve(shape, [(t, 0)], scratch, u)
        _finish(shape, t, 0, scratch, y)

    if shape.short:
        heads = [(t, t) for t in range(shape.tiles)]
        for t, slot in heads:
            prepare(t, slot)
        for t, slot in heads:
            _read(shape, t, slot, operands, scratch, y, ring)
        _solve(shape, heads, scratch, u)
        for t, slot in heads:
            _finish(shape, t, slot, scratch, y)
    elif shape.dim % LANES == 0:
        jax.lax.fori_loop(0, shape.tiles, head, None)
    else:
        for t in range(shape.tiles):
            head(t)


OP = _tpu_heads.Op(_row, _group, _block)

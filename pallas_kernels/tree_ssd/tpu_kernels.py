"""What Mamba-2 does in a grid step of the TPU kernels: weights of nodes, and outputs.

Scores of a tile's heads lie side by side on the lanes where they are short, `[W_1 | W_2]`,
against values `diag(x_1, x_2)`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.gated import tpu_decays, tpu_lanes, tpu_step
from pallas_kernels.gated.tpu_lanes import LANES, dot, lanes


class Scratch(NamedTuple):
    """What the heads of a row share, and weights of nodes under way.

    Attributes:
        columns: `[blocks, c n, 3 h]`, path sums `L_i` of the queries in `c` parts.
        sources: `[c + 1, blocks * tiles, u / v, v N]`, `L_j` and `dt_j` of the nodes,
            with `v` the heads that share a row of scores.
        scores: `[g, n, v N]`, `M (C . B)`.
        weighed: `[tiles, n, v N]`; `()` where rows are long.
    """

    columns: jax.Array
    sources: jax.Array
    scores: jax.Array
    weighed: jax.Array


def _row(shape, operands, scratch):
    paths = tpu_decays.path_sums(shape, operands)
    dt = tpu_lanes.pad_rows(operands.steps[...], shape.padded)
    queried = [part[shape.first : shape.nodes] for part in paths]
    tpu_lanes.store_columns(jnp.concatenate(queried, axis=0), scratch.columns)
    for i, rows in enumerate((*paths, dt)):
        tpu_step.store_sources(shape, rows, scratch.sources.at[i])


def _group(shape, operands, scratch):
    on_paths = tpu_step.on_paths(shape, operands.mask)
    C, B = operands.queries, operands.keys
    tpu_step.store_scores(shape, on_paths, C, B, scratch.scores)


def _weigh(shape, path, source, scores, out_dtype, rows, reach):
    """Weights `M_ij (C_i . B_j) exp(L_i - L_j) dt_j` of a tile of heads.

    path: parts `[i, u c]`, `c` copies a head; source: parts of `L_j`, and `dt_j`,
    `[u / v, v N]`; scores `[n, v N]`. Returns `[i, u N]`, or heads below each other,
    `[u i, reach]`, where the rows are long.
    """

    def weigh(path, head, lanes):
        *above, dt = (a[head : head + 1, :lanes] for a in source)
        decay = tpu_decays.decays(path, above)
        return (scores[rows, :lanes] * (decay * dt)).astype(out_dtype)

    if shape.short:
        return weigh(path, 0, path[0].shape[1])
    copies = path[0].shape[1] // shape.tile_heads
    weighed = []
    for h in range(shape.tile_heads):
        own = [part[:, h * copies : (h + 1) * copies] for part in path]
        own = [jnp.concatenate([part] * (reach // copies), axis=1) for part in own]
        weighed.append(weigh(own, h, reach))
    return jnp.concatenate(weighed, axis=0)


def _sum_values(shape, weighed, values):
    """`sum_j w_ij x_j`, with weights as `_weigh` returns them."""
    if shape.short:
        return dot(weighed, tpu_lanes.block_diagonal(values, shape.dim))
    count, reach = weighed.shape[0] // shape.tile_heads, weighed.shape[1]
    heads = [slice(h * count, (h + 1) * count) for h in range(shape.tile_heads)]
    if shape.dim % LANES == 0:
        own = [values[:reach, lanes(h, shape.dim)] for h in range(shape.tile_heads)]
        outs = [dot(weighed[i], x) for i, x in zip(heads, own, strict=True)]
        return jnp.concatenate(outs, axis=1)
    # One pass over the values serves all heads, each with the others' lanes to spare.
    outs = dot(weighed, values[:reach])
    return tpu_lanes.select_heads([outs[i] for i in heads], shape.dim)


def _weigh_tile(shape, t, columns, source, scores, y, dtype):
    """Weights of the nodes for the heads of tile `t`; leaves `exp(L_i)` in `y`."""
    head, tiles = t * shape.tile_heads, []

    def spread(rows, copies):
        """The parts of the queries' path sums on the lanes of the tile's heads."""
        starts = range(rows.start, columns.shape[0], shape.queries)
        parts = [columns[i : i + rows.stop - rows.start] for i in starts]
        heads = shape.tile_heads
        return [tpu_lanes.spread(part, head, heads, copies) for part in parts]

    for rows, reach in shape.query_tiles():
        copies = min(reach, LANES)
        path = spread(rows, copies)
        tiles.append(_weigh(shape, path, source, scores, dtype, rows, reach))
        if copies != shape.dim:
            path = spread(rows, shape.dim)
        y[rows, lanes(t, shape.tile)] = jnp.exp2(sum(path))
    return tiles


def _read_tile(shape, t, weighed, operands, ring, y):
    """Outputs of the heads of tile `t`, from what `_weigh_tile` left."""
    here = lanes(t, shape.tile)
    past = tpu_step.read_past(shape, t, operands, ring)
    values = tpu_lanes.pad_rows(operands.values[:, here], shape.padded)
    (D,) = operands.own
    skip = D[:, here] * values[shape.first : shape.nodes].astype(jnp.float32)
    for (rows, _), weights in zip(shape.query_tiles(), weighed, strict=True):
        out = _sum_values(shape, weights, values)
        y[rows, here] = out + y[rows, here] * past[rows] + skip[rows]


def _block(shape, operands, scratch, outputs, ring, block):
    (y,) = outputs
    columns, first_tile = scratch.columns[block], block * shape.tiles

    def weigh(t):
        source = scratch.sources[:, first_tile + t]
        scores, dtype = scratch.scores.at[shape.group_of(t)], operands.values.dtype
        return _weigh_tile(shape, t, columns, source, scores, y, dtype)

    def read(t, weights):
        _read_tile(shape, t, weights, operands, ring, y)

    if shape.short:
        # In two passes, for the first has long chains of steps, which tiles then share.
        for t in range(shape.tiles):
            (scratch.weighed[t],) = weigh(t)
        for t in range(shape.tiles):
            read(t, [scratch.weighed[t]])
    elif shape.tile % LANES == 0:
        # A loop: scores of more nodes, for every tile, would be a program too long.
        jax.lax.fori_loop(
            0, shape.tiles, lambda t, _: read(t, weigh(t)), None, unroll=2
        )
    else:
        for t in range(shape.tiles):
            read(t, weigh(t))


OP = tpu_step.Op(_row, _group, _block)

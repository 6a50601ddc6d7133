"""The Mamba-2 ops on a TPU: one pass over the checkpoint, no state per node.

With path sums `L_i` of `dt A` over the ancestors `M` of node `i`, and a ring whose tokens
`k` are ancestors of every node (`R_k` sums `dt A` over the tokens after `k`, `R` over all),

    y_i = exp(L_i) (exp(R) S_0 C_i + sum_k (C_i . B_k) exp(R_k) dt_k x_k)
          + sum_j M_ij (C_i . B_j) exp(L_i - L_j) dt_j x_j + D x_i

    S   = exp(R) S_0 + sum_k exp(R_k) dt_k x_k B_k^T          (the fold, where asked for)

One grid step serves a block of heads of one row. The parts that differ between heads lie
side by side on the lanes: scores are `[W_1 | W_2]`, values `diag(x_1, x_2)`, and a state
block is `[heads P, S]`, so that a product serves two heads of 64 or a whole block.

Numbers: `M (C . B)` is masked before it meets a decay, and exponents, which are above 0
only where a pair is not on a path, are cut to 0. Sums over paths, and the copies of a
head's factors to its lanes, are products with 0/1 matrices: they are exact to float32,
because the other operand is cut into three bfloat16 parts. With float32 activations every
other product is in full float32. With bfloat16 activations scores and a ring's writes are
rounded to bfloat16 where they are read, as flash attention rounds its probabilities; a
state is read, and what is folded into it written, in two bfloat16 parts: to 2^-16.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.inputs import Inputs
from pallas_kernels.topology import Topology
from pallas_kernels.tree_ssd import tpu_kernels
from pallas_kernels.tree_ssd.tpu_kernels import LANES, QUERY_ROWS, BlockShape

_STATE_BLOCK_BYTES = 512 * 1024
_SEMANTICS = ("parallel", "arbitrary")  # a row's first block computes for the others


def _block_shape(inputs, state, queries) -> BlockShape:
    """Chooses the heads of a block: whole groups or parts of one, a state of 512 KB."""
    heads, dim, width = state.shape[2:]
    groups = inputs.B.shape[-1] // width
    per_group = heads // groups

    def fits(count):
        aligned = count == heads or count * dim % LANES == 0
        nested = per_group % count == 0 or count % per_group == 0
        keys = count // per_group * width % LANES == 0 or count == heads
        return (
            heads % count == 0 and aligned and nested and (keys or count <= per_group)
        )

    limit = max(1, _STATE_BLOCK_BYTES // (dim * width * 4))
    counts = [count for count in range(1, heads + 1) if fits(count)]
    count = max([c for c in counts if c <= limit], default=counts[0])
    nodes = inputs.x.shape[-2]
    rows = 8 if nodes <= QUERY_ROWS else LANES
    return BlockShape(
        blocks=heads // count,
        heads=count,
        dim=dim,
        width=width,
        groups=max(1, count // per_group),
        blocks_per_group=max(1, per_group // count),
        tile_heads=math.gcd(min(count, per_group), max(2, LANES // dim)),
        nodes=nodes,
        padded=-(-nodes // rows) * rows,
        queries=queries,
    )


def _verify(tree, inputs, A, C, D, state, ring, fold, layer, interpret):
    batch, num_nodes, inner = inputs.x.shape
    layers, _, heads, dim, width = state.shape
    shape = _block_shape(inputs, state, C.shape[1])
    nodes, queries, padded = shape.nodes, shape.queries, shape.padded
    lanes, keys = shape.heads * dim, shape.groups * width
    tail = (0, padded - nodes)
    mask = jnp.pad(tree.ancestors.astype(jnp.bfloat16), ((0, 0), tail, tail))

    def spec(block, *index, of_layer=False):
        """A block of a row: of all its lanes, or of this step's heads or groups."""

        def index_map(row, block, layer, *_):
            lead = (layer[0], row) if of_layer else (row,)
            return (*lead, *(f(block) for f in index))

        return pl.BlockSpec((*[None] * (1 + of_layer), *block), index_map)

    def start(block):
        return 0

    def of_heads(block):
        return block

    def of_group(block):
        return jax.lax.div(block, shape.blocks_per_group)

    vector = pl.BlockSpec((1, heads), lambda *_: (0, 0))
    skip = pl.BlockSpec((1, lanes), lambda row, block, *_: (0, block))
    prefetch = [jnp.reshape(layer, (1,)).astype(jnp.int32)]
    flat = state.reshape(layers, batch, inner, width)
    operands = [mask, *inputs, C, A[None], D[None], flat]
    in_specs = [
        spec((padded, padded), start, start),
        spec((nodes, lanes), start, of_heads),
        spec((nodes, heads), start, start),
        spec((nodes, keys), start, of_group),
        spec((queries, keys), start, of_group),
        vector,
        skip,
        spec((lanes, width), of_heads, start, of_layer=True),
    ]
    score_lanes = shape.score_heads * padded
    source_rows = shape.tile_heads // shape.score_heads
    all_tiles = shape.blocks * shape.tiles
    scratch = [
        pltpu.VMEM((shape.blocks, queries, 3 * shape.heads), jnp.bfloat16),
        pltpu.VMEM((2, all_tiles, source_rows, score_lanes), jnp.float32),
        pltpu.VMEM((shape.groups, queries, score_lanes), jnp.float32),
    ]
    if shape.short:
        scratch.append(pltpu.VMEM((shape.tiles, queries, score_lanes), C.dtype))
    slots = 0
    if ring is not None:
        slots = ring.inputs.x.shape[2]
        prefetch.append(ring.length.astype(jnp.int32))
        operands += ring.inputs
        in_specs += [
            spec((slots, lanes), start, of_heads, of_layer=True),
            spec((slots, heads), start, start, of_layer=True),
            spec((slots, keys), start, of_group, of_layer=True),
        ]
        scratch += [
            pltpu.VMEM((shape.blocks, 8 + slots, 3 * shape.heads), jnp.bfloat16),
            pltpu.VMEM((shape.groups, queries, slots), C.dtype),
            pltpu.VMEM((8 + slots, lanes), jnp.float32),
        ]
    out_shape = [jax.ShapeDtypeStruct((batch, queries, inner), jnp.float32)]
    out_specs = [spec((queries, lanes), start, of_heads)]
    aliases = {}
    if fold is not None:
        prefetch.append(fold.astype(jnp.int32))
        aliases = {len(prefetch) + len(inputs) + 4: 1}
        out_shape.append(jax.ShapeDtypeStruct(flat.shape, flat.dtype))
        out_specs.append(pl.BlockSpec(memory_space=pl.ANY))
        scratch += [pltpu.VMEM((lanes, width), jnp.float32), pltpu.SemaphoreType.DMA]

    read_once = [*operands[:5], *(a[0] for a in (ring.inputs if ring else ()))]
    y, *new_state = pl.pallas_call(
        functools.partial(
            tpu_kernels.verify_kernel, shape, ring is not None, fold is not None
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(prefetch),
            grid=(batch, shape.blocks),
            in_specs=in_specs,
            out_specs=out_specs,
            scratch_shapes=scratch,
        ),
        out_shape=out_shape,
        input_output_aliases=aliases,
        compiler_params=pltpu.CompilerParams(dimension_semantics=_SEMANTICS),
        # Without folds, which are rare.
        cost_estimate=pl.CostEstimate(
            flops=2 * batch * inner * queries * (width + nodes + slots),
            bytes_accessed=sum(map(_bytes, read_once))
            + 4 * batch * inner * (width + queries),
            transcendentals=batch * queries * (heads * nodes + inner),
        ),
        name="tree_ssd_read" if fold is None else "tree_ssd_verify",
        interpret=interpret,
    )(*prefetch, *operands)
    return y if fold is None else (y, new_state[0].reshape(state.shape))


def _bytes(array):
    return array.size * array.dtype.itemsize


def read(
    tree: Topology,
    inputs: Inputs,
    A: jax.Array,
    C: jax.Array,
    D: jax.Array,
    state: jax.Array,
    ring: Any,
    layer: jax.Array,
    *,
    interpret: Any = False,
) -> jax.Array:
    """Reads the state at the last `n` nodes of a tree: one read of the checkpoint.

    Args:
        tree: topology of the `N` nodes.
        inputs: records of the `N` nodes.
        A: `[H]` float32, negative.
        C: `[B, n, G * S]` queries of the last `n` nodes.
        D: `[H * P]` float32, the skip connection.
        state: `[L, B, H, P, S]` float32 checkpoints, before the ring and the root.
        ring: `Ring` of every layer's tokens between `state` and the root, or `None`.
        layer: int32, the layer to read.
        interpret: whether to interpret the kernel, or how.

    Returns:
        `[B, n, H * P]` float32 outputs.
    """
    return _verify(tree, inputs, A, C, D, state, ring, None, layer, interpret)


def verify(
    tree: Topology,
    inputs: Inputs,
    A: jax.Array,
    C: jax.Array,
    D: jax.Array,
    state: jax.Array,
    ring: Any,
    fold: jax.Array,
    layer: jax.Array,
    *,
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array]:
    """Reads the state at all nodes, and folds the ring into it in some rows.

    The states of the other rows, and of other layers, are not written: `state` stays
    where it is, so donate it or carry it through a loop.

    Args:
        tree: as in `read`.
        inputs: as in `read`.
        A: as in `read`.
        C: as in `read`, of all nodes.
        D: as in `read`.
        state: as in `read`.
        ring: as in `read`, not `None`.
        fold: `[B]` bool, the rows whose state takes up the ring.
        layer: as in `read`.
        interpret: as in `read`.

    Returns:
        Outputs as of `read`, the same whether a row folds or not, and the states.
    """
    return _verify(tree, inputs, A, C, D, state, ring, fold, layer, interpret)


def fold(
    state: jax.Array, A: jax.Array, inputs: Inputs, *, interpret: Any = False
) -> jax.Array:
    """Advances the states of all layers over a chain of tokens, in place.

    Args:
        state: `[L, B, H, P, S]` float32.
        A: `[L, H]` float32, negative.
        inputs: records `[L, B, T, ...]`, oldest first.
        interpret: whether to interpret the kernel, or how.

    Returns:
        `[L, B, H, P, S]` states after the last token.
    """
    layers, batch, heads, dim, width = state.shape
    length, inner = inputs.x.shape[2:]
    shape = _block_shape(inputs, state, 0)
    lanes, keys = shape.heads * dim, shape.groups * width
    rows = layers * batch

    def group(block):
        return jax.lax.div(block, shape.blocks_per_group)

    state_spec = pl.BlockSpec((None, lanes, width), lambda row, block: (row, block, 0))
    flat = state.reshape(rows, inner, width)
    out = pl.pallas_call(
        functools.partial(tpu_kernels.fold_kernel, shape),
        grid=(rows, shape.blocks),
        in_specs=[
            pl.BlockSpec(
                (None, 1, heads), lambda row, block: (jax.lax.div(row, batch), 0, 0)
            ),
            pl.BlockSpec((None, length, lanes), lambda row, block: (row, 0, block)),
            pl.BlockSpec((None, length, heads), lambda row, block: (row, 0, 0)),
            pl.BlockSpec(
                (None, length, keys), lambda row, block: (row, 0, group(block))
            ),
            state_spec,
        ],
        out_specs=state_spec,
        out_shape=jax.ShapeDtypeStruct(flat.shape, flat.dtype),
        scratch_shapes=[
            pltpu.VMEM((shape.blocks, 8 + length, 3 * shape.heads), jnp.bfloat16),
            pltpu.VMEM((8 + length, lanes), jnp.float32),
        ],
        input_output_aliases={4: 0},
        compiler_params=pltpu.CompilerParams(dimension_semantics=_SEMANTICS),
        cost_estimate=pl.CostEstimate(
            flops=2 * length * flat.size,
            bytes_accessed=2 * _bytes(flat) + sum(map(_bytes, inputs)),
            transcendentals=inputs.dt.size,
        ),
        name="tree_ssd_fold",
        interpret=interpret,
    )(A[:, None], *(a.reshape(rows, *a.shape[2:]) for a in inputs), flat)
    return out.reshape(state.shape)


def refuses_read(tree, inputs, A, C, D, state, ring, layer) -> str | None:
    """Why the kernel cannot take these arguments on a TPU, if it cannot."""
    return _refuses(inputs, state)


def refuses_verify(tree, inputs, A, C, D, state, ring, fold, layer) -> str | None:
    """As `refuses_read`."""
    return _refuses(inputs, state)


def refuses_fold(state, A, inputs) -> str | None:
    """As `refuses_read`."""
    return _refuses(inputs, state)


def _refuses(inputs, state):
    dim, width = state.shape[3:]
    if width % LANES:
        return f"a state width of {width} is not a multiple of {LANES} lanes"
    if dim % 8:
        return f"heads of width {dim} are not a multiple of 8 sublanes"
    if inputs.x.dtype not in (jnp.float32, jnp.bfloat16):
        return f"activations are {inputs.x.dtype}, not float32 or bfloat16"
    return None

"""Calls of the TPU kernels for states with one decay a token (`gated/xla.py`).

One grid step serves a block of heads of one row. A ring's tokens `k` are ancestors of every
node: with `R_k` the sum of `g` over the tokens after `k`, and `R` over all,

    S   = exp(R) S_0 + sum_k exp(R_k) w_k v_k k_k^T            (the fold, where asked for)

is not formed to be read: it is read in its two terms, and the checkpoint `S_0` once. What
a row does at its own nodes is the op's (`tpu_step.Op`).

Numbers: `M (q . k)` is masked before it meets a decay, and exponents, which are above 0
only where a pair is not on a path, are cut to 0. Sums of decays have the digits of the
activations (`tpu_decays`). With float32 activations every product is
in full float32. With bfloat16 activations a state is read, and what is folded into it
written, in two bfloat16 parts: to 2^-16.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.gated import tpu_step
from pallas_kernels.gated.tpu_lanes import LANES
from pallas_kernels.gated.tpu_step import QUERY_ROWS, BlockShape
from pallas_kernels.past import Past
from pallas_kernels.topology import Topology

_SEMANTICS = ("parallel", "arbitrary")  # a row's first block computes for the others


def block_shape(
    inputs: Any, state: jax.Array, queries: int, abreast: int, most_bytes: int = 2**19
) -> BlockShape:
    """Chooses the heads of a block: whole groups or parts of one.

    Args:
        inputs: records, whose first and last are values and keys.
        state: `[L, B, H, P, S]`.
        queries: how many of the last nodes are queried.
        abreast: heads of a group that a tile has, at most.
        most_bytes: of the block's states.
    """
    heads, dim, width = state.shape[2:]
    groups = inputs[2].shape[-1] // width
    per_group = heads // groups

    def fits(count):
        aligned = count == heads or count * dim % LANES == 0
        nested = per_group % count == 0 or count % per_group == 0
        keys = count // per_group * width % LANES == 0 or count == heads
        return (
            heads % count == 0 and aligned and nested and (keys or count <= per_group)
        )

    limit = max(1, most_bytes // (dim * width * 4))
    counts = [count for count in range(1, heads + 1) if fits(count)]
    count = max([c for c in counts if c <= limit], default=counts[0])
    nodes = inputs[0].shape[-2]
    rows = 8 if nodes <= QUERY_ROWS else LANES
    return BlockShape(
        blocks=heads // count,
        heads=count,
        dim=dim,
        width=width,
        groups=max(1, count // per_group),
        blocks_per_group=max(1, per_group // count),
        tile_heads=math.gcd(min(count, per_group), abreast),
        nodes=nodes,
        padded=-(-nodes // rows) * rows,
        queries=queries,
    )


class Specs(NamedTuple):
    """Blocks of a row: of all its lanes, or of a step's heads or groups."""

    shape: BlockShape

    def of_row(self, rows: int, width: int, of_layer: bool = False) -> pl.BlockSpec:
        """All lanes."""
        return self._of((rows, width), lambda block: (0, 0), of_layer)

    def of_heads(self, rows: int, of_layer: bool = False) -> pl.BlockSpec:
        """The channels of the step's heads."""
        width = self.shape.heads * self.shape.dim
        return self._of((rows, width), lambda block: (0, block), of_layer)

    def of_groups(self, rows: int, of_layer: bool = False) -> pl.BlockSpec:
        """The keys of their groups."""

        def index(block):
            return 0, jax.lax.div(block, self.shape.blocks_per_group)

        return self._of((rows, self.shape.groups * self.shape.width), index, of_layer)

    def of_inputs(self, length: int, heads: int, of_layer: bool = False) -> tuple:
        """Values, steps and keys."""
        steps = self.of_row(length, heads, of_layer)
        return self.of_heads(length, of_layer), steps, self.of_groups(length, of_layer)

    def of_state(self, of_layer: bool = False) -> pl.BlockSpec:
        """The states of the step's heads."""
        rows = self.shape.heads * self.shape.dim
        block = rows, self.shape.width
        return self._of(block, lambda block: (block, 0), of_layer)

    def _of(self, block, index, of_layer):
        def index_map(row, block, *scalars):
            lead = (scalars[0].layer[0], row) if of_layer else (row,)
            return *lead, *index(block)

        return pl.BlockSpec((*[None] * (1 + of_layer), *block), index_map)


class Call(NamedTuple):
    """What a call of an op has that those of others have not.

    Attributes:
        op: what a step does.
        name: of the kernel, to which what it does is added.
        rates: one array `[1, H]`, or none where a token's steps are its log decays.
        own: arrays, with their blocks.
        scratch: fast memory.
        scores_dtype: of the queries' products with the ring's keys.
        outputs: how many there are, `[B, n, E]`.
        flops: without those of folds, which are rare.
        transcendentals: as `flops`.
    """

    op: tpu_step.Op
    name: str
    rates: tuple[jax.Array, ...]
    own: tuple[tuple[jax.Array, pl.BlockSpec], ...]
    scratch: tuple
    scores_dtype: Any
    outputs: int
    flops: int
    transcendentals: int


def verify(
    call: Call,
    shape: BlockShape,
    tree: Topology,
    inputs: Any,
    queries: jax.Array,
    past: Past,
    interpret: Any,
) -> tuple[jax.Array, ...]:
    """Reads a state, in place, and folds the ring into it in the rows of `past.fold`.

    Args:
        call: what is the op's.
        shape: of a step.
        tree: topology of the `N` nodes.
        inputs: their records.
        queries: `[B, m, G S]`, of what came before the root.
        past: checkpoints `[L, B, H, P, S]` and rings; without `fold` nothing is folded,
            and no state returned.
        interpret: whether to interpret the kernel, or how.

    Returns:
        The op's outputs, float32, and the states.
    """
    batch, num_nodes, inner = inputs[0].shape
    state, ring, fold, layer = past
    layers, _, heads, _, width = state.shape
    specs, rows = Specs(shape), queries.shape[1]
    lanes = shape.heads * shape.dim
    tail = (0, shape.padded - shape.nodes)
    mask = jnp.pad(tree.ancestors.astype(jnp.bfloat16), ((0, 0), tail, tail))
    flat = state.reshape(layers, batch, inner, width)
    own, own_specs = zip(*call.own, strict=True)
    operands = tpu_step.Operands(flat, mask, *inputs, queries, call.rates, own, ())
    in_specs = tpu_step.Operands(
        specs.of_state(of_layer=True),
        specs.of_row(shape.padded, shape.padded),
        *specs.of_inputs(num_nodes, heads),
        specs.of_groups(rows),
        (pl.BlockSpec((1, heads), lambda *_: (0, 0)),) * len(call.rates),
        own_specs,
        (),
    )
    scalars = tpu_step.Scalars(jnp.reshape(layer, (1,)).astype(jnp.int32), (), ())
    scratch = tpu_step.Scratch(call.scratch, (), ())
    slots, read_once = 0, [*jax.tree.leaves(operands)[1:]]
    if ring is not None:
        slots = ring.inputs[0].shape[2]
        scalars = scalars._replace(length=ring.length.astype(jnp.int32))
        operands = operands._replace(ring=tuple(ring.inputs))
        in_specs = in_specs._replace(ring=specs.of_inputs(slots, heads, True))
        scratch = scratch._replace(
            ring=tpu_step.RingScratch(
                _weights(shape, slots),
                pltpu.VMEM((shape.groups, rows, slots), call.scores_dtype),
                pltpu.VMEM((8 + slots, lanes), jnp.float32),
            )
        )
        read_once += [a[0] for a in ring.inputs]
    out_shape = [jax.ShapeDtypeStruct((batch, shape.queries, inner), jnp.float32)]
    out_shape *= call.outputs
    out_specs = [specs.of_heads(shape.queries)] * call.outputs
    aliases = {}
    if fold is not None:
        scalars = scalars._replace(fold=fold.astype(jnp.int32))
        aliases = {len(jax.tree.leaves(scalars)): call.outputs}
        out_shape.append(jax.ShapeDtypeStruct(flat.shape, flat.dtype))
        out_specs.append(pl.BlockSpec(memory_space=pl.ANY))
        folded = pltpu.VMEM((lanes, width), jnp.float32), pltpu.SemaphoreType.DMA
        scratch = scratch._replace(folded=folded)

    *outputs, last = pl.pallas_call(
        functools.partial(tpu_step.verify_kernel, call.op, shape),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(batch, shape.blocks),
            in_specs=[in_specs],
            out_specs=out_specs,
            scratch_shapes=[scratch],
        ),
        out_shape=out_shape,
        input_output_aliases=aliases,
        compiler_params=pltpu.CompilerParams(dimension_semantics=_SEMANTICS),
        cost_estimate=pl.CostEstimate(
            flops=call.flops,
            bytes_accessed=sum(map(_bytes, read_once))
            + 4 * batch * inner * (width + call.outputs * shape.queries),
            transcendentals=call.transcendentals,
        ),
        name=f"{call.name}_{'read' if fold is None else 'verify'}",
        interpret=interpret,
    )(scalars, operands)
    return *outputs, last if fold is None else last.reshape(state.shape)


def fold(
    name: str,
    shape: BlockShape,
    state: jax.Array,
    inputs: Any,
    rates: tuple[jax.Array, ...],
    interpret: Any,
) -> jax.Array:
    """Advances the states of all layers over a chain of tokens, in place.

    Args:
        name: of the kernel, to which what it does is added.
        shape: of a step.
        state: `[L, B, H, P, S]` float32.
        inputs: records `[L, B, T, ...]`, oldest first.
        rates: one array `[L, H]`, or none where a token's steps are its log decays.
        interpret: whether to interpret the kernel, or how.

    Returns:
        `[L, B, H, P, S]` states after the last token.
    """
    layers, batch, heads, _, width = state.shape
    length, inner = inputs[0].shape[2:]
    rows, lanes = layers * batch, shape.heads * shape.dim
    specs = Specs(shape)
    per_layer = pl.BlockSpec(
        (None, 1, heads), lambda row, block: (jax.lax.div(row, batch), 0, 0)
    )
    flat = state.reshape(rows, inner, width)
    out = pl.pallas_call(
        functools.partial(tpu_step.fold_kernel, shape),
        grid=(rows, shape.blocks),
        in_specs=[
            specs.of_state(),
            specs.of_inputs(length, heads),
            (per_layer,) * len(rates),
        ],
        out_specs=specs.of_state(),
        out_shape=jax.ShapeDtypeStruct(flat.shape, flat.dtype),
        scratch_shapes=[
            _weights(shape, length),
            pltpu.VMEM((8 + length, lanes), jnp.float32),
        ],
        input_output_aliases={0: 0},
        compiler_params=pltpu.CompilerParams(dimension_semantics=_SEMANTICS),
        cost_estimate=pl.CostEstimate(
            flops=2 * length * flat.size,
            bytes_accessed=2 * _bytes(flat) + sum(map(_bytes, inputs)),
            transcendentals=inputs[1].size,
        ),
        name=f"{name}_fold",
        interpret=interpret,
    )(
        flat,
        tuple(a.reshape(rows, *a.shape[2:]) for a in inputs),
        tuple(a[:, None] for a in rates),
    )
    return out.reshape(state.shape)


def _weights(shape, tokens):
    """Scratch memory for `tpu_step.store_weights`."""
    return pltpu.VMEM((shape.blocks, 8 + tokens, 3 * shape.heads), jnp.bfloat16)


def _bytes(array):
    return array.size * array.dtype.itemsize

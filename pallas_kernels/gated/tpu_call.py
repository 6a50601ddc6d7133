"""Calls of the TPU kernels for states with one decay a token (`gated/xla.py`).

One grid step serves a block of heads of one row. A ring's tokens `k` are ancestors of every
node: with `R_k` the sum of `g` over the tokens after `k`, and `R` over all,

    S   = exp(R) S_0 + sum_k exp(R_k) w_k v_k k_k^T            (the fold, where asked for)

is not formed to be read: it is read in its two terms, and the checkpoint `S_0` once. What
a row does at its own nodes is the op's (`tpu_step.Op`).

Numbers: `M (q . k)` is masked before it meets a decay, and exponents, which are above 0
only where a pair is not on a path, are cut to 0. Sums of decays have the digits of the
activations (`tpu_decays`). With float32 activations every product is in full float32. With
bfloat16 activations a state is read, and what is folded into it written, in two bfloat16
parts: to 2^-16.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.gated import tpu_step
from pallas_kernels.gated.tpu_blocks import BlockShape, Specs
from pallas_kernels.past import Past
from pallas_kernels.topology import Topology

_SEMANTICS = ("parallel", "arbitrary")  # a row's first block computes for the others


class Call(NamedTuple):
    """The op-specific parts of a kernel call.

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
    state, fold = past.state, past.fold
    (batch, _, inner), width = inputs[0].shape, state.shape[4]
    parts = _parts_of_tree(call, shape, tree, inputs, queries, past)
    read_once = [*jax.tree.leaves(parts.operands)[1:]]
    if past.ring is not None:
        parts = _add_ring(parts, call, shape, past)
        read_once += [a[0] for a in past.ring.inputs]
    outputs = [jax.ShapeDtypeStruct((batch, shape.queries, inner), jnp.float32)]
    outputs *= call.outputs
    out_specs = [Specs(shape).of_heads(shape.queries)] * call.outputs
    aliases = {}
    if fold is not None:
        parts = _add_fold(parts, shape, fold)
        aliases = {len(jax.tree.leaves(parts.scalars)): call.outputs}
        flat = parts.operands.state
        outputs.append(jax.ShapeDtypeStruct(flat.shape, flat.dtype))
        out_specs.append(pl.BlockSpec(memory_space=pl.ANY))

    *outputs, last = pl.pallas_call(
        functools.partial(tpu_step.verify_kernel, call.op, shape),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(batch, shape.blocks),
            in_specs=[parts.specs],
            out_specs=out_specs,
            scratch_shapes=[parts.scratch],
        ),
        out_shape=outputs,
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
    )(parts.scalars, parts.operands)
    return *outputs, last if fold is None else last.reshape(state.shape)


class _Parts(NamedTuple):
    """What a kernel is called with.

    Attributes:
        scalars: known before a step begins.
        operands: arrays.
        specs: their blocks.
        scratch: fast memory.
    """

    scalars: tpu_step.Scalars
    operands: tpu_step.Operands
    specs: tpu_step.Operands
    scratch: tpu_step.Scratch


def _parts_of_tree(call, shape, tree, inputs, queries, past) -> _Parts:
    """Those of a tree below states that no ring follows."""
    num_nodes, inner = inputs[0].shape[1:]
    layers, batch, heads, _, width = past.state.shape
    specs = Specs(shape)
    tail = (0, shape.padded - shape.nodes)
    mask = jnp.pad(tree.ancestors.astype(jnp.bfloat16), ((0, 0), tail, tail))
    flat = past.state.reshape(layers, batch, inner, width)
    own, own_specs = zip(*call.own, strict=True)
    layer = jnp.reshape(past.layer, (1,)).astype(jnp.int32)
    return _Parts(
        tpu_step.Scalars(layer, (), ()),
        tpu_step.Operands(flat, mask, *inputs, queries, call.rates, own, ()),
        tpu_step.Operands(
            specs.of_state(of_layer=True),
            specs.of_row(shape.padded, shape.padded),
            *specs.of_inputs(num_nodes, heads),
            specs.of_groups(queries.shape[1]),
            (pl.BlockSpec((1, heads), lambda *_: (0, 0)),) * len(call.rates),
            own_specs,
            (),
        ),
        tpu_step.Scratch(call.scratch, (), ()),
    )


def _add_ring(parts, call, shape, past) -> _Parts:
    ring, slots, heads = past.ring, past.num_slots, past.state.shape[2]
    scores = shape.groups, parts.operands.queries.shape[1], slots
    memory = tpu_step.RingScratch(
        _weights(shape, slots),
        pltpu.VMEM(scores, call.scores_dtype),
        pltpu.VMEM((8 + slots, shape.heads * shape.dim), jnp.float32),
    )
    specs = Specs(shape).of_inputs(slots, heads, of_layer=True)
    return _Parts(
        parts.scalars._replace(length=ring.length.astype(jnp.int32)),
        parts.operands._replace(ring=tuple(ring.inputs)),
        parts.specs._replace(ring=specs),
        parts.scratch._replace(ring=memory),
    )


def _add_fold(parts, shape, fold) -> _Parts:
    size = shape.heads * shape.dim, shape.width
    folded = pltpu.VMEM(size, jnp.float32), pltpu.SemaphoreType.DMA
    return parts._replace(
        scalars=parts.scalars._replace(fold=fold.astype(jnp.int32)),
        scratch=parts.scratch._replace(folded=folded),
    )


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

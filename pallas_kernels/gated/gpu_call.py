"""Launches the kernels for GPUs: a block copies its states to shared memory once.

There the ring is folded into them. They are copied back in the rows that are to be folded,
while a tree's nodes are read.
"""

import math
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import _mosaic_gpu
from pallas_kernels.gated import gpu_chain
from pallas_kernels.gated.gpu_block import TILE, Block, Records, Tokens
from pallas_kernels.past import Past

CHAIN_TILE = 32  # tokens that are folded together, at most
MAX_TOKENS = 256  # of whose numbers the engine copies one each at once
PARAMS = {"approx_math": True}  # `exp` is the hardware's


class Reader(Protocol):
    """What a kernel does with a tree, once it has the states in front of it.

    `start(tree, memory)` starts to copy what it needs of a tree. `read(tree,
    prepare_state, state, memory)` writes the outputs; it calls `prepare_state` once, and
    looks at the states only then. A tree is `of_row` of all operands and outputs.
    """

    block: Block

    def memory(self) -> Any: ...
    def of_row(self, operands: Any, outputs: Any, row: Any, head: Any) -> Any: ...
    def start(self, tree: Any, memory: Any) -> None: ...
    def read(self, tree: Any, prepare: Any, state: Any, memory: Any) -> None: ...


class Chains(NamedTuple):
    """Chains of tokens, of all rows.

    Attributes:
        tokens: how they are cut into tiles.
        records: what they write.
    """

    tokens: Tokens
    records: Records


def memory(reader: Reader, slots: Tokens | None) -> tuple:
    """Shared memory of `walk`, `slots` those of a ring."""
    block = reader.block
    ring = None if slots is None else gpu_chain.memory(block, slots)
    return block.state_memory(), reader.memory(), ring, plgpu.Barrier()


def walk(
    reader: Reader,
    operands: Any,
    chain: Chains | None,
    past: Past,
    out_type: Any,
    **static: Any,
) -> Any:
    """Reads the trees of all rows, after folding their rings into the states.

    Args:
        reader: of one block's part of a tree.
        operands: what the reader reads.
        chain: rings, if there are any; `v` and `k` of all layers, `g` and `w` of one.
        past: whose state `[L, B, H, P, S]` is a reference if it may be written.
        out_type: what the reader writes.
        **static: of `_mosaic_gpu.launch`.
    """
    block = reader.block
    slots, records = (None, None) if chain is None else chain

    def body(layer, operands, records, fold, states, *rest):
        *outputs, state_s, tree_s, chain_s, loaded = rest
        b, h, layer = jax.lax.axis_index("batch"), jax.lax.axis_index("head"), layer[0]
        here = block.states(states, layer)
        tree = reader.of_row(operands, outputs, b, h)
        plgpu.copy_gmem_to_smem(here, state_s, loaded)
        reader.start(tree, tree_s)
        if records is not None:
            v, k = records.v.at[layer], records.k.at[layer]
            ring = records._replace(v=v, k=k).of_row(b, h)
            gpu_chain.start(block, slots, ring, chain_s)

        def prepare_state():
            plgpu.barrier_wait(loaded)
            if records is not None:
                gpu_chain.fold(block, slots, ring, state_s, chain_s)
            if fold is not None:

                @pl.when(fold[b])
                def _():
                    plgpu.commit_smem()
                    plgpu.copy_smem_to_gmem(state_s, here)

        reader.read(tree, prepare_state, state_s, tree_s)
        plgpu.wait_smem_to_gmem(0)

    return _mosaic_gpu.launch(
        body,
        (past.layer[None], operands, records, past.fold, past.state),
        out_type,
        grid=block.grid(past.state.shape[1]),
        scratch=memory(reader, slots),
        **static,
        **PARAMS,
    )


def fold_memory(block: Block, tokens: Tokens) -> tuple:
    """Shared memory of `fold`."""
    return block.state_memory(), gpu_chain.memory(block, tokens), plgpu.Barrier()


def fold(block: Block, chain: Chains, state: jax.Array, **static: Any) -> jax.Array:
    """Advances states `[L, B, H, P, S]` over chains of as many layers, in place."""
    tokens, records = chain

    def body(records, states, state_s, chain_s, loaded):
        layer, b, h = map(jax.lax.axis_index, ("layer", "batch", "head"))
        here = block.states(states, layer)
        chain = Records(*(ref.at[layer] for ref in records)).of_row(b, h)
        plgpu.copy_gmem_to_smem(here, state_s, loaded)
        gpu_chain.start(block, tokens, chain, chain_s)
        plgpu.barrier_wait(loaded)
        gpu_chain.fold(block, tokens, chain, state_s, chain_s)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(state_s, here)
        plgpu.wait_smem_to_gmem(0)

    states = _mosaic_gpu.in_place(state)
    _mosaic_gpu.launch(
        body,
        (records, states),
        grid={"layer": state.shape[0], **block.grid(state.shape[1])},
        scratch=fold_memory(block, tokens),
        cost=pl.CostEstimate(
            flops=2 * state.size * tokens.padded,
            bytes_accessed=_mosaic_gpu.num_bytes(state, state, records),
            transcendentals=records.g.size,
        ),
        **static,
        **PARAMS,
    )
    return states[...]


def refuses(state: Any, k: Any, length: int) -> str | None:
    """Why the kernels cannot take so many tokens on such states, or None."""
    dim, width = state.shape[3:]
    if dim % TILE or width % TILE:
        return f"heads {dim} wide and states {width} wide; it takes multiples of {TILE}"
    if k.dtype not in (jnp.bfloat16, jnp.float32):
        return f"{k.dtype} activations; it takes bfloat16 and float32"
    if length > MAX_TOKENS:
        return f"{length} tokens; it takes {MAX_TOKENS}"
    return None


def refuses_memory(memory: Any) -> str | None:
    """Why a block cannot have so much shared memory, or None."""
    if (size := num_bytes(memory)) > _mosaic_gpu.SHARED_MEMORY:
        return f"{size} bytes of shared memory, more than there are"
    return None


def num_bytes(memory: Any) -> int:
    """Bytes of shared memory."""
    leaves = jax.tree.leaves(memory)
    arrays = [leaf for leaf in leaves if hasattr(leaf, "dtype")]
    return sum(math.prod(a.shape) * jnp.dtype(a.dtype).itemsize for a in arrays)

"""What the TPU kernels of Mamba-1 keep on the chip, and the channels that fit there."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.inputs import Inputs
from pallas_kernels.tree_scan.tpu_tokens import (
    LANES,
    SUBLANES,
    Tokens,
    groups_of,
    tiles_of,
)

_MAX_BLOCK = 1536  # channels; wider blocks gain little and overlap less with the copies
_VMEM_BYTES = 12 * 2**20  # of the 15 MiB that a kernel may use on the smallest chip


class ChainScratch(NamedTuple):
    """Buffers of a chain of `T` tokens.

    Attributes:
        rate: `[S, block]`, `A log2(e)`.
        tokens: the chain.
    """

    rate: Any
    tokens: Tokens


class WalkScratch(NamedTuple):
    """Buffers of a tree of `N` nodes, the last `n` of them queried, below a ring.

    Attributes:
        rate: `[S, block]`, `A log2(e)`.
        ring: its tokens, if there is one.
        nodes: its tokens.
        C: `[n, S, lanes]` queries, the same in all lanes.
        stack: of each tile, `[levels, S, width]` states by depth.
        sums: of each group of tiles, `[N * 8, width]`: row `8 i + k` is the output of node
            `i` in tile `k` of the group.
        written: counts the copies of folded states.
    """

    rate: Any
    ring: Tokens | None
    nodes: Tokens
    C: Any
    stack: list[Any]
    sums: list[Any]
    written: Any


def chain_scratch(block: int, width: int, length: int) -> ChainScratch:
    return ChainScratch(_buffer(width, block), _tokens(length, width, block))


def walk_scratch(
    block: int, width: int, slots: int, nodes: int, queries: int, levels: int
) -> WalkScratch:
    tiles = tiles_of(block)
    return WalkScratch(
        rate=_buffer(width, block),
        ring=_tokens(slots, width, block) if slots else None,
        nodes=_tokens(nodes, width, block),
        C=_buffer(queries, width, min(block, LANES)),
        stack=[_buffer(levels, width, tile.width) for tile in tiles],
        sums=[_buffer(nodes * SUBLANES, g[0].width) for g in groups_of(tiles)],
        written=pltpu.SemaphoreType.DMA(()),
    )


def _buffer(*shape: int):
    return pltpu.VMEM(shape, jnp.float32)


def _tokens(length: int, width: int, block: int) -> Tokens:
    lanes = min(block, LANES)
    rows = _buffer(len(tiles_of(block)), length, lanes)
    return Tokens(dt=rows, dt_x=rows, B=_buffer(length, width, lanes))


def widest_block(channels: int, copied, scratch) -> int | None:
    """Chooses how many channels a kernel takes at once.

    Args:
        channels: of the state. They are cut only if a multiple of 128.
        copied: block -> pytree of arrays, the blocks that are copied to and from the chip.
        scratch: block -> pytree of buffers.

    Returns:
        The widest block that divides the channels and fits, None if none does.
    """
    widest = min(channels, _MAX_BLOCK)
    blocks = range(widest - widest % LANES, 0, -LANES)
    for block in [channels] if channels % LANES else blocks:
        # Copies are double-buffered: one block is in use while another is on its way.
        taken = 2 * _bytes(copied(block)) + _bytes(scratch(block))
        if channels % block == 0 and taken <= _VMEM_BYTES:
            return block
    return None


def _bytes(tree: Any) -> int:
    """What arrays take in the tiles of the registers."""

    def padded(a):
        if len(a.shape) < 2:  # a semaphore
            return 0
        *leading, rows, lanes = a.shape
        tile = 32 // jnp.dtype(a.dtype).itemsize, LANES
        rows, lanes = pl.cdiv(rows, tile[0]), pl.cdiv(lanes, tile[1])
        return math.prod(leading) * rows * lanes * 32 * LANES

    return sum(padded(leaf) for leaf in jax.tree.leaves(tree))


def blocks_of_tokens(inputs: Inputs, block: int) -> list[jax.ShapeDtypeStruct]:
    """The blocks of the records of one row `[..., T, E]`."""
    length = inputs.x.shape[-2]
    shapes = (length, block), (length, block), inputs.B.shape[-2:]
    return [
        jax.ShapeDtypeStruct(shape, a.dtype)
        for shape, a in zip(shapes, inputs, strict=True)
    ]

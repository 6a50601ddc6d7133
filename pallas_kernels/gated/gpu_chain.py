"""A chain of tokens, folded into the states of a block of a GPU.

With sums `R_t` of `g` over the tokens after `t`, and `R` over all of them,

    S <- exp(R) S + sum_t exp(R_t) w_t v_t k_t^T
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels._mosaic_gpu import split
from pallas_kernels.gated.gpu_block import (
    ALONG_COLUMNS,
    PARTS,
    TILE,
    Block,
    Records,
    Tokens,
    repeat,
)


class Memory(NamedTuple):
    """Shared memory of a chain.

    Attributes:
        tokens: a tile of records.
        after: `[64]` sums over later tokens.
        keys: `[64, depth]` a piece of the tile's keys, transposed.
        loaded_numbers: barrier.
        loaded: barrier.
    """

    tokens: Records
    after: Any
    keys: Any
    loaded_numbers: Any
    loaded: Any


def memory(block: Block, tokens: Tokens) -> Memory:
    return Memory(
        block.records_memory(tokens),
        plgpu.SMEM((TILE,), jnp.float32),
        block.warpgroup.memory((min(TILE, block.width), tokens.depth), block.dtype),
        plgpu.Barrier(num_arrivals=2),
        plgpu.Barrier(num_arrivals=2),
    )


def start(block: Block, tokens: Tokens, chain: Records, m: Memory) -> None:
    """Starts to copy the chain."""
    block.fetch_numbers(chain, m.tokens, m.loaded_numbers)
    block.fetch(tokens, chain, 0, m.tokens, m.loaded)


def fold(block: Block, tokens: Tokens, chain: Records, state: Any, m: Memory) -> None:
    """Advances the states in shared memory, oldest token first, after `start`."""
    group = block.warpgroup
    plgpu.barrier_wait(m.loaded_numbers)

    def fold_tile(i, _):
        plgpu.barrier_wait(m.loaded)
        scale, decay = _decays(block, tokens, i, m)
        v = block.load_tile(tokens, m.tokens.v).astype(jnp.float32)
        left = split(v * group.spread(scale, v.shape, 1), PARTS)
        for piece in block.pieces(TILE):
            m.keys[...] = block.load_tile(tokens, m.tokens.k.at[:, piece])
            right = split(group.load_right(m.keys, tokens.depth), PARTS)
            here = group.load(state.at[:, piece])
            here = here * group.spread(decay, here.shape, 0)
            state[:, piece] = group.add_product(here, left, right)
        if tokens.num > 1:

            @pl.when(i + 1 < tokens.num)
            def _():
                block.fetch(tokens, chain, i + 1, m.tokens, m.loaded)

        return 0

    repeat(tokens.num, fold_tile)


def _decays(block, tokens, i, m):
    """`exp(R_t) w_t` of a tile's tokens, and `exp(R)` for the rows of the state."""
    group, tile = block.warpgroup, tokens.tile(i)
    shape = TILE, tokens.depth
    g = group.load_from(m.tokens.g.at[tile], ALONG_COLUMNS)
    is_later = group.iota(shape, 1) > group.iota(shape, 0)
    later = jnp.where(is_later, group.spread(g, shape, 1), 0.0)
    m.after[...] = jnp.sum(later, axis=1)
    after = group.load_from(m.after.at[pl.ds(0, tokens.depth)], ALONG_COLUMNS)
    every = group.spread(g, (block.rows, tokens.depth), 1)
    w = group.load_from(m.tokens.w.at[tile], ALONG_COLUMNS)
    return w * jnp.exp(after), jnp.exp(jnp.sum(every, axis=1))

"""How attention on TPU is cut into blocks: the largest that its memory holds."""

import itertools
import math
from typing import NamedTuple

import jax.numpy as jnp

LANES, SUBLANES = 128, 8
ROWS = (1024, 512, 256, 128)  # of the cache in a block
BLOCK_BYTES = 2**20  # of keys: beyond it, larger blocks do not read faster
SLABS = 8  # in a block: they are unrolled
TILE = 256  # queries at once
VMEM_BYTES = 11 * 2**20  # of the 15 MB that every TPU has, the rest to the compiler


class Blocks(NamedTuple):
    """How the work is cut up; counts of heads are of key heads."""

    queries: int  # n
    nodes: int  # N
    group: int  # query heads to a key head
    dim: int  # of a head
    slab: int  # heads side by side in one product
    heads: int  # in a block
    rows: int  # of the cache in a block
    capacity: int  # M

    @property
    def padded(self) -> int:
        """`n` up to whole registers, of 16 rows of bfloat16 or half of one."""
        return SUBLANES if self.queries <= SUBLANES else _up(self.queries, 2 * SUBLANES)

    @property
    def tiles(self) -> int:
        """Parts of the stacked queries of a slab."""
        return -(-self.slab * self.group // max(1, TILE // self.padded))

    @property
    def tile(self) -> int:
        """Stacked queries at once: whole sets of nodes, as they share a mask."""
        sets = -(-self.slab * self.group // self.tiles)
        rows = self.padded * sets
        return rows if self.tiles == 1 else _up(rows, 2 * SUBLANES)

    @property
    def stacked(self) -> int:
        """Rows of the matrix of queries of a slab."""
        return self.tiles * self.tile

    @property
    def together(self) -> int:
        """Slabs whose tiles are independent work for the units of the core to overlap."""
        most = 1 if self.tiles > 1 else max(1, TILE // self.tile)
        return max(
            x for x in range(1, self.slabs + 1) if x <= most and self.slabs % x == 0
        )

    @property
    def width(self) -> int:
        """Lanes of a slab."""
        return self.slab * self.dim

    @property
    def slabs(self) -> int:
        return self.heads // self.slab

    def vmem(self, itemsize: int) -> int:
        """Bytes of two buffers of every block, the scratch and one tile of scores."""
        width = self.heads * self.dim
        blocks = (2 * self.rows + 2 * self.nodes) * width * itemsize
        blocks += self.queries * self.group * width * (itemsize + 4)
        blocks += self.padded * (self.nodes + 4 * LANES)
        scratch = _up(self.width, LANES) * (itemsize + 4) + 2 * 4 * LANES
        scratch *= self.slabs * self.stacked
        scores = max(self.rows, self.nodes) * (8 + itemsize)
        return 2 * blocks + scratch + scores * self.together * self.tile


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def cut(q, keys, cache_keys, head_dim) -> Blocks | None:
    """The best blocks that fit, or `None`.

    Half a block is read in vain at the end of a cache, and a step costs as much as
    reading some 200 kB: 512 rows if possible, then many heads, then more rows. With so
    many queries that reading does not matter, rows come first.
    """
    heads = keys.shape[2] // head_dim
    slab = math.lcm(head_dim, LANES) // head_dim
    slab = slab if heads % slab == 0 else heads
    itemsize = jnp.dtype(keys.dtype).itemsize
    fit = []
    for count, rows in itertools.product(range(1, SLABS + 1), ROWS):
        blocks = Blocks(
            queries=q.shape[1],
            nodes=keys.shape[1],
            group=q.shape[2] // keys.shape[2],
            dim=head_dim,
            slab=slab,
            heads=slab * count,
            rows=min(rows, cache_keys.shape[2]),
            capacity=cache_keys.shape[2],
        )
        size = blocks.rows * blocks.heads * head_dim * itemsize
        if heads % blocks.heads == 0 and (size <= BLOCK_BYTES or rows == ROWS[-1]):
            if blocks.vmem(itemsize) <= VMEM_BYTES:
                enough = 512 if blocks.tiles == 1 else 1024
                order = (min(blocks.rows, enough), blocks.heads, blocks.rows)
                fit.append((order, blocks))
    return max(fit)[1] if fit else None

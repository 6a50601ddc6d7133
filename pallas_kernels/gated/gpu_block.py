"""What one block of the kernels for GPUs works on, and in which pieces.

It has the states of up to 64 channels of one head, `[P, S]`, in shared memory. Tokens, of
a chain or of a tree, come in tiles of at most 64.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.gated.gpu_mma import ROWS, Warpgroup

TILE = 64  # rows of one warpgroup's products
STEP = 16  # the depth of a product is a multiple of it
COPY = 32  # numbers of 4 bytes are copied in multiples of it
PARTS = 3  # of float32 operands
ALONG_ROWS, ALONG_COLUMNS = ROWS.reduce(1), ROWS.reduce(0)


class Records(NamedTuple):
    """References to what a row's tokens write, or to shared memory for them.

    Attributes:
        g: `[slots]` log decays of one head.
        w: `[slots]` weights of one head.
        v: `[T, E]` values; in shared memory a tile of one head's, `[depth, P]`.
        k: `[T, G S]` keys; in shared memory a tile of one group's, `[depth, S]`.
    """

    g: Any
    w: Any
    v: Any
    k: Any

    def of_row(self, row: Any, head: Any) -> "Records":
        """Of the records of all rows and heads, `g` and `w` `[B, H, slots]`."""
        g, w = self.g.at[row].at[head], self.w.at[row].at[head]
        return Records(g, w, self.v.at[row], self.k.at[row])


class Tokens(NamedTuple):
    """How tokens are cut into tiles: one of a multiple of 8, or several full ones.

    Attributes:
        size: tokens of a tile.
        num: tiles.
    """

    size: int
    num: int

    @classmethod
    def of(cls, count: int, largest: int) -> "Tokens":
        """Cuts `count` tokens."""
        size = largest if count > largest else round_up(count, 8)
        return cls(size, pl.cdiv(count, size))

    @property
    def depth(self) -> int:
        """Rows of a tile in shared memory."""
        return round_up(self.size, STEP)

    @property
    def padded(self) -> int:
        """Rows of all tiles."""
        return self.num * self.depth

    @property
    def slots(self) -> int:
        """Shared-memory length of a per-token scalar."""
        return round_up(self.padded, COPY)

    def tile(self, i: Any) -> Any:
        """The slots of a tile."""
        return pl.ds(i * self.depth, self.depth)

    def pad(self, array: jax.Array, axis: int) -> jax.Array:
        """Pads an axis to full tiles, if it has to be."""
        return pad(array, axis, self.num * self.size)

    def records(
        self, g: jax.Array, w: jax.Array, v: jax.Array, k: jax.Array
    ) -> Records:
        """Arrays `[..., T, H]`, `[..., T, E]` and `[..., T, G S]` as kernels take them."""
        g, w = (
            pad(jnp.swapaxes(a, -1, -2), a.ndim - 1, self.slots) for a in (g, w)
        )  # zero where there is no token
        return Records(g, w, self.pad(v, v.ndim - 2), self.pad(k, k.ndim - 2))


@dataclasses.dataclass(frozen=True)
class Block:
    """One row of the batch and the channels of a head, or 64 of them.

    Attributes:
        heads: of the model.
        groups: of heads.
        dim: channels of a head.
        rows: channels of a block.
        width: of the state.
        dtype: of keys and queries.
        values: dtype of values.
        warpgroup: which multiplies.
    """

    heads: int
    groups: int
    dim: int
    rows: int
    width: int
    dtype: Any
    values: Any
    warpgroup: Warpgroup

    @classmethod
    def of(cls, state: Any, v: Any, k: Any, interpret: Any = False) -> "Block":
        """Takes the sizes from states `[L, B, H, P, S]`, values and keys."""
        heads, dim, width = state.shape[2:]
        return cls(
            heads=heads,
            groups=k.shape[-1] // width,
            dim=dim,
            rows=dim if dim % TILE else TILE,
            width=width,
            dtype=k.dtype,
            values=v.dtype,
            warpgroup=Warpgroup(bool(interpret)),
        )

    def grid(self, batch: int) -> dict[str, int]:
        """All blocks."""
        return {"batch": batch, "head": self.heads, "part": self.dim // self.rows}

    def states(self, refs: Any, layer: jax.Array) -> Any:
        """The block's part of `[L, B, H, P, S]`."""
        b, h, part = map(jax.lax.axis_index, ("batch", "head", "part"))
        return refs.at[layer, b, h, pl.ds(part * self.rows, self.rows)]

    def channels(self) -> Any:
        """The block's part of an axis `[E]`."""
        head, part = jax.lax.axis_index("head"), jax.lax.axis_index("part")
        return pl.ds(head * self.dim + part * self.rows, self.rows)

    def keys(self) -> Any:
        """The part of an axis `[G S]` that belongs to the block's group."""
        group = jax.lax.axis_index("head") // (self.heads // self.groups)
        return pl.ds(group * self.width, self.width)

    def pieces(self, size: int) -> list[Any]:
        """Columns of the state that are in registers together."""
        size = min(size, self.width)
        return [pl.ds(i, size) for i in range(0, self.width, size)]

    @property
    def parts(self) -> int:
        """Parts into which what is only read is split: beside bfloat16, two will do."""
        return PARTS if self.dtype == jnp.float32 else PARTS - 1

    @property
    def tile(self) -> int:
        """The most tokens of a tile; fewer if an operand is in three parts."""
        return TILE if self.dtype == jnp.bfloat16 else TILE // 2

    def state_memory(self) -> Any:
        return self.warpgroup.memory((self.rows, self.width), jnp.float32)

    def records_memory(self, tokens: Tokens) -> Records:
        """For a tile of values and keys, and for the numbers of all tokens."""
        numbers = plgpu.SMEM((tokens.slots,), jnp.float32)
        v = self.warpgroup.memory((tokens.depth, self.rows), self.values)
        k = self.warpgroup.memory((tokens.depth, self.width), self.dtype)
        return Records(numbers, numbers, v, k)

    def fetch_numbers(self, source: Records, target: Records, barrier: Any) -> None:
        """Starts to copy `g` and `w`."""
        plgpu.copy_gmem_to_smem(source.g, target.g, barrier)
        plgpu.copy_gmem_to_smem(source.w, target.w, barrier)

    def fetch(
        self, tokens: Tokens, source: Records, i: Any, target: Records, barrier: Any
    ) -> None:
        """Starts to copy a tile's `v` and `k`."""
        rows, used = pl.ds(i * tokens.size, tokens.size), pl.ds(0, tokens.size)
        v, k = source.v.at[rows, self.channels()], source.k.at[rows, self.keys()]
        plgpu.copy_gmem_to_smem(v, target.v.at[used], barrier)
        plgpu.copy_gmem_to_smem(k, target.k.at[used], barrier)

    def load_tile(self, tokens: Tokens, ref: Any) -> jax.Array:
        """A tile `[depth, M]` as `[M, depth]`, zero where no tokens were copied."""
        value = self.warpgroup.load_transposed(ref)
        if tokens.size == tokens.depth:
            return value
        token = self.warpgroup.iota(value.shape, 1)
        return jnp.where(token < tokens.size, value, jnp.zeros_like(value))


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def pad(array: jax.Array, axis: int, size: int) -> jax.Array:
    """Pads an axis with zeros, if it has to be."""
    if array.shape[axis] == size:
        return array
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, size - array.shape[axis])
    return jnp.pad(array, widths)


def repeat(times: Any, body: Any, carry: Any = 0) -> Any:
    """`jax.lax.fori_loop`, without a loop if the body runs once."""
    if isinstance(times, int) and times == 1:
        return body(0, carry)
    return jax.lax.fori_loop(0, times, body, carry)

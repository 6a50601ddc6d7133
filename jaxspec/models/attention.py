"""Grouped-query attention with a cache (Ainslie et al. 2023; RoPE: Su et al. 2021).

The cache holds committed tokens only. The nodes of a tree attend to it and to their own
ancestors; their keys and values stay on the tape until a path is committed.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxspec import rows
from jaxspec.models import layers
from jaxspec.models.config import ModelConfig
from pallas_kernels import tree_attention

_QUERY_BLOCK = 256  # queries that `scan` scores at once


class Carry(NamedTuple):
    """Keys and values `[B, M, K, d]`; the model knows how many rows are live."""

    keys: jax.Array
    values: jax.Array


class Tape(NamedTuple):
    """Keys and values of the nodes, `[B, N, K, d]`."""

    keys: jax.Array
    values: jax.Array


def init_carry(
    config: ModelConfig, batch_size: int, max_rows: int, ring_size: int
) -> Carry:
    """An empty cache of `max_rows` rows; attention needs no ring."""
    return Carry(*_zeros(config, batch_size, max_rows))


def init_tape(config: ModelConfig, batch_size: int, num_nodes: int, kind: str) -> Tape:
    """An empty tape, the same for every rollback `kind`."""
    return Tape(*_zeros(config, batch_size, num_nodes))


def commit(carry: Carry, tape: Tape, path: layers.Path) -> Carry:
    """Appends the keys and values of the accepted path."""
    return Carry(
        *(
            rows.write(cache, layers.take_path(nodes, path), path.position)
            for cache, nodes in zip(carry, tape, strict=True)
        )
    )


def _zeros(config: ModelConfig, batch_size: int, rows: int):
    c = config.attention
    shape = (batch_size, rows, c.num_kv_heads, c.head_dim)
    return (jnp.zeros(shape, jnp.dtype(config.dtype)),) * 2


class Mixer(nn.Module):
    """The layer. `x` is `[B, T, d_model]` (`[B, d_model]` in `step`)."""

    config: ModelConfig

    def setup(self):
        c = self.config.attention
        heads = c.num_heads + 2 * c.num_kv_heads
        self.qkv_proj = layers.dense(self.config, heads * c.head_dim, bias=c.qkv_bias)
        self.out_proj = layers.dense(
            self.config,
            self.config.d_model,
            bias=c.out_bias,
            scale=1 / len(self.config.layers),
        )

    def step(self, carry: Carry, x: jax.Array, positions: layers.Positions):
        """One token, at the end of the cache."""
        q, keys, values = self._project(x[:, None], positions)
        index = positions.index
        carry = Carry(
            rows.write(carry.keys, keys, index[:, 0]),
            rows.write(carry.values, values, index[:, 0]),
        )
        return carry, self._output(self._attend(q, carry, index))[:, 0]

    def scan(
        self,
        carry: Carry,
        x: jax.Array,
        positions: layers.Positions,
        lengths: jax.Array,
    ):
        """Many tokens, of which row `b` has `lengths[b]`; a block of queries at a time."""
        q, keys, values = self._project(x, positions)
        batch, length = x.shape[:2]
        index = positions.index
        live = jnp.arange(length)[None] < lengths[:, None]
        slots = jnp.where(live, index, carry.keys.shape[1])  # beyond the cache: dropped
        row = jnp.arange(batch)[:, None]
        carry = Carry(
            carry.keys.at[row, slots].set(keys, mode="drop"),
            carry.values.at[row, slots].set(values, mode="drop"),
        )
        size = min(_QUERY_BLOCK, length)
        blocks = layers.split_chunks(q, size), layers.split_chunks(index, size)
        y = jax.lax.map(lambda block: self._attend(block[0], carry, block[1]), blocks)
        return carry, self._output(layers.join_chunks(y, length))

    def tree(self, carry: Carry, tape: Tape, x: jax.Array, context: layers.TreeContext):
        """Some slots of a tree, whose parents are on the tape."""
        c, stop = self.config.attention, context.topology.parents.shape[1]
        q, keys, values = self._project(x, context.positions)
        tape = Tape(
            layers.put_slots(tape.keys, keys, context.start),
            layers.put_slots(tape.values, values, context.start),
        )
        cache, start = self._in_sight(carry, context.length, 0)
        y = tree_attention.attend(
            context.topology,
            q,
            tape.keys[:, :stop],
            tape.values[:, :stop],
            *cache,
            context.length - start,
            window=c.window or None,
            scale=self._scale(),
        )
        return tape, self._output(y)

    def _scale(self) -> float:
        c = self.config.attention
        return c.scale or c.head_dim**-0.5

    def _project(self, x: jax.Array, positions: layers.Positions):
        """Queries `[B, T, H, d]`, keys and values `[B, T, K, d]`, rotated."""
        c = self.config.attention
        h = self.qkv_proj(layers.scale_by(x, c.in_multiplier))
        h = h.reshape(*h.shape[:-1], -1, c.head_dim)
        cuts = [c.num_heads, c.num_heads + c.num_kv_heads]
        q, keys, values = jnp.split(h, cuts, axis=-2)
        keys = layers.scale_by(keys, c.key_multiplier)
        return layers.rotate(q, positions), layers.rotate(keys, positions), values

    def _in_sight(
        self, carry: Carry, end: jax.Array, queries: int
    ) -> tuple[Carry, jax.Array]:
        """The rows before `end` `[B]` that the last `queries` of them, and later ones, see.

        Returns them and the row they start at `[B]`: with a sliding window, what a query
        costs does not grow with the cache.
        """
        window, capacity = self.config.attention.window, carry.keys.shape[1]
        span = max(window - 1 + queries, 1)
        if not window or span >= capacity:
            return carry, jnp.zeros_like(end)
        start = jnp.clip(end - span, 0, capacity - span)
        return jax.tree.map(lambda cache: rows.cut(cache, start, span), carry), start

    def _attend(self, q: jax.Array, carry: Carry, index: jax.Array) -> jax.Array:
        """Queries `[B, T, H, d]` at consecutive positions `index` `[B, T]` see a cache."""
        length = index.shape[1]
        carry, start = self._in_sight(carry, index[:, 0] + length, length)
        return tree_attention.attend_cache(
            q,
            *carry,
            index,
            start,
            window=self.config.attention.window or None,
            scale=self._scale(),
        )

    def _output(self, y: jax.Array) -> jax.Array:
        """Projects y `[B, T, H, d]` float32."""
        c = self.config.attention
        y = y.reshape(*y.shape[:-2], -1).astype(jnp.dtype(self.config.dtype))
        return layers.scale_by(self.out_proj(y), c.out_multiplier)

"""Grouped-query attention with a cache (Ainslie et al. 2023; RoPE: Su et al. 2021).

The cache holds committed tokens only. The nodes of a tree attend to it and to their own
ancestors; their keys and values stay on the tape until a path is committed.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxspec import ragged
from jaxspec.models import chunks, finite, layered, layers, places
from jaxspec.models.config import ModelConfig
from pallas_kernels import tree_attention, tree_path

_QUERY_BLOCK = 256  # queries that `scan` scores at once


class Carry(NamedTuple):
    """Keys and values `[B, M, K d]`; the model knows how many rows are live."""

    keys: jax.Array
    values: jax.Array


class Tape(NamedTuple):
    """Keys and values of the nodes, `[B, N, K d]`."""

    keys: jax.Array
    values: jax.Array


def init_carry(
    config: ModelConfig, batch_size: int, max_rows: int, ring_size: int, split: bool
) -> Carry:
    """An empty cache of `max_rows` rows; attention needs no ring."""
    return Carry(*_zeros(config, batch_size, max_rows))


def init_tape(
    config: ModelConfig, batch_size: int, num_nodes: int, kind: str, split: bool
) -> Tape:
    """An empty tape, the same for every rollback `kind`."""
    return Tape(*_zeros(config, batch_size, num_nodes))


def commit(config: ModelConfig, carry: Carry, tape: Tape, path: places.Path) -> Carry:
    """Appends the keys and values of the accepted path."""
    heads = config.attention.num_kv_heads
    keys, values = (path.take(nodes, heads) for nodes in tape)
    keys = finite.spoil(keys, path.finite[:, None, None])
    return Carry(
        ragged.write(carry.keys, keys, path.position),
        ragged.write(carry.values, values, path.position),
    )


def keep(config: ModelConfig, tape: Tape, slots: jax.Array) -> Tape:
    """Gathers slots of a tape."""
    heads = config.attention.num_kv_heads
    return Tape(*(tree_path.take(nodes, slots, parts=heads) for nodes in tape))


def split(config: ModelConfig, params: dict[str, Any]) -> dict[str, Any]:
    """Stores the projection in parts: queries, keys and values, and gates."""
    columns = functools.partial(_split_columns, config)
    return {**params, "qkv_proj": layers.split_leaves(params["qkv_proj"], columns)}


def _split_columns(config: ModelConfig, fused: jax.Array) -> dict[str, jax.Array]:
    """Takes `[..., q k v gate]` apart, the gate if there is one."""
    c = config.attention
    first, width = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    cuts = [first, first + width, first + 2 * width]
    names = ["q", "k", "v", "gate"] if c.output_gate else ["q", "k", "v"]
    parts = jnp.split(fused, cuts[: len(names) - 1], axis=-1)
    return dict(zip(names, parts, strict=True))


def _zeros(config: ModelConfig, batch_size: int, rows: int):
    c = config.attention
    shape = (batch_size, rows, c.num_kv_heads * c.head_dim)
    return (jnp.zeros(shape, jnp.dtype(config.dtype)),) * 2


class Mixer(nn.Module):
    """The layer. `x` is `[B, T, d_model]` (`[B, d_model]` in `step`)."""

    config: ModelConfig

    def setup(self):
        c = self.config.attention
        heads = c.num_heads * (1 + c.output_gate) + 2 * c.num_kv_heads
        self.qkv_proj = layers.dense(self.config, heads * c.head_dim, bias=c.qkv_bias)
        if c.qk_norm:
            self.q_norm = layers.norm(self.config)
            self.k_norm = layers.norm(self.config)
        if c.adapter_rank:
            widths = {"q": c.num_heads, "k": c.num_kv_heads, "v": c.num_kv_heads}
            for name, heads in widths.items():
                width = heads * c.head_dim
                adapter = layers.Adapter(self.config, c.adapter_rank, width)
                setattr(self, f"{name}_adapter", adapter)
        self.out_proj = layers.dense(
            self.config,
            self.config.d_model,
            bias=c.out_bias,
            scale=1 / len(self.config.layers),
        )

    def step(
        self,
        carry: Carry,
        x: jax.Array,
        positions: places.Positions,
        layer: jax.Array | None = None,
    ):
        """One token, at the end of the cache."""
        q, new, gate = self._project(x[:, None], positions)
        index = positions.index[:, 0]
        write = (
            ragged.write if layer is None else functools.partial(ragged.write_at, layer)
        )
        carry = Carry(*map(lambda a, b: write(a, b, index), carry, new))
        return carry, self._output(self._attend(q, carry, index, layer), gate)[:, 0]

    def scan(
        self,
        carry: Carry,
        x: jax.Array,
        positions: places.Positions,
        lengths: jax.Array,
        layer: jax.Array | None = None,
    ):
        """Many tokens, of which row `b` has `lengths[b]`; a block of queries at a time."""
        q, new, gate = self._project(x, positions)
        batch, length = x.shape[:2]
        index = positions.index
        live = jnp.arange(length)[None] < lengths[:, None]
        slots = jnp.where(
            live, index, carry.keys.shape[-2]
        )  # beyond the cache: dropped
        at = (jnp.arange(batch)[:, None], slots)
        at = at if layer is None else (layer, *at)
        carry = Carry(*map(lambda a, b: a.at[at].set(b, mode="drop"), carry, new))
        size = min(_QUERY_BLOCK, length)
        blocks = chunks.split(q, size)
        steps = jnp.arange(len(blocks), dtype=index.dtype)
        first = steps[:, None] * size + index[None, :, 0]
        y = jax.lax.map(
            lambda block: self._attend(block[0], carry, block[1], layer),
            (blocks, first),
        )
        return carry, self._output(chunks.join(y, length), gate)

    def tree(
        self,
        carry: Carry,
        tape: Tape,
        x: jax.Array,
        context: places.TreeContext,
        layer: jax.Array | None = None,
    ):
        """Some slots of a tree, whose parents are on the tape."""
        q, new, gate = self._project(x, context.positions)
        q, new = self._shield(q, Tape(*new))
        tape, nodes = layered.put_slots(tape, new, context.start, layer)
        y = tree_attention.attend(
            context.topology,
            q,
            *nodes,
            *carry,
            context.length,
            layer=layer,
            **self._settings(),
        )
        return (carry, tape), self._output(y, gate)

    def _shield(self, q: jax.Array, new: Tape) -> tuple[jax.Array, Tape]:
        """Keys and values as others may see them; NaN in the queries beside the rest."""
        sound = finite.holds(new.keys) & finite.holds(new.values)
        heads = *q.shape[:2], self.config.attention.num_kv_heads
        sound = sound.reshape(*heads, 1, -1)
        grouped = q.reshape(*heads, -1, sound.shape[-1])
        return finite.spoil(grouped, sound).reshape(q.shape), finite.clean(new)

    def _settings(self) -> dict[str, Any]:
        c = self.config.attention
        scale = c.scale or c.head_dim**-0.5
        return dict(head_dim=c.head_dim, window=c.window or None, scale=scale)

    def _project(self, x: jax.Array, positions: places.Positions):
        """Queries `[B, T, H d]`, keys and values `[B, T, K d]`, rotated, and gates.

        The gates `[B, T, H d]` are None where there are none.
        """
        c = self.config.attention
        x = layers.scale_by(x, c.in_multiplier)
        h = self.qkv_proj(x)
        if not isinstance(h, dict):
            h = _split_columns(self.config, h)
        if c.adapter_rank:
            h |= {name: h[name] + getattr(self, f"{name}_adapter")(x) for name in "qkv"}
        q, keys = (h[name].reshape(*x.shape[:-1], -1, c.head_dim) for name in "qk")
        if c.qk_norm:
            q, keys = self.q_norm(q), self.k_norm(keys)
        keys = layers.scale_by(keys, c.key_multiplier)
        q, keys = (
            places.rotate(heads, positions).reshape(*x.shape[:-1], -1)
            for heads in (q, keys)
        )
        return q, (keys, h["v"]), h.get("gate")

    def _attend(
        self, q: jax.Array, carry: Carry, index: jax.Array, layer: jax.Array | None
    ) -> jax.Array:
        """Queries `[B, T, H d]` at positions `index` `[B]` and on see the cache."""
        return tree_attention.attend_cache(
            q, *carry, index, layer=layer, **self._settings()
        )

    def _output(self, y: jax.Array, gate: jax.Array | None) -> jax.Array:
        """Gates and projects y `[B, T, H d]` float32."""
        if gate is not None:
            y = y * nn.sigmoid(gate.astype(jnp.float32))
        y = self.out_proj(y.astype(jnp.dtype(self.config.dtype)))
        return layers.scale_by(y, self.config.attention.out_multiplier)

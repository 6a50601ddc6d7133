"""The gated delta rule (Yang et al. 2024), as in Qwen3-Next: a state `S` `[P, S]` a head.

q, k, v = silu(conv(qkv))        q, k of length one        q scaled by S^-0.5
g = -exp(A_log) softplus(a + dt_bias)        beta = sigmoid(b), doubled where asked for
S' = exp(g_t) S_{t-1}        u_t = beta_t (v_t - S' k_t)        S_t = S' + u_t k_t^T
y_t = S_t q_t                out = out_proj(norm(y) silu(z)), the norm within heads

A token replaces what the state holds at its key, so what it writes, `u`, depends on all
that came before: on a tree it is solved for, once, and kept (`tree_delta`).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxspec.models import (
    chunks,
    conv,
    finite,
    layered,
    layers,
    places,
    recurrence,
    rollback,
    shardings,
)
from jaxspec.models.config import ModelConfig
from jaxspec.models.mamba2 import init_A_log, init_dt_bias
from pallas_kernels import DeltaInputs, topology, tree_delta

_EPS = 1e-6  # added to the squared length of queries and keys


def _empty_channels(config: ModelConfig, split: bool, *leading: int) -> Any:
    """Inputs of the convolution, in parts or not."""
    widths = {"qk": 2 * config.delta.key_dim, "v": config.delta.value_dim}
    return recurrence.zeros(config, widths, split, *leading)


def _empty_states(config: ModelConfig, *leading: int) -> jax.Array:
    c = config.delta
    shape = c.num_value_heads, c.value_head_dim, c.key_head_dim
    return jnp.zeros((*leading, *shape), jnp.float32)


def _empty_inputs(config: ModelConfig, *leading: int) -> DeltaInputs:
    """In float32 but for the keys: what is written is corrected by what was."""
    c = config.delta
    return DeltaInputs(
        u=jnp.zeros((*leading, c.value_dim), jnp.float32),
        g=jnp.zeros((*leading, c.num_value_heads), jnp.float32),
        k=jnp.zeros((*leading, c.key_dim), jnp.dtype(config.dtype)),
    )


RECURRENCE = recurrence.Recurrence(
    name="delta",
    channels=_empty_channels,
    states=_empty_states,
    inputs=_empty_inputs,
    rates=recurrence.no_rates,
    fold=lambda state, rates, inputs: tree_delta.fold(state, inputs),
)
init_carry, init_tape = RECURRENCE.init_carry, RECURRENCE.init_tape
keep, commit = RECURRENCE.keep, RECURRENCE.commit


def split(config: ModelConfig, params: dict[str, Any]) -> dict[str, Any]:
    """Stores what is fused in parts: v, z, b, a by heads, and qk by groups of heads."""
    in_proj = layers.split_leaves(
        params["in_proj"], functools.partial(_split_columns, config)
    )
    filters = layers.split_leaves(
        params["conv"], functools.partial(_split_channels, config)
    )
    return {**params, "in_proj": in_proj, "conv": filters}


def _split_columns(config: ModelConfig, fused: jax.Array) -> dict[str, jax.Array]:
    """Takes `[..., q k v z b a]` apart."""
    qkv, z, b, a = jnp.split(fused, _columns(config), axis=-1)
    return {**_split_channels(config, qkv), "z": z, "b": b, "a": a}


def _columns(config: ModelConfig) -> list[int]:
    """Where z, b and a begin."""
    c = config.delta
    first = c.conv_dim + c.value_dim
    return [c.conv_dim, first, first + c.num_value_heads]


def _split_channels(config: ModelConfig, qkv: jax.Array) -> dict[str, jax.Array]:
    """Takes `[..., q k v]` apart; in qk, a group's q is followed by its k."""
    c = config.delta
    qk, v = jnp.split(qkv, [2 * c.key_dim], axis=-1)
    by_group = qk.reshape(*qk.shape[:-1], 2, c.num_key_heads, c.key_head_dim)
    return {"qk": jnp.swapaxes(by_group, -3, -2).reshape(qk.shape), "v": v}


class Mixer(nn.Module):
    """The layer. `x` is `[B, T, d_model]` (`[B, d_model]` in `step`)."""

    config: ModelConfig

    def setup(self):
        c, dtype = self.config.delta, jnp.dtype(self.config.dtype)
        width = c.conv_dim + c.value_dim + 2 * c.num_value_heads
        self.in_proj = layers.dense(self.config, width)
        parts = shardings.parts(self.config, "delta")
        self.conv = conv.CausalConv(c.conv_dim, c.d_conv, False, dtype, parts)
        self.A_log = self.param("A_log", init_A_log, (c.num_value_heads,))
        self.dt_bias = self.param("dt_bias", init_dt_bias, (c.num_value_heads,))
        self.norm = layers.RMSNorm(self.config.norm_eps)
        depth = len(self.config.layers)
        self.out_proj = layers.dense(self.config, self.config.d_model, scale=1 / depth)

    def step(
        self,
        carry: rollback.Carry,
        x: jax.Array,
        positions: places.Positions,
        layer: jax.Array | None = None,
    ):
        """One token, the plain recurrence; a ring must be empty."""
        tail, state = layered.at((carry.tail, carry.state), layer)
        qkv, z, b, a = self._project(x)
        tail, qkv = self.conv.step(tail, qkv)
        inputs, beta, q = self._inputs(qkv, b, a)
        state = jnp.exp(inputs.g)[..., None, None] * state
        v = inputs.u.reshape(state.shape[:3])
        k, q = self._per_head(inputs.k), self._per_head(q)
        u = beta[..., None] * (v - layers.einsum("bhps,bhs->bhp", state, k))
        state = state + u[..., None] * k[:, :, None]
        y = layers.einsum("bhps,bhs->bhp", state, q).reshape(inputs.u.shape)
        return rollback.put(carry, tail, state, layer), self._output(y, z)

    def scan(
        self,
        carry: rollback.Carry,
        x: jax.Array,
        positions: places.Positions,
        lengths: jax.Array,
        layer: jax.Array | None = None,
    ):
        """Many tokens in chunks; a chunk is a chain solved from a state, then folded in.

        In XLA on every platform: training differentiates it.
        """
        tail, state = layered.at((carry.tail, carry.state), layer)
        qkv, z, b, a = self._project(x)
        tail, qkv = self.conv.scan(tail, qkv, lengths)
        inputs, beta, q = self._inputs(qkv, b, a)
        live = jnp.arange(x.shape[1])[None] < lengths[:, None]
        inputs, beta = inputs.only(live), jnp.where(live[..., None], beta, 0.0)

        def advance(state, chunk):
            inputs, beta, q = chunk
            tree = topology.chain(*q.shape[:2])
            read = tree_delta.read(tree, inputs, beta, q, state, implementation="xla")
            inputs, y = inputs.complete(read)
            return tree_delta.fold(state, inputs, implementation="xla"), y

        size = self.config.delta.chunk_size
        state, y = chunks.scan(advance, state, (inputs, beta, q), size)
        return rollback.put(carry, tail, state, layer), self._output(y, z)

    def tree(
        self,
        carry: rollback.Carry,
        tape: rollback.Tape,
        x: jax.Array,
        context: places.TreeContext,
        layer: jax.Array | None = None,
    ):
        """Some slots of a tree, whose parents are on the tape, solved already."""
        qkv, z, b, a = self._project(x)
        record, qkv = self.conv.tree(carry.tail, tape.conv, qkv, context, layer)
        tape = tape._replace(conv=record)
        new, beta, q = self._inputs(qkv, b, a)
        new = new._replace(g=finite.spoil(new.g, finite.holds(beta)))
        (new, q, sound), beta = finite.shield(new, q), finite.clean(beta)
        read_states = functools.partial(self._read_states, q=q)
        past, y = rollback.read(
            tree_delta,
            read_states,
            carry,
            tape,
            new,
            args=(beta, q),
            context=context,
            layer=layer,
        )
        return past, self._output(finite.spoil(y, sound), z)

    def _read_states(self, states: jax.Array, q: jax.Array) -> jax.Array:
        """Reads states `[B, n, H, P, S]` with q `[B, n, G S]`."""
        y = layers.einsum("bihps,bihs->bihp", states, self._per_head(q))
        return y.reshape(*y.shape[:2], -1)

    def fold_ring(
        self, carry: rollback.Carry, chosen: jax.Array, length: jax.Array
    ) -> rollback.Carry:
        """Folds the ring of the chosen rows into their states."""
        return RECURRENCE.fold_ring(carry, None, chosen, length)

    def _per_head(self, keys: jax.Array) -> jax.Array:
        """Keys or queries `[..., G S]` as `[..., H, S]` float32."""
        c, keys = self.config.delta, keys.astype(jnp.float32)
        keys = keys.reshape(*keys.shape[:-1], c.num_key_heads, c.key_head_dim)
        return jnp.repeat(keys, c.num_value_heads // c.num_key_heads, axis=-2)

    def _project(self, x: jax.Array) -> tuple[Any, jax.Array, jax.Array, jax.Array]:
        """The conv's qkv, the gate z, and beta and the decay before they are bounded.

        Where the projection is stored in parts, so is qkv: qk, and v.
        """
        h = self.in_proj(x)
        if isinstance(h, dict):
            return {"qk": h["qk"], "v": h["v"]}, h["z"], h["b"], h["a"]
        return tuple(jnp.split(h, _columns(self.config), axis=-1))

    def _inputs(
        self, qkv: Any, b: jax.Array, a: jax.Array
    ) -> tuple[DeltaInputs, jax.Array, jax.Array]:
        """What tokens are to write, beta `[..., H]`, and queries `[..., G S]`."""
        c, shape = self.config.delta, b.shape[:-1]
        qkv = jax.tree.map(nn.silu, qkv)
        if isinstance(qkv, dict):
            by_group = qkv["qk"].reshape(*shape, -1, 2, c.key_head_dim)
            (q, k), v = (by_group[..., i, :] for i in range(2)), qkv["v"]
        else:
            q, k, v = jnp.split(qkv, [c.key_dim, 2 * c.key_dim], axis=-1)
        q, k = self._unit(q, c.key_head_dim**-0.5), self._unit(k, 1.0)
        bias = self.dt_bias.astype(jnp.float32).reshape(*[1] * len(shape), -1)
        rate = jnp.exp(self.A_log.astype(jnp.float32)).reshape(bias.shape)
        g = -rate * nn.softplus(a.astype(jnp.float32) + bias)
        beta = nn.sigmoid(b.astype(jnp.float32))
        beta = layers.scale_by(beta, 2.0 if c.allow_neg_eigval else 1.0)
        q, k = (a.reshape(*shape, -1) for a in (q, k))
        return DeltaInputs(v.astype(jnp.float32), g, k), beta, q

    def _unit(self, keys: jax.Array, length: float) -> jax.Array:
        """Scales every key or query to a length; `[..., G, S]` or `[..., G S]`.

        The result is rounded to the activations' dtype at once, in every mode alike.
        """
        width, dtype = self.config.delta.key_head_dim, keys.dtype
        keys = keys.astype(jnp.float32).reshape(*keys.shape[:-1], -1, width)
        square = jnp.sum(keys * keys, axis=-1, keepdims=True)
        return (length * keys * jax.lax.rsqrt(square + _EPS)).astype(dtype)

    def _output(self, y: jax.Array, z: jax.Array) -> jax.Array:
        """Normalises within heads, gates and projects y `[..., E]` float32."""
        heads = y.reshape(*y.shape[:-1], -1, self.config.delta.value_head_dim)
        y = self.norm(heads).reshape(y.shape) * nn.silu(z.astype(jnp.float32))
        return self.out_proj(y.astype(z.dtype))

"""Mamba-1 (Gu and Dao 2023): a state `h` `[S]` per channel, a decay per channel and state.

    x = silu(conv(x))        dt_low, B, C = x_proj(x)        dt = softplus(dt_proj(dt_low))
    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t
    y_t = C_t . h_t + D x_t                                   out = out_proj(y silu(z))

Falcon-Mamba and Jamba put RMS norms on dt_low, B and C.
"""

import functools
import math
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
from jaxspec.models.mamba2 import init_dt_bias
from pallas_kernels import Inputs, tree_scan


def _d_inner(config: ModelConfig) -> int:
    return config.mamba1.expand * config.d_model


def _empty_channels(config: ModelConfig, split: bool, *leading: int) -> jax.Array:
    """Inputs of the convolution, which are the heads' own: never in parts."""
    del split
    return jnp.zeros((*leading, _d_inner(config)), jnp.dtype(config.dtype))


def _empty_states(config: ModelConfig, *leading: int) -> jax.Array:
    shape = config.mamba1.d_state, _d_inner(config)
    return jnp.zeros((*leading, *shape), jnp.float32)


def _empty_inputs(config: ModelConfig, *leading: int) -> Inputs:
    width, dtype = _d_inner(config), jnp.dtype(config.dtype)
    return Inputs(
        x=jnp.zeros((*leading, width), dtype),
        dt=jnp.zeros((*leading, width), jnp.float32),
        B=jnp.zeros((*leading, config.mamba1.d_state), dtype),
    )


RECURRENCE = recurrence.Recurrence(
    name="mamba1",
    channels=_empty_channels,
    states=_empty_states,
    inputs=_empty_inputs,
    rates=_empty_states,  # one per channel and state, of all rows
    fold=tree_scan.fold,
)
init_carry, init_tape = RECURRENCE.init_carry, RECURRENCE.init_tape
keep, commit = RECURRENCE.keep, RECURRENCE.commit


def split(config: ModelConfig, params: dict[str, Any]) -> dict[str, Any]:
    """Stores the projection in parts: the channels' inputs and their gates."""
    del config

    def halves(fused):
        x, z = jnp.split(fused, 2, axis=-1)
        return {"x": x, "z": z}

    return {**params, "in_proj": layers.split_leaves(params["in_proj"], halves)}


class Mixer(nn.Module):
    """The layer. `x` is `[B, T, d_model]` (`[B, d_model]` in `step`)."""

    config: ModelConfig

    def setup(self):
        config, c = self.config, self.config.mamba1
        width, dtype = _d_inner(config), jnp.dtype(config.dtype)
        self.dt_rank = c.dt_rank or math.ceil(config.d_model / 16)
        self.in_proj = layers.dense(config, 2 * width, bias=c.proj_bias)
        parts = shardings.parts(config, "mamba1")
        self.conv = conv.CausalConv(width, c.d_conv, c.conv_bias, dtype, parts)
        self.x_proj = layers.dense(config, self.dt_rank + 2 * c.d_state)
        self.dt_proj = layers.dense(config, width)
        self.dt_bias = self.param("dt_bias", init_dt_bias, (width,))
        self.A_log = self.param("A_log", _init_A_log, (c.d_state, width))
        self.D = self.param("D", nn.initializers.ones, (width,), jnp.float32)
        if c.norm != "none":
            eps, scaled = c.norm_eps or config.norm_eps, c.norm == "learned"
            self.dt_norm = layers.RMSNorm(eps, scaled=scaled)
            self.B_norm = layers.RMSNorm(eps, scaled=scaled)
            self.C_norm = layers.RMSNorm(eps, scaled=scaled)
        self.out_proj = layers.dense(
            config, config.d_model, bias=c.proj_bias, scale=1 / len(config.layers)
        )

    def step(
        self,
        carry: rollback.Carry,
        x: jax.Array,
        positions: places.Positions,
        layer: jax.Array | None = None,
    ):
        """One token, the plain recurrence; a ring must be empty."""
        tail, state = layered.at((carry.tail, carry.state), layer)
        u, z = self._project(x)
        tail, u = self.conv.step(tail, u)
        inputs, C = self._inputs(u)
        update = (inputs.dt * inputs.x.astype(jnp.float32))[:, None]
        decay = jnp.exp(inputs.dt[:, None] * self._A()[None])
        state = decay * state + inputs.B.astype(jnp.float32)[..., None] * update
        y = layers.einsum("bse,bs->be", state, C.astype(jnp.float32))
        y = y + self._skip(inputs.x)
        return rollback.put(carry, tail, state, layer), self._output(y, z)

    def scan(
        self,
        carry: rollback.Carry,
        x: jax.Array,
        positions: places.Positions,
        lengths: jax.Array,
        layer: jax.Array | None = None,
    ):
        """Many tokens in chunks, each in parallel."""
        tail, state = layered.at((carry.tail, carry.state), layer)
        u, z = self._project(x)
        tail, u = self.conv.scan(tail, u, lengths)
        inputs, C = self._inputs(u)
        live = jnp.arange(x.shape[1])[None] < lengths[:, None]
        inputs = inputs.only(live)
        A, D = self._A(), self.D.astype(jnp.float32)

        def advance(state, chunk):
            inputs, C = chunk
            y, state = tree_scan.read_chain(inputs, A, C, D, state)
            return state, y

        size = self.config.mamba1.chunk_size
        state, y = chunks.scan(advance, state, (inputs, C), size)
        return rollback.put(carry, tail, state, layer), self._output(y, z)

    def tree(
        self,
        carry: rollback.Carry,
        tape: rollback.Tape,
        x: jax.Array,
        context: places.TreeContext,
        layer: jax.Array | None = None,
    ):
        """Some slots of a tree, whose parents are on the tape."""
        u, z = self._project(x)
        record, u = self.conv.tree(carry.tail, tape.conv, u, context, layer)
        tape = tape._replace(conv=record)
        new, C, sound = finite.shield(*self._inputs(u))
        past, y = rollback.read(
            tree_scan,
            functools.partial(self._read_states, x=new.x, C=C),
            carry,
            tape,
            new,
            args=(self._A(), C, self.D.astype(jnp.float32)),
            context=context,
            layer=layer,
            max_depth=context.max_depth,
        )
        return past, self._output(finite.spoil(y, sound), z)

    def _read_states(self, states: jax.Array, x: jax.Array, C: jax.Array) -> jax.Array:
        """Reads states `[B, n, S, E]` with C `[B, n, S]`."""
        y = layers.einsum("bise,bis->bie", states, C.astype(jnp.float32))
        return y + self._skip(x)

    def fold_ring(
        self, carry: rollback.Carry, chosen: jax.Array, length: jax.Array
    ) -> rollback.Carry:
        """Folds the ring of the chosen rows into their states."""
        return RECURRENCE.fold_ring(carry, self._A(), chosen, length)

    def _project(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The inputs and the gates of the channels."""
        h = self.in_proj(x)
        if isinstance(h, dict):
            return h["x"], h["z"]
        return tuple(jnp.split(h, 2, axis=-1))

    def _A(self) -> jax.Array:
        return -jnp.exp(self.A_log.astype(jnp.float32))

    def _skip(self, x: jax.Array) -> jax.Array:
        D = self.D.astype(jnp.float32).reshape(*[1] * (x.ndim - 1), -1)
        return D * x.astype(jnp.float32)

    def _inputs(self, u: jax.Array) -> tuple[Inputs, jax.Array]:
        """What the tokens do to the state, and their queries C `[..., S]`."""
        c, x = self.config.mamba1, nn.silu(u)
        widths = [self.dt_rank, self.dt_rank + c.d_state]
        dt, B, C = jnp.split(self.x_proj(x), widths, axis=-1)
        if c.norm != "none":
            dt, B, C = self.dt_norm(dt), self.B_norm(B), self.C_norm(C)
        bias = self.dt_bias.astype(jnp.float32).reshape(*[1] * (x.ndim - 1), -1)
        dt = nn.softplus(self.dt_proj(dt).astype(jnp.float32) + bias)
        return Inputs(x, dt, B), C

    def _output(self, y: jax.Array, z: jax.Array) -> jax.Array:
        """Gates and projects y `[..., E]` float32."""
        return self.out_proj((y * nn.silu(z.astype(jnp.float32))).astype(z.dtype))


def _init_A_log(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    del key  # S4D-real: A = -1, ..., -S in every channel
    states = jnp.arange(1, shape[0] + 1, dtype=jnp.float32)
    return jnp.broadcast_to(jnp.log(states)[:, None], shape)

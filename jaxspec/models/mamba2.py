"""Mamba-2 (Dao and Gu 2024): a state `S` `[P, S]` per head with one decay per token.

x, B, C = silu(conv(xBC))            dt = softplus(dt_raw + dt_bias), within limits
S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T
y_t = S_t C_t + D x_t                out = out_proj(norm(y silu(z)))
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
from pallas_kernels import Inputs, topology, tree_ssd


def _empty_channels(config: ModelConfig, split: bool, *leading: int) -> Any:
    """Inputs of the convolution, in parts or not."""
    c = config.mamba2
    widths = {"x": c.d_inner, "BC": c.conv_dim - c.d_inner}
    return recurrence.zeros(config, widths, split, *leading)


def _empty_states(config: ModelConfig, *leading: int) -> jax.Array:
    c = config.mamba2
    return jnp.zeros((*leading, c.nheads, c.headdim, c.d_state), jnp.float32)


def _empty_inputs(config: ModelConfig, *leading: int) -> Inputs:
    c, dtype = config.mamba2, jnp.dtype(config.dtype)
    return Inputs(
        x=jnp.zeros((*leading, c.d_inner), dtype),
        dt=jnp.zeros((*leading, c.nheads), jnp.float32),
        B=jnp.zeros((*leading, c.ngroups * c.d_state), dtype),
    )


RECURRENCE = recurrence.Recurrence(
    name="mamba2",
    channels=_empty_channels,
    states=_empty_states,
    inputs=_empty_inputs,
    rates=lambda config: jnp.zeros((config.mamba2.nheads,), jnp.float32),
    fold=tree_ssd.fold,
)
init_carry, init_tape = RECURRENCE.init_carry, RECURRENCE.init_tape
keep, commit = RECURRENCE.keep, RECURRENCE.commit


def split(config: ModelConfig, params: dict[str, Any]) -> dict[str, Any]:
    """Stores what is fused in parts: z, x, dt by heads, and BC by groups of heads."""
    in_proj = layers.split_leaves(
        params["in_proj"], functools.partial(_split_columns, config)
    )
    filters = layers.split_leaves(
        params["conv"], functools.partial(_split_channels, config)
    )
    return {**params, "in_proj": in_proj, "conv": filters}


def _split_columns(config: ModelConfig, fused: jax.Array) -> dict[str, jax.Array]:
    """Takes `[..., z x B C dt]` apart."""
    c = config.mamba2
    z, xBC, dt = jnp.split(fused, [c.d_inner, c.d_inner + c.conv_dim], axis=-1)
    return {"z": z, **_split_channels(config, xBC), "dt": dt}


def _split_channels(config: ModelConfig, xBC: jax.Array) -> dict[str, jax.Array]:
    """Takes `[..., x B C]` apart; in BC, a group's B is followed by its C."""
    c = config.mamba2
    x, BC = jnp.split(xBC, [c.d_inner], axis=-1)
    by_group = BC.reshape(*BC.shape[:-1], 2, c.ngroups, c.d_state)
    return {"x": x, "BC": jnp.swapaxes(by_group, -3, -2).reshape(BC.shape)}


class Mixer(nn.Module):
    """The layer. `x` is `[B, T, d_model]` (`[B, d_model]` in `step`)."""

    config: ModelConfig

    def setup(self):
        c, dtype = self.config.mamba2, jnp.dtype(self.config.dtype)
        width = c.d_inner + c.conv_dim + c.nheads
        self.in_proj = layers.dense(self.config, width, bias=c.proj_bias)
        parts = shardings.parts(self.config, "mamba2")
        self.conv = conv.CausalConv(c.conv_dim, c.d_conv, c.conv_bias, dtype, parts)
        self.A_log = self.param("A_log", init_A_log, (c.nheads,))
        self.dt_bias = self.param("dt_bias", init_dt_bias, (c.nheads,))
        shape = (c.nheads, c.headdim) if c.D_per_channel else (c.nheads,)
        self.D = self.param("D", nn.initializers.ones, shape, jnp.float32)
        if c.norm != "none":
            self.norm = layers.RMSNorm(self.config.norm_eps, c.norm_groups or c.ngroups)
        depth = len(self.config.layers)
        self.out_proj = layers.dense(
            self.config, self.config.d_model, bias=c.proj_bias, scale=1 / depth
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
        z, xBC, dt = self._project(x)
        tail, xBC = self.conv.step(tail, xBC)
        inputs, C = self._inputs(xBC, dt)
        c, batch = self.config.mamba2, x.shape[0]
        values = inputs.x.astype(jnp.float32).reshape(batch, c.nheads, c.headdim)
        update = (inputs.dt[..., None] * values)[..., None]
        B = inputs.B.astype(jnp.float32).reshape(batch, c.ngroups, c.d_state)
        B = jnp.repeat(B, c.nheads // c.ngroups, axis=1)
        decay = jnp.exp(inputs.dt * self._A()[None])[..., None, None]
        state = decay * state + update * B[:, :, None]
        by_group = state.reshape(batch, c.ngroups, -1, *state.shape[2:])
        C = C.astype(jnp.float32).reshape(batch, c.ngroups, c.d_state)
        y = layers.einsum("bgmps,bgs->bgmp", by_group, C)
        y = y.reshape(inputs.x.shape) + self._skip(inputs.x)
        return rollback.put(carry, tail, state, layer), self._output(y, z)

    def scan(
        self,
        carry: rollback.Carry,
        x: jax.Array,
        positions: places.Positions,
        lengths: jax.Array,
        layer: jax.Array | None = None,
    ):
        """Many tokens in chunks; a chunk is a chain read from a state, then folded in.

        In XLA on every platform: training differentiates it.
        """
        tail, state = layered.at((carry.tail, carry.state), layer)
        z, xBC, dt = self._project(x)
        tail, xBC = self.conv.scan(tail, xBC, lengths)
        inputs, C = self._inputs(xBC, dt)
        live = jnp.arange(x.shape[1])[None] < lengths[:, None]
        inputs = inputs.only(live)
        A, D = self._A(), self._D()

        def advance(state, chunk):
            inputs, C = chunk
            tree = topology.chain(*C.shape[:2])
            y = tree_ssd.read(tree, inputs, A, C, D, state, implementation="xla")
            return tree_ssd.fold(state, A, inputs, implementation="xla"), y

        size = self.config.mamba2.chunk_size
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
        z, xBC, dt = self._project(x)
        record, xBC = self.conv.tree(carry.tail, tape.conv, xBC, context, layer)
        tape = tape._replace(conv=record)
        new, C, sound = finite.shield(*self._inputs(xBC, dt))
        read_states = functools.partial(self._read_states, x=new.x, C=C)
        past, y = rollback.read(
            tree_ssd,
            read_states,
            carry,
            tape,
            new,
            args=(self._A(), C, self._D()),
            context=context,
            layer=layer,
        )
        return past, self._output(finite.spoil(y, sound), z)

    def _read_states(self, states: jax.Array, x: jax.Array, C: jax.Array) -> jax.Array:
        """Reads states `[B, n, H, P, S]` with C `[B, n, G S]`."""
        c, leading = self.config.mamba2, x.shape[:2]
        C = C.astype(jnp.float32).reshape(*leading, c.ngroups, c.d_state)
        states = states.reshape(*leading, c.ngroups, -1, *states.shape[3:])
        y = layers.einsum("bigmps,bigs->bigmp", states, C)
        return y.reshape(x.shape) + self._skip(x)

    def fold_ring(
        self, carry: rollback.Carry, chosen: jax.Array, length: jax.Array
    ) -> rollback.Carry:
        """Folds the ring of the chosen rows into their states."""
        return RECURRENCE.fold_ring(carry, self._A(), chosen, length)

    def _A(self) -> jax.Array:
        return -jnp.exp(self.A_log.astype(jnp.float32))

    def _skip(self, x: jax.Array) -> jax.Array:
        """`D x`, x `[..., E]`."""
        D = self._D()
        return D.reshape(*[1] * (x.ndim - 1), -1) * x.astype(jnp.float32)

    def _D(self) -> jax.Array:
        """The skip weight of every channel `[E]`."""
        c = self.config.mamba2
        repeats = 1 if c.D_per_channel else c.headdim
        return jnp.repeat(self.D.astype(jnp.float32).reshape(-1), repeats)

    def _project(self, x: jax.Array) -> tuple[jax.Array, Any, jax.Array]:
        """Splits the projection into the gate z, the conv's xBC, and dt before softplus.

        Where it is stored in parts, so is xBC: x, and BC.
        """
        c = self.config.mamba2
        h = self.in_proj(layers.scale_by(x, c.in_multiplier))
        if any(m != 1.0 for m in c.projection_multipliers):
            groups = c.ngroups * c.d_state
            widths = (c.d_inner, c.d_inner, groups, groups, c.nheads)
            factors = zip(c.projection_multipliers, widths, strict=True)
            dtype = jnp.dtype(self.config.dtype)
            factor = jnp.concatenate([jnp.full(w, m, dtype) for m, w in factors])
            if isinstance(h, dict):
                factor = _split_columns(self.config, factor)
            h = jax.tree.map(
                lambda h, f: h * f.reshape(*[1] * (h.ndim - 1), -1), h, factor
            )
        if isinstance(h, dict):
            return h["z"], {"x": h["x"], "BC": h["BC"]}, h["dt"]
        return tuple(jnp.split(h, [c.d_inner, c.d_inner + c.conv_dim], axis=-1))

    def _inputs(self, xBC: Any, dt: jax.Array) -> tuple[Inputs, jax.Array]:
        """What the tokens do to the state, and their queries C `[..., G S]`."""
        c, shape = self.config.mamba2, dt.shape[:-1]
        groups = c.ngroups * c.d_state
        xBC = jax.tree.map(nn.silu, xBC)
        if isinstance(xBC, dict):
            x, BC = xBC["x"], xBC["BC"].reshape(*shape, c.ngroups, 2, c.d_state)
            B, C = (BC[..., i, :].reshape(*shape, groups) for i in range(2))
        else:
            x, B, C = jnp.split(xBC, [c.d_inner, c.d_inner + groups], axis=-1)
        bias = self.dt_bias.astype(jnp.float32).reshape(*[1] * len(shape), -1)
        dt = nn.softplus(dt.astype(jnp.float32) + bias)
        if c.dt_limits != (0.0, math.inf):
            dt = jnp.clip(dt, *c.dt_limits)
        return Inputs(x, dt, B), C

    def _output(self, y: jax.Array, z: jax.Array) -> jax.Array:
        """Gates, normalises and projects y `[..., E]` float32."""
        c, gate = self.config.mamba2, nn.silu(z.astype(jnp.float32))
        if c.norm == "after":
            y = self.norm(y * gate)
        elif c.norm == "before":
            y = self.norm(y) * gate
        else:
            y = y * gate
        out = self.out_proj(y.astype(z.dtype))
        return layers.scale_by(out, c.out_multiplier)


def init_A_log(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jnp.log(jax.random.uniform(key, shape, jnp.float32, 1.0, 16.0))


def init_dt_bias(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Step sizes log-uniform in [0.001, 0.1], as softplus sees them."""
    low, high = math.log(1e-3), math.log(1e-1)
    dt = jnp.exp(jax.random.uniform(key, shape, jnp.float32, low, high))
    return dt + jnp.log(-jnp.expm1(-dt))

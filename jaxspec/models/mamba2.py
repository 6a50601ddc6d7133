"""Mamba-2 (Dao and Gu 2024): a state `S` `[P, S]` per head with one decay per token.

x, B, C = silu(conv(xBC))            dt = softplus(dt_raw + dt_bias), within limits
S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T
y_t = S_t C_t + D x_t                out = out_proj(norm(y silu(z)))
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxspec.models import conv, layers, rollback
from jaxspec.models.config import ModelConfig
from pallas_kernels import Inputs, topology, tree_ssd


def init_carry(
    config: ModelConfig, batch_size: int, max_rows: int, ring_size: int
) -> rollback.Carry:
    """An empty past; `max_rows` does not matter to a recurrence."""
    c, dtype = config.mamba2, jnp.dtype(config.dtype)
    return rollback.Carry(
        tail=jnp.zeros((batch_size, c.d_conv - 1, c.conv_dim), dtype),
        state=jnp.zeros((batch_size, c.nheads, c.headdim, c.d_state), jnp.float32),
        ring=_empty_inputs(config, batch_size, ring_size) if ring_size else None,
    )


def init_tape(
    config: ModelConfig, batch_size: int, num_nodes: int, kind: str
) -> rollback.Tape:
    """An empty tape of a rollback `kind`."""
    c, shape = config.mamba2, (batch_size, num_nodes)
    state = (*shape, c.nheads, c.headdim, c.d_state)
    snapshot = kind == "snapshot"
    return rollback.Tape(
        conv=jnp.zeros((*shape, c.conv_dim), jnp.dtype(config.dtype)),
        inputs=None if snapshot else _empty_inputs(config, *shape),
        states=jnp.zeros(state, jnp.float32) if snapshot else None,
        A=jnp.zeros((c.nheads,), jnp.float32) if kind in ("replay", "joint") else None,
    )


def commit(
    carry: rollback.Carry, tape: rollback.Tape, path: layers.Path
) -> rollback.Carry:
    """Keeps the accepted path."""
    return rollback.commit(carry, tape, path, tree_ssd.fold)


def _empty_inputs(config: ModelConfig, batch_size: int, length: int) -> Inputs:
    c, dtype = config.mamba2, jnp.dtype(config.dtype)
    return Inputs(
        x=jnp.zeros((batch_size, length, c.nheads, c.headdim), dtype),
        dt=jnp.zeros((batch_size, length, c.nheads), jnp.float32),
        B=jnp.zeros((batch_size, length, c.ngroups, c.d_state), dtype),
    )


class Mixer(nn.Module):
    """The layer. `x` is `[B, T, d_model]` (`[B, d_model]` in `step`)."""

    config: ModelConfig

    def setup(self):
        c, dtype = self.config.mamba2, jnp.dtype(self.config.dtype)
        width = c.d_inner + c.conv_dim + c.nheads
        self.in_proj = layers.dense(self.config, width, bias=c.proj_bias)
        self.conv = conv.CausalConv(c.conv_dim, c.d_conv, c.conv_bias, dtype)
        self.A_log = self.param("A_log", _init_A_log, (c.nheads,))
        self.dt_bias = self.param("dt_bias", init_dt_bias, (c.nheads,))
        shape = (c.nheads, c.headdim) if c.D_per_channel else (c.nheads,)
        self.D = self.param("D", nn.initializers.ones, shape, jnp.float32)
        if c.norm != "none":
            self.norm = layers.RMSNorm(self.config.norm_eps, c.norm_groups or c.ngroups)
        depth = len(self.config.layers)
        self.out_proj = layers.dense(
            self.config, self.config.d_model, bias=c.proj_bias, scale=1 / depth
        )

    def step(self, carry: rollback.Carry, x: jax.Array, positions: layers.Positions):
        """One token, the plain recurrence; a ring must be empty."""
        z, xBC, dt = self._project(x)
        tail, xBC = self.conv.step(carry.tail, xBC)
        inputs, C = self._inputs(xBC, dt)
        c = self.config.mamba2
        update = (inputs.dt[..., None] * inputs.x.astype(jnp.float32))[..., None]
        B = jnp.repeat(inputs.B.astype(jnp.float32), c.nheads // c.ngroups, axis=1)
        decay = jnp.exp(inputs.dt * self._A()[None])[..., None, None]
        state = decay * carry.state + update * B[:, :, None]
        state_by_group = state.reshape(x.shape[0], c.ngroups, -1, *state.shape[2:])
        y = layers.einsum("bgmps,bgs->bgmp", state_by_group, C.astype(jnp.float32))
        y = y.reshape(inputs.x.shape) + self._skip(inputs.x)
        return carry._replace(tail=tail, state=state), self._output(y, z)

    def scan(
        self,
        carry: rollback.Carry,
        x: jax.Array,
        positions: layers.Positions,
        lengths: jax.Array,
    ):
        """Many tokens in chunks; a chunk is a chain read from a state, then folded in."""
        z, xBC, dt = self._project(x)
        tail, xBC = self.conv.scan(carry.tail, xBC, lengths)
        inputs, C = self._inputs(xBC, dt)
        batch, length = x.shape[:2]
        live = jnp.arange(length)[None] < lengths[:, None]
        inputs = inputs._replace(dt=jnp.where(live[..., None], inputs.dt, 0.0))

        chunk = min(self.config.mamba2.chunk_size, length)
        tree = topology.chain(batch, chunk)
        A, D = self._A(), self.D

        def advance(state, chunk):
            inputs, C = chunk
            y = tree_ssd.read(tree, inputs, A, C, D, state)
            return tree_ssd.fold(state, A, inputs), y

        chunks = jax.tree.map(lambda a: layers.split_chunks(a, chunk), (inputs, C))
        state, y = jax.lax.scan(advance, carry.state, chunks)
        y = layers.join_chunks(y, length)
        return carry._replace(tail=tail, state=state), self._output(y, z)

    def tree(
        self,
        carry: rollback.Carry,
        tape: rollback.Tape,
        x: jax.Array,
        context: layers.TreeContext,
    ):
        """Some slots of a tree, whose parents are on the tape."""
        start, topo = context.start, context.topology
        stop = topo.parents.shape[1]
        z, xBC, dt = self._project(x)
        tape = tape._replace(conv=layers.put_slots(tape.conv, xBC, start))
        xBC = self.conv.tree(carry.tail, tape.conv[:, :stop], context.window)
        new, C = self._inputs(xBC, dt)
        A = self._A()
        if tape.states is not None:
            states = tree_ssd.node_states(
                topo.parents[:, start:], new, A, carry.state, tape.states[:, :start]
            )
            tape = tape._replace(states=layers.put_slots(tape.states, states, start))
            groups = C.shape[2]
            grouped = states.reshape(*states.shape[:2], groups, -1, *states.shape[3:])
            y = layers.einsum("bigmps,bigs->bigmp", grouped, C.astype(jnp.float32))
            y = y.reshape(new.x.shape) + self._skip(new.x)
        else:
            inputs = jax.tree.map(
                lambda tape, new: layers.put_slots(tape, new, start), tape.inputs, new
            )
            tape = tape._replace(inputs=inputs, A=None if tape.A is None else A)
            inputs = jax.tree.map(lambda leaf: leaf[:, :stop], inputs)
            y = tree_ssd.read(topo, inputs, A, C, self.D, carry.state, carry.ring)
        return tape, self._output(y, z)

    def fold_ring(self, carry: rollback.Carry, chosen: jax.Array) -> rollback.Carry:
        """Folds the ring of the chosen rows into their states."""
        return rollback.fold_ring(carry, chosen, self._A(), tree_ssd.fold)

    def _A(self) -> jax.Array:
        return -jnp.exp(self.A_log.astype(jnp.float32))

    def _skip(self, x: jax.Array) -> jax.Array:
        """`D x`, x `[..., H, P]`."""
        D = self.D.astype(jnp.float32).reshape(self.D.shape[0], -1)
        D = jnp.broadcast_to(D, x.shape[-2:])
        return D.reshape(*[1] * (x.ndim - 2), *D.shape) * x.astype(jnp.float32)

    def _project(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Splits the projection into the gate z, the conv's xBC, and dt before softplus."""
        c = self.config.mamba2
        h = self.in_proj(layers.scale_by(x, c.in_multiplier))
        if any(m != 1.0 for m in c.projection_multipliers):
            groups = c.ngroups * c.d_state
            widths = (c.d_inner, c.d_inner, groups, groups, c.nheads)
            factors = zip(c.projection_multipliers, widths, strict=True)
            factor = jnp.concatenate([jnp.full(w, m, h.dtype) for m, w in factors])
            h = h * factor.reshape(*[1] * (h.ndim - 1), -1)
        return tuple(jnp.split(h, [c.d_inner, c.d_inner + c.conv_dim], axis=-1))

    def _inputs(self, xBC: jax.Array, dt: jax.Array) -> tuple[Inputs, jax.Array]:
        """What the tokens do to the state, and their queries C `[..., G, S]`."""
        c, shape = self.config.mamba2, xBC.shape[:-1]
        groups = c.ngroups * c.d_state
        x, B, C = jnp.split(nn.silu(xBC), [c.d_inner, c.d_inner + groups], axis=-1)
        bias = self.dt_bias.astype(jnp.float32).reshape(*[1] * len(shape), -1)
        dt = nn.softplus(dt.astype(jnp.float32) + bias)
        if c.dt_limits != (0.0, math.inf):
            dt = jnp.clip(dt, *c.dt_limits)
        x = x.reshape(*shape, c.nheads, c.headdim)
        B = B.reshape(*shape, c.ngroups, c.d_state)
        return Inputs(x, dt, B), C.reshape(B.shape)

    def _output(self, y: jax.Array, z: jax.Array) -> jax.Array:
        """Gates, normalises and projects y `[..., H, P]` float32."""
        c = self.config.mamba2
        y, gate = y.reshape(z.shape), nn.silu(z.astype(jnp.float32))
        if c.norm == "after":
            y = self.norm(y * gate)
        elif c.norm == "before":
            y = self.norm(y) * gate
        else:
            y = y * gate
        out = self.out_proj(y.astype(z.dtype))
        return layers.scale_by(out, c.out_multiplier)


def _init_A_log(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jnp.log(jax.random.uniform(key, shape, jnp.float32, 1.0, 16.0))


def init_dt_bias(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Step sizes log-uniform in [0.001, 0.1], as softplus sees them."""
    low, high = math.log(1e-3), math.log(1e-1)
    dt = jnp.exp(jax.random.uniform(key, shape, jnp.float32, low, high))
    return dt + jnp.log(-jnp.expm1(-dt))

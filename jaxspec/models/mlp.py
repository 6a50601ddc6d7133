"""Feed-forward: SwiGLU or GEGLU (Shazeer 2020), squared ReLU (So et al. 2021), or GELU.

    y = down(silu(gate(x)) up(x)),  down(gelu(gate(x)) up(x)),
        down(relu(up(x))^2)         or  down(gelu(up(x)))

It has no past: its carry and its tape are empty.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxspec.models import layers, stateless
from jaxspec.models.config import GATED, ModelConfig

init_carry = stateless.init_carry
init_tape = stateless.init_tape
commit = stateless.commit
keep = stateless.keep


def split(config: ModelConfig, params: dict[str, Any]) -> dict[str, Any]:
    """Stores a gated projection in parts: the gate, and what it gates."""
    if config.mlp.activation not in GATED:
        return params
    return {**params, "up_proj": split_gate(params["up_proj"])}


def split_gate(params: Any) -> Any:
    """Takes the gate and what it gates apart."""
    return layers.split_leaves(params, _halves)


def _halves(fused: jax.Array) -> dict[str, jax.Array]:
    gate, up = jnp.split(fused, 2, axis=-1)
    return {"gate": gate, "up": up}


def up_width(activation: str, d_ff: int) -> int:
    """Columns of the projection in: a gate stands before what it gates."""
    return d_ff * (2 if activation in GATED else 1)


def activate(
    activation: str,
    h: jax.Array | Mapping[str, jax.Array],
    gate_multiplier: float = 1.0,
) -> jax.Array:
    """Applies the nonlinearity to `[..., up_width]`, or to its parts; `[..., d_ff]`."""
    if activation == "relu2":
        return jnp.square(nn.relu(h))
    if activation == "gelu":
        return nn.gelu(h, approximate=False)
    h = h if isinstance(h, Mapping) else _halves(h)
    gate = layers.scale_by(h["gate"], gate_multiplier)
    gate = nn.silu(gate) if activation == "swiglu" else nn.gelu(gate, approximate=False)
    return gate * h["up"]


class Mixer(stateless.Mixer):
    """The layer."""

    def setup(self):
        c = self.config.mlp
        width = up_width(c.activation, c.d_ff)
        self.up_proj = layers.dense(self.config, width, bias=c.bias)
        self.down_proj = layers.dense(
            self.config,
            self.config.d_model,
            bias=c.bias,
            scale=1 / len(self.config.layers),
        )
        if c.adapter_rank:
            self.up_adapter = layers.Adapter(self.config, c.adapter_rank, width)

    def mix(self, x: jax.Array) -> jax.Array:
        c = self.config.mlp
        h = self.up_proj(x)
        if c.adapter_rank:
            more = self.up_adapter(x)
            more = _halves(more) if isinstance(h, Mapping) else more
            h = jax.tree.map(jnp.add, h, more)
        h = activate(c.activation, h, c.gate_multiplier)
        return layers.scale_by(self.down_proj(h), c.out_multiplier)

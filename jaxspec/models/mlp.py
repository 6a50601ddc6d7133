"""Feed-forward: SwiGLU (Shazeer 2020), squared ReLU (So et al. 2021), or GELU.

It has no past: its carry and its tape are empty.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxspec.models import layers
from jaxspec.models.config import ModelConfig


def init_carry(
    config: ModelConfig, batch_size: int, max_rows: int, ring_size: int, split: bool
):
    """Nothing."""
    return ()


def init_tape(
    config: ModelConfig, batch_size: int, num_nodes: int, kind: str, split: bool
):
    """Nothing."""
    return ()


def commit(config: ModelConfig, carry: tuple, tape: tuple, path: layers.Path) -> tuple:
    """Nothing to keep."""
    return carry


drop_slots = layers.drop_slots


def split(config: ModelConfig, params: dict[str, Any]) -> dict[str, Any]:
    """Stores SwiGLU's projection in parts: the gate, and what it gates."""
    if config.mlp.activation != "swiglu":
        return params

    def halves(fused):
        gate, up = jnp.split(fused, 2, axis=-1)
        return {"gate": gate, "up": up}

    return {**params, "up_proj": layers.split_leaves(params["up_proj"], halves)}


class Mixer(nn.Module):
    """The layer. `x` is `[..., d_model]`."""

    config: ModelConfig

    def setup(self):
        c = self.config.mlp
        width = c.d_ff * (2 if c.activation == "swiglu" else 1)
        self.up_proj = layers.dense(self.config, width, bias=c.bias)
        self.down_proj = layers.dense(
            self.config,
            self.config.d_model,
            bias=c.bias,
            scale=1 / len(self.config.layers),
        )

    def step(
        self,
        carry: tuple,
        x: jax.Array,
        positions: layers.Positions,
        layer: jax.Array | None = None,
    ):
        """One token."""
        return carry, self._apply(x)

    def scan(
        self,
        carry: tuple,
        x: jax.Array,
        positions: layers.Positions,
        lengths: jax.Array,
        layer: jax.Array | None = None,
    ):
        """Many tokens."""
        return carry, self._apply(x)

    def tree(
        self,
        carry: tuple,
        tape: tuple,
        x: jax.Array,
        context: layers.TreeContext,
        layer: jax.Array | None = None,
    ):
        """Nodes of a tree."""
        return (carry, tape), self._apply(x)

    def _apply(self, x: jax.Array) -> jax.Array:
        c, h = self.config.mlp, self.up_proj(x)
        if c.activation == "swiglu":
            is_split = isinstance(h, dict)
            gate, h = (h["gate"], h["up"]) if is_split else jnp.split(h, 2, axis=-1)
            h = nn.silu(layers.scale_by(gate, c.gate_multiplier)) * h
        elif c.activation == "relu2":
            h = jnp.square(nn.relu(h))
        else:
            h = nn.gelu(h, approximate=False)
        return layers.scale_by(self.down_proj(h), c.out_multiplier)

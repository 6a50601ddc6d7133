"""Attention and feed-forward whose weights blocks share, before Mamba-2 (Zamba2 2024).

    h = out(mlp(norm(attention(norm([x, e])))))          e: the token's embedding
    x + m * mamba2(norm(x + h))

A model has `num_shared` sets of the weights of attention, feed-forward and their norms,
stored once, and its blocks use them in turn: block i the set i mod `num_shared`. `out`,
Mamba-2 and the adapters of attention and feed-forward are each block's own.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.models import block, layers
from jaxspec.models.config import ModelConfig

Params = dict[str, Any]

SHARED = ("attention_norm", "attention", "mlp_norm", "mlp")
"""What a set of shared weights is made of, but for adapters."""


def join(own: Params, shared: Params) -> Params:
    """All params of a block, of its own and those that it shares."""
    own = dict(own)
    adapters = own.pop("adapters")
    adapted = {name: {**shared[name], **more} for name, more in adapters.items()}
    return {**own, **shared, **adapted}


def part(whole: Params) -> tuple[Params, Params]:
    """Undoes `join`."""

    def pick(name, adapters):
        params = whole[name].items()
        return {key: p for key, p in params if key.endswith("_adapter") == adapters}

    own = {name: params for name, params in whole.items() if name not in SHARED}
    own["adapters"] = {name: pick(name, True) for name in ("attention", "mlp")}
    return own, {name: pick(name, False) for name in SHARED}


def part_blocks(config: ModelConfig, blocks: list[Params]) -> tuple[list, list]:
    """The blocks' own params, and the sets that they share: the first to use them have."""
    own, sets = [], []
    for kind, params in zip(config.layers, blocks, strict=True):
        if kind == "S":
            params, shared = part(params)
            sets.append(shared)
        own.append(params)
    return own, sets[: config.num_shared]


class Block(block.Block):
    """A block of this kind, given all its params; see `block.Block`."""

    def setup(self):
        super().setup()
        self.attention_norm = layers.norm(self.config)
        self.mlp_norm = layers.norm(self.config)
        self.out_proj = layers.dense(self.config, self.config.d_model)

    def _mix(
        self,
        x: jax.Array,
        embedding: jax.Array,
        call: Callable[..., tuple[Any, jax.Array]],
        past: tuple,
    ) -> tuple[jax.Array, tuple]:
        attention, mlp, mamba2 = past
        h = self.attention_norm(jnp.concatenate([x, embedding], axis=-1))
        attention, h = call(self.attention, attention, h)
        mlp, h = call(self.mlp, mlp, self.mlp_norm(h))
        mamba2, y = call(self.mamba2, mamba2, self.norm(x + self.out_proj(h)))
        y = layers.scale_by(y, self.config.residual_multiplier)
        return x + y, (attention, mlp, mamba2)


def block_of(config: ModelConfig, kind: str) -> block.Block:
    """The module of a block of one kind."""
    return Block(config, kind) if kind == "S" else block.Block(config, kind)

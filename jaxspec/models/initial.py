"""Random params of a model."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxspec.models import block, layers, places, shared
from jaxspec.models.config import ModelConfig
from jaxspec.models.stack import Stack

Params = dict[str, Any]


def params(config: ModelConfig, stack: Stack, key: jax.Array) -> Params:
    """Draws the params of a model; a stack says how those of blocks are stored."""
    embed_key, head_key, *keys = jax.random.split(key, 2 + len(config.layers))
    normal = nn.initializers.normal(0.02)
    shape = (config.vocab_size, config.d_model)
    blocks = [
        _block(config, kind, key) for kind, key in zip(config.layers, keys, strict=True)
    ]
    own, sets = shared.part_blocks(config, blocks)
    hidden = jnp.zeros((1, config.d_model), jnp.dtype(config.dtype))
    drawn = {
        "embed": {"embedding": normal(embed_key, shape, jnp.float32)},
        "layers": stack.collect(own),
        "final_norm": layers.norm(config).init(key, hidden)["params"],
    }
    if sets:
        kinds = config.storages["shared"]
        drawn["shared"] = Stack(kinds, stack.scanned).collect(sets)
    if not config.tie_embeddings:
        kernel = normal(head_key, shape[::-1], jnp.float32)
        drawn["lm_head"] = {"kernel": kernel}
    return drawn


def _block(config: ModelConfig, kind: str, key: jax.Array) -> Params:
    x = jnp.zeros((1, 1, config.d_model), jnp.dtype(config.dtype))
    made = shared.block_of(config, kind).init(
        key,
        x=x,
        embedding=x,
        carry=block.init_carry(config, kind, 1, 1, 0, False),
        positions=places.positions(config.attention, jnp.zeros((1, 1), jnp.int32)),
        lengths=jnp.ones((1,), jnp.int32),
        method="scan",
    )
    return made["params"]

"""The two ends of a model: tokens in, logits out."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxspec import mesh
from jaxspec.models import layers
from jaxspec.models.config import ModelConfig

Params = dict[str, Any]


def embed(config: ModelConfig, params: Params, tokens: jax.Array) -> jax.Array:
    """Embeds tokens `[...]`, `[..., C]` in the model's dtype."""
    x = params["embed"]["embedding"][tokens].astype(jnp.dtype(config.dtype))
    return layers.scale_by(mesh.constrain_rows(x), config.embedding_multiplier)


def norm(config: ModelConfig, params: Params, x: jax.Array) -> jax.Array:
    """Applies the final norm."""
    return layers.norm(config).apply({"params": params["final_norm"]}, x)


def logits(config: ModelConfig, params: Params, hidden: jax.Array) -> jax.Array:
    """Multiplies hidden `[..., C]` with the head, `[..., V]` float32."""
    if "lm_head" in params:
        kernel = params["lm_head"]["kernel"]
    else:
        kernel = params["embed"]["embedding"].T
    kernel = kernel.astype(hidden.dtype)
    found = jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)
    return layers.scale_by(mesh.constrain_columns(found), config.logits_multiplier)

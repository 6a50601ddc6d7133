"""Random weights for published shapes, drawn on the device in the dtype of their use."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec import sampling
from jaxspec.core import LanguageModel
from jaxspec.models.config import ModelConfig

_ONES = ("scale", "D")
_FLOAT32 = (*_ONES, "A_log", "dt_bias", "correction_bias")


def params(config: ModelConfig, model: LanguageModel, seed: int = 0) -> Any:
    """Params of `model`, matrices in the activations' dtype.

    Decays and step sizes lie where those of trained models do, so that states neither
    vanish nor grow.
    """
    shapes = jax.eval_shape(model.init, sampling.key(0))
    return jax.jit(functools.partial(_draw, shapes, jnp.dtype(config.dtype)))(
        sampling.key(seed)
    )


def _draw(shapes: Any, dtype: Any, key: jax.Array) -> Any:
    leaves, structure = jax.tree.flatten_with_path(shapes)
    keys = jax.random.split(key, len(leaves))
    return structure.unflatten(
        _leaf(str(path[-1].key), shape.shape, dtype, key)
        for (path, shape), key in zip(leaves, keys, strict=True)
    )


def _leaf(name: str, shape: tuple[int, ...], dtype: Any, key: jax.Array) -> jax.Array:
    kind = jnp.float32 if name in _FLOAT32 else dtype
    if name in _ONES:
        return jnp.ones(shape, kind)
    if name == "A_log":
        return jax.random.uniform(key, shape, kind, 0.0, math.log(16.0))
    if name == "dt_bias":
        return jax.random.uniform(key, shape, kind, -6.0, -2.0)
    return (0.02 * jax.random.normal(key, shape, jnp.float32)).astype(kind)


def num_bytes(tree: Any) -> int:
    """Bytes of all arrays."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

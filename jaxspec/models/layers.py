"""The modules that mixers are made of: norms, projections, adapters."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxspec.models.config import ModelConfig

einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
"""For products with a state, which is float32 whatever the activations are."""


class RMSNorm(nn.Module):
    """Root mean square norm over the last axis, computed in float32.

    Attributes:
        eps: added to the mean square.
        groups: parts of the axis that are normalised apart.
        scaled: whether there is a learned scale.
        centered: whether the scale is learned as its distance from one.
    """

    eps: float
    groups: int = 1
    scaled: bool = True
    centered: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        y = x.astype(jnp.float32).reshape(*x.shape[:-1], self.groups, -1)
        square = jnp.mean(y * y, axis=-1, keepdims=True)
        y = (y * jax.lax.rsqrt(square + self.eps)).reshape(x.shape)
        if self.scaled:
            init = nn.initializers.zeros if self.centered else nn.initializers.ones
            scale = self.param("scale", init, (width,), jnp.float32)
            scale = scale.astype(jnp.float32).reshape(*[1] * (x.ndim - 1), width)
            y = y * (1.0 + scale if self.centered else scale)
        return y.astype(x.dtype)


def norm(config: ModelConfig) -> RMSNorm:
    """A norm as a model has them between its mixers."""
    return RMSNorm(config.norm_eps, centered=config.zero_centered_norms)


class Projection(nn.Dense):
    """A projection of an input onto one thing, or onto several at once.

    Several are one product, of which the caller takes the columns apart. Where the kernel
    is stored in parts (`forms.split`) it is one product for each, and what
    is returned is a dict as well.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array | dict[str, jax.Array]:
        kernel = self.get_variable("params", "kernel")
        if not isinstance(kernel, Mapping):
            return super().__call__(x)
        bias = self.get_variable("params", "bias")
        out = {}
        for name, part in kernel.items():
            y = jnp.matmul(x.astype(self.dtype), part.astype(self.dtype))
            if bias is not None:
                shape = *[1] * (x.ndim - 1), -1
                y = y + bias[name].astype(self.dtype).reshape(shape)
            out[name] = y
        return out


def param(
    module: nn.Module, name: str, init: nn.initializers.Initializer, shape: tuple
) -> Any:
    """A float32 parameter, or a dict of them where it is stored in parts."""
    stored = module.get_variable("params", name)
    if isinstance(stored, Mapping):
        return stored
    return module.param(name, init, shape, jnp.float32)


def split_leaves(params: Any, split: Any) -> Any:
    """Stores a kernel and its bias in parts; `split` takes the last axis apart."""
    return {name: split(leaf) for name, leaf in params.items()}


def is_split(params: Any) -> bool:
    """Whether there are kernels in parts; params may be None."""
    paths = jax.tree_util.tree_flatten_with_path(params)[0]
    return any(
        len(path) > 1 and getattr(path[-2], "key", None) == "kernel"
        for path, _ in paths
    )


def dense(
    config: ModelConfig, features: int, *, bias: bool = False, scale: float = 1.0
) -> Projection:
    """A projection in the model's dtype; `scale` shrinks its initial weights."""
    return Projection(
        features,
        use_bias=bias,
        dtype=jnp.dtype(config.dtype),
        kernel_init=nn.initializers.variance_scaling(scale, "fan_in", "normal"),
    )


class Adapter(nn.Module):
    """A projection by way of a few dimensions, `up(down(x))` (LoRA, Hu et al. 2021).

    Attributes:
        config: of the model.
        rank: how many.
        features: of the output.
    """

    config: ModelConfig
    rank: int
    features: int

    def setup(self):
        self.down = dense(self.config, self.rank)
        self.up = dense(self.config, self.features)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.up(self.down(x))


def scale_by(x: jax.Array, multiplier: float) -> jax.Array:
    """Multiplies by a static factor; a factor of one costs nothing."""
    return x if multiplier == 1.0 else x * jnp.asarray(multiplier, x.dtype)

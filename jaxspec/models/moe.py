"""Mixture of experts (Shazeer et al. 2017): a feed-forward that each token picks parts of.

    y = sum over the chosen experts e of  w[e] down[e](act(up[e](x)))  +  shared(x)

    softmax:  w = softmax(R x)      chosen: the top k of w
    sigmoid:  w = sigmoid(R x)      chosen: the top k of w + bias, within the groups of
                                    experts whose two best add up to most (Liu et al. 2024)

where w may be divided by its sum over the chosen, which makes of a softmax over all
experts one over the chosen. Those may work on a projection of x, and their sum is then
projected back (LatentMoE, Elango et al. 2026). Scores are float32. There is no capacity: no
token is dropped, and none matters to another. It has no past: its carry and its tape are
empty.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec

from jaxspec import mesh
from jaxspec.models import experts, layers, mlp, shardings, stateless
from jaxspec.models.config import GATED, ModelConfig, MoEConfig

init_carry = stateless.init_carry
init_tape = stateless.init_tape
commit = stateless.commit
keep = stateless.keep


def split(config: ModelConfig, params: dict[str, Any]) -> dict[str, Any]:
    """Stores gated projections in parts: the gates, and what they gate."""
    if config.moe.activation not in GATED:
        return params
    fused = [name for name in ("up_proj", "shared_up_proj") if name in params]
    return {**params, **{name: mlp.split_gate(params[name]) for name in fused}}


def route(
    config: MoEConfig, router: jax.Array, bias: jax.Array | None, x: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Chooses experts.

    Args:
        config: how.
        router: `[C, E]`.
        bias: `[E]` for the choice alone; None unless scores are sigmoids.
        x: `[R, C]`.

    Returns:
        `[R, k]` float32 weights of the chosen experts, and `[R, k]` int32 which they are.
    """
    f32 = jnp.float32
    logits = layers.einsum("rc,ce->re", x.astype(f32), router.astype(f32))
    if config.scores == "softmax":
        scores = choice = nn.softmax(logits)
    else:
        scores = nn.sigmoid(logits)
        choice = _within_groups(config, scores + bias.astype(f32)[None])
    _, index = jax.lax.top_k(choice, config.top_k)
    weights = jnp.take_along_axis(scores, index, axis=1)
    if config.renormalize:
        weights = weights / (jnp.sum(weights, axis=1, keepdims=True) + 1e-20)
    return layers.scale_by(weights, config.routed_multiplier), index


def _within_groups(config: MoEConfig, choice: jax.Array) -> jax.Array:
    """Rules experts `[R, E]` out whose group is none of the best."""
    if config.top_groups == config.num_groups:
        return choice
    groups = choice.reshape(len(choice), config.num_groups, -1)
    best_two, _ = jax.lax.top_k(groups, 2)
    _, best = jax.lax.top_k(jnp.sum(best_two, axis=2), config.top_groups)
    names = jnp.arange(config.num_groups, dtype=best.dtype)
    is_in = jnp.any(best[:, :, None] == names[None, None], axis=1)
    return jnp.where(is_in[:, :, None], groups, -jnp.inf).reshape(choice.shape)


class Kernel(nn.Module):
    """Weights `[..., in, out]`, a matrix or a stack of them, or a dict of its parts."""

    shape: tuple[int, ...]
    scale: float = 1.0

    @nn.compact
    def __call__(self) -> Any:
        stack = tuple(range(len(self.shape) - 2))
        init = nn.initializers.variance_scaling(
            self.scale, "fan_in", "normal", batch_axis=stack
        )
        return layers.param(self, "kernel", init, self.shape)


class Mixer(stateless.Mixer):
    """The layer."""

    def setup(self):
        c, d_model = self.config.moe, self.config.d_model
        scale, latent = 1 / len(self.config.layers), c.d_latent or d_model
        width = mlp.up_width(c.activation, c.d_ff)
        self.router = Kernel((d_model, c.num_experts))
        self.up_proj = Kernel((c.num_experts, latent, width))
        self.down_proj = Kernel((c.num_experts, c.d_ff, latent), scale)
        if c.d_latent:
            self.latent_in_proj = layers.dense(self.config, latent)
            self.latent_out_proj = layers.dense(self.config, d_model)
        if c.scores == "sigmoid":
            self.correction_bias = layers.param(
                self, "correction_bias", nn.initializers.zeros, (c.num_experts,)
            )
        if c.shared_d_ff:
            width = mlp.up_width(c.activation, c.shared_d_ff)
            self.shared_up_proj = layers.dense(self.config, width)
            self.shared_down_proj = layers.dense(self.config, d_model, scale=scale)
        if c.shared_gate:
            self.shared_gate = layers.dense(self.config, 1)

    def mix(self, x: jax.Array) -> jax.Array:
        c = self.config.moe
        if c.d_latent:
            y = self.latent_out_proj(self._chosen(x, self.latent_in_proj(x)))
        else:
            y = self._chosen(x, x)
        if c.shared_d_ff:
            h = mlp.activate(c.activation, self.shared_up_proj(x))
            h = self.shared_down_proj(h)
            y = y + (nn.sigmoid(self.shared_gate(x)) * h if c.shared_gate else h)
        return y

    def _chosen(self, x: jax.Array, h: jax.Array) -> jax.Array:
        """Runs the experts that `x` chooses on `h`.

        On a mesh a device has its own rows, and its part of the hidden width.
        """
        c, axes = self.config.moe, mesh.sizes()
        bias = self.correction_bias if c.scores == "sigmoid" else None
        router, up, down = self.router(), self.up_proj(), self.down_proj()
        is_whole = c.activation in GATED and not isinstance(up, Mapping)
        is_cut = shardings.is_cut(self.config, "moe", axes[mesh.TENSOR])
        width = mesh.TENSOR if is_cut and not is_whole else None
        rows, whole = mesh.rows(x.shape[0], axes), PartitionSpec()
        parts = mesh.per_device(
            functools.partial(_run, c),
            in_specs=(
                PartitionSpec(rows),
                PartitionSpec(rows),
                whole,
                whole,
                PartitionSpec(None, None, width),
                PartitionSpec(None, width),
            ),
            out_specs=PartitionSpec(width, rows),
        )
        return jnp.sum(parts(x, h, router, bias, up, down), axis=0)


def _run(
    config: MoEConfig,
    x: jax.Array,
    h: jax.Array,
    router: jax.Array,
    bias: jax.Array | None,
    up: Any,
    down: jax.Array,
) -> jax.Array:
    """What the experts add up to, or a part of their width, `[1, *h.shape]`."""

    def times(x, kernel, expert):
        kernel = jax.lax.dynamic_index_in_dim(kernel, expert, keepdims=False)
        return x @ kernel.astype(x.dtype)

    def run(expert, x):
        h = jax.tree.map(lambda kernel: times(x, kernel, expert), up)
        return times(mlp.activate(config.activation, h), down, expert)

    weights, index = route(config, router, bias, x.reshape(-1, x.shape[-1]))
    rows = h.reshape(-1, h.shape[-1])
    y = experts.apply(run, rows, weights, index, config.num_experts)
    return y.reshape(1, *h.shape)

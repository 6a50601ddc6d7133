"""The short causal convolution before a recurrence, and the tail it carries.

    y_t = bias + sum_k weight_k u_{t - K + 1 + k}

The tail is the last `K - 1` inputs. On a tree, "last" means along a node's own path, and
the tail only moves when a path is committed: drafts that are rejected leave no trace.

Filters, tails and inputs are arrays of all channels, or dicts of several channels each
where the params are stored in parts (`forms.split`).
"""

from typing import Any

import flax.core
import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxspec import ragged
from jaxspec.models import finite, layered, layers, places, shardings
from pallas_kernels import tree_conv, tree_path


class CausalConv(nn.Module):
    """One filter per channel.

    Attributes:
        channels: `E`.
        width: `K` taps.
        use_bias: whether there is a bias.
        dtype: of the computation.
        parts: into how many a mesh can cut the channels.
    """

    channels: int
    width: int
    use_bias: bool
    dtype: jnp.dtype
    parts: shardings.Parts

    def setup(self):
        def uniform(key, shape, dtype):
            bound = self.width**-0.5
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        zeros = nn.initializers.zeros
        self.kernel = layers.param(self, "kernel", uniform, (self.width, self.channels))
        if self.use_bias:
            self.bias = layers.param(self, "bias", zeros, (self.channels,))

    def _filter(self) -> tuple[Any, Any]:
        kernel = flax.core.unfreeze(self.kernel)  # linen freezes dicts of a module
        if self.use_bias:
            bias = flax.core.unfreeze(self.bias)
        else:
            bias = jax.tree.map(lambda kernel: jnp.zeros_like(kernel[0]), kernel)
        return jax.tree.map(lambda leaf: leaf.astype(self.dtype), (kernel, bias))

    def step(self, tail: Any, u: Any) -> tuple[Any, Any]:
        """One token: tail `[B, K - 1, E]`, u `[B, E]` -> tail, y `[B, E]`."""
        weight, bias = self._filter()
        window = jax.tree.map(_append, tail, u)
        y = jax.tree.map(
            lambda window, weight, bias: (
                jnp.sum(window * weight[None], axis=1) + bias[None]
            ),
            window,
            weight,
            bias,
        )
        return jax.tree.map(lambda window: window[:, 1:], window), y

    def scan(self, tail: Any, u: Any, lengths: jax.Array) -> tuple[Any, Any]:
        """Many tokens, of which row `b` has `lengths[b]`: u `[B, T, E]` -> tail, y."""
        tokens = jax.tree.map(
            lambda tail, u: jnp.concatenate([tail, u], axis=1), tail, u
        )
        y = jax.tree.map(self._slide, tokens, *self._filter())
        last = lengths[:, None] + jnp.arange(self.width - 1)[None]
        return jax.tree.map(lambda tokens: ragged.take(tokens, last), tokens), y

    def _slide(
        self, tokens: jax.Array, weight: jax.Array, bias: jax.Array
    ) -> jax.Array:
        """Every window of `K` tokens `[B, K - 1 + T, E]`."""
        length, y = tokens.shape[1] - self.width + 1, bias[None, None]
        for k in range(self.width):
            y = y + tokens[:, k : k + length] * weight[k][None, None]
        return y

    def tree(
        self,
        tail: Any,
        tape: Any,
        u: Any,
        context: places.TreeContext,
        layer: jax.Array | None,
    ) -> tuple[Any, Any]:
        """Nodes of a tree: u `[B, n, E]` -> tape, y `[B, n, E]`.

        A window may be wider than this filter, where others of the model are.
        """
        wider = context.window.shape[-1] - self.width
        window = context.window[..., wider:] - wider
        shielded = finite.clean(u)
        tape, slots = layered.put_slots(tape, shielded, context.start, layer)

        def convolve(slots, u, tail, weight, bias, parts):
            y = tree_conv.convolve(window, slots, tail, weight, bias, parts=parts)
            return finite.spoil(y, finite.holds(u))

        parts = cuts(u, shardings.Parts(*self.parts))
        y = jax.tree.map(
            convolve, slots, u, layered.at(tail, layer), *self._filter(), parts
        )
        return tape, y


def _append(tail: jax.Array, u: jax.Array) -> jax.Array:
    return jnp.concatenate([tail, u[:, None]], axis=1)


def cuts(channels: Any, parts: shardings.Parts) -> Any:
    """Into how many parts each array can be cut."""
    if isinstance(channels, dict):
        keys = shardings.KEY_CHANNELS
        return {n: parts.keys if n in keys else parts.heads for n in channels}
    return parts.channels


def advance(tail: Any, inputs: Any, path: places.Path, parts: shardings.Parts) -> Any:
    """The last `K - 1` inputs of a tail `[B, K - 1, E]` followed by the path's nodes."""
    return jax.tree.map(
        lambda *args: _advance(path, *args), tail, inputs, cuts(tail, parts)
    )


def _advance(
    path: places.Path, tail: jax.Array, inputs: jax.Array, parts: int
) -> jax.Array:
    width = tail.shape[1]
    tokens = jnp.concatenate([tail, inputs], axis=1)
    nodes = jnp.pad(path.nodes, ((0, 0), (width, 0))) + width
    slots = jnp.arange(nodes.shape[1])[None]
    nodes = jnp.where(slots < width, slots, nodes)  # tail, then path, as rows of tokens
    last = path.count[:, None] + jnp.arange(width)[None]
    index = jnp.take_along_axis(nodes, last, axis=1)
    return tree_path.take(tokens, index, parts=parts)

"""The short causal convolution before a recurrence, and the tail it carries.

    y_t = bias + sum_k weight_k u_{t - K + 1 + k}

The tail is the last `K - 1` inputs. On a tree, "last" means along a node's own path, and
the tail only moves when a path is committed: drafts that are rejected leave no trace.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxspec import rows
from jaxspec.models import layers
from pallas_kernels import tree_conv


class CausalConv(nn.Module):
    """One filter per channel.

    Attributes:
        channels: `E`.
        width: `K` taps.
        use_bias: whether there is a bias.
        dtype: of the computation.
    """

    channels: int
    width: int
    use_bias: bool
    dtype: jnp.dtype

    def setup(self):
        def uniform(key, shape, dtype):
            bound = self.width**-0.5
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        shape = (self.width, self.channels)
        self.kernel = self.param("kernel", uniform, shape, jnp.float32)
        if self.use_bias:
            zeros = nn.initializers.zeros
            self.bias = self.param("bias", zeros, (self.channels,), jnp.float32)

    def _filter(self) -> tuple[jax.Array, jax.Array]:
        bias = self.bias if self.use_bias else jnp.zeros((self.channels,))
        return self.kernel.astype(self.dtype), bias.astype(self.dtype)

    def step(self, tail: jax.Array, u: jax.Array) -> tuple[jax.Array, jax.Array]:
        """One token: tail `[B, K - 1, E]`, u `[B, E]` -> tail, y `[B, E]`."""
        weight, bias = self._filter()
        window = jnp.concatenate([tail, u[:, None]], axis=1)
        y = jnp.sum(window * weight[None], axis=1) + bias[None]
        return window[:, 1:], y

    def scan(
        self, tail: jax.Array, u: jax.Array, lengths: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Many tokens, of which row `b` has `lengths[b]`: u `[B, T, E]` -> tail, y."""
        weight, bias = self._filter()
        tokens = jnp.concatenate([tail, u], axis=1)
        length = u.shape[1]
        y = bias[None, None]
        for k in range(self.width):
            y = y + tokens[:, k : k + length] * weight[k][None, None]
        last = lengths[:, None] + jnp.arange(self.width - 1)[None]
        return rows.take(tokens, last), y

    def tree(self, tail: jax.Array, u: jax.Array, window: jax.Array) -> jax.Array:
        """Nodes of a tree: u `[B, N, E]`, window `[B, n, K]` -> y `[B, n, E]`."""
        return tree_conv.convolve(window, u, tail, *self._filter())


def advance(tail: jax.Array, inputs: jax.Array, path: layers.Path) -> jax.Array:
    """The last `K - 1` inputs of a tail `[B, K - 1, E]` followed by the path's nodes."""
    width = tail.shape[1]
    tokens = jnp.concatenate([tail, inputs], axis=1)
    nodes = jnp.pad(path.nodes, ((0, 0), (width, 0))) + width
    slots = jnp.arange(nodes.shape[1])[None]
    nodes = jnp.where(slots < width, slots, nodes)  # tail, then path, as rows of tokens
    last = path.count[:, None] + jnp.arange(width)[None]
    return rows.take(tokens, jnp.take_along_axis(nodes, last, axis=1))

"""The small pieces that all mixers share."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxspec.models.config import AttentionConfig, ModelConfig
from pallas_kernels import Topology, stacked, tree_path

einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
"""For products with a state, which is float32 whatever the activations are."""


class Positions(NamedTuple):
    """Where tokens stand, computed once for all layers.

    Attributes:
        index: `[B, T]` int32, positions in the sequence.
        cos, sin: `[B, T, 1, rope_dim / 2]` float32, RoPE's turns, or None without RoPE.
    """

    index: jax.Array  # [B, T]
    cos: jax.Array | None
    sin: jax.Array | None


class TreeContext(NamedTuple):
    """What the layers need to know of the slots `start, ..., stop - 1` of a tree.

    Attributes:
        topology: of the slots before `stop`.
        start: first slot that is computed.
        window: `[B, stop - start, K]` int32, see `pallas_kernels.topology.windows`.
        positions: of the computed slots, by depth and not by slot.
        length: `[B]` int32, tokens in the caches.
        max_depth: nodes on the longest path that can be committed.
        ring_length: `[B]` int32, entries in use in the rings, or None.
        fold: `[B]` bool, rows whose rings are to be folded in passing, or None.
    """

    topology: Topology
    start: int
    window: jax.Array
    positions: Positions
    length: jax.Array
    max_depth: int
    ring_length: jax.Array | None
    fold: jax.Array | None


class Path(NamedTuple):
    """The accepted path of every row, as `commit` uses it.

    Attributes:
        nodes: `[B, D]` int32, slots; 0 where nothing is kept.
        kept: `[B, D]` bool.
        count: `[B]` int32, nodes kept.
        finite: `[B]` bool, whether all that these nodes hold is finite.
        position: `[B]` int32, position of the path's first token.
        ring_length: `[B]` int32, entries in use in the rings, or None.
    """

    nodes: jax.Array  # [B, D]
    kept: jax.Array  # [B, D]
    count: jax.Array  # [B]
    finite: jax.Array  # [B]
    position: jax.Array  # [B]
    ring_length: jax.Array | None

    @property
    def slots(self) -> jax.Array:
        """`[B, D]` int32, the nodes, -1 where nothing is kept."""
        return jnp.where(self.kept, self.nodes, -1)


def positions(config: AttentionConfig | None, index: jax.Array) -> Positions:
    """Computes RoPE's turns (Su et al. 2021) at positions `[B, T]`."""
    if config is None or config.rope_dim == 0:
        return Positions(index, None, None)
    half = config.rope_dim // 2
    frequency = config.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if config.rope_scaling:
        factor, low, high, length = config.rope_scaling
        turns = frequency * length / (2 * math.pi)
        kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
        frequency = frequency * (kept + (1.0 - kept) / factor)
    angle = index[:, :, None, None].astype(jnp.float32) * frequency[None, None, None]
    return Positions(index, jnp.cos(angle), jnp.sin(angle))


def rotate(x: jax.Array, positions: Positions) -> jax.Array:
    """Turns the first `rope_dim` dimensions of `[B, T, H, d]`, pairing the two halves."""
    if positions.cos is None:
        return x
    half = positions.cos.shape[-1]
    cos, sin = positions.cos, positions.sin
    first, second, rest = jnp.split(x.astype(jnp.float32), [half, 2 * half], axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin, rest]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def take_path(array: jax.Array, path: Path, parts: int) -> jax.Array:
    """Gathers the nodes of a path from `[B, N, E]`, zeros where nothing is kept.

    A mesh can cut the channels into so many equal `parts`.
    """
    return tree_path.take(array, path.slots, parts=parts)


def at(arrays: Any, layer: jax.Array | None) -> Any:
    """One layer of arrays that are stacked if there is a layer."""
    return arrays if layer is None else stacked.take(arrays, layer)


def put(arrays: Any, value: Any, layer: jax.Array | None) -> Any:
    """Replaces that layer."""
    if layer is None:
        return value
    return jax.tree.map(lambda a, new: stacked.put(a, new, layer), arrays, value)


def join_slots(tape: Any, values: Any, start: int, layer: jax.Array | None) -> Any:
    """A layer's slots before `start` of a tape `[B, N, ...]`, and then the values."""

    def join(tape, new):
        new = new.astype(tape.dtype)
        if start == 0:
            return new
        return jnp.concatenate([at(tape, layer)[:, :start], new], axis=1)

    return jax.tree.map(join, tape, values)


def put_slots(tape: Any, values: Any, start: int, layer: jax.Array | None) -> tuple:
    """Writes slots `start, ...` of a layer's tape `[B, N, ...]`.

    Returns the tape, and the layer's slots up to the last one written.
    """

    def write(tape, new):
        if layer is None and new.shape == tape.shape:
            return new
        new = new if layer is None else new[None]
        first = (0,) if layer is None else (layer, 0)
        return jax.lax.dynamic_update_slice(
            tape, new, (*first, start, *[0] * (tape.ndim - len(first) - 1))
        )

    values = jax.tree.map(lambda tape, new: new.astype(tape.dtype), tape, values)
    tape = jax.tree.map(write, tape, values)
    if start == 0:
        return tape, values
    stop = start + jax.tree.leaves(values)[0].shape[1]
    return tape, jax.tree.map(lambda leaf: leaf[:, :stop], at(tape, layer))


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
    is stored in parts (`hybrid.split_projections`) it is one product for each, and what
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


def split_chunks(x: jax.Array, size: int) -> jax.Array:
    """Cuts `[B, T, ...]` into `[ceil(T / size), B, size, ...]`, padded with zeros."""
    pad = -x.shape[1] % size
    x = jnp.pad(x, ((0, 0), (0, pad), *[(0, 0)] * (x.ndim - 2)))
    return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)


def join_chunks(chunks: jax.Array, length: int) -> jax.Array:
    """Undoes `split_chunks`, dropping what lies beyond `length`."""
    x = jnp.moveaxis(chunks, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]


def scan_chunks(
    advance: Callable[[Any, Any], tuple[Any, jax.Array]],
    state: Any,
    tokens: Any,
    size: int,
) -> tuple[Any, jax.Array]:
    """Advances a state over tokens, a chunk at a time.

    Args:
        advance: `state, chunk -> state, y`.
        state: before the first token.
        tokens: arrays `[B, T, ...]`.
        size: tokens that a chunk has, if there are so many.

    Returns:
        The state after the last token, and `y` of all, `[B, T, ...]`.
    """
    length = jax.tree.leaves(tokens)[0].shape[1]
    size = min(size, length)
    chunks = jax.tree.map(lambda a: split_chunks(a, size), tokens)
    state, y = jax.lax.scan(advance, state, chunks)
    return state, join_chunks(y, length)

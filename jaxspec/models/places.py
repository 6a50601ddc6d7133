"""Places that layers share: of tokens in a text, slots in a tree, nodes of a path."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxspec.models.config import AttentionConfig
from pallas_kernels import Topology, tree_path


class Positions(NamedTuple):
    """Positions of tokens, computed once for all layers.

    Attributes:
        index: `[B, T]` int32, positions in the sequence.
        cos, sin: `[B, T, 1, rope_dim / 2]` float32, RoPE's turns, or None without RoPE.
    """

    index: jax.Array  # [B, T]
    cos: jax.Array | None
    sin: jax.Array | None


class TreeContext(NamedTuple):
    """The surroundings of the slots `start, ..., stop - 1` of a tree.

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

    def take(self, array: jax.Array, parts: int) -> jax.Array:
        """Gathers the nodes from `[B, N, E]`, zeros where nothing is kept.

        A mesh can cut the channels into so many equal `parts`.
        """
        return tree_path.take(array, self.slots, parts=parts)


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

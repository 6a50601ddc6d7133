"""What every op needs to know of a token tree, derived once per step.

Nodes are stored parents before children: `parents[:, i] < i`. The root and padding have
parent -1; padding hangs from nothing, so nothing that counts reads it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Topology(NamedTuple):
    """The shape of a batch of token trees, shared by all layers of a model.

    Attributes:
        parents: `[B, N]` int32, -1 at the root and at padding.
        ancestors: `[B, N, N]` bool, `ancestors[b, i, j]` says that `j` lies on the path
            from the root to `i`, both included (the "tree attention mask").
        depth: `[B, N]` int32, 0 at the root.
        preorder: `[B, N]` int32, the nodes depth first: each right before its subtree.
            Padding comes after the tree.
    """

    parents: jax.Array  # [B, N]
    ancestors: jax.Array  # [B, N, N]
    depth: jax.Array  # [B, N]
    preorder: jax.Array  # [B, N]


def derive(parents: jax.Array) -> Topology:
    """Derives the topology of `parents` `[B, N]` by `log2(N)` boolean squarings.

    With `M = I + parent`, the matrix `M^(2^r)` reaches `2^r` generations up.
    """
    parents = jnp.asarray(parents)
    num_nodes = parents.shape[1]
    slots = jnp.arange(num_nodes, dtype=parents.dtype)
    reach = jax.nn.one_hot(parents, num_nodes, dtype=bool) | (
        slots[None, :, None] == slots[None, None]
    )
    for _ in range((num_nodes - 1).bit_length()):
        steps = reach.astype(jnp.float32)
        reach = jnp.einsum("bij,bjk->bik", steps, steps) > 0.5
    depth = jnp.sum(reach, axis=-1, dtype=jnp.int32) - 1
    return Topology(parents, reach, depth, _preorder(parents, reach, depth))


def _preorder(parents, ancestors, depth) -> jax.Array:
    """A node comes after its ancestors and the subtrees of their earlier siblings."""
    slots = jnp.arange(parents.shape[1])
    sizes = jnp.sum(ancestors, axis=1, dtype=jnp.int32)
    siblings = parents[:, :, None] == parents[:, None]
    earlier = siblings & (slots[:, None] > slots[None])[None]
    skipped = jnp.sum(jnp.where(earlier, sizes[:, None], 0), axis=-1)
    place = depth + jnp.sum(jnp.where(ancestors, skipped[:, None], 0), axis=-1)
    here = place[:, None] == slots[None, :, None]
    return jnp.sum(jnp.where(here, slots.astype(jnp.int32), 0), axis=-1)


def chain(batch_size: int, length: int) -> Topology:
    """The topology of a chain: node `i` follows node `i - 1`."""
    slots = jnp.arange(length, dtype=jnp.int32)
    depth = jnp.broadcast_to(slots[None], (batch_size, length))
    ancestors = jnp.broadcast_to(
        slots[:, None] >= slots[None], (batch_size, length, length)
    )
    return Topology(depth - 1, ancestors, depth, depth)


def windows(parents: jax.Array, width: int) -> jax.Array:
    """Where the last `width` tokens of every node's path lie, oldest first.

    Args:
        parents: `[B, N]` int32.
        width: length of the window, the node itself included.

    Returns:
        `[B, N, width]` int32 rows of `concatenate([tail, nodes])`, where `tail` holds the
        `width - 1` tokens before the root.
    """
    parents = jnp.asarray(parents)
    num_nodes = parents.shape[1]
    node = jnp.broadcast_to(
        jnp.arange(num_nodes, dtype=parents.dtype)[None], parents.shape
    )
    rows = []
    for _ in range(width):
        rows.append(node + (width - 1))
        above = jnp.take_along_axis(parents, jnp.maximum(node, 0), axis=1)
        node = jnp.where(node >= 0, above, node - 1)  # -1 is the newest of the tail
    return jnp.stack(rows[::-1], axis=-1)

"""Token trees: a fixed number of slots, parents before children, whatever the shape.

Slot 0 is the root, the last emitted token. A slot of parent -1 and index above 0 is
padding: it hangs from nothing and is never accepted. The shape is data, not structure, so
a tree that changes in every step never recompiles.
"""

from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from pallas_kernels import topology

Array = jax.Array


class TokenTree(struct.PyTreeNode):
    """A batch of trees of draft tokens, parents before children.

    Attributes:
        tokens: `[B, N]` int32, token at each node; anything at padding.
        parents: `[B, N]` int32, slot of each node's parent; `NO_PARENT` at the root and at
            padding.
    """

    tokens: Array  # [B, N]
    parents: Array  # [B, N]

    NO_PARENT: ClassVar[int] = -1

    @property
    def num_nodes(self) -> int:
        """`N`, slots."""
        return self.parents.shape[1]

    @property
    def is_node(self) -> Array:
        """`[B, N]` bool: the root, and whatever hangs from it."""
        return (self.parents >= 0) | (jnp.arange(self.num_nodes)[None] == 0)


def ancestor_mask(tree: TokenTree) -> Array:
    """`[B, N, N]` bool: does `j` lie on the path from the root to `i`, both included?"""
    return topology.derive(tree.parents).ancestors


def depth(tree: TokenTree) -> Array:
    """`[B, N]` int32: edges between a node and the root (0 at padding too)."""
    return topology.derive(tree.parents).depth


def has_draft(tree: TokenTree) -> Array:
    """Whether any row has a node below its root, one bool."""
    return jnp.any(tree.parents[:, 1:] >= 0)


def path_to(tree: TokenTree, node: Array, max_path: int) -> Array:
    """The path from the root to `node` `[B]`, as slots `[B, max_path]`, -1 padded."""
    topo = topology.derive(tree.parents)
    take = jax.vmap(lambda rows, i: rows[i])
    on_path = take(topo.ancestors, node)  # [B, N]
    place = jnp.where(on_path, topo.depth, -1)[:, None]  # [B, 1, N]
    here = place == jnp.arange(max_path)[None, :, None]  # [B, D, N]
    return jnp.where(jnp.any(here, axis=-1), jnp.argmax(here, axis=-1), -1)


def check(tree: TokenTree) -> TokenTree:
    """Returns the tree if its arrays are one, and raises if not.

    Shapes are checked always, the parents where they are known (not while tracing).

    Raises:
        ValueError: if the shapes disagree, a parent follows its child or is padding, or
            slot 0 is not a root.
    """
    if tree.tokens.ndim != 2 or tree.tokens.shape != tree.parents.shape:
        raise ValueError(
            "Expected tokens and parents of one shape [B, N]; got "
            f"{tree.tokens.shape} and {tree.parents.shape}."
        )
    if not isinstance(tree.parents, jax.core.Tracer):
        check_parents(np.asarray(tree.parents))
    return tree


def check_parents(parents: np.ndarray) -> None:
    """Refuses parents `[B, N]` that are no trees, as `check` does, in NumPy."""
    if (parents[:, 0] != TokenTree.NO_PARENT).any():
        raise ValueError(f"Slot 0 is the root: its parent is -1, got {parents[:, 0]}.")
    slots = np.arange(parents.shape[1])
    above = np.take_along_axis(parents, np.clip(parents, 0, len(slots) - 1), axis=1)
    late = (parents >= slots) | (parents < -1)
    lost = (parents > 0) & (above < 0)  # hangs from padding
    if (late | lost).any():
        row, node = np.argwhere(late | lost)[0]
        raise ValueError(
            "A node's parent is a node in an earlier slot: in row "
            f"{row} node {node} has parent {parents[row, node]}."
        )


def chain(tokens: Array) -> TokenTree:
    """A chain of tokens `[B, N]`, the root first."""
    slots = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    return TokenTree(tokens, jnp.broadcast_to(slots - 1, tokens.shape))


def from_branching(branching: Sequence[int]) -> np.ndarray:
    """Parents `[N]` of a tree whose nodes at depth `l` have `branching[l]` children each.

    Slots are level by level, siblings side by side; `(1, 1, 1)` is a chain, `(3,)` a star.

    Raises:
        ValueError: if a factor is not positive.
    """
    if any(factor < 1 for factor in branching):
        raise ValueError(f"Branching factors are at least 1, got {tuple(branching)}.")
    parents, level = [TokenTree.NO_PARENT], [0]
    for factor in branching:
        above = [node for node in level for _ in range(factor)]
        level = list(range(len(parents), len(parents) + len(above)))
        parents.extend(above)
    return np.array(parents, np.int32)


def join(first: TokenTree, second: TokenTree) -> TokenTree:
    """Two trees of one root side by side: `second`'s other slots follow `first`'s."""
    shift = first.num_nodes - 1
    parents = second.parents[:, 1:]
    parents = jnp.where(parents > 0, parents + shift, parents)
    tokens = jnp.concatenate([first.tokens, second.tokens[:, 1:]], axis=1)
    return TokenTree(tokens, jnp.concatenate([first.parents, parents], axis=1))


def merge(
    first: TokenTree, second: TokenTree, num_nodes: int, max_path: int
) -> tuple[TokenTree, Array]:
    """Merges two trees of one root by longest prefix: equal siblings become one node.

    Nodes of `first` keep their order and come first; what does not fit into `num_nodes`
    slots is dropped with all that hangs from it. `max_path` bounds the paths, in nodes.
    Returns as `deduplicate` of `join(first, second)`.
    """
    return deduplicate(join(first, second), num_nodes, max_path)


def graft(
    first: TokenTree, second: TokenTree, num_nodes: int, max_path: int
) -> tuple[TokenTree, Array]:
    """Adds to one tree what another of the same root has beyond it, by longest prefix.

    Slots of `first` stay as they are. Siblings of one token stay apart, and what is new
    hangs from the first of them. New nodes follow in the order of `second`; what does not
    fit into `num_nodes` slots, or into paths of `max_path` nodes, is dropped with all that
    hangs from it.

    Returns:
        The tree, and `[B, N']` int32 the slot in it of each node of `second`: -1 where it
        was dropped, and at padding.

    Raises:
        ValueError: if `first` has more than `num_nodes` slots.
    """
    size = first.num_nodes
    if num_nodes < size:
        raise ValueError(f"A tree of {size} slots does not fit into {num_nodes}.")
    again = jnp.any(_siblings_alike(first) & _earlier(size), axis=2)
    again = jnp.any(ancestor_mask(first) & again[:, None], axis=2)
    once = first.replace(parents=jnp.where(again, TokenTree.NO_PARENT, first.parents))
    both = join(once, second)
    slots = jnp.arange(both.num_nodes)[None]
    same, alive = _same_paths(both, max_path)
    stands = jnp.argmax(same, axis=2)  # the node that stands for each
    new = alive & (stands == slots) & (slots >= size)
    place = size - 1 + jnp.cumsum(new, axis=1, dtype=jnp.int32)
    place = jnp.where(slots < size, slots.astype(jnp.int32), place)
    place = jnp.take_along_axis(place, stands, axis=1)
    place = jnp.where(alive & (place < num_nodes), place, -1)
    parents = jnp.take_along_axis(place, jnp.maximum(both.parents, 0), axis=1)
    free = jnp.arange(size, num_nodes)[None, :, None]
    here = (place[:, None] == free) & new[:, None]  # [B, free, N + N' - 1]
    tokens = jnp.sum(jnp.where(here, both.tokens[:, None], 0), axis=2, dtype=jnp.int32)
    parents = jnp.sum(jnp.where(here, parents[:, None], 0), axis=2, dtype=jnp.int32)
    parents = jnp.where(jnp.any(here, axis=2), parents, TokenTree.NO_PARENT)
    tree = TokenTree(
        jnp.concatenate([first.tokens, tokens], axis=1),
        jnp.concatenate([first.parents, parents], axis=1),
    )
    return tree, jnp.concatenate([place[:, :1], place[:, size:]], axis=1)


def from_paths(
    root: Array,
    paths: Array,
    lengths: Array,
    num_nodes: int,
    weights: Array | None = None,
) -> tuple[TokenTree, Array]:
    """Makes the tree of several continuations of a root, equal prefixes shared.

    Args:
        root: `[B]` int32 tokens.
        paths: `[B, M, L]` int32 continuations, the one to prefer first.
        lengths: `[B, M]` int32, tokens that count in each.
        num_nodes: slots of the tree.
        weights: `[B, M, L]` float32, what a path adds to the score of each of its nodes
            (see `deduplicate`); by default the first path goes in whole, then the next.

    Returns as `deduplicate`, of nodes `1 + m L + i` for token `i` of path `m`.
    """
    batch, several, length = paths.shape
    above = jnp.arange(several * length, dtype=jnp.int32).reshape(1, several, length)
    parents = jnp.where(above % length == 0, 0, above)
    counts = above % length < lengths[:, :, None]
    parents = jnp.where(counts, parents, TokenTree.NO_PARENT)
    tokens = jnp.concatenate([root[:, None], paths.reshape(batch, -1)], axis=1)
    parents = jnp.pad(parents.reshape(batch, -1), ((0, 0), (1, 0)), constant_values=-1)
    tree = TokenTree(tokens, parents)
    if weights is not None:
        weights = jnp.pad(weights.reshape(batch, -1), ((0, 0), (1, 0)))
    return deduplicate(tree, num_nodes, length + 1, weights)


def deduplicate(
    tree: TokenTree, num_nodes: int, max_path: int, weights: Array | None = None
) -> tuple[TokenTree, Array]:
    """Makes siblings of the same token one node, and keeps the best `num_nodes` nodes.

    Two nodes are the same if the tokens along their paths are. The first of them stands
    for all, and its score is the sum of their weights.

    Args:
        tree: the tree, whose siblings may repeat.
        num_nodes: slots of the result.
        max_path: nodes on the longest path; deeper ones are dropped.
        weights: `[B, N]` float32, positive and smaller at a child than at its parent, so
            that what is kept is a tree: the nodes of the largest scores, in their order.
            By default nodes keep their order and the first are kept.

    Returns:
        The tree, and `[B, num_nodes, N]` bool the nodes that each of its own stands for.
    """
    batch, size = tree.parents.shape
    slots = jnp.arange(size)
    same, alive = _same_paths(tree, max_path)
    first = jnp.argmax(same, axis=2)  # the node that stands for each
    new = alive & (first == slots[None])
    if weights is None:
        score = jnp.broadcast_to(-slots[None].astype(jnp.float32), (batch, size))
    else:
        score = jnp.sum(jnp.where(same, weights[:, None], 0.0), axis=2)
        score = jnp.where(slots[None] == 0, jnp.inf, score)
    mine, other = score[:, :, None], score[:, None]
    better = (other > mine) | ((other == mine) & _earlier(size))
    place = jnp.sum(better & new[:, None], axis=2, dtype=jnp.int32)
    place = jnp.where(new, place, max(size, num_nodes))  # beyond all slots if not new
    above = jnp.take_along_axis(first, jnp.maximum(tree.parents, 0), axis=1)
    parents = jnp.take_along_axis(place, above, axis=1)
    here = place[:, None] == jnp.arange(num_nodes)[None, :, None]  # [B, num_nodes, N]
    tokens = jnp.sum(jnp.where(here, tree.tokens[:, None], 0), axis=2)
    parents = jnp.sum(jnp.where(here, parents[:, None], 0), axis=2)
    filled = jnp.any(here, axis=2)
    parents = jnp.where(filled, parents, TokenTree.NO_PARENT).at[:, 0].set(-1)
    members = jnp.take_along_axis(same, jnp.argmax(here, axis=2)[:, :, None], axis=1)
    members &= filled[:, :, None]
    return TokenTree(tokens.astype(jnp.int32), parents.astype(jnp.int32)), members


def _same_paths(tree: TokenTree, max_path: int) -> tuple[Array, Array]:
    """Whether the tokens along two nodes' paths are the same, `[B, N, N]`.

    And which nodes there are `[B, N]`: those on paths of at most `max_path` nodes.
    """
    node = jnp.broadcast_to(jnp.arange(tree.num_nodes)[None], tree.parents.shape)
    words = []  # the tokens along the path of each node, upwards
    for _ in range(max_path):
        token = jnp.take_along_axis(tree.tokens, jnp.maximum(node, 0), axis=1)
        words.append(jnp.where(node >= 0, token, -1))
        above = jnp.take_along_axis(tree.parents, jnp.maximum(node, 0), axis=1)
        node = jnp.where(node >= 0, above, -1)
    alive = tree.is_node & (node < 0)
    same = alive[:, :, None] & alive[:, None]
    for word in words:
        same &= word[:, :, None] == word[:, None]
    return same, alive


def _siblings_alike(tree: TokenTree) -> Array:
    """`[B, N, N]` bool: two children of one node that carry the same token."""
    child = tree.parents >= 0
    same = tree.parents[:, :, None] == tree.parents[:, None]
    same &= tree.tokens[:, :, None] == tree.tokens[:, None]
    return same & child[:, :, None]


def _earlier(size: int) -> Array:
    """`[1, N, N]` bool: is slot `j` before slot `i`?"""
    slots = jnp.arange(size)
    return (slots[None] < slots[:, None])[None]

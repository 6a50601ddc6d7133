"""The best tree for measured acceptance, by dynamic programming (Chen et al. 2024).

Let `p_k` be the share of nodes at which the child of rank `k`, of those drawn there, is
the one accepted (2402.12374, section 4.1). If nodes are alike, a tree emits

    F(T) = sum over its nodes of the product of p over the ranks on the path to it

tokens per call, the root's product being 1. With `A[l, k, n]` the most that children of
ranks `k, k+1, ..` add with `n` nodes and `l` levels,

    A[l, k, n] = max over m of p_k (1 + A[l-1, 0, m-1]) + A[l, k+1, n-m],

`m` nodes for the subtree of rank `k`, and F = 1 + A[levels, 0, num_nodes - 1]. Of all
trees the one to take has the largest F / (t(nodes) + levels c), where `t` is the time of
a verification and `c` that of a level of drafts.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Shape(NamedTuple):
    """A tree, and what it promises.

    Attributes:
        parents: of every slot, -1 first, as `static.static_tree` takes them.
        expected_tokens: per call of the target.
        speed: expected tokens per unit of time.
    """

    parents: tuple[int, ...]
    expected_tokens: float
    speed: float


def optimal_tree(
    acceptance: Sequence[float], num_nodes: int, max_path: int
) -> tuple[int, ...]:
    """The tree that is expected to emit most tokens.

    Slots are level by level, siblings in the order of their ranks. In a level, nodes that
    have children come first, so far as that order allows: a drafter reads no others.

    Args:
        acceptance: `[K]`, of each rank, as a share of all nodes; a node has at most `K`
            children.
        num_nodes: slots at most, the root included. Nodes that would never be reached
            are left out.
        max_path: nodes on the longest path at most, the root included.

    Returns:
        The parent of every slot, -1 first.

    Raises:
        ValueError: if the shares are none, or there is no room for a draft.
    """
    shares = _check(acceptance)
    if num_nodes < 2 or max_path < 2:
        raise ValueError(
            "A tree has at least a root and a draft, got num_nodes "
            f"{num_nodes} and max_path {max_path}."
        )
    levels = min(max_path, num_nodes) - 1
    return _lay_out(_choices(shares, num_nodes - 1, levels))


def expected_tokens(parents: Sequence[int], acceptance: Sequence[float]) -> float:
    """`F` of a tree: tokens per call, if nodes are alike.

    Args:
        parents: of every slot, -1 first, parents before children.
        acceptance: `[K]`, of each rank; nodes of higher ranks are never accepted.
    """
    shares = _check(acceptance)
    reached, children = [1.0], [0] * len(parents)
    for parent in parents[1:]:
        rank = children[parent]
        children[parent] += 1
        share = shares[rank] if rank < len(shares) else 0.0
        reached.append(reached[parent] * share)
    return float(sum(reached))


def best_shape(
    acceptance: Sequence[float],
    verify_seconds: Mapping[int, float],
    draft_seconds: float,
    max_path: int,
) -> Shape:
    """The tree of the most tokens per second, of all sizes and depths.

    Args:
        acceptance: `[K]`, of each rank, as a share of all nodes.
        verify_seconds: time of a call of the target by number of nodes: the sizes to
            choose from. In autoregressive steps, speed is the speedup.
        draft_seconds: time of one level of drafts, in the same unit.
        max_path: nodes on the longest path at most, the root included.

    Raises:
        ValueError: if there is nothing to choose from.
    """
    shapes = []
    for num_nodes, seconds in verify_seconds.items():
        for path in range(2, min(num_nodes, max_path) + 1):
            parents = optimal_tree(acceptance, num_nodes, path)
            tokens = expected_tokens(parents, acceptance)
            cost = seconds + num_levels(parents) * draft_seconds
            shapes.append(Shape(parents, tokens, tokens / cost))
    if not shapes:
        raise ValueError(
            f"There is no tree of {tuple(verify_seconds)} nodes and paths of up to "
            f"{max_path}."
        )
    return max(shapes, key=lambda shape: shape.speed)


def num_levels(parents: Sequence[int]) -> int:
    """Levels below the root, which is how often a drafter is read."""
    depth = [0]
    for parent in parents[1:]:
        depth.append(depth[parent] + 1)
    return max(depth)


def _check(acceptance: Sequence[float]) -> np.ndarray:
    shares = np.asarray(acceptance, np.float64)
    are_some = shares.ndim == 1 and shares.size and (shares >= 0).all()
    if not are_some or shares.sum() > 1.0 + 1e-6 or shares[0] == 0:
        raise ValueError(
            "Expected shares of all nodes, one per rank, the first positive and all "
            f"together at most 1; got {shares}."
        )
    return shares


def _choices(acceptance: np.ndarray, drafts: int, levels: int) -> np.ndarray:
    """`[levels + 1, K + 1, drafts + 1]`: the `m` that attains `A`, 0 for no child."""
    value = np.zeros((levels + 1, len(acceptance) + 1, drafts + 1))
    choice = np.zeros(value.shape, np.int64)
    count = np.arange(drafts + 1)
    left = count[:, None] - count[None]  # [n, m]: n - m
    for level in range(1, levels + 1):
        for rank in reversed(range(len(acceptance))):
            own = acceptance[rank] * (1.0 + value[level - 1, 0, :-1])
            total = np.concatenate([[0.0], own]) + value[level, rank + 1, left]
            total = np.where((left >= 0) & (count > 0)[None], total, 0.0)
            choice[level, rank] = np.argmax(total, axis=1)  # the smallest of equals
            value[level, rank] = np.max(total, axis=1)
    return choice


def _lay_out(choice: np.ndarray) -> tuple[int, ...]:
    """The parents of the tree that the choices describe."""
    level, parents = choice.shape[0] - 1, [-1]
    above = [(0, choice.shape[2] - 1)]  # slots, and the nodes below each
    while above:
        children = []
        for slot, count in above:
            brood, rank = [], 0
            while choice[level, rank, count] > 0:
                size = choice[level, rank, count]
                brood.append(size - 1)
                count, rank = count - size, rank + 1
            inner = [choice[level - 1, 0, below] > 0 for below in brood]
            for i, below in enumerate(brood):
                children.append((not any(inner[i:]), slot, below))
        children.sort(key=lambda child: child[0])  # stable: siblings keep their order
        above = []
        for _, slot, below in children:
            above.append((len(parents), below))
            parents.append(slot)
        level -= 1
    return tuple(parents)

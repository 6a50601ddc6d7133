"""Survival: how likely the path to a draft is to be kept, told before it is drawn.

Nobody knows the target's law before the target is asked. The draft model's `q` is taken at
its word instead (Xiong et al. 2024): the target keeps what `q` draws as often as `q` draws
it. With `y_1, y_2, ..` the children of the node `u`, and `reach = 1` at the root,

    likeliest              score(y_k) = reach(y_k) = reach(u) q(y_k)
    without replacement    score(y_k) = reach(u) min(max q, 1 - q(y_1) - .. - q(y_(k-1)))
                           reach(y_k) = reach(u) q(y_k)
    independent            score(y_k) = reach(u) (1 - q(y_1)) .. (1 - q(y_(k-1))) max q
                           reach(y_k) = reach(u) (1 - q(y_1)) .. (1 - q(y_(k-1))) q(y_k)

A drawn token's own probability counts for what comes below and beside it, not for itself.
No score exceeds the parent's, nor an earlier sibling's. Which of two drafts survives more
often is told well, how often it does badly: a `Curve` says what a score has come to.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec import trees
from jaxspec.core import Context, Drafter
from jaxspec.trees import TokenTree

Array = jax.Array


class Curve(NamedTuple):
    """A map of estimates to what they came to, linear in between (`jaxspec tune survival`).

    Attributes:
        estimate: from 0 to 1, ascending.
        share: from 0 to 1, not descending, so that no two nodes change places.
    """

    estimate: tuple[float, ...]
    share: tuple[float, ...]

    def __call__(self, estimate: Array) -> Array:
        """The shares of estimates of any shape."""
        dtype = estimate.dtype
        return jnp.interp(
            estimate, jnp.array(self.estimate, dtype), jnp.array(self.share, dtype)
        )


def check(curve: Curve) -> Curve:
    """Returns a curve of hashable numbers that keeps the order of what it maps.

    Raises:
        ValueError: if it does not, or its numbers are not from 0 to 1.
    """
    curve = Curve(*(tuple(float(x) for x in numbers) for numbers in curve))
    for numbers in curve:
        inside = all(0.0 <= x <= 1.0 for x in numbers)
        if not numbers or not inside or list(numbers) != sorted(numbers):
            raise ValueError(
                f"Expected numbers from 0 to 1, none below the one before, got {curve}."
            )
    if len(curve.estimate) != len(curve.share):
        raise ValueError(
            f"Expected a share for each of {len(curve.estimate)} estimates, got "
            f"{len(curve.share)}."
        )
    return curve


def calibrated(drafter: Drafter, curve: Curve) -> Drafter:
    """Makes a drafter whose scores are what they have come to.

    It proposes the same trees and, since no two nodes change places, a budget keeps the
    same nodes, but for ties; scores of different rows, and drafters, can be compared.

    Args:
        drafter: any.
        curve: measured with it.

    Raises:
        ValueError: if the curve is none.
    """
    return _calibrated(drafter, check(curve))


@functools.cache
def _calibrated(drafter: Drafter, curve: Curve) -> Drafter:
    def propose(params, state, context: Context):
        state, draft = drafter.propose(params, state, context)
        slots = jnp.arange(draft.tree.num_nodes)[None]
        score = jnp.where(slots == 0, 1.0, curve(draft.score))
        return state, draft.replace(score=settle(draft.tree, score))

    return drafter._replace(propose=propose)


def settle(tree: TokenTree, score: Array) -> Array:
    """Scores `[B, N]` as a draft records them: float32, 0 at padding and instead of NaN."""
    known = tree.is_node & (score > 0.0)
    return jnp.where(known, score, 0.0).astype(jnp.float32)


def of_draws(
    reach: Array, logits: Array, columns: Array, law: str
) -> tuple[Array, Array]:
    """Scores of children, and the reach of each, both `[B, n, K]`.

    Args:
        reach: `[B, n]` of the parents.
        logits: `[B, n, V']` that the children were drawn from, of largest 0.
        columns: `[B, n, K]` of the children, in the order of their draws.
        law: `"top_k"`, `"without_replacement"` or `"iid"`, as in `static_tree`.
    """
    most = 1.0 / jnp.sum(jnp.exp(logits), axis=2, keepdims=True)
    own = jnp.exp(jnp.take_along_axis(logits, columns, axis=2)) * most
    reach = reach[:, :, None]
    if law == "top_k":
        return reach * own, reach * own
    if law == "iid":
        left = _before(jnp.cumprod(1.0 - own, axis=2), 1.0)
        return reach * left * most, reach * left * own
    left = _before(1.0 - jnp.cumsum(own, axis=2), 1.0)
    score = reach * jnp.clip(left, 0.0, most)
    return score, jnp.minimum(reach * own, score)  # only rounding makes it larger


def of_ranks(parents: Sequence[int], acceptance: Sequence[float]) -> np.ndarray:
    """Scores `[N]` of a fixed tree: the product of each rank's share along the path.

    Args:
        parents: of every slot, -1 first, parents before children.
        acceptance: of each rank; a rank that has more than an earlier one counts as that,
            and nodes of higher ranks are never kept.
    """
    shares = np.minimum.accumulate(np.asarray(acceptance, np.float64))
    score, children = np.ones(len(parents)), [0] * len(parents)
    for slot, parent in enumerate(parents[1:], start=1):
        rank = children[parent]
        children[parent] += 1
        score[slot] = score[parent] * (shares[rank] if rank < len(shares) else 0.0)
    return score.astype(np.float32)


def of_members(members: Array, weights: Array) -> Array:
    """Sums `[B, N]` of the weights of the paths that were merged in each node.

    Args:
        members: `[B, N, 1 + M L]` from `trees.from_paths`.
        weights: `[B, M, L]` of the tokens of the paths.
    """
    weights = jnp.pad(weights.reshape(len(weights), -1), ((0, 0), (1, 0)))
    return jnp.sum(jnp.where(members, weights[:, None], 0.0), axis=2)


def ordered(tree: TokenTree, score: Array) -> Array:
    """The largest scores that exceed neither these nor those that they must not exceed.

    Each is the least among its node, its ancestors, and the earlier siblings of these.
    """
    slots = jnp.arange(tree.num_nodes)
    beside = tree.parents[:, :, None] == tree.parents[:, None]
    beside &= (slots[None] <= slots[:, None])[None]
    score = jnp.min(jnp.where(beside, score[:, None], jnp.inf), axis=2)
    above = trees.ancestor_mask(tree)
    return jnp.min(jnp.where(above, score[:, None], jnp.inf), axis=2)


def _before(array: Array, first: float) -> Array:
    """The entries one place later, `first` in front."""
    front = jnp.full_like(array[:, :, :1], first)
    return jnp.concatenate([front, array[:, :, :-1]], axis=2)

"""Budgets: as many drafts per row as there is time for, the surest ones.

A budget is data, so that every row has its own and a change recompiles nothing. With `s`
the scores of a draft, a node ranks behind

    the nodes in earlier slots of at least its score, and those in later slots of a larger,

and stays if fewer than `k` do. Neither its parent nor an earlier sibling ranks behind it,
so that what stays is a tree, and of siblings the last go first. What ranks before a node is
there whatever its token is (`Draft.score`): the decision to keep it could have been made
before it was drawn, and the target's law is kept, as by a builder that stops there.
"""

import jax
import jax.numpy as jnp

from jaxspec import mesh, trees
from jaxspec.core import Draft
from jaxspec.trees import TokenTree

Array = jax.Array


def limit(draft: Draft, budget: Array) -> Draft:
    """Keeps the `budget` best nodes of each tree, besides the root.

    Slots keep their places, and those that are dropped become padding: the shape is the
    same whatever the budget, and the drafter's state goes on naming nodes by their slots.

    Args:
        draft: what was proposed. Where a score is larger than its parent's, which it
            should not be, the node goes with its parent, and fewer are kept.
        budget: `[B]` int32, drafts to keep at most; none where it is not positive.

    Raises:
        ValueError: if there is not one budget per row.
    """
    batch, size = draft.tree.parents.shape
    if jnp.shape(budget) != (batch,):
        raise ValueError(
            f"Expected a budget per row, {batch} in all, got the shape {jnp.shape(budget)}."
        )
    stays = mesh.by_rows(_stays, draft.tree, draft.score, jnp.asarray(budget))
    parents = jnp.where(stays, draft.tree.parents, TokenTree.NO_PARENT)
    score = jnp.where(stays, draft.score, 0.0)
    return draft.replace(tree=draft.tree.replace(parents=parents), score=score)


def _stays(tree: TokenTree, score: Array, budget: Array) -> Array:
    """`[B, N]` bool: is a node kept? Nothing is ranked where no budget cuts a tree."""
    size = tree.num_nodes
    budget, is_root = budget[:, None], jnp.arange(size)[None] == 0

    def best():
        stays = (rank(tree, score) < budget) | is_root
        return jnp.all(stays[:, None] | ~trees.ancestor_mask(tree), axis=2)

    def all_or_none():
        return (budget > 0) | is_root

    cuts = jnp.any((budget > 0) & (budget < size - 1))
    return jax.lax.cond(cuts, best, all_or_none)


def rank(tree: TokenTree, score: Array) -> Array:
    """`[B, N]` int32: drafts that come before each node when nodes are kept by score.

    The best has rank 0; the root is not counted, nor is padding, whose rank means nothing.
    """
    slots = jnp.arange(tree.num_nodes)
    counts = (tree.parents >= 0) & (slots > 0)[None]
    score = jnp.where(score > 0.0, score, 0.0)  # NaN is no recommendation
    mine, other = score[:, :, None], score[:, None]
    earlier = (slots[None] < slots[:, None])[None]
    before = (other > mine) | ((other == mine) & earlier)
    return jnp.sum(before & counts[:, None], axis=2, dtype=jnp.int32)

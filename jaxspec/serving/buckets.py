"""Drafts of fewer slots: the nodes within a budget, moved together.

A tree that a budget has cut is as wide as before, and so is its pass. Here the nodes that
stay fill the first slots of a narrower tree; its outcome is spread out again, so that the
drafter finds its nodes where it put them.
"""

import jax
import jax.numpy as jnp

from jaxspec import ragged
from jaxspec.core import Draft, Outcome
from jaxspec.trees import TokenTree

Array = jax.Array


def compact(draft: Draft, num_nodes: int) -> tuple[Draft, Array]:
    """Moves the nodes of each tree to the first slots of a narrower one.

    Args:
        draft: of at most `num_nodes` nodes in each row, the root included (`js.limit`).
        num_nodes: slots of the narrower trees.

    Returns:
        The draft, and `[B, num_nodes]` int32, the slot that each of its slots was.
    """
    tree = draft.tree
    slots = jnp.arange(tree.num_nodes)[None]
    stays = tree.is_node
    index = jnp.argsort(jnp.where(stays, slots, slots + tree.num_nodes), axis=1)
    index = index[:, :num_nodes].astype(jnp.int32)
    place = jnp.cumsum(stays, axis=1, dtype=jnp.int32) - 1

    def take(array):
        return ragged.take(array, index)

    above = take(tree.parents)
    parents = jnp.where(above >= 0, ragged.take(place, jnp.maximum(above, 0)), -1)
    return draft.replace(
        tree=TokenTree(take(tree.tokens), parents),
        kind=take(draft.kind),
        logits_row=take(draft.logits_row),
        score=take(draft.score),
        max_path=min(draft.max_path, num_nodes),
    ), index


def spread(outcome: Outcome, tree: TokenTree, index: Array) -> Outcome:
    """The outcome of a narrower draft, in the slots of the whole one.

    Args:
        outcome: of what `compact` made.
        tree: the whole one.
        index: from `compact`.
    """
    path = outcome.verdict.path
    slots = ragged.take(index, jnp.maximum(path, 0))
    verdict = outcome.verdict._replace(path=jnp.where(path >= 0, slots, -1))

    def put(array):
        shape = (*tree.parents.shape, *array.shape[2:])
        rows = jnp.arange(len(array))[:, None]
        return jnp.zeros(shape, array.dtype).at[rows, index].set(array)

    return outcome._replace(
        tree=tree,
        verdict=verdict,
        hidden=put(outcome.hidden),
        logits=put(outcome.logits),
        shown=put(outcome.shown),
        kept=put(outcome.kept),
    )

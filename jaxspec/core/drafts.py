"""A draft: the texts that it continues, its tree, and the laws that it was drawn from."""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jaxspec import ragged, trees
from jaxspec.sampling import Sampling
from jaxspec.trees import TokenTree

Array = jax.Array


class Context(NamedTuple):
    """The texts that a drafter proposes continuations of.

    Attributes:
        tokens: `[B, L]` int32, the texts so far, 0 beyond their lengths.
        lengths: `[B]` int32, at least 1; the last token is the root.
        keys: `[B]` typed keys, the texts' own; noise is drawn with `sampling.noise_key`.
        sampling: how the target is sampled, which a drafter may imitate; its position is
            the root's.
        budget: `[B]` int32, draft nodes that will be verified at most, 0 in a row that is
            done. What is beyond is cut (`limit`); a drafter may save itself the work.
    """

    tokens: Array  # [B, L]
    lengths: Array  # [B]
    keys: Array  # [B]
    sampling: Sampling
    budget: Array  # [B]

    @property
    def root(self) -> Array:
        """`[B]` int32, the last token of every row."""
        return ragged.take_one(self.tokens, self.lengths - 1)


class Draft(struct.PyTreeNode):
    """A tree of draft tokens and the laws (probability distributions) they were drawn from.

    The verifier needs nothing else. A node's first child is drawn from the softmax of its
    row of logits; a later sibling from the softmax of what has not been tested. In log
    space a law keeps its digits where one token has nearly all of it.

    Scores say which nodes to keep where there is no room for all (`budgets.limit`). They
    may depend on the history, on positions, and on the draft's laws and tokens above a
    node and before it among its siblings; never on what was drawn at the node or below.
    Nor may the company that a node is in: what ranks before it, earlier slots of no
    smaller score and later ones of a larger, is there, with these scores, whatever its
    token is.

    Attributes:
        tree: `N` slots, in the order in which they were drawn.
        kind: `[B, N]` int32, how each node was chosen: `DETERMINISTIC`, `IID` or
            `WITHOUT_REPLACEMENT`.
        draft_logits: `[B, M, V']` float32, of the `M` nodes that were expanded, filtered
            and over the temperature, up to a constant; `M = 0` where all nodes are
            deterministic.
        logits_row: `[B, N]` int32, row of `draft_logits` that a node's children are of.
        score: `[B, N]` float32 from 0 to 1, an estimate of the probability that the path
            down to the node survives: 1 at the root, 0 at padding, no larger at a child
            than at its parent, nor at a later sibling than at an earlier one.
        vocab_ids: `[V']` int32, tokens of the columns of a trimmed head; None for all.
        max_path: nodes on the longest path there can be, the root included.
        coupled: whether tokens were drawn with the noise that emits. Then they know more
            than their laws say, and only a verifier that uses no law may judge them.
    """

    tree: TokenTree
    kind: Array  # [B, N]
    draft_logits: Array  # [B, M, V']
    logits_row: Array  # [B, N]
    score: Array  # [B, N]
    vocab_ids: Array | None
    max_path: int = struct.field(pytree_node=False)
    coupled: bool = struct.field(pytree_node=False, default=False)

    DETERMINISTIC: ClassVar[int] = 0
    IID: ClassVar[int] = 1
    WITHOUT_REPLACEMENT: ClassVar[int] = 2


def deterministic_draft(
    tree: TokenTree, max_path: int, score: Array | None = None
) -> Draft:
    """Makes a draft whose nodes were all chosen without chance.

    Args:
        tree: the tree.
        max_path: nodes on the longest path there can be, the root included.
        score: `[B, N]` of each draft (`Draft.score`; 1 at the root and 0 at padding are
            put here). By default a half to the power of the depth: where nothing is known
            every other draft survives, and a budget keeps the upper levels.
    """
    if score is None:
        score = jnp.exp2(-trees.depth(tree).astype(jnp.float32))
    slots = jnp.arange(tree.num_nodes)[None]
    score = jnp.where(tree.parents >= 0, score.astype(jnp.float32), 0.0)
    zeros = jnp.zeros(tree.parents.shape, jnp.int32)
    return Draft(
        tree=tree,
        kind=zeros,
        draft_logits=jnp.zeros((tree.parents.shape[0], 0, 0), jnp.float32),
        logits_row=zeros,
        score=jnp.where(slots == 0, 1.0, score),
        vocab_ids=None,
        max_path=max_path,
    )

"""The outcome of a draft: what was accepted, and what was emitted."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxspec import ragged
from jaxspec.trees import TokenTree

Array = jax.Array


class Verdict(NamedTuple):
    """What the target makes of a draft.

    A row that emits `e` tokens keeps `e` nodes: the root and `e - 1` accepted drafts. Its
    last token is the target's own and becomes the next root (or, where a stop or a budget
    cut the path, whatever stood there).

    Attributes:
        path: `[B, D]` int32, the accepted nodes, the root first, -1 padded.
        num_accepted: `[B]` int32, accepted drafts, the root not counted.
        next_token: `[B]` int32, the token emitted last.
        logprobs: `[B, D]` float32, of the emitted tokens under the target's raw logits.
    """

    path: Array  # [B, D]
    num_accepted: Array  # [B]
    next_token: Array  # [B]
    logprobs: Array  # [B, D]


def emitted_tokens(tree: TokenTree, verdict: Verdict) -> tuple[Array, Array]:
    """What a verdict emits: tokens `[B, D]`, 0 padded, and how many `[B]`.

    They are the tokens of the path after the root, and the verdict's own token.
    """
    count = jnp.sum(verdict.path >= 0, axis=1, dtype=jnp.int32)
    path = ragged.take(tree.tokens, jnp.maximum(verdict.path, 0))
    accepted = jnp.pad(path[:, 1:], ((0, 0), (0, 1)))
    slots = jnp.arange(path.shape[1])[None]
    tokens = jnp.where(slots < count[:, None] - 1, accepted, 0)
    tokens = jnp.where(slots == count[:, None] - 1, verdict.next_token[:, None], tokens)
    return tokens, count


class Outcome(NamedTuple):
    """What a verified draft has led to: all that a drafter, a server or a report needs.

    Stops and budgets cut a path after it was verified. `shown` and `kept` are of the uncut
    path, so that the end of a text is never taken for a rejection; in a row that was done
    before the step both are empty.

    Attributes:
        tree: the tree that was verified: that of the draft, within the budget of each row.
        verdict: what the row emits, cut.
        tokens: `[B, D]` int32, the emitted tokens, 0 padded.
        count: `[B]` int32, how many they are; 0 in a row that was done.
        hidden: `[B, N, C]`, the target's.
        logits: `[B, N, V]` float32, the target's, raw.
        shown: `[B, N]` bool, drafts whose parent the verifier reached, which it accepted or
            could have accepted.
        kept: `[B, N]` bool, drafts that it accepted.
    """

    tree: TokenTree
    verdict: Verdict
    tokens: Array  # [B, D]
    count: Array  # [B]
    hidden: Array  # [B, N, C]
    logits: Array  # [B, N, V]
    shown: Array  # [B, N]
    kept: Array  # [B, N]

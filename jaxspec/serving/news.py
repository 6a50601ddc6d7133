"""What a step tells the host: one array of integers, so that one transfer carries it.

    tokens [D] | logprobs [D] | count | done | ran
    drafts [N] | parents [N] | score [N] | shown [N] | kept [N]

for every row of every round; real numbers bit by bit.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.core import Draft, Outcome
from jaxspec.trees import TokenTree

Array = jax.Array

_FLAGS = 3


class News(NamedTuple):
    """What became of each row, `[M, R, ...]` over the rounds of a step.

    Attributes:
        tokens: `[M, R, D]` int32, what was emitted, 0 padded.
        logprobs: `[M, R, D]` float32.
        count: `[M, R]` int32, tokens emitted.
        done: `[M, R]` bool, after the round.
        ran: `[M, R]` bool; False where a round was not run, or the row was done before.
        drafts: `[M, R, N]` int32, tokens that were proposed, the root's first, whether or
            not a budget held them all.
        parents: `[M, R, N]` int32, -1 for the root and for what was not proposed.
        score: `[M, R, N]` float32, see `Draft`.
        shown: `[M, R, N]` bool, drafts that the verifier reached (`Outcome`).
        kept: `[M, R, N]` bool, drafts that it accepted.
    """

    tokens: np.ndarray
    logprobs: np.ndarray
    count: np.ndarray
    done: np.ndarray
    ran: np.ndarray
    drafts: np.ndarray
    parents: np.ndarray
    score: np.ndarray
    shown: np.ndarray
    kept: np.ndarray

    def of(self, row: int) -> "News":
        """The news of one row, `[M, ...]`."""
        return News(*(array[:, row] for array in self))


def width(max_path: int, num_nodes: int) -> int:
    """Integers per row and round."""
    return 2 * max_path + 5 * num_nodes + _FLAGS


def pack(
    outcome: Outcome,
    draft: Draft | None,
    done: Array,
    ran: Array,
    max_path: int,
    num_nodes: int,
) -> Array:
    """Packs the news of a round, `[R, W]` int32.

    Args:
        outcome: of the round, of paths and trees no larger than these.
        draft: what was proposed, None if nothing was.
        done: `[R]` bool, after it.
        ran: `[R]` bool, rows that were not done before it.
        max_path: `D`.
        num_nodes: `N`.
    """

    def fill(array, size, value=0):
        if array.dtype == jnp.float32:
            array = jax.lax.bitcast_convert_type(array, jnp.int32)
        array, more = array.astype(jnp.int32), size - array.shape[1]
        return jnp.pad(array, ((0, 0), (0, more)), constant_values=value)

    nothing = outcome.tree.tokens[:, :0]
    tree = TokenTree(nothing, nothing) if draft is None else draft.tree
    score = nothing if draft is None else draft.score
    columns = [fill(outcome.tokens, max_path), fill(outcome.verdict.logprobs, max_path)]
    columns += [fill(each[:, None], 1) for each in (outcome.count, done, ran)]
    columns += [fill(tree.tokens, num_nodes)]
    columns += [fill(tree.parents, num_nodes, TokenTree.NO_PARENT)]
    columns += [fill(each, num_nodes) for each in (score, outcome.shown, outcome.kept)]
    return jnp.concatenate(columns, axis=1)


def unpack(packed: np.ndarray, max_path: int) -> News:
    """Reads what `pack` wrote, `[M, R, W]`."""
    num_nodes = (packed.shape[2] - 2 * max_path - _FLAGS) // 5
    sizes = [max_path] * 2 + [1] * _FLAGS + [num_nodes] * 4
    tokens, bits, *flags, drafts, parents, score, shown, kept = np.split(
        packed, np.cumsum(sizes), axis=2
    )
    count, done, ran = (flag[:, :, 0] for flag in flags)
    return News(
        tokens=tokens,
        logprobs=np.ascontiguousarray(bits).view(np.float32),
        count=count,
        done=done.astype(bool),
        ran=ran.astype(bool),
        drafts=drafts,
        parents=parents,
        score=np.ascontiguousarray(score).view(np.float32),
        shown=shown.astype(bool),
        kept=kept.astype(bool),
    )

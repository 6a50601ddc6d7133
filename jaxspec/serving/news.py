"""What a step tells the host: one array of integers, so that one transfer carries it.

    tokens [D] | logprobs [D], bit by bit | shown [N] | kept [N] | count | done | ran

for every row of every round.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.core import Outcome

Array = jax.Array


class News(NamedTuple):
    """What became of each row, `[M, R, ...]` over the rounds of a step.

    Attributes:
        tokens: `[M, R, D]` int32, what was emitted, 0 padded.
        logprobs: `[M, R, D]` float32.
        shown: `[M, R, N]` bool, drafts that the verifier reached (`Outcome`).
        kept: `[M, R, N]` bool, drafts that it accepted.
        count: `[M, R]` int32, tokens emitted.
        done: `[M, R]` bool, after the round.
        ran: `[M, R]` bool; False where a round was not run, or the row was done before.
    """

    tokens: np.ndarray
    logprobs: np.ndarray
    shown: np.ndarray
    kept: np.ndarray
    count: np.ndarray
    done: np.ndarray
    ran: np.ndarray

    def of(self, row: int) -> "News":
        """The news of one row, `[M, ...]`."""
        return News(*(array[:, row] for array in self))


def width(max_path: int, num_nodes: int) -> int:
    """Integers per row and round."""
    return 2 * max_path + 2 * num_nodes + 3


def pack(
    outcome: Outcome, done: Array, ran: Array, max_path: int, num_nodes: int
) -> Array:
    """Packs the news of a round, `[R, W]` int32.

    Args:
        outcome: of the round, of paths and trees no larger than these.
        done: `[R]` bool, after it.
        ran: `[R]` bool, rows that were not done before it.
        max_path: `D`.
        num_nodes: `N`.
    """

    def fill(array, size):
        array = array.astype(jnp.int32)
        return jnp.pad(array, ((0, 0), (0, size - array.shape[1])))

    bits = jax.lax.bitcast_convert_type(outcome.verdict.logprobs, jnp.int32)
    columns = [fill(outcome.tokens, max_path), fill(bits, max_path)]
    columns += [fill(each, num_nodes) for each in (outcome.shown, outcome.kept)]
    flags = [fill(each[:, None], 1) for each in (outcome.count, done, ran)]
    return jnp.concatenate(columns + flags, axis=1)


def unpack(packed: np.ndarray, max_path: int) -> News:
    """Reads what `pack` wrote, `[M, R, W]`."""
    num_nodes = (packed.shape[2] - 2 * max_path - 3) // 2
    sizes = np.cumsum([max_path, max_path, num_nodes, num_nodes, 1, 1])
    tokens, bits, shown, kept, count, done, ran = np.split(packed, sizes, axis=2)
    return News(
        tokens=tokens,
        logprobs=np.ascontiguousarray(bits).view(np.float32),
        shown=shown.astype(bool),
        kept=kept.astype(bool),
        count=count[:, :, 0],
        done=done[:, :, 0].astype(bool),
        ran=ran[:, :, 0].astype(bool),
    )

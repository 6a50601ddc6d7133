"""A drafter that proposes nothing: every step emits one token, by a pass over the root.

A state that is made with it can be verified with drafts from anywhere, and goes on without
any. It is the least drafter there is, and the pattern of one's own.
"""

import functools

import jax
import jax.numpy as jnp

from jaxspec import checks
from jaxspec.core import Context, Draft, Drafter, Outcome, deterministic_draft
from jaxspec.trees import TokenTree

Array = jax.Array


def silent(max_path: int = 1) -> Drafter:
    """Makes a drafter without drafts.

    Args:
        max_path: nodes on the longest path that it claims to propose, the root included.

    Raises:
        ValueError: if it is not positive.
    """
    return _silent(checks.integer("max_path", max_path, least=1))


@functools.cache
def _silent(max_path: int) -> Drafter:
    def init(params, batch_size: int, max_length: int) -> tuple[()]:
        del params, batch_size, max_length
        return ()

    def absorb(
        params, state: tuple[()], tokens: Array, hidden: Array, lengths: Array
    ) -> tuple[()]:
        del params, tokens, hidden, lengths
        return state

    def propose(params, state: tuple[()], context: Context) -> tuple[tuple[()], Draft]:
        del params
        root = context.root[:, None]
        tree = TokenTree(root, jnp.full_like(root, TokenTree.NO_PARENT))
        return state, deterministic_draft(tree, max_path)

    def observe(params, state: tuple[()], outcome: Outcome) -> tuple[()]:
        del params, outcome
        return state

    return Drafter(init, absorb, propose, observe, max_path, None)

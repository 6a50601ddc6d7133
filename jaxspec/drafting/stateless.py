"""Drafters that keep nothing between steps: what they propose depends on the text alone."""

from collections.abc import Callable
from typing import Any

import jax

from jaxspec.core import Context, Draft, Drafter, Outcome

Array = jax.Array


def stateless(
    propose: Callable[[Any, Context], Draft],
    max_path: int,
    check: Callable[[Any, int], None] = lambda params, max_length: None,
) -> Drafter:
    """Makes a drafter without a state.

    Args:
        propose: `params, context -> draft`.
        max_path: nodes on the longest path it proposes, the root included.
        check: `params, max_length -> None`, raises where these do not do.
    """

    def init(params, batch_size: int, max_length: int) -> tuple[()]:
        del batch_size
        check(params, max_length)
        return ()

    def absorb(
        params, state: tuple[()], tokens: Array, hidden: Array, lengths: Array
    ) -> tuple[()]:
        del params, tokens, hidden, lengths
        return state

    def propose_(params, state: tuple[()], context: Context) -> tuple[tuple[()], Draft]:
        return state, propose(params, context)

    def observe(params, state: tuple[()], outcome: Outcome) -> tuple[()]:
        del params, outcome
        return state

    return Drafter(init, absorb, propose_, observe, max_path, None)

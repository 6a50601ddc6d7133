"""A step of a pool: rounds of all rows, and what the host hears of them.

A step runs one round or several, and stops after the one in which a text ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec import budgets, stepping
from jaxspec.core import Draft, Outcome
from jaxspec.decode_state import DecodeState
from jaxspec.serving import buckets, news
from jaxspec.serving.machinery import Machinery

Array = jax.Array


class Control(NamedTuple):
    """Words of the host before a step.

    Attributes:
        budgets: `[R]` int32, draft nodes of each row at most.
        stop: `[R]` bool, rows that are given up.
        rounds: int32, steps at most.
    """

    budgets: Any
    stop: Any
    rounds: Any


def round_of(
    m: Machinery, num_nodes: int
) -> Callable[..., tuple[DecodeState, Outcome, Draft | None]]:
    """A round that verifies so many nodes: `params, state -> state, outcome, draft`.

    The draft is as it was proposed, before budgets cut it; None if nothing was.
    """

    def without_drafts(params, state):
        state, outcome = stepping.step_without_drafts(
            params, state, target=m.target, drafter=m.drafter, verifier=m.verifier
        )
        return state, outcome, None

    def with_drafts(params, state):
        state, proposed = stepping.propose(params, state, drafter=m.drafter)
        draft, index = proposed, None
        if num_nodes < m.num_nodes:
            most = jnp.minimum(state.context.budget, num_nodes - 1)
            draft = budgets.limit(draft, most)
            tree = draft.tree
            draft, index = buckets.compact(draft, num_nodes)
        state, outcome = stepping.verify(
            params, state, draft, target=m.target, verifier=m.verifier
        )
        if index is not None:
            outcome = buckets.spread(outcome, tree, index)
        state = stepping.observe(params, state, outcome, drafter=m.drafter)
        return state, outcome, proposed

    return with_drafts if num_nodes > 1 else without_drafts


def step_of(m: Machinery, num_nodes: int) -> Callable[..., tuple[DecodeState, Array]]:
    """Rounds of all rows: `params, pool, control -> pool, news [M, R, W]`."""
    advance_all = round_of(m, num_nodes)

    def one(params, state):
        ran = ~state.done
        state, outcome, draft = advance_all(params, state)
        sizes = m.drafter.max_path, m.num_nodes
        return state, news.pack(outcome, draft, state.done, ran, *sizes)

    def step(params, pool, control):
        pool = pool.replace(
            done=pool.done | control.stop, draft_budgets=control.budgets
        )
        live = ~pool.done
        width = news.width(m.drafter.max_path, m.num_nodes)
        nothing = jnp.zeros((m.rounds, len(live), width), jnp.int32)

        def keep_going(loop):
            count, state, _ = loop
            all_go_on = ~jnp.any(live & state.done) & jnp.any(live)
            return all_go_on & (count < jnp.minimum(control.rounds, m.rounds))

        def advance(loop):
            count, state, found = loop
            state, packed = one(params, state)
            found = jax.lax.dynamic_update_index_in_dim(found, packed, count, 0)
            return count + 1, state, found

        _, pool, found = jax.lax.while_loop(
            keep_going, advance, (jnp.int32(0), pool, nothing)
        )
        return pool, found

    return step

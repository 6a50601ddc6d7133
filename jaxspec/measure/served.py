"""Compares what an engine writes with what `generate` writes, another program."""

import random
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from jaxspec import decoding, metrics, prefill, sampling
from jaxspec.core import Params
from jaxspec.serving import Engine, Request, Ticket
from jaxspec.serving.news import News


class Whims:
    """A policy that verifies other numbers of drafts at every step."""

    def __init__(self, most: int):
        self._most, self._draw = most, random.Random(0)

    def budgets(self, tickets: Sequence[Ticket | None]) -> list[int]:
        """Any number of nodes, and none as often as all."""
        return [self._draw.choice([0, 1, self._most // 2, self._most]) for _ in tickets]

    def see(self, ticket: Ticket, found: News, budget: int) -> None:
        """Learns nothing."""


def compare(
    engine: Engine,
    params: Params,
    requests: Sequence[Request],
    advance: Callable[[], None] = lambda: None,
) -> dict[str, int]:
    """Serves requests that come at random turns, under budgets that change at every step.

    Args:
        engine: idle; its policy is put back.
        params: the engine's.
        requests: greedy or sampled.
        advance: is called for each text.

    Returns:
        The number of `texts`; of those that are `equal` to `generate`'s; that part from it
        at a `near_tie`; and that part elsewhere (`other`).
    """
    policy, engine.policy = engine.policy, Whims(engine.machinery.num_nodes)
    draw, tickets = random.Random(0), []
    waiting = list(reversed(requests))
    while waiting or not engine.is_idle:
        if waiting and draw.random() < 0.2:
            tickets.append(engine.submit(waiting.pop()))
        engine.turn()
    engine.policy = policy
    found = {"texts": len(tickets), "equal": 0, "near_tie": 0, "other": 0}
    for ticket in tickets:
        found[_compare(engine, params, ticket)] += 1
        advance()
    return found


def _compare(engine: Engine, params: Params, ticket: Ticket) -> str:
    m, request = engine.machinery, ticket.request
    params = Params(params.target)
    state = prefill.init_state(
        params,
        [list(request.prompt)],
        target=m.target,
        max_length=m.max_length,
        max_new_tokens=request.max_new_tokens,
        temperature=request.temperature,
        keys=sampling.key(request.seed)[None],
    )
    state = decoding.generate(params, state, target=m.target)
    tokens = np.zeros(state.tokens.shape, np.int32)
    written = [*request.prompt, *ticket.tokens]
    tokens[0, : len(written)] = written
    lengths = jnp.array([len(written)])
    own = state.replace(tokens=jnp.asarray(tokens), lengths=lengths)
    found = metrics.compare(m.target, params.target, own, state, row=0)
    return "equal" if found.identical else "near_tie" if found.near_tie else "other"

"""The loop around a drafter that lives on the host: a jitted step, driven from Python.

    given = jaxspec.given(num_nodes=16, max_path=8)
    state = jaxspec.init_state(params, prompt, ..., target=model, drafter=given)
    state, info = jaxspec.generate_from_host(
        params, state, target=model, drafter=given, host=jaxspec.SuffixDecoder()
    )

In every step the host waits for the tokens of the last one (at most `D` per row), reads
them, and sends a tree `[B, N]`; while it thinks the device has nothing to do. What the
host knows is made from the texts at the beginning, so that the state alone says how to go
on. The state must be whole in this process.
"""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec import compilation, loop_checks, rows
from jaxspec.core import Drafter, LanguageModel, Verifier
from jaxspec.decode_state import DecodeState, Params
from jaxspec.decoding import SpecInfo, empty_report, speculative_step
from jaxspec.trees import TokenTree
from jaxspec.verification.sample_and_match import sample_and_match

Array = jax.Array


class Host(Protocol):
    """What the loop asks of a drafter on the host; it treats every row alone."""

    def begin(self, text: Iterable[int]) -> Any:
        """Reads a text; the loop calls `extend(tokens)` of what is returned."""

    def propose(
        self, text: Any, num_nodes: int, max_path: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, parents and scores `[num_nodes]`; the tree's root is the last token."""


class _News(NamedTuple):
    """What the host is told after a step."""

    tokens: Array  # [B, D]
    count: Array  # [B]
    done: Array  # [B]


def generate_from_host(
    params: Params,
    state: DecodeState,
    *,
    target: LanguageModel,
    drafter: Drafter,
    host: Host,
    verifier: Verifier | None = None,
    max_steps: int | None = None,
) -> tuple[DecodeState, SpecInfo]:
    """Decodes speculatively until all rows are done, with trees from the host.

    Args:
        params: of the target.
        state: made by `init_state` with the same target and drafter.
        target: the model whose law is kept.
        drafter: `given`, with the size of the trees.
        host: makes the trees, a `SuffixDecoder` say.
        verifier: what decides; `sample_and_match` by default.
        max_steps: stop after as many steps, if not all rows are done before. The next
            call reads the texts from their beginning.

    Returns:
        The state after, and the report of the steps of this call.

    Raises:
        TypeError: on params that are not in `Params`, or something else than a state, a
            drafter or a verifier.
        ValueError: if the state was made with another target or drafter.
    """
    verifier = sample_and_match() if verifier is None else verifier
    loop_checks.records(target=target, drafter=drafter, verifier=verifier)
    if isinstance(host, type):
        raise TypeError(f"Expected a host, got its type; call it: {host.__name__}().")
    state, most = (
        loop_checks.one_per_row(state, target),
        int(loop_checks.steps(max_steps)),
    )
    loop_checks.drafts(state)
    if not isinstance(state.drafter, TokenTree):
        raise ValueError(
            "Trees from the host need a state made with the drafter given."
        )
    report = empty_report(state, drafter)
    tree = jax.tree.map(np.array, state.drafter)
    written, lengths, done = jax.device_get((state.tokens, state.lengths, state.done))
    texts = [host.begin(row[:n]) for row, n in zip(written, lengths, strict=True)]
    state = jax.tree.map(jnp.copy, state)  # the steps write into what they are given
    steps = 0
    while steps < most and not done.all():
        for row in np.flatnonzero(~done):
            drafted = host.propose(texts[row], tree.num_nodes, drafter.max_path)
            tree.tokens[row], tree.parents[row] = drafted[:2]
        state, report, news = _step(
            params,
            state,
            report,
            tree,
            target=target,
            drafter=drafter,
            verifier=verifier,
        )
        tokens, count, done = jax.device_get(news)
        for text, new, n in zip(texts, tokens, count, strict=True):
            text.extend(new[:n])
        steps += 1
    return state, report


@functools.partial(
    compilation.jit,
    static_argnames=("target", "drafter", "verifier"),
    donate_argnames=("state", "report"),
)
def _step(params, state, report, tree, *, target, drafter, verifier):
    """One step with a tree of the host's; the state is overwritten."""
    before = state.lengths
    state, info = speculative_step(
        params,
        state.replace(drafter=tree),
        target=target,
        drafter=drafter,
        verifier=verifier,
    )
    new = before[:, None] + jnp.arange(drafter.max_path)[None]
    news = _News(rows.take(state.tokens, new), state.lengths - before, state.done)
    return state, report + info, news

"""The loop around a drafter that lives on the host: `verify`, driven from Python.

    state = jaxspec.init_state(params, prompt, ..., target=model, speculative=True)
    state, info = jaxspec.generate_from_host(
        params, state, target=model, host=jaxspec.SuffixDecoder()
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
import numpy as np

from jaxspec import (
    checks,
    compilation,
    loop_checks,
    pasts,
    spec_info,
    stepping,
    trees,
)
from jaxspec.core import LanguageModel, Params, Verifier, deterministic_draft
from jaxspec.decode_state import DecodeState
from jaxspec.spec_info import SpecInfo
from jaxspec.trees import TokenTree
from jaxspec.verification.sample_and_match import sample_and_match

Array = jax.Array


class Host(Protocol):
    """A drafter on the host, as the loop drives it; it treats every row alone.

    What it proposes must be chosen without chance: no verifier is told of laws.
    """

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
    host: Host,
    num_nodes: int = 16,
    max_path: int = 8,
    verifier: Verifier | None = None,
    max_steps: int | None = None,
) -> tuple[DecodeState, SpecInfo]:
    """Decodes speculatively until all rows are done, with trees from the host.

    Args:
        params: of the target.
        state: made by `init_state` with the same target and `speculative=True`.
        target: the model whose law is kept.
        host: makes the trees, a `SuffixDecoder` say.
        num_nodes: slots of the trees, the root included.
        max_path: nodes on the longest path, the root included; the target keeps as many.
        verifier: what decides; `sample_and_match` by default.
        max_steps: stop after as many steps, if not all rows are done before. The next
            call reads the texts from their beginning.

    Returns:
        The state after, and the report of the steps of this call.

    Raises:
        TypeError: on params that are not in `Params`, or something else than a state, a
            host or a verifier.
        ValueError: if the state was made with another target, sizes are out of range, or
            the host proposes what is no tree of that size.
    """
    verifier = sample_and_match() if verifier is None else verifier
    loop_checks.records(target=target, verifier=verifier)
    if isinstance(host, type):
        raise TypeError(f"Expected a host, got its type; call it: {host.__name__}().")
    num_nodes = checks.integer("num_nodes", num_nodes, least=1)
    max_path = checks.integer("max_path", max_path, least=2)
    most = int(loop_checks.steps(max_steps))
    state = loop_checks.one_per_row(state, target)
    loop_checks.paths(max_path, target)
    report = spec_info.empty(state, max_path)
    tokens = np.zeros((len(state.lengths), num_nodes), np.int32)
    parents = np.full_like(tokens, TokenTree.NO_PARENT)
    score = np.zeros(tokens.shape, np.float32)
    written, lengths, done = jax.device_get((state.tokens, state.lengths, state.done))
    texts = [host.begin(row[:n]) for row, n in zip(written, lengths, strict=True)]
    state = pasts.copied(state)  # the steps write into what they are given
    steps = 0
    while steps < most and not done.all():
        for row in np.flatnonzero(~done):
            drafted = _checked(
                host.propose(texts[row], num_nodes, max_path), num_nodes, max_path
            )
            tokens[row], parents[row], score[row] = drafted
        state, report, news = _step(
            params,
            state,
            report,
            (tokens, parents, score),
            target=target,
            verifier=verifier,
            max_path=max_path,
        )
        emitted, count, done = jax.device_get(news)
        for text, new, n in zip(texts, emitted, count, strict=True):
            text.extend(new[:n])
        steps += 1
    return state, report


def _checked(
    drafted: tuple[np.ndarray, ...], num_nodes: int, max_path: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, parents and scores of a tree, without the nodes that are too deep.

    Raises:
        ValueError: if they are no tree of `num_nodes` slots.
    """
    shapes = [np.shape(array) for array in drafted]
    checks.require(
        shapes == [(num_nodes,)] * 3,
        f"Expected a tree of {num_nodes} slots from the host, got tokens, parents and "
        f"scores of shapes {shapes}.",
    )
    tokens, parents = (np.asarray(array, np.int32) for array in drafted[:2])
    trees.check_parents(parents[None])
    depth = np.zeros(num_nodes, np.int32)
    for slot, parent in enumerate(parents):
        depth[slot] = depth[parent] + 1 if parent >= 0 else 0
    parents = np.where(depth < max_path, parents, TokenTree.NO_PARENT)
    return tokens, parents, np.asarray(drafted[2], np.float32)


@functools.partial(
    compilation.jit,
    static_argnames=("target", "verifier", "max_path"),
    donate_argnames=("state", "report"),
)
def _step(params, state, report, drafted, *, target, verifier, max_path):
    """One step with trees of the host's; the state is overwritten."""
    tokens, parents, score = drafted
    draft = deterministic_draft(TokenTree(tokens, parents), max_path, score)
    before = state
    state, outcome = stepping.verify(
        params, state, draft, target=target, verifier=verifier
    )
    news = _News(outcome.tokens, outcome.count, state.done)
    return state, report + spec_info.report(before, outcome), news

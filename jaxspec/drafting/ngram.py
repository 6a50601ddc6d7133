"""Prompt lookup: what followed the last few tokens when they came before.

Several earlier places are looked up, in the prompt and in the output, and merged into one
tree (Saxena 2023; Snakes and Ladders 2025 ranks several matches). It is a search in an
array: no model, no state but the text, all of it on the device.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxspec import rows, trees
from jaxspec.core import Draft, Drafter, Verdict, deterministic_draft, emitted_tokens

Array = jax.Array


class State(NamedTuple):
    """The text so far."""

    tokens: Array  # [B, L]
    lengths: Array  # [B]


@functools.cache
def ngram(
    num_nodes: int = 8,
    max_path: int = 8,
    num_matches: int = 4,
    min_match: int = 1,
    max_match: int = 4,
) -> Drafter:
    """Makes a drafter that looks up the last `min_match` to `max_match` tokens.

    A place that agrees in more tokens is preferred, then the later one.

    Args:
        num_nodes: slots of the tree, the root included.
        max_path: nodes on its longest path, the root included.
        num_matches: places whose continuations are merged.
        min_match: tokens that must agree; a row without such a place has no draft.
        max_match: tokens that are compared.

    Raises:
        ValueError: on sizes out of range.
    """
    if not (num_nodes >= 1 and max_path >= 2 and num_matches >= 1):
        raise ValueError(
            "Expected num_nodes >= 1, max_path >= 2 and num_matches >= 1; got "
            f"{num_nodes}, {max_path} and {num_matches}."
        )
    if not 1 <= min_match <= max_match:
        raise ValueError(
            f"Expected 1 <= min_match <= max_match, got {min_match} and {max_match}."
        )
    max_path = min(max_path, max(num_nodes, 2))

    def init(params, prompt: Array, lengths: Array, max_length: int) -> State:
        del params
        live = jnp.arange(prompt.shape[1])[None] < lengths[:, None]
        room = max_length + max_path - prompt.shape[1]
        text = jnp.pad(jnp.where(live, prompt, 0), ((0, 0), (0, room)))
        return State(text, lengths)

    def propose(params, keys: Array, state: State, root: Array) -> tuple[State, Draft]:
        del params, keys
        places, found = _find(state, num_matches, min_match, max_match)
        steps = jnp.arange(1, max_path)[None, None]
        index = places[:, :, None] + steps
        known = jnp.minimum(state.lengths[:, None] - 1 - places, max_path - 1)
        last = state.tokens.shape[1] - 1
        paths = rows.take(state.tokens, jnp.minimum(index, last).reshape(len(root), -1))
        paths = paths.reshape(index.shape)
        lengths = jnp.where(found, known, 0)
        tree = trees.from_paths(root, paths, lengths, num_nodes)
        return state, deterministic_draft(tree, max_path)

    def observe(
        params, state: State, draft: Draft, verdict: Verdict, hidden, logits
    ) -> State:
        del params, hidden, logits
        tokens, count = emitted_tokens(draft.tree, verdict)
        text = rows.write(state.tokens, tokens, state.lengths)
        return State(text, state.lengths + count)

    return Drafter(init, propose, observe, max_path, None)


def _find(
    state: State, num_matches: int, min_match: int, max_match: int
) -> tuple[Array, Array]:
    """The best places `[B, M]` whose last tokens are the text's, and which are matches."""
    tokens, lengths = state
    size = tokens.shape[1]
    place = jnp.arange(size)[None]
    run = jnp.ones(tokens.shape, bool)
    agreed = jnp.zeros(tokens.shape, jnp.int32)
    for back in range(max_match):
        wanted = rows.take(tokens, jnp.maximum(lengths - 1 - back, 0)[:, None])
        here = jnp.pad(tokens, ((0, 0), (back, 0)))[:, :size]
        run &= (here == wanted) & (place >= back) & (lengths[:, None] > back)
        agreed += run.astype(jnp.int32)
    earlier = place < lengths[:, None] - 1
    score = jnp.where(earlier & (agreed >= min_match), agreed * size + place, -1)
    score, places = jax.lax.top_k(score, min(num_matches, size))
    return places, score >= 0

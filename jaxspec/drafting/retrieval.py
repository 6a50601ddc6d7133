"""Retrieval: what followed the last few tokens in a datastore.

The longest end of the text that occurs there, of `min_match` to `max_match` tokens, is
looked up. Of its places as many as are asked for, spread evenly over all, each give a
continuation; the tree keeps the prefixes that most of them share, and the shorter among
equals (REST, He et al. 2023; in RASD, Quan et al. 2025, a draft model prunes them).

The search is three binary ones, `log2 M` steps each of `max_match` compares in every row
(see `datastore`); the second and the third run at once. The state is the last
`max_match` tokens: what is retrieved from the text itself is `ngram`'s, and `fusion` joins
the two.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxspec import checks, mesh, rows, trees
from jaxspec.core import Draft, Drafter, Verdict, deterministic_draft, emitted_tokens
from jaxspec.drafting import datastore, ngram
from jaxspec.drafting.datastore import Datastore

Array = jax.Array

NOTHING = -2  # before all tokens, and in no datastore
ANYTHING = 2**31 - 1  # after all tokens


class State(NamedTuple):
    """The end of the text."""

    tail: Array  # [B, max_match], `NOTHING` in front of a shorter text


def retrieval(
    num_nodes: int = 16,
    max_path: int = 8,
    num_matches: int = 16,
    min_match: int = 2,
    max_match: int = 16,
) -> Drafter:
    """Makes a drafter whose params are a `Datastore`.

    Args:
        num_nodes: slots of the tree, the root included.
        max_path: nodes on its longest path, the root included.
        num_matches: places whose continuations are merged.
        min_match: tokens that must agree; a row without such a place has no draft.
        max_match: tokens that are compared.

    Raises:
        ValueError: on sizes out of range.
    """
    max_path = ngram.longest_path(
        num_nodes, max_path, num_matches, min_match, max_match
    )
    return _retrieval(num_nodes, max_path, num_matches, min_match, max_match)


@functools.cache
def _retrieval(num_nodes, max_path, num_matches, min_match, max_match) -> Drafter:
    def init(params, prompt: Array, lengths: Array, max_length: int, hidden) -> State:
        checks.record("the params of retrieval", params, Datastore)
        del max_length, hidden
        index = lengths[:, None] - max_match + jnp.arange(max_match)[None]
        tail = rows.take(prompt, jnp.maximum(index, 0))
        return State(jnp.where(index >= 0, tail, NOTHING))

    def propose(
        params: Datastore, keys: Array, state: State, root: Array, settings
    ) -> tuple[State, Draft]:
        del keys, settings
        retrieve = functools.partial(
            _retrieve, num_matches=num_matches, min_match=min_match, reach=max_path - 1
        )
        paths, lengths = mesh.by_rows(retrieve, state, shared=(params,))
        # A path less gives less than all the depth there is: counts decide, then depth.
        depth = jnp.arange(max_path - 1, dtype=jnp.float32)
        weights = 1.0 - depth / (num_matches * max_path)
        weights = jnp.broadcast_to(weights[None, None], paths.shape)
        tree = trees.from_paths(root, paths, lengths, num_nodes, weights)
        return state, deterministic_draft(tree, max_path)

    def observe(
        params, state: State, draft: Draft, verdict: Verdict, hidden, logits
    ) -> State:
        del params, hidden, logits
        tokens, count = emitted_tokens(draft.tree, verdict)
        text = jnp.concatenate([state.tail, tokens], axis=1)
        return State(rows.take(text, count[:, None] + jnp.arange(max_match)[None]))

    return Drafter(init, propose, observe, max_path, None)


def _retrieve(
    state: State, store: Datastore, *, num_matches: int, min_match: int, reach: int
) -> tuple[Array, Array]:
    """Continuations `[B, num_matches, reach]`, and how long each is, perhaps 0."""
    low, count = longest_match(state.tail, store, min_match)
    taken = jnp.minimum(count, num_matches)[:, None]
    every, rest = jnp.divmod(count[:, None], jnp.maximum(taken, 1))
    which = jnp.arange(num_matches)[None]
    spread = which * every + which * rest // jnp.maximum(taken, 1)
    hit = which < taken
    places = store.suffix_array[jnp.where(hit, low[:, None] + spread, 0)]
    paths, lengths = datastore.forwards(store, places, reach)
    return paths, jnp.where(hit, lengths, 0)


def longest_match(tail: Array, store: Datastore, min_match: int) -> tuple[Array, Array]:
    """Where the places of the longest match begin in the suffix array, and their number.

    Args:
        tail: `[B, K]`, the last tokens of each text.
        store: to search in.
        min_match: tokens that must agree.

    Returns:
        `[B]` and `[B]` int32; there are 0 places where too few tokens agree.
    """
    key = jnp.pad(tail[:, ::-1], ((0, 0), (0, 1)), constant_values=NOTHING)
    length = key.shape[1]
    place = datastore.rank(store, key)[:, None]
    beside = jnp.clip(place + jnp.array([[-1, 0]]), 0, len(store.tokens) - 1)
    found = datastore.backwards(store, store.suffix_array[beside], length)
    differ = jnp.cumsum(found != key[:, None], axis=-1, dtype=jnp.int32)
    agreed = jnp.max(jnp.sum(differ == 0, axis=-1, dtype=jnp.int32), axis=1)
    inside = (jnp.arange(length)[None] < agreed[:, None])[:, None]
    beyond = jnp.array([NOTHING, ANYTHING], jnp.int32)[None, :, None]
    ends = datastore.rank(store, jnp.where(inside, key[:, None], beyond))
    count = jnp.where(agreed >= min_match, ends[:, 1] - ends[:, 0], 0)
    return ends[:, 0], count

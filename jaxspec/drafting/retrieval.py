"""Retrieval: what followed the last few tokens in a datastore.

The longest end of the text that occurs there, of `min_match` to `max_match` tokens, is
looked up. Of its places as many as are asked for, spread evenly over all, each give a
continuation; the tree keeps the prefixes that most of them share, and the shorter among
equals (REST, He et al. 2023; in RASD, Quan et al. 2025, a draft model prunes them). The
score of a node is its part of all the continuations, and one more.

The search is three binary ones, `log2 M` steps each of `max_match` compares in every row
(see `datastore`); the second and the third run at once. What is looked up
in the text itself is `ngram`'s, and `fusion` joins the two.
"""

import functools

import jax
import jax.numpy as jnp

from jaxspec import checks, mesh, ragged, trees
from jaxspec.core import Context, Draft, Drafter, deterministic_draft
from jaxspec.drafting import datastore, ngram, survival
from jaxspec.drafting.datastore import Datastore
from jaxspec.drafting.stateless import stateless

Array = jax.Array

NOTHING = -2  # before all tokens, and in no datastore
ANYTHING = 2**31 - 1  # after all tokens


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
    def check(params: Datastore, max_length: int) -> None:
        del max_length
        checks.record("the params of retrieval", params, Datastore)

    def propose(params: Datastore, context: Context) -> Draft:
        retrieve = functools.partial(
            _retrieve, num_matches=num_matches, min_match=min_match, reach=max_path - 1
        )
        tail = _tail(context.tokens, context.lengths, max_match)
        paths, lengths = mesh.by_rows(retrieve, tail, shared=(params,))
        # A path less gives less than all the depth there is: counts decide, then depth.
        depth = jnp.arange(max_path - 1, dtype=jnp.float32)
        weights = 1.0 - depth / (num_matches * max_path)
        weights = jnp.broadcast_to(weights[None, None], paths.shape)
        tree, members = trees.from_paths(
            context.root, paths, lengths, num_nodes, weights
        )
        every = jnp.sum(lengths > 0, axis=1, keepdims=True, dtype=jnp.float32)
        score = survival.of_members(members, weights) / (1.0 + every)
        return deterministic_draft(tree, max_path, score)

    return stateless(propose, max_path, check)


def _tail(tokens: Array, lengths: Array, size: int) -> Array:
    """The last tokens `[B, size]` of each text, `NOTHING` in front of a shorter one."""
    index = lengths[:, None] - size + jnp.arange(size)[None]
    tail = ragged.take(tokens, jnp.maximum(index, 0))
    return jnp.where(index >= 0, tail, NOTHING)


def _retrieve(
    tail: Array, store: Datastore, *, num_matches: int, min_match: int, reach: int
) -> tuple[Array, Array]:
    """Continuations `[B, num_matches, reach]`, and how long each is, perhaps 0."""
    low, count = longest_match(tail, store, min_match)
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

"""Prompt lookup: what followed the last few tokens when they came before.

Several earlier places are looked up, in the prompt and in the output, and merged into one
tree that keeps the nodes that most and best matches agree on (Saxena 2023; REST 2023 and
Snakes and Ladders 2025 rank by counts). It is a search in the text: no model, no state, all
of it on the device.
"""

import functools

import jax
import jax.numpy as jnp

from jaxspec import mesh, ragged, trees
from jaxspec.core import Context, Draft, Drafter, deterministic_draft
from jaxspec.drafting import survival
from jaxspec.drafting.stateless import stateless

Array = jax.Array


def ngram(
    num_nodes: int = 8,
    max_path: int = 8,
    num_matches: int = 4,
    min_match: int = 2,
    max_match: int = 4,
) -> Drafter:
    """Makes a drafter that looks up the last `min_match` to `max_match` tokens.

    A place that agrees in more tokens is preferred, then the later one. A node scores
    `0.81^depth` times the sum of `2^agreed` over the matches that go through it; its
    `Draft.score` is that in proportion to the sum over all matches, and one.

    Args:
        num_nodes: slots of the tree, the root included.
        max_path: nodes on its longest path, the root included.
        num_matches: places whose continuations are merged.
        min_match: tokens that must agree; a row without such a place has no draft. A
            place that agrees in one token is seldom right, and a step in which no row has
            a draft costs little more than an autoregressive one.
        max_match: tokens that are compared.

    Raises:
        ValueError: on sizes out of range.
    """
    if max_match > 32:  # scores are powers of two, in float32
        raise ValueError(f"Expected max_match of at most 32, got {max_match}.")
    max_path = longest_path(num_nodes, max_path, num_matches, min_match, max_match)
    return _ngram(num_nodes, max_path, num_matches, min_match, max_match)


def longest_path(
    num_nodes: int, max_path: int, num_matches: int, min_match: int, max_match: int
) -> int:
    """Nodes on the longest path that a look-up of these sizes makes.

    Args:
        num_nodes: slots of the tree.
        max_path: nodes on a path at most.
        num_matches: places whose continuations are merged.
        min_match: tokens that must agree.
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
    most = 1 + num_matches * (max_path - 1)
    if num_nodes > most:
        raise ValueError(
            f"{num_matches} matches of at most {max_path - 1} tokens fill {most} nodes, "
            f"not {num_nodes}; raise num_matches or max_path."
        )
    return min(max_path, max(num_nodes, 2))


@functools.cache
def _ngram(num_nodes, max_path, num_matches, min_match, max_match) -> Drafter:
    def check(params, max_length: int) -> None:
        del params
        if max_match * (max_length + max_path) >= 2**24:  # `_find` ranks in float32
            raise ValueError(
                f"Look-up holds {2**24 // max_match - max_path} tokens, not {max_length}."
            )

    def propose(params, context: Context) -> Draft:
        del params
        root, lengths = context.root, context.lengths
        find = functools.partial(_find, sizes=(num_matches, min_match, max_match))
        places, agreed = mesh.by_rows(find, context.tokens, lengths)
        # A continuation that reaches the end of the text goes on by copying itself: at
        # place `i` the text is taken to have the period `length - 1 - i`.
        period = jnp.maximum(lengths[:, None] - 1 - places, 1)
        steps = jnp.arange(max_path - 1)[None, None]
        index = places[:, :, None] + 1 + steps % period[:, :, None]
        paths = ragged.take(context.tokens, index.reshape(len(root), -1))
        reach = jnp.where(agreed > 0, max_path - 1, 0)
        decay = 0.81 ** steps.astype(jnp.float32)
        weights = jnp.exp2(agreed[:, :, None].astype(jnp.float32)) * decay
        tree, members = trees.from_paths(
            root, paths.reshape(index.shape), reach, num_nodes, weights
        )
        every = jnp.sum(jnp.where(agreed > 0, weights[:, :, 0], 0.0), axis=1)
        score = survival.of_members(members, weights) / (1.0 + every[:, None])
        return deterministic_draft(tree, max_path, score)

    return stateless(propose, max_path, check)


def _find(
    tokens: Array, lengths: Array, sizes: tuple[int, int, int]
) -> tuple[Array, Array]:
    """The best places `[B, M]`, and in how many tokens each agrees, 0 if in too few.

    The sizes are `num_matches`, `min_match` and `max_match`.
    """
    num_matches, min_match, max_match = sizes
    size = tokens.shape[1]
    place = jnp.arange(size)[None]
    run = place < lengths[:, None] - 1
    agreed = jnp.zeros(tokens.shape, jnp.int32)
    for back in range(max_match):
        wanted = ragged.take(tokens, jnp.maximum(lengths - 1 - back, 0)[:, None])
        here = jnp.pad(tokens, ((0, 0), (back, 0)))[:, :size]
        run &= (here == wanted) & (place >= back)
        agreed += run.astype(jnp.int32)
    score = jnp.where(agreed >= min_match, agreed * size + place, -1)
    # Float32 holds these numbers exactly, and XLA sorts integers where it could search.
    score, places = jax.lax.top_k(score.astype(jnp.float32), min(num_matches, size))
    found = score >= 0.0
    agreed = jnp.where(found, score.astype(jnp.int32) // size, 0)
    return jnp.where(found, places, 0), agreed

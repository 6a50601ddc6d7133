"""Token recycling: what the target thought of a token last time it read it.

Of every token `t`, each row of the batch keeps the `K` likeliest successors

    M[t, j] = token of the (j + 1)-th largest logit where `t` was read last,

and drafts a tree of one shape, of which child `j` of a node of token `t` is `M[t, j]`
(Luo et al. 2024). A verification teaches the successors of all its nodes, also of those
that were not accepted: logits that were paid for are not thrown away. There is no model
and no search, and all of it stays on the device. Of a token that was never read nothing
is known, and nothing is proposed below it.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec import mesh, sampling
from jaxspec.core import Context, Draft, Drafter, Outcome, deterministic_draft
from jaxspec.drafting import sequoia, static, survival
from jaxspec.trees import TokenTree

Array = jax.Array

UNKNOWN = -1  # not 0, which is a token
# By rank: the shipped target's own text, mean of temperatures 0 and 0.8 (eight prompts of
# 200 tokens). Another model's numbers are counted with the topology `(8,)`.
ACCEPTANCE = (0.54, 0.07, 0.04, 0.03, 0.02, 0.02, 0.02, 0.01)


class State(NamedTuple):
    """What is known; each row has its own."""

    successors: (
        Array  # [B, V, K] int32, the likeliest first, `UNKNOWN` before the first
    )


def recycling(
    vocab_size: int, topology: Sequence[int] | None = None, successors: int = 8
) -> Drafter:
    """Makes a drafter that proposes what followed in the target's eyes before.

    Its state takes `4 * vocab_size * successors` bytes per row: 4 MiB at 128k tokens.

    Args:
        vocab_size: `V`, tokens of the target.
        topology: children of each node, level by level, as `(3, 2, 1)`; or the parent of
            every slot, -1 first, level by level; 16 nodes by default, those most often
            accepted.
        successors: `K`, how many are kept of each token.

    Raises:
        ValueError: if the topology is no tree, level by level, or has more children at a
            node than successors are kept, or more are kept than there are tokens.
    """
    if topology is None:
        topology = sequoia.optimal_tree(ACCEPTANCE, num_nodes=16, max_path=8)
    topology = static.parents_of(topology)
    most = 1 + max(max(level.rank) for level in static.levels_of(topology))
    if not most <= successors <= vocab_size:
        raise ValueError(
            f"A node has up to {most} children, {successors} successors are kept, and "
            f"there are {vocab_size} tokens; expected these in ascending order."
        )
    return _recycling(vocab_size, topology, successors)


@functools.cache
def _recycling(vocab_size: int, topology: tuple[int, ...], successors: int) -> Drafter:
    max_path = len(static.levels_of(topology)) + 1
    by_rank = survival.of_ranks(topology, ACCEPTANCE)

    def init(params, batch_size: int, max_length: int) -> State:
        del params, max_length
        shape = batch_size, vocab_size, successors
        return State(jnp.full(shape, UNKNOWN, jnp.int32))

    def absorb(
        params, state: State, tokens: Array, hidden: Array, lengths: Array
    ) -> State:
        del params, tokens, hidden, lengths  # without logits they teach nothing
        return state

    def propose(params, state: State, context: Context) -> tuple[State, Draft]:
        del params
        fill = functools.partial(_fill, topology=topology)
        tree = mesh.by_rows(fill, state.successors, context.root)
        score = jnp.broadcast_to(by_rank, tree.parents.shape)
        return state, deterministic_draft(tree, max_path, score)

    def observe(params, state: State, outcome: Outcome) -> State:
        del params
        best = functools.partial(_best, count=successors)
        found = mesh.by_rows(best, outcome.logits, over=mesh.AXES)
        tree = outcome.tree
        live = tree.is_node & (outcome.count > 0)[:, None]
        learn = mesh.by_rows(_learn, state.successors, tree.tokens, live, found)
        return State(learn)

    return Drafter(init, absorb, propose, observe, max_path, vocab_size)


def _fill(known: Array, root: Array, topology: tuple[int, ...]) -> TokenTree:
    """Puts the successors of each node into the slots below it."""
    look_up = jax.vmap(lambda known, token, rank: known[token, rank], (0, 0, None))
    tokens = root[:, None]
    for level in static.levels_of(topology):
        above = tokens[:, level.start + np.array(level.parent)]
        below = look_up(known, jnp.maximum(above, 0), np.array(level.rank))
        below = jnp.where(above >= 0, below, UNKNOWN)
        tokens = jnp.concatenate([tokens, below], axis=1)
    parents = jnp.where(tokens >= 0, jnp.array(topology)[None], TokenTree.NO_PARENT)
    return TokenTree(jnp.maximum(tokens, 0), parents.astype(jnp.int32))


def _best(logits: Array, count: int) -> Array:
    """The likeliest tokens `[B, N, K]`, `UNKNOWN` where the target has ruled all out."""
    largest = functools.partial(sampling.largest, count=count)
    tokens, possible = jax.vmap(jax.vmap(largest))(logits)
    return jnp.where(possible, tokens, UNKNOWN)


def _learn(known: Array, tokens: Array, live: Array, found: Array) -> Array:
    """Writes what was found at the live nodes.

    Of the nodes of one token the one in the last slot counts: a scatter to one place
    twice leaves open which is kept.
    """
    slots = jnp.arange(tokens.shape[1])
    same = (tokens[:, :, None] == tokens[:, None]) & live[:, None]
    later = jnp.any(same & (slots[None] > slots[:, None])[None], axis=2)
    nowhere = known.shape[1]
    place = jnp.where(live & ~later, tokens, nowhere)
    return jax.vmap(lambda k, at, new: k.at[at].set(new, mode="drop"))(
        known, place, found
    )

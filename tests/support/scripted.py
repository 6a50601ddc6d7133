"""Drafters that propose what they are told: some of a known text, or a tree."""

import functools
from typing import NamedTuple

import jax.numpy as jnp

from jaxspec import ragged
from jaxspec.core import Drafter, deterministic_draft
from jaxspec.trees import TokenTree

EVERYTHING, NOTHING, NO_DRAFT, MIXED = range(4)


class State(NamedTuple):
    text: object  # [B, L] what the target will write
    script: object  # []
    steps: object  # []


@functools.cache
def scripted(max_path, vocab_size):
    """Makes a drafter whose params are the text `[B, L]` to come, and a script.

    At every depth it proposes a wrong token in front of the one that comes, so that a
    walk must choose among siblings. `MIXED` changes from step to step and from row to row
    how many of its drafts are right, and has steps without any draft.
    """

    def init(params, batch_size, max_length):
        text, script = params
        room = max_length + 2 * max_path - text.shape[1]
        text = jnp.pad(text, ((0, 0), (0, max(room, 0))))
        return State(text, script, jnp.int32(0))

    def propose(params, state, context):
        root, batch = context.root, len(context.lengths)
        row, depth = jnp.arange(batch)[:, None], jnp.arange(1, max_path)[None]
        mixed = (7 * state.steps + 3 * row) % max_path
        right = jnp.where(state.script == EVERYTHING, max_path, 0)
        right = jnp.where(state.script == MIXED, mixed, right)
        ahead = ragged.take(state.text, context.lengths[:, None] + depth - 1)
        wrong = (ahead + 1) % vocab_size
        truth = jnp.where(depth <= right, ahead, (ahead + 2) % vocab_size)
        tokens = jnp.stack([wrong, truth], axis=2).reshape(batch, -1)
        above = jnp.repeat(2 * (depth - 1), 2, axis=1)
        rests = (state.script == MIXED) & (state.steps % 3 == 2)
        silent = (state.script == NO_DRAFT) | rests
        above = jnp.where(silent, -1, jnp.broadcast_to(above, tokens.shape))
        tokens = jnp.concatenate([root[:, None], tokens], axis=1)
        parents = jnp.pad(above, ((0, 0), (1, 0)), constant_values=-1)
        tree = TokenTree(tokens.astype(jnp.int32), parents.astype(jnp.int32))
        return state, deterministic_draft(tree, max_path)

    def observe(params, state, outcome):
        return state._replace(steps=state.steps + 1)

    return Drafter(init, _keep, propose, observe, max_path, None)


@functools.cache
def fixed(max_path):
    """Makes a drafter whose params are the trees that it proposes, below any root."""

    def init(params, batch_size, max_length):
        return ()

    def propose(params, state, context):
        tokens = jnp.asarray(params.tokens).at[:, 0].set(context.root)
        tree = TokenTree(tokens, jnp.asarray(params.parents))
        return state, deterministic_draft(tree, max_path)

    def observe(params, state, outcome):
        return state

    return Drafter(init, _keep, propose, observe, max_path, None)


def _keep(params, state, tokens, hidden, lengths):
    """The prompt is not looked at."""
    return state

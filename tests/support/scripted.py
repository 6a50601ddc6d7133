"""A drafter that knows the text, and proposes as much of it as the script says."""

import functools
from typing import NamedTuple

import jax.numpy as jnp

from jaxspec import rows
from jaxspec.core import Drafter, deterministic_draft, emitted_tokens
from jaxspec.trees import TokenTree

EVERYTHING, NOTHING, NO_DRAFT, MIXED = range(4)


class State(NamedTuple):
    text: object  # [B, L] what the target will write
    script: object  # []
    length: object  # [B]
    steps: object  # []


@functools.cache
def scripted(max_path, vocab_size):
    """Makes a drafter whose params are the text `[B, L]` to come, and a script.

    At every depth it proposes a wrong token in front of the one that comes, so that a
    walk must choose among siblings. `MIXED` changes from step to step and from row to row
    how many of its drafts are right, and has steps without any draft.
    """

    def init(params, prompt, lengths, max_length, hidden):
        text, script = params
        room = max_length + 2 * max_path - text.shape[1]
        text = jnp.pad(text, ((0, 0), (0, max(room, 0))))
        return State(text, script, lengths, jnp.int32(0))

    def propose(params, keys, state, root, settings):
        batch = len(root)
        row, depth = jnp.arange(batch)[:, None], jnp.arange(1, max_path)[None]
        mixed = (7 * state.steps + 3 * row) % max_path
        right = jnp.where(state.script == EVERYTHING, max_path, 0)
        right = jnp.where(state.script == MIXED, mixed, right)
        ahead = rows.take(state.text, state.length[:, None] + depth - 1)
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

    def observe(params, state, draft, verdict, hidden, logits):
        _, count = emitted_tokens(draft.tree, verdict)
        return state._replace(length=state.length + count, steps=state.steps + 1)

    return Drafter(init, propose, observe, max_path, None)

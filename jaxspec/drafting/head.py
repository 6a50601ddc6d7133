"""A draft head: a layer or so beside the target, and a builder that grows trees by it.

The head reads a token together with the hidden of the token before. What it drafts it
draws from its own hidden, node by node (EAGLE, Li et al. 2024): a node takes its parent's.
Once the target has seen the tree, the head reads what was emitted with the target's hidden
of the path, so that its past is of true ones alone:

    emitted  y_1 .. y_e    beside the hidden of the path  h_0 .. h_(e-1),  the root's first.

Its last pair is the next root's, whose children are drawn without another call. Drafts
leave nothing behind, and there is nothing to roll back.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec import checks, rows
from jaxspec.core import Draft, Drafter, DraftHead, Verdict, emitted_tokens
from jaxspec.drafting.builder import Builder, Reader
from jaxspec.drafting.model import as_builder, head_for, whole
from jaxspec.trees import TokenTree

Array = jax.Array


class State(NamedTuple):
    """The head's past, with the root's pair, and its hidden there.

    A text of one token has no pair yet: its hidden is zero, and its law even.
    """

    carry: Any
    hidden: Array  # [B, C]


class Tape(NamedTuple):
    """What the nodes of a tree leave behind."""

    nodes: Any  # the head's
    hidden: Array  # [B, N, C]


def draft_head(head: DraftHead, builder: Builder | Sequence[int] = (1,) * 4) -> Drafter:
    """Makes a drafter of a head.

    Args:
        head: of the target; its params may be `Trimmed`.
        builder: grows the trees; or children of each node, level by level, as in
            `draft_model`.

    Raises:
        ValueError: if the head has fewer tokens than a node has children; when traced, if
            a trimmed one has.
    """
    checks.record("head", head, DraftHead)
    builder = as_builder(builder)
    if builder.min_vocab > head.vocab_size:
        raise ValueError(
            f"The builder draws {builder.min_vocab} children at a node, and the head has "
            f"{head.vocab_size} tokens."
        )
    return _draft_head(head, builder)


@functools.cache
def _draft_head(head: DraftHead, builder: Builder) -> Drafter:
    def init(
        params, prompt: Array, lengths: Array, max_length: int, hidden: Array
    ) -> State:
        params = head_for(builder, params).params
        carry = head.init_carry(params, len(prompt), max_length)
        following = jnp.roll(prompt, -1, axis=1)
        carry, own = head.scan(params, carry, following, hidden, lengths - 1)
        return _advance(carry, own, lengths - 1, jnp.zeros_like(own[:, 0]))

    def propose(
        params, keys: Array, state: State, root: Array, settings
    ) -> tuple[State, Draft]:
        params, vocab_ids = head_for(builder, params)
        reader = Reader(
            functools.partial(_read, head, params, state.carry),
            vocab_ids,
            head.vocab_size,
        )
        size = builder.num_read
        hidden = jnp.zeros((len(root), size, state.hidden.shape[1]), state.hidden.dtype)
        hidden = hidden.at[:, 0].set(state.hidden)
        tape = Tape(head.init_tape(params, len(root), size), hidden)
        return state, builder.build(reader, tape, keys, root, settings).draft

    def observe(
        params, state: State, draft: Draft, verdict: Verdict, hidden: Array, logits
    ) -> State:
        del logits
        tokens, count = emitted_tokens(draft.tree, verdict)
        before = rows.take(hidden, jnp.maximum(verdict.path, 0))
        params = whole(params).params
        carry, own = head.scan(params, state.carry, tokens, before, count)
        return _advance(carry, own, count, state.hidden)

    return Drafter(init, propose, observe, builder.max_path, head.vocab_size)


def _advance(carry, hidden: Array, count: Array, old: Array) -> State:
    """The state after `count` `[B]` pairs, which left `hidden` `[B, T, C]`."""
    last = rows.take_one(hidden, jnp.maximum(count - 1, 0))
    return State(carry, rows.select(count > 0, last, old))


def _read(
    head: DraftHead, params, carry, tape: Tape, tree: TokenTree, start: int, stop: int
) -> tuple[Tape, Array]:
    """Reads slots of a tree, all but the root, which was read when it was emitted."""
    first = max(start, 1)
    if first < stop:
        size = tape.hidden.shape[1]
        tree = TokenTree(tree.tokens[:, :size], tree.parents[:, :size])
        above = jnp.maximum(tree.parents[:, first:stop], 0)
        args = tree, rows.take(tape.hidden, above), first, stop
        nodes, hidden = head.extend_tree(params, carry, tape.nodes, *args)
        tape = Tape(nodes, tape.hidden.at[:, first:stop].set(hidden))
    return tape, head.logits(params, tape.hidden[:, start:stop])

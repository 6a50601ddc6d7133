"""A draft head: a layer or so beside the target, and a builder that grows trees by it.

The head reads a token together with the hidden of the token before. What it drafts it
draws from its own hidden, node by node (EAGLE, Li et al. 2024): a node takes its parent's.
Once the target has seen the tree, the head reads what was emitted with the target's hidden
of the path, so that its cache holds only what the target's own hidden states gave:

    emitted  y_1 .. y_e    beside the hidden of the path  h_0 .. h_(e-1),  the root's first.

Its last pair is the next root's, whose children are drawn without another call. After a
prompt, or tokens decoded without drafts, that pair is due, and is read first. Drafts leave
nothing behind, and there is nothing to roll back.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec import checks, ragged
from jaxspec.core import Context, Draft, Drafter, DraftHead, Outcome
from jaxspec.drafting.builder import Builder, Reader
from jaxspec.drafting.model import as_builder, head_for, whole
from jaxspec.trees import TokenTree

Array = jax.Array


class State(NamedTuple):
    """The head's past.

    A text of one token has no pair: its hidden is zero, and its law even.

    Attributes:
        carry: the head's.
        hidden: `[B, C]`: where the root's pair is due, the target's of the token before
            it, to be read with it; else the head's own at the root.
        due: `[B]` bool.
    """

    carry: Any
    hidden: Array  # [B, C]
    due: Array  # [B]


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
    def init(params, batch_size: int, max_length: int) -> State:
        params = head_for(builder, params).params
        carry = head.init_carry(params, batch_size, max_length)
        hidden = jnp.zeros((batch_size, 1, head.hidden_size), jnp.float32)
        one = jnp.zeros((batch_size,), jnp.int32)
        own = jax.eval_shape(head.scan, params, carry, one[:, None], hidden, one)[1]
        return State(carry, hidden[:, 0].astype(own.dtype), one > 0)

    def absorb(
        params, state: State, tokens: Array, hidden: Array, lengths: Array
    ) -> State:
        params = whole(params).params
        checks.require(
            hidden.shape[-1] == head.hidden_size,
            f"The head reads a hidden of {head.hidden_size} numbers beside its tokens, "
            f"got {hidden.shape}; is it the target's own?",
        )
        hidden = hidden.astype(state.hidden.dtype)
        before = jnp.concatenate([state.hidden[:, None], hidden[:, :-1]], axis=1)
        # The first token's pair was read when the token was emitted, unless it is due.
        known = (~state.due).astype(jnp.int32)
        index = jnp.minimum(
            known[:, None] + jnp.arange(tokens.shape[1])[None], tokens.shape[1] - 1
        )
        carry, _ = head.scan(
            params,
            state.carry,
            ragged.take(tokens, index),
            ragged.take(before, index),
            jnp.maximum(lengths - known, 0),
        )
        last = ragged.take_one(hidden, jnp.maximum(lengths - 1, 0))
        some = lengths > 0
        return State(carry, ragged.select(some, last, state.hidden), state.due | some)

    def propose(params, state: State, context: Context) -> tuple[State, Draft]:
        params, vocab_ids = head_for(builder, params)
        root, size = context.root, builder.num_read
        state = _catch_up(head, params, state, root)
        reader = Reader(
            functools.partial(_read, head, params, state.carry),
            vocab_ids,
            head.vocab_size,
        )
        hidden = jnp.zeros((len(root), size, state.hidden.shape[1]), state.hidden.dtype)
        hidden = hidden.at[:, 0].set(state.hidden)
        tape = Tape(head.init_tape(params, len(root), size), hidden)
        built = builder.build(reader, tape, context)
        return state, built.draft

    def observe(params, state: State, outcome: Outcome) -> State:
        before = ragged.take(outcome.hidden, jnp.maximum(outcome.verdict.path, 0))
        carry, own = head.scan(
            whole(params).params, state.carry, outcome.tokens, before, outcome.count
        )
        return _advance(state, carry, own, outcome.count)

    return Drafter(init, absorb, propose, observe, builder.max_path, head.vocab_size)


def _catch_up(head: DraftHead, params, state: State, root: Array) -> State:
    """Reads the root's pair in the rows where it is due."""

    def read(state: State) -> State:
        count = state.due.astype(jnp.int32)
        carry, own = head.scan(
            params, state.carry, root[:, None], state.hidden[:, None], count
        )
        return _advance(state, carry, own, count)

    return jax.lax.cond(jnp.any(state.due), read, lambda state: state, state)


def _advance(state: State, carry: Any, hidden: Array, count: Array) -> State:
    """The state after `count` `[B]` pairs, of which the last is the root's."""
    last = ragged.take_one(hidden, jnp.maximum(count - 1, 0))
    kept = ragged.select(count > 0, last, state.hidden)
    return State(carry, kept, state.due & (count == 0))


def _read(
    head: DraftHead, params, carry, tape: Tape, tree: TokenTree, start: int, stop: int
) -> tuple[Tape, Array]:
    """Reads slots of a tree, all but the root, which was read when it was emitted."""
    first = max(start, 1)
    if first < stop:
        size = tape.hidden.shape[1]
        tree = TokenTree(tree.tokens[:, :size], tree.parents[:, :size])
        above = jnp.maximum(tree.parents[:, first:stop], 0)
        nodes, hidden = head.extend_tree(
            params,
            carry,
            tape.nodes,
            tree,
            ragged.take(tape.hidden, above),
            first,
            stop,
        )
        tape = Tape(nodes, tape.hidden.at[:, first:stop].set(hidden))
    return tape, head.logits(params, tape.hidden[:, start:stop])

"""A draft model: a small language model, and a builder that grows trees by it.

The nodes are read through `extend_tree`, so no state is copied per branch, and the
drafter's own carry is rolled back like the target's. Which trees there are is the
builder's: `static`, `beam`, `dyspec`, `best_first`.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec import checks, ragged
from jaxspec.core import Context, Draft, Drafter, LanguageModel, Outcome
from jaxspec.drafting.builder import Builder, Reader
from jaxspec.drafting.static import static_tree
from jaxspec.trees import TokenTree

Array = jax.Array


class Trimmed(NamedTuple):
    """Params of a draft model with a head of fewer tokens (see `drafting.vocabulary`).

    Attributes:
        params: the model's; its `logits` are of `V'` tokens.
        vocab_ids: `[V']` int32, the tokens, ascending; None for all.
    """

    params: Any
    vocab_ids: Array | None


class State(NamedTuple):
    """The draft model's past; what is between `propose` and `observe`, else None."""

    carry: Any
    tape: Any
    slots: Array | None  # [B, N] of the draft's nodes on the tape, -1 if not read


def draft_model(
    model: LanguageModel,
    builder: Builder | Sequence[int] = (1,) * 4,
    temperature: float | None = None,
) -> Drafter:
    """Makes a drafter of a language model.

    Args:
        model: any `LanguageModel` of the target's vocabulary (`with_vocab_size` where its
            table is padded otherwise); its params may be `Trimmed`.
        builder: grows the trees; or children of each node, level by level, the model's
            likeliest: `(1, 1, 1, 1)` is a chain of four, `(3, 2, 1)` a tree of 15 nodes
            besides the root.
        temperature: what the model is sampled at; the target's by default. Greedy rows are
            drafted greedily, their laws at this temperature, or 1.

    Raises:
        ValueError: if the model cannot keep paths as long, or has fewer tokens than a
            node has children; when traced, if a trimmed head has.
    """
    checks.record("model", model, LanguageModel)
    builder = as_builder(builder)
    if temperature is not None and not temperature > 0.0:
        raise ValueError(f"The draft's temperature is positive, got {temperature}.")
    if builder.min_vocab > model.vocab_size:
        raise ValueError(
            f"The builder draws {builder.min_vocab} children at a node, and the model "
            f"has {model.vocab_size} tokens."
        )
    if model.max_path < builder.max_path:
        raise ValueError(
            f"The draft model keeps paths of {model.max_path} nodes, and the builder "
            f"makes paths of {builder.max_path}; raise the model's max_path."
        )
    return _draft_model(model, builder, temperature)


@functools.cache
def _draft_model(
    model: LanguageModel, builder: Builder, temperature: float | None
) -> Drafter:
    def init(params, batch_size: int, max_length: int) -> State:
        params = head_for(builder, params).params
        return State(model.init_carry(params, batch_size, max_length), None, None)

    def absorb(
        params, state: State, tokens: Array, hidden: Array, lengths: Array
    ) -> State:
        del hidden
        params = whole(params).params
        carry, _ = model.scan(params, state.carry, tokens, lengths)
        return State(carry, None, None)

    def propose(params, state: State, context: Context) -> tuple[State, Draft]:
        params, vocab_ids = head_for(builder, params)
        carry = model.prepare(params, state.carry)
        tape = model.init_tape(params, len(context.lengths), builder.num_read)
        reader = Reader(
            functools.partial(read, model, params, carry, builder.num_read),
            vocab_ids,
            model.vocab_size,
        )
        if temperature is not None:
            own = jnp.where(context.sampling.is_drawn, temperature, 0.0)
            settings = context.sampling._replace(temperature=own)
            context = context._replace(sampling=settings)
        built = builder.build(reader, tape, context)
        return State(carry, built.tape, built.slots), built.draft

    def observe(params, state: State, outcome: Outcome) -> State:
        carry = keep(model, whole(params).params, state, outcome, most=1)
        return State(carry, None, None)

    return Drafter(init, absorb, propose, observe, builder.max_path, model.vocab_size)


def as_builder(builder: Builder | Sequence[int]) -> Builder:
    """The builder, or that of a static tree of so many children level by level."""
    if callable(builder) or isinstance(builder, Drafter):
        checks.record("builder", builder, Builder)
    return builder if isinstance(builder, Builder) else static_tree(builder)


def read(
    model: LanguageModel,
    params,
    carry,
    num_read: int,
    tape,
    tree: TokenTree,
    start: int,
    stop: int,
) -> tuple[Any, Array]:
    """Reads slots of a tree: the tape after, and logits `[B, stop - start, V']`."""
    tree = TokenTree(tree.tokens[:, :num_read], tree.parents[:, :num_read])
    tape, hidden = model.extend_tree(params, carry, tape, tree, start, stop)
    return tape, model.logits(params, hidden)


def keep(
    model: LanguageModel, params, state: State, outcome: Outcome, most: int
) -> Any:
    """Commits the accepted path, and reads its last nodes where they were not.

    Args:
        model: the draft model.
        params: its params.
        state: between `propose` and `observe`.
        outcome: of the draft.
        most: nodes at the end of a path that may not have been read.

    Returns:
        The carry after.

    Raises:
        ValueError: if the state has no draft.
    """
    if state.slots is None:
        raise ValueError(
            "Expected a state between propose and observe, got one without a draft."
        )
    path = outcome.verdict.path
    on_path = path >= 0
    slots = ragged.take(state.slots, jnp.maximum(path, 0))
    known = on_path & (slots >= 0)
    carry = model.commit(state.carry, state.tape, jnp.where(known, slots, -1))
    unread = on_path & ~known
    count = jnp.sum(unread, axis=1, dtype=jnp.int32)
    first = jnp.sum(known, axis=1, dtype=jnp.int32)[:, None]
    places = jnp.minimum(first + jnp.arange(most)[None], path.shape[1] - 1)
    nodes = jnp.maximum(ragged.take(path, places), 0)
    tokens = ragged.take(outcome.tree.tokens, nodes)
    return jax.lax.cond(
        jnp.any(count > 0),
        lambda carry: model.scan(params, carry, tokens, count)[0],
        lambda carry: carry,
        carry,
    )


def whole(params) -> Trimmed:
    """Params with the tokens of their head, None for all."""
    return params if isinstance(params, Trimmed) else Trimmed(params, None)


def head_for(builder: Builder, params) -> Trimmed:
    """Params as in `whole`, of a head with as many tokens as a node has children.

    Raises:
        ValueError: if a trimmed head has fewer.
    """
    found = whole(params)
    if found.vocab_ids is not None and len(found.vocab_ids) < builder.min_vocab:
        raise ValueError(
            f"The builder draws {builder.min_vocab} children at a node, and the trimmed "
            f"head has {len(found.vocab_ids)} tokens; draw fewer, or keep more."
        )
    return found

"""A draft model: a small language model that proposes its likeliest continuations.

A node's children are its law's top tokens, in a topology fixed beforehand: a chain, or a
static tree (SpecInfer 2023, EAGLE 2024). The levels are run through `extend_tree`, so no
state is copied per branch, and the drafter's own carry is rolled back like the target's.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec import partition, rows, trees
from jaxspec.core import Draft, Drafter, LanguageModel, Verdict, deterministic_draft
from jaxspec.trees import TokenTree

Array = jax.Array


class State(NamedTuple):
    """The draft model's past; its tape between `propose` and `observe`, else None."""

    carry: Any
    tape: Any


def draft_model(model: LanguageModel, branching: Sequence[int] = (1,) * 4) -> Drafter:
    """Makes a drafter of a language model.

    Args:
        model: any `LanguageModel` of the target's vocabulary.
        branching: children of each node, level by level: `(1, 1, 1, 1)` is a chain of
            four, `(3, 2, 1)` a tree of 15 nodes besides the root.

    Raises:
        ValueError: if the model cannot keep paths as long, or has fewer tokens than a
            node has children.
    """
    branching = tuple(int(children) for children in branching)
    max_path = len(branching) + 1
    if not branching or max(branching) > model.vocab_size:
        raise ValueError(
            f"Expected a branching of 1 to {model.vocab_size} children, got {branching}."
        )
    if model.max_path < max_path:
        raise ValueError(
            f"The draft model keeps paths of {model.max_path} nodes, and the branching "
            f"{branching} makes paths of {max_path}; raise its max_path."
        )
    return _draft_model(model, branching)


@functools.cache
def _draft_model(model: LanguageModel, branching: tuple[int, ...]) -> Drafter:
    parents = trees.from_branching(branching)
    max_path = len(branching) + 1
    ends = np.cumsum([1, *np.cumprod(branching)])  # of the levels
    levels = [(int(a), int(b)) for a, b in zip([0, *ends], ends, strict=False)]
    leaves = levels[-1][0]

    def init(params, prompt: Array, lengths: Array, max_length: int) -> State:
        carry = model.init_carry(params, len(prompt), max_length)
        carry, _ = model.scan(params, carry, prompt, lengths - 1)
        return State(carry, None)

    def propose(params, keys: Array, state: State, root: Array) -> tuple[State, Draft]:
        del keys
        batch = len(root)
        carry = model.prepare(params, state.carry)
        tape = model.init_tape(params, batch, len(parents))
        shape = (batch, len(parents))
        tokens = jnp.zeros(shape, jnp.int32).at[:, 0].set(root)
        tree = TokenTree(tokens, jnp.broadcast_to(parents[None], shape))
        for width, (start, stop) in zip(branching, levels, strict=False):
            tape, hidden = model.extend_tree(params, carry, tape, tree, start, stop)
            logits = model.logits(params, hidden)
            best = partition.by_rows(  # [B, stop - start, width]
                lambda logits, k=width: jax.lax.top_k(logits, k)[1],
                logits,
                over=partition.AXES,
            )
            tokens = jax.lax.dynamic_update_slice_in_dim(
                tree.tokens, best.reshape(batch, -1), stop, axis=1
            )
            tree = tree.replace(tokens=tokens)
        return State(carry, tape), deterministic_draft(tree, max_path)

    def observe(
        params, state: State, draft: Draft, verdict: Verdict, hidden, logits
    ) -> State:
        del hidden, logits
        # The model has not read the leaves: an accepted one is absorbed by itself.
        path = verdict.path
        read = path < leaves
        carry = model.commit(state.carry, state.tape, jnp.where(read, path, -1))
        leaf = jnp.max(jnp.where(read, 0, path), axis=1)
        token = rows.take_one(draft.tree.tokens, leaf)
        unread = (leaf > 0).astype(jnp.int32)
        carry = jax.lax.cond(
            jnp.any(unread > 0),
            lambda carry: model.scan(params, carry, token[:, None], unread)[0],
            lambda carry: carry,
            carry,
        )
        return State(carry, None)

    return Drafter(init, propose, observe, max_path, model.vocab_size)

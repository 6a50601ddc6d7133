"""A `LanguageModel` of a pure step function: how a model of one's own joins.

All that is needed is the recurrence, and the state as a value,

    s_t, h_t = step(params, s_{t-1}, token_t)

A tree is run level by level, a state per node (`snapshot`): the weights are read once a
level, and a path is kept by keeping its last node's state. Nothing else is asked of the
model: an nnx module joins by `nnx.split` and `nnx.merge`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec import checks, ragged, trees
from jaxspec.core import LanguageModel


@functools.cache
def from_step(
    step: Callable[[Any, Any, jax.Array], tuple[Any, jax.Array]],
    init_state: Callable[[Any, int], Any],
    logits: Callable[[Any, jax.Array], jax.Array],
    *,
    vocab_size: int,
    max_path: int = 8,
    init: Callable[[jax.Array], Any] | None = None,
) -> LanguageModel:
    """Makes a `LanguageModel` of a recurrence.

    The functions must be pure and batched, row by row independent. The record is a static
    argument of compiled loops: of the same functions it is the same record.

    Args:
        step: `params, state, token [B] -> state, hidden [B, C]`; the state keeps its
            structure, shapes and dtypes.
        init_state: `params, batch_size -> state`, a pytree of arrays `[B, ...]`.
        logits: `params, hidden [..., C] -> [..., V]`.
        vocab_size: `V`.
        max_path: the longest path that can be committed, in nodes.
        init: `key -> params`, if the model is to be trained.

    Raises:
        ValueError: if `max_path` or `vocab_size` is not positive; when traced, if a leaf of
            the state has no batch axis, a step changes the structure, shapes or dtypes of
            the state, or hidden or logits have other shapes.
    """
    for name, value in (("vocab_size", vocab_size), ("max_path", max_path)):
        if value < 1:
            raise ValueError(f"{name} must be positive, got {value}.")

    def init_carry(params, batch_size, max_length, speculative=True):
        _check_batched(init_state, params, batch_size)
        return init_state(params, batch_size)

    def advance(params, carry, token):
        new, hidden = step(params, carry, token)
        _check_same(carry, new)
        checks.require(
            hidden.ndim == 2 and len(hidden) == len(token),
            f"Expected a hidden [{len(token)}, C] of a step, got {hidden.shape}.",
        )
        return new, hidden

    def logits_of(params, hidden):
        found = logits(params, hidden)
        rows = hidden.shape[:-1]  # as wide as a trimmed head; loops check the target's
        checks.require(
            found.shape[:-1] == rows,
            f"Expected logits of shape {(*rows, vocab_size)}, got {found.shape}.",
        )
        return found.astype(jnp.float32)

    def scan(params, carry, tokens, lengths):
        def body(carry, inputs):
            token, position = inputs
            new, hidden = advance(params, carry, token)
            return _select(position < lengths, new, carry), hidden

        positions = jnp.arange(tokens.shape[1])
        carry, hidden = jax.lax.scan(body, carry, (tokens.T, positions))
        return carry, jnp.swapaxes(hidden, 0, 1)

    def init_tape(params, batch_size, num_nodes):
        return jax.tree.map(
            lambda leaf: jnp.repeat(jnp.zeros_like(leaf)[:, None], num_nodes, axis=1),
            init_state(params, batch_size),
        )

    def extend_tree(params, carry, tape, tree, start, stop):
        trees.check(tree)
        batch, size = tree.parents.shape[0], stop - start
        parents, tokens = tree.parents[:, start:stop], tree.tokens[:, start:stop]
        depth = trees.depth(tree)[:, start:stop]

        def run(tape):
            """All these slots, from the states of their parents as the tape has them."""
            above = jax.tree.map(
                lambda nodes, root: ragged.select(
                    parents.reshape(-1) >= 0,
                    _flat(ragged.take(nodes, jnp.maximum(parents, 0))),
                    _flat(jnp.repeat(root[:, None], size, axis=1)),
                ),
                tape,
                carry,
            )
            new, hidden = advance(params, above, tokens.reshape(-1))
            return new, hidden.reshape(batch, size, -1)

        def level(past):
            now, tape, hidden = past
            new, found = run(tape)
            here = depth == now
            tape = jax.tree.map(
                lambda nodes, own: nodes.at[:, start:stop].set(
                    ragged.select(
                        here.reshape(-1), own, _flat(nodes[:, start:stop])
                    ).reshape(batch, size, *own.shape[1:])
                ),
                tape,
                new,
            )
            return now + 1, tape, jnp.where(here[..., None], found, hidden)

        shape = jax.eval_shape(run, tape)[1]
        first, last = jnp.min(depth), jnp.max(depth)
        past = first, tape, jnp.zeros(shape.shape, shape.dtype)
        _, tape, hidden = jax.lax.while_loop(lambda past: past[0] <= last, level, past)
        return tape, hidden

    def scan_tree(params, carry, tree):
        batch, num_nodes = trees.check(tree).parents.shape
        tape = init_tape(params, batch, num_nodes)
        return carry, *extend_tree(params, carry, tape, tree, 0, num_nodes)

    def keep(tape, slots):
        def take(nodes):
            taken = ragged.take(nodes, jnp.maximum(slots, 0))
            kept = (slots >= 0).reshape(*slots.shape, *[1] * (nodes.ndim - 2))
            return jnp.where(kept, taken, jnp.zeros_like(taken))

        return jax.tree.map(take, tape)

    def commit(carry, tape, path):
        count = jnp.sum(path >= 0, axis=1)
        last = jnp.take_along_axis(path, jnp.maximum(count - 1, 0)[:, None], axis=1)
        kept = jax.tree.map(
            lambda nodes: ragged.take_one(nodes, jnp.maximum(last[:, 0], 0)), tape
        )
        return _select(count > 0, kept, carry)

    return LanguageModel(
        init=_no_init if init is None else init,
        init_carry=init_carry,
        step=advance,
        scan=scan,
        prepare=lambda params, carry: carry,
        init_tape=init_tape,
        extend_tree=extend_tree,
        scan_tree=scan_tree,
        keep=keep,
        commit=commit,
        logits=logits_of,
        vocab_size=vocab_size,
        max_path=max_path,
    )


def _flat(nodes: jax.Array) -> jax.Array:
    """Nodes `[B, n, ...]` as rows."""
    return nodes.reshape(-1, *nodes.shape[2:])


def _select(condition: jax.Array, on_true: Any, on_false: Any) -> Any:
    return jax.tree.map(lambda a, b: ragged.select(condition, a, b), on_true, on_false)


def _check_batched(
    init_state: Callable[[Any, int], Any], params: Any, batch_size: int
) -> None:
    """Refuses a state of which a leaf is not `[B, ...]`, whatever the batch size."""
    for size in (batch_size, batch_size + 1):
        state = jax.eval_shape(
            lambda params, size=size: init_state(params, size), params
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(state):
            checks.require(
                leaf.shape[:1] == (size,),
                f"Expected a leaf of the state as [{size}, ...] for {size} rows, got "
                f"{list(leaf.shape)} at {jax.tree_util.keystr(path) or 'its root'}; what "
                "all rows share belongs to params.",
            )


def _check_same(old: Any, new: Any) -> None:
    before, after = (jax.tree.map(jax.typeof, state) for state in (old, new))
    if before != after:
        raise ValueError(
            f"A step must keep the state's structure, shapes and dtypes; it was {before} "
            f"and became {after}."
        )


def _no_init(key: jax.Array) -> Any:
    raise ValueError("This model was made without `init`; bring its params.")

"""What grows a tree by a draft model: the contract between the two.

A builder decides which nodes there are; it reads some of them through the model and draws
their children from what the model says. Slots are numbered in the order in which they are
made, so that a model reads a run of them at a time, their parents on its tape. A tree may
depend on anything that was known before a token was drawn, and on nothing that is known
only after: that is what keeps the target's law (see `verification`). The same holds of the
scores by which a budget cuts the tree (`Draft.score`, `drafting.survival`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec import mesh, ragged, sampling
from jaxspec.core import Context, Draft
from jaxspec.trees import TokenTree

Array = jax.Array

NOISES = ("own", "shared")


class Reader(NamedTuple):
    """A draft model in front of one tree.

    Attributes:
        read: reads some slots of the tree.
        vocab_ids: `[V']` int32, the tokens of a trimmed head; None for all.
        vocab_size: `V`.
    """

    read: Read
    vocab_ids: Array | None
    vocab_size: int


class Read(Protocol):
    """`Reader.read`."""

    def __call__(
        self, tape: Any, tree: TokenTree, start: int, stop: int, /
    ) -> tuple[Any, Array]:
        """Reads some slots of a tree whose parents are on the tape.

        Args:
            tape: of the draft model.
            tree: of as many slots as the tape, or more.
            start: the first slot, static.
            stop: the slot after the last, static.

        Returns:
            The tape after, and logits `[B, stop - start, V']` float32.
        """
        ...


class Built(NamedTuple):
    """A draft, and where its nodes are on the draft model's tape.

    Attributes:
        tape: of the model.
        draft: the tree and its laws.
        slots: `[B, N]` int32 slot of each node on the tape, -1 if it was not read.
    """

    tape: Any
    draft: Draft
    slots: Array


class Builder(NamedTuple):
    """Grows trees of draft tokens.

    Attributes:
        build: makes a draft.
        num_nodes: `N`, slots of the draft.
        num_read: slots of the tape.
        max_path: nodes on the longest path, the root included.
        min_vocab: columns that a head must have, where nodes have as many children in any
            case; else 1.
    """

    build: Build
    num_nodes: int
    num_read: int
    max_path: int
    min_vocab: int


class Build(Protocol):
    """`Builder.build`."""

    def __call__(self, reader: Reader, tape: Any, context: Context, /) -> Built:
        """Makes a draft by reading nodes and drawing their children.

        Slots that no row's budget reaches need not be read nor drawn (`when`); what is in
        them will be cut.

        Args:
            reader: the draft model.
            tape: its own, of `num_read` empty slots.
            context: the texts to continue.
        """
        ...


def start(root: Array, num_nodes: int) -> TokenTree:
    """A tree of the root alone, with free slots."""
    shape = (len(root), num_nodes)
    tokens = jnp.zeros(shape, jnp.int32).at[:, 0].set(root)
    return TokenTree(tokens, jnp.full(shape, TokenTree.NO_PARENT, jnp.int32))


def grow(tree: TokenTree, at: int, tokens: Array, parents: Array) -> TokenTree:
    """Fills slots from `at` on with tokens and parents `[B, n]`, -1 for no node."""
    put = jax.lax.dynamic_update_slice_in_dim
    parents = parents.astype(jnp.int32)
    return TokenTree(
        put(tree.tokens, jnp.where(parents >= 0, tokens, 0), at, axis=1),
        put(tree.parents, parents, at, axis=1),
    )


def when(needed: Array, f: Callable[[Any], Any], tape: Any, fill: float = 0.0) -> Any:
    """`f(tape)`, a tape and what was drawn; or the tape and `fill`, if it is not needed.

    Args:
        needed: one bool.
        f: reads and draws a level: `tape -> tape, arrays`.
        tape: of the draft model.
        fill: in place of floats that are not drawn; integers are 0.
    """

    def skip(tape):
        def filled(leaf):
            value = fill if jnp.issubdtype(leaf.dtype, jnp.floating) else 0
            return jnp.full(leaf.shape, value, leaf.dtype)

        return tape, jax.tree.map(filled, jax.eval_shape(f, tape)[1])

    return jax.lax.cond(needed, f, skip, tape)


def read_level(
    reader: Reader,
    tape: Any,
    tree: TokenTree,
    slots: range,
    draw: Callable[..., Any],
    *rows: Any,
    needed: Array,
    fill: float = 0.0,
) -> tuple[Any, Any]:
    """Reads a run of slots and draws what is below them, if any row has room for it.

    Args:
        reader: the draft model.
        tape: its own.
        tree: that the slots are of.
        slots: a run of them.
        draw: `logits [B, n, V'], *rows, vocab_ids -> arrays`, every row alone.
        *rows: what else it takes, in pytrees of `[B, ...]`.
        needed: one bool, from `reaches`.
        fill: in place of floats that are not drawn; integers are 0.

    Returns:
        The tape after, and what was drawn.
    """

    def descend(tape):
        tape, logits = reader.read(tape, tree, slots.start, slots.stop)
        shared = (reader.vocab_ids,)
        return tape, mesh.by_rows(draw, logits, *rows, shared=shared, over=mesh.AXES)

    return when(needed, descend, tape, fill)


def reaches(context: Context, depth: int | np.ndarray) -> Array:
    """Tells if any row's budget has room for a path down to a depth, or to several."""
    return jnp.max(context.budget) >= depth  # on a mesh one exchange for all levels


def token_ids(tokens: Array, vocab_ids: Array | None) -> Array:
    """From columns of a trimmed head to tokens."""
    return tokens if vocab_ids is None else vocab_ids[tokens]


def read_slots(tree: TokenTree, num_read: int) -> Array:
    """Slots `[B, N]` on a tape of the first `num_read` slots, -1 where there is no node."""
    slots = jnp.arange(tree.num_nodes, dtype=jnp.int32)[None]
    return jnp.where(tree.is_node & (slots < num_read), slots, -1)


def law_logits(logits: Array, settings: sampling.Sampling) -> Array:
    """Filtered logits `[B, n, V]` over the temperature, of largest 0; over 1 if greedy."""
    needs = sampling.needs(settings)
    nodes = jax.vmap(sampling.law_logits, (0, None, None))
    return jax.vmap(nodes, (0, 0, None))(logits, settings, needs)


def node_keys(keys: Array, settings: sampling.Sampling, slots: Array) -> Array:
    """Keys `[B, n]` of the draws at some slots `[n]`, used in this step only."""

    def row(key, position):
        key = sampling.noise_key(key, sampling.Role.DRAFT, position)
        return jax.vmap(jax.random.fold_in, (None, 0))(key, slots)

    return jax.vmap(row)(keys, settings.position)


def emission_noise(
    key: Array, position: Array, vocab_ids: Array | None, vocab_size: int
) -> Array:
    """What emission adds at a position to the columns of a head, `[V']`, in one row."""
    noise = sampling.emission_noise(key, position, vocab_size)
    return noise if vocab_ids is None else noise[vocab_ids]


def by_temperature(
    settings: sampling.Sampling,
    drawn: Callable[[], Any],
    likeliest: Callable[[], Any],
) -> Any:
    """`drawn()` in rows that sample, `likeliest()` in greedy ones, both `[B, ...]`.

    What no row asks for is not computed.
    """
    sampled = settings.is_drawn
    nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(likeliest))
    greedy = jax.lax.cond(jnp.all(sampled), lambda: nothing, likeliest)

    def choose():
        return jax.tree.map(functools.partial(ragged.select, sampled), drawn(), greedy)

    return jax.lax.cond(jnp.any(sampled), choose, lambda: greedy)

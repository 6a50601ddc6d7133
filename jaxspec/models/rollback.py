"""What a recurrent layer keeps so that rejected drafts leave no trace.

The records say which way it is, so that no function needs to be told:

    rollback   carry                      tape, per node        commit
    snapshot   state                      state                 picks the last node's
    replay     state                      inputs                folds the path's
    lazy       state + ring of inputs     inputs                appends the path's
    joint      as replay; the model keeps the path's *tokens* and runs them again

(Snakes and Ladders 2025: joint attainment and advancement, activation replay. Appending
to a ring on a tree is ours; ReplaySSM 2026 does it on a chain.)
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec import rows
from jaxspec.models import conv, layers

Rollback = Literal["auto", "snapshot", "replay", "lazy", "joint"]
ROLLBACKS = ("snapshot", "replay", "lazy", "joint")


class Carry(NamedTuple):
    """The past of a recurrent layer.

    Attributes:
        tail: `[B, K - 1, E]` last inputs of the convolution.
        state: `[B, ...]` float32.
        ring: records of the tokens that came after `state`, `[B, W, ...]`, or None.
    """

    tail: jax.Array
    state: jax.Array
    ring: Any


class Tape(NamedTuple):
    """What the nodes of a tree leave behind for `commit`.

    Attributes:
        conv: `[B, N, E]` inputs of the convolution.
        inputs: records of the nodes, `[B, N, ...]`, or None under snapshot.
        states: `[B, N, ...]` float32 state after each node under snapshot, else None.
        A: decay rates, so that replay needs no params to fold, else None.
    """

    conv: jax.Array
    inputs: Any
    states: jax.Array | None
    A: jax.Array | None


def resolve(rollback: Rollback) -> str:
    """Turns `"auto"` into the rollback to use.

    `"lazy"` saves the write of the state in most steps, but only where a kernel writes
    it under a predicate: XLA's conditional copies the state either way. No such kernel
    is here yet, and `jaxspec bench rollback` finds `"replay"` ahead at every batch size
    (README, Rollback), so `"auto"` is `"replay"`.

    Raises:
        ValueError: on an unknown name.
    """
    if rollback == "auto":
        return "replay"
    if rollback not in ROLLBACKS:
        raise ValueError(
            f"Unknown rollback {rollback!r}; expected auto or one of {ROLLBACKS}."
        )
    return rollback


def commit(
    carry: Carry, tape: Tape, path: layers.Path, fold: Callable[..., jax.Array]
) -> Carry:
    """Keeps a path; `fold(state, A, inputs)` advances a state over a chain."""
    tail = conv.advance(carry.tail, tape.conv, path)
    if tape.states is not None:
        last = rows.take_one(path.nodes, jnp.maximum(path.count - 1, 0))
        state = rows.take_one(tape.states, last)
        state = rows.select(path.count > 0, state, carry.state)
        return Carry(tail, state, carry.ring)
    inputs = jax.tree.map(lambda leaf: layers.take_path(leaf, path), tape.inputs)
    if carry.ring is not None:
        ring = jax.tree.map(
            lambda ring, new: rows.write(ring, new, path.ring_length),
            carry.ring,
            inputs,
        )
        return Carry(tail, carry.state, ring)
    return Carry(tail, fold(carry.state, tape.A, inputs), None)


def fold_ring(
    carry: Carry, chosen: jax.Array, A: jax.Array, fold: Callable[..., jax.Array]
) -> Carry:
    """Folds the whole ring into the state in the chosen rows `[B]`, and empties it."""
    state = rows.select(chosen, fold(carry.state, A, carry.ring), carry.state)
    empty = jax.tree.map(jnp.zeros_like, carry.ring)
    ring = jax.tree.map(
        lambda new, old: rows.select(chosen, new, old), empty, carry.ring
    )
    return Carry(carry.tail, state, ring)

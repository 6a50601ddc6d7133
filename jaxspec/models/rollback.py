"""What a recurrent layer keeps so that rejected drafts leave no trace.

The records say which way it is, so that no function needs to be told:

    rollback   carry                      tape, per node        commit
    snapshot   state                      state                 picks the last node's
    replay     state                      inputs                folds the path's
    lazy       state + ring of inputs     inputs                appends the path's
    joint      any of these; `joint.py` keeps the path's *tokens* and runs them again

(Snakes and Ladders 2025: joint attainment and advancement, activation replay. Appending
to a ring on a tree is ours; ReplaySSM 2026 does it on a chain.)
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec import rows
from jaxspec.models import conv, finite, layers, layout
from pallas_kernels import DeltaInputs, Inputs, Ring, tree_path

Records = Inputs | DeltaInputs
Fold = Callable[[jax.Array, Records], jax.Array]  # state, records of a chain -> state

Rollback = Literal["auto", "snapshot", "replay", "lazy", "joint"]
ROLLBACKS = ("snapshot", "replay", "lazy", "joint")


class Carry(NamedTuple):
    """The past of a recurrent layer.

    Attributes:
        tail: `[B, K - 1, E]` last inputs of the convolution, perhaps in parts.
        state: `[B, ...]` float32.
        ring: records of the tokens that came after `state`, `[B, W, ...]`, or None. The
            model knows how many; the rest is left over from before.
    """

    tail: Any
    state: jax.Array
    ring: Any


class Tape(NamedTuple):
    """What the nodes of a tree leave behind for `commit`.

    Attributes:
        conv: `[B, N, E]` inputs of the convolution, perhaps in parts.
        inputs: records of the nodes, `[B, N, ...]`, or None under snapshot.
        states: `[B, N, ...]` float32 state after each node under snapshot, else None.
        A: Mamba's decay rates, so that replay needs no params to fold, else None.
    """

    conv: Any
    inputs: Any
    states: jax.Array | None
    A: jax.Array | None


def resolve(rollback: Rollback) -> str:
    """Turns `"auto"` into the rollback to use.

    `"lazy"` saves the write of the state in most steps where a kernel writes it under a
    predicate: XLA's conditional copies the state either way, and on a CPU `jaxspec bench
    rollback` finds `"replay"` ahead at every batch size (README, Rollback). The batch
    from which `"lazy"` wins on an accelerator has not been measured, so `"auto"` is
    `"replay"` everywhere; `jaxspec bench kernels` is what measures it.

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


def put(carry: Carry, tail: Any, state: jax.Array, layer: jax.Array | None) -> Carry:
    """Replaces a layer's past; the ring is empty and stays so."""
    return carry._replace(
        tail=layers.put(carry.tail, tail, layer),
        state=layers.put(carry.state, state, layer),
    )


def read(
    op: Any,
    read_states: Callable[[jax.Array], jax.Array],
    carry: Carry,
    tape: Tape,
    new: Records,
    args: tuple[jax.Array, ...],
    context: layers.TreeContext,
    layer: jax.Array | None,
    **settings: Any,
) -> tuple[tuple[Carry, Tape], jax.Array]:
    """Runs new nodes of a tree: what they leave behind, and what they read.

    Args:
        op: `tree_ssd`, `tree_scan` or `tree_delta`.
        read_states: `states -> y`, for states that are there already.
        carry: of the layer, or of all.
        tape: likewise.
        new: records of the nodes, to be solved where they are the delta rule's.
        args: what `op` takes beside records and the past; first what its `node_states`
            takes: Mamba's decay rates, the delta rule's `beta`.
        context: of the tree.
        layer: index of the layer, None if there is one.
        **settings: of `op.read` and `op.verify`.
    """
    start, topology = context.start, context.topology
    if tape.states is not None:
        known = layers.at(tape.states, layer)[:, :start]
        state, parents = layers.at(carry.state, layer), topology.parents[:, start:]
        states = op.node_states(parents, new, args[0], state, known)
        record, _ = layers.put_slots(tape.states, states, start, layer)
        return (carry, tape._replace(states=record)), read_states(states)
    if tape.A is not None:
        tape = tape._replace(A=layers.put(tape.A, args[0], layer))
    inputs = layers.join_slots(tape.inputs, new, start, layer)
    ring = None if carry.ring is None else Ring(carry.ring, context.ring_length)
    args = topology, inputs, *args, carry.state, ring
    if context.fold is None:
        found = op.read(*args, layer=layer, **settings)
    else:
        found, state = op.verify(*args, context.fold, layer=layer, **settings)
        carry = carry._replace(state=state)
    new, y = new.complete(found)
    record, _ = layers.put_slots(tape.inputs, new, start, layer)
    return (carry, tape._replace(inputs=record)), y


def commit(
    carry: Carry,
    tape: Tape,
    path: layers.Path,
    fold: Fold,
    parts: layout.Parts,
) -> Carry:
    """Keeps a path.

    Args:
        carry: of the layer.
        tape: of the layer.
        path: what is kept.
        fold: advances a state over a chain.
        parts: into how many a mesh can cut the records.
    """
    tail = conv.advance(carry.tail, tape.conv, path, parts)
    sound = path.finite[:, None, None]  # the tape was shielded, the past is to tell
    tail = jax.tree.map(lambda leaf: finite.spoil(leaf, sound), tail)
    if tape.states is not None:
        last = rows.take_one(path.nodes, jnp.maximum(path.count - 1, 0))
        state = rows.take_one(tape.states, last)
        state = rows.select(path.count > 0, state, carry.state)
        return Carry(tail, state, carry.ring)
    cuts = _cuts(tape, parts)
    if carry.ring is not None:
        ring = jax.tree.map(
            lambda ring, new, parts: tree_path.append(
                ring, new, path.slots, path.ring_length, parts=parts
            ),
            carry.ring,
            tape.inputs,
            cuts,
        )
        return Carry(tail, carry.state, ring)
    inputs = jax.tree.map(
        lambda leaf, parts: layers.take_path(leaf, path, parts),
        tape.inputs,
        cuts,
    )
    return Carry(tail, fold(carry.state, inputs), None)


def keep(tape: Tape, slots: jax.Array, parts: layout.Parts) -> Tape:
    """Gathers slots `[B, K]` of a layer's tape, -1 for room; decay rates have none."""
    take = functools.partial(_take, slots=slots)
    kept = tape._replace(
        conv=jax.tree.map(take, tape.conv, conv.cuts(tape.conv, parts))
    )
    if tape.states is not None:
        states = rows.take(tape.states, jnp.maximum(slots, 0))
        is_kept = (slots >= 0).reshape(*slots.shape, *[1] * (states.ndim - 2))
        return kept._replace(states=jnp.where(is_kept, states, 0))
    return kept._replace(inputs=jax.tree.map(take, tape.inputs, _cuts(tape, parts)))


def _take(nodes: jax.Array, parts: int, slots: jax.Array) -> jax.Array:
    return tree_path.take(nodes, slots, parts=parts)


def _cuts(tape: Tape, parts: layout.Parts) -> Records:
    """Into how many parts a mesh can cut each array of the records."""
    return type(tape.inputs)(parts.heads, parts.heads, parts.keys)


def fold_ring(carry: Carry, chosen: jax.Array, length: jax.Array, fold: Fold) -> Carry:
    """Folds the first `length` entries of the ring into the state in the chosen rows."""
    folded = fold(carry.state, Ring(carry.ring, length).live())
    return carry._replace(state=rows.select(chosen, folded, carry.state))

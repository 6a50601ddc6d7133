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

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax

from jaxspec.models import layered, places
from pallas_kernels import DeltaInputs, Inputs, Ring

Records = Inputs | DeltaInputs

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
        tail=layered.put(carry.tail, tail, layer),
        state=layered.put(carry.state, state, layer),
    )


def read(
    op: Any,
    read_states: Callable[[jax.Array], jax.Array],
    carry: Carry,
    tape: Tape,
    new: Records,
    *,
    args: tuple[jax.Array, ...],
    context: places.TreeContext,
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
        known = layered.at(tape.states, layer)[:, :start]
        state, parents = layered.at(carry.state, layer), topology.parents[:, start:]
        states = op.node_states(parents, new, args[0], state, known)
        record, _ = layered.put_slots(tape.states, states, start, layer)
        return (carry, tape._replace(states=record)), read_states(states)
    if tape.A is not None:
        tape = tape._replace(A=layered.put(tape.A, args[0], layer))
    inputs = layered.join_slots(tape.inputs, new, start, layer)
    ring = None if carry.ring is None else Ring(carry.ring, context.ring_length)
    settings["layer"] = layer
    if context.fold is None:
        found = op.read(topology, inputs, *args, carry.state, ring, **settings)
    else:
        found, state = op.verify(
            topology, inputs, *args, carry.state, ring, context.fold, **settings
        )
        carry = carry._replace(state=state)
    new, y = new.complete(found)
    record, _ = layered.put_slots(tape.inputs, new, start, layer)
    return (carry, tape._replace(inputs=record)), y

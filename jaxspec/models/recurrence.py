"""The record of a recurrence: how its past and its tape look, and how a state is advanced.

Mamba-1, Mamba-2 and the delta rule fill it in; what is kept of a tree is `rollback.py`'s.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec import ragged
from jaxspec.models import conv, finite, places, rollback, shardings
from jaxspec.models.config import ModelConfig
from pallas_kernels import Ring, tree_path


class Recurrence(NamedTuple):
    """A recurrent mixer, but for its projections.

    Attributes:
        name: of its settings in a config.
        channels: `config, split, *leading -> zeros [*leading, E]`, inputs of the
            convolution, a dict of parts if they are `split`.
        states: `config, *leading -> zeros [*leading, ...]` float32.
        inputs: `config, *leading -> zeros`, records of tokens `[*leading, ...]`.
        rates: `config -> zeros`, the decay rates that `fold` takes, or None.
        fold: `state, rates, inputs -> state`, over the records of a chain.
    """

    name: str
    channels: Callable[..., Any]
    states: Callable[..., jax.Array]
    inputs: Callable[..., rollback.Records]
    rates: Callable[[ModelConfig], jax.Array | None]
    fold: Callable[..., jax.Array]

    def init_carry(
        self,
        config: ModelConfig,
        batch_size: int,
        max_rows: int,
        ring_size: int,
        split: bool,
    ) -> rollback.Carry:
        """An empty past; `max_rows` does not matter to a recurrence."""
        width = getattr(config, self.name).d_conv
        return rollback.Carry(
            tail=self.channels(config, split, batch_size, width - 1),
            state=self.states(config, batch_size),
            ring=self.inputs(config, batch_size, ring_size) if ring_size else None,
        )

    def init_tape(
        self,
        config: ModelConfig,
        batch_size: int,
        num_nodes: int,
        kind: str,
        split: bool,
    ) -> rollback.Tape:
        """An empty tape of a rollback `kind`."""
        shape, snapshot = (batch_size, num_nodes), kind == "snapshot"
        return rollback.Tape(
            conv=self.channels(config, split, *shape),
            inputs=None if snapshot else self.inputs(config, *shape),
            states=self.states(config, *shape) if snapshot else None,
            A=self.rates(config) if kind == "replay" else None,
        )

    def commit(
        self,
        config: ModelConfig,
        carry: rollback.Carry,
        tape: rollback.Tape,
        path: places.Path,
    ) -> rollback.Carry:
        """Keeps the accepted path."""
        parts = shardings.parts(config, self.name)
        tail = conv.advance(carry.tail, tape.conv, path, parts)
        sound = path.finite[:, None, None]  # the tape was shielded, the past is to tell
        tail = jax.tree.map(lambda leaf: finite.spoil(leaf, sound), tail)
        if tape.states is not None:
            last = ragged.take_one(path.nodes, jnp.maximum(path.count - 1, 0))
            state = ragged.take_one(tape.states, last)
            state = ragged.select(path.count > 0, state, carry.state)
            return rollback.Carry(tail, state, carry.ring)
        if carry.ring is not None:
            append = functools.partial(_append, path)
            ring = jax.tree.map(append, carry.ring, tape.inputs, _cuts(tape, parts))
            return rollback.Carry(tail, carry.state, ring)
        inputs = jax.tree.map(path.take, tape.inputs, _cuts(tape, parts))
        return rollback.Carry(tail, self.fold(carry.state, tape.A, inputs), None)

    def keep(
        self, config: ModelConfig, tape: rollback.Tape, slots: jax.Array
    ) -> rollback.Tape:
        """Gathers slots `[B, K]` of a tape, -1 for room; decay rates have none."""
        parts, take = (
            shardings.parts(config, self.name),
            functools.partial(_take, slots),
        )
        channels = jax.tree.map(take, tape.conv, conv.cuts(tape.conv, parts))
        if tape.states is not None:
            states = ragged.take(tape.states, jnp.maximum(slots, 0))
            is_kept = (slots >= 0).reshape(*slots.shape, *[1] * (states.ndim - 2))
            states = jnp.where(is_kept, states, 0)
            return tape._replace(conv=channels, states=states)
        inputs = jax.tree.map(take, tape.inputs, _cuts(tape, parts))
        return tape._replace(conv=channels, inputs=inputs)

    def fold_ring(
        self,
        carry: rollback.Carry,
        rates: jax.Array | None,
        chosen: jax.Array,
        length: jax.Array,
    ) -> rollback.Carry:
        """Folds the first `length` entries of the rings of the chosen rows."""
        folded = self.fold(carry.state, rates, Ring(carry.ring, length).live())
        return carry._replace(state=ragged.select(chosen, folded, carry.state))


def _take(slots: jax.Array, nodes: jax.Array, parts: int) -> jax.Array:
    return tree_path.take(nodes, slots, parts=parts)


def _append(
    path: places.Path, ring: jax.Array, new: jax.Array, parts: int
) -> jax.Array:
    return tree_path.append(ring, new, path.slots, path.ring_length, parts=parts)


def _cuts(tape: rollback.Tape, parts: shardings.Parts) -> rollback.Records:
    """How many parts a mesh can cut each array of the records into."""
    return type(tape.inputs)(parts.heads, parts.heads, parts.keys)


def no_rates(config: ModelConfig) -> None:
    """Nothing: the records of a recurrence hold all that decays."""


def zeros(config: ModelConfig, widths: dict[str, int], split: bool, *leading: int):
    """Empty channels of the convolution: parts of these widths, or all side by side."""
    dtype = jnp.dtype(config.dtype)
    if split:
        return {name: jnp.zeros((*leading, w), dtype) for name, w in widths.items()}
    return jnp.zeros((*leading, sum(widths.values())), dtype)

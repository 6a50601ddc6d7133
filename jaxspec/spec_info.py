"""What is worth reporting of speculative steps."""

import jax
import jax.numpy as jnp
from flax import struct

from jaxspec import ragged
from jaxspec.core import Outcome
from jaxspec.decode_state import DecodeState

Array = jax.Array


class SpecInfo(struct.PyTreeNode):
    """What is only worth reporting; adds up over steps.

    Attributes:
        target_calls: `[B]` int32, steps in which the row was not done.
        drafted: `[B]` int32, draft tokens verified.
        kept: `[B, D]` int32, steps that emitted more than `d` tokens; column 0 is
            `target_calls`.
        from_draft: `[B, L + D]` int8, 1 where a draft supplied the token. That may be
            the last of a text too: a stop or a budget can cut inside an accepted path.
        non_finite: `[B]` int32, tokens emitted by logits that were not finite: NaN or plus
            infinity among them, or minus infinity alone. A sound model has none;
            `metrics.first_non_finite` finds the first.
    """

    target_calls: Array
    drafted: Array
    kept: Array
    from_draft: Array
    non_finite: Array

    def __add__(self, other: "SpecInfo") -> "SpecInfo":
        return jax.tree.map(jnp.add, self, other)


def empty(state: DecodeState, max_path: int) -> SpecInfo:
    """The report of no steps, with paths of `max_path` nodes."""
    batch, width = state.tokens.shape
    return SpecInfo(
        target_calls=jnp.zeros((batch,), jnp.int32),
        drafted=jnp.zeros((batch,), jnp.int32),
        kept=jnp.zeros((batch, max_path), jnp.int32),
        from_draft=jnp.zeros((batch, width), jnp.int8),
        non_finite=jnp.zeros((batch,), jnp.int32),
    )


def report(before: DecodeState, outcome: Outcome) -> SpecInfo:
    """The report of one step.

    Args:
        before: the state that the draft was verified from.
        outcome: of the draft.
    """
    slots = jnp.arange(outcome.tokens.shape[1])[None]
    emitted = slots < outcome.count[:, None]
    accepted = jnp.sum(outcome.kept, axis=1, dtype=jnp.int32)
    from_draft = slots < jnp.minimum(accepted, outcome.count)[:, None]
    lost = emitted & ~jnp.isfinite(outcome.verdict.logprobs)
    nothing = jnp.zeros(before.tokens.shape, jnp.int8)
    return SpecInfo(
        target_calls=(~before.done).astype(jnp.int32),
        drafted=jnp.sum(outcome.tree.parents >= 0, axis=1, dtype=jnp.int32),
        kept=emitted.astype(jnp.int32),
        from_draft=ragged.write(nothing, from_draft, before.lengths),
        non_finite=jnp.sum(lost, axis=1, dtype=jnp.int32),
    )

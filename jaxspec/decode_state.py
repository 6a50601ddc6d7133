"""Texts in the making: the state of the loop."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxspec import ragged, sampling
from jaxspec.core import Context

Array = jax.Array

NO_BUDGET = 2**31 - 1
"""The draft budget of a row whose trees are verified whole."""


class DecodeState(struct.PyTreeNode):
    """A batch of texts in the making: all there is to know, in one pytree.

    Save it between any two steps and go on in another process. No two leaves share a
    buffer, so that the whole of it can be donated.

    Attributes:
        tokens: `[B, L + D]` int32, prompt and output, 0 beyond `lengths`. `L` is the most
            that fits, rounded up; the last `D` columns are room for one more path.
        logprobs: `[B, L + D]` float32, the target's raw log-probability of every emitted
            token; 0 for the prompt.
        lengths: `[B]` int32, tokens so far.
        prompt_lengths: `[B]` int32.
        limits: `[B]` int32, length at which a row is done.
        done: `[B]` bool.
        stops: `[B, K]` int32, tokens that end a row, -1 padded to a few sizes of `K`. A
            stop is emitted.
        draft_budgets: `[B]` int32, draft nodes that a step verifies at most.
        temperature, top_k, top_p: `[B]`, see `sampling.Sampling`.
        keys: `[B]` typed keys, one per text, never consumed.
        carry: the target's past.
        drafter: the drafter's state.
    """

    tokens: Array
    logprobs: Array
    lengths: Array
    prompt_lengths: Array
    limits: Array
    done: Array
    stops: Array
    draft_budgets: Array
    temperature: Array
    top_k: Array
    top_p: Array
    keys: Array
    carry: Any
    drafter: Any

    @property
    def root(self) -> Array:
        """`[B]` int32, the last token of every row."""
        return ragged.take_one(self.tokens, self.lengths - 1)

    @property
    def sampling(self) -> sampling.Sampling:
        """How to sample what comes after the root."""
        return sampling.Sampling(
            self.temperature, self.top_k, self.top_p, self.lengths - 1
        )

    @property
    def context(self) -> Context:
        """The texts as a drafter sees them; rows that are done have no budget."""
        return Context(
            tokens=self.tokens,
            lengths=self.lengths,
            keys=self.keys,
            sampling=self.sampling,
            budget=jnp.where(self.done, 0, self.draft_budgets),
        )


def append(
    state: DecodeState, tokens: Array, logprobs: Array, count: Array
) -> DecodeState:
    """Appends the first `count` `[B]` of tokens `[B, D]`, and marks rows that finish."""
    new = jnp.arange(tokens.shape[1])[None] < count[:, None]
    lengths = state.lengths + count
    stopped = jnp.any(new & is_stop(state, tokens), axis=1)
    tokens, logprobs = jnp.where(new, tokens, 0), jnp.where(new, logprobs, 0.0)
    return state.replace(
        tokens=ragged.write(state.tokens, tokens, state.lengths),
        logprobs=ragged.write(state.logprobs, logprobs, state.lengths),
        lengths=lengths,
        done=state.done | stopped | (lengths >= state.limits),
    )


def is_stop(state: DecodeState, tokens: Array) -> Array:
    """`[B, D]` bool: is a token one that ends its row?"""
    return jnp.any(tokens[:, :, None] == state.stops[:, None], axis=-1)

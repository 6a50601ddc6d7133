"""From logits to tokens: temperature, top-k, top-p, and all the randomness there is.

Two rules, never mixed. *Emission noise* is a function of the sequence's key and of the
position of the token that it emits: whoever emits position `t`, with speculation or
without, from whatever tree, does it with the same noise, so that texts agree. *All other
noise* is keyed by a role and by the position of the root. No noise is used twice.

`draw` is the only place where chance enters; tests replace it by an enumerator.
"""

import enum
from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Role(enum.IntEnum):
    """What noise is for."""

    EMIT = 0
    DRAFT = 1
    VERIFY = 2


class Sampling(NamedTuple):
    """How every row is sampled.

    Attributes:
        temperature: `[B]` float32; 0 is greedy.
        top_k: `[B]` int32, tokens of the largest logits that are kept; 0 keeps all.
        top_p: `[B]` float32, least mass of the likeliest tokens that are kept; 1 keeps
            all. Applied after `top_k`.
        position: `[B]` int32, position of the root, the last token of the row.
    """

    temperature: Array  # [B]
    top_k: Array  # [B]
    top_p: Array  # [B]
    position: Array  # [B]


class Needs(NamedTuple):
    """What any row of the batch asks for, so that what none asks for costs nothing."""

    noise: Array  # [] bool
    filters: Array  # [] bool


def needs(sampling: Sampling) -> Needs:
    """Looks over the batch."""
    drawn = sampling.temperature > 0.0
    filtered = (sampling.top_k > 0) | (sampling.top_p < 1.0)
    return Needs(jnp.any(drawn), jnp.any(drawn & filtered))


def noise_key(key: Array, role: Role, position: Array) -> Array:
    """The key of a role at a position of one sequence."""
    return jax.random.fold_in(jax.random.fold_in(key, role), position)


def draw(key: Array, logits: Array) -> Array:
    """Draws a token of the law `softmax(logits)` `[V]` by the largest of logit + Gumbel."""
    noise = jax.random.gumbel(key, logits.shape, jnp.float32)
    return jnp.argmax(logits + noise).astype(jnp.int32)


def emit(key: Array, logits: Array, sampling: Sampling, needs: Needs) -> Array:
    """Emits the token after the one at `sampling.position`, in one row.

    Args:
        key: of the sequence.
        logits: `[V]` float32, raw.
        sampling: the row's, without the batch axis.
        needs: of the whole batch.
    """
    greedy = jnp.argmax(logits).astype(jnp.int32)

    def sample():
        law = jax.lax.cond(
            needs.filters, filter_logits, lambda logits, _: logits, logits, sampling
        )
        scale = jnp.where(sampling.temperature > 0.0, sampling.temperature, 1.0)
        noise = noise_key(key, Role.EMIT, sampling.position + 1)
        return jnp.where(sampling.temperature > 0.0, draw(noise, law / scale), greedy)

    return jax.lax.cond(needs.noise, sample, lambda: greedy)


def filter_logits(logits: Array, sampling: Sampling) -> Array:
    """Sets the logits `[V]` that top-k and top-p do not keep to minus infinity.

    Tokens that tie with the last one kept are kept. Neither filter sorts: each searches
    the float32 numbers for the threshold, a bit at a time.
    """
    order = _ordered(logits)
    size = logits.shape[0]
    k = jnp.where(sampling.top_k > 0, jnp.minimum(sampling.top_k, size), size)
    ones = jnp.ones(logits.shape, jnp.float32)
    kept = order >= _threshold(order, ones, k.astype(jnp.float32))

    temperature = jnp.where(sampling.temperature > 0.0, sampling.temperature, 1.0)
    mass = jax.nn.softmax(jnp.where(kept, logits, -jnp.inf) / temperature)
    least = jnp.maximum(sampling.top_p, jnp.finfo(jnp.float32).tiny)
    likeliest = order >= _threshold(order, mass, least)
    kept &= likeliest | (sampling.top_p >= 1.0)
    return jnp.where(kept, logits, -jnp.inf)


def _ordered(x: Array) -> Array:
    """Maps float32 to uint32 so that the order is kept."""
    x = jnp.where(x == 0.0, 0.0, x)  # the two zeros are one number
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits >= sign, ~bits, bits | sign)


def _threshold(order: Array, weights: Array, target: Array) -> Array:
    """The largest `t` with `sum of weights where order >= t` of at least `target`."""

    def refine(bit, t):
        candidate = t | (jnp.uint32(1 << 31) >> jnp.asarray(bit, jnp.uint32))
        mass = jnp.sum(jnp.where(order >= candidate, weights, 0.0))
        return jnp.where(mass >= target, candidate, t)

    return jax.lax.fori_loop(0, 32, refine, jnp.uint32(0))

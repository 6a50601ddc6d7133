"""From logits to tokens: temperature, top-k, top-p, and all the randomness there is.

Two rules, never mixed. *Emission noise* is a function of the sequence's key and of the
position of the token that it emits: whoever emits position `t`, with speculation or
without, from whatever tree, does it with the same noise, so that texts agree. *All other
noise* is keyed by a role and by the position of the root. No noise is used twice.

Chance enters in four places, each written for one row, which tests replace by an
enumerator: `draw`, `draw_without_replacement`, `perturb` and `accept`.
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
    noise = jax.random.gumbel(key, logits.shape, logits.dtype)
    return jnp.argmax(logits + noise).astype(jnp.int32)


def draw_without_replacement(
    key: Array, logits: Array, count: int
) -> tuple[Array, Array]:
    """Draws distinct tokens, one after the other, each of the law of those that are left.

    The largest of logit + Gumbel, in descending order (Plackett-Luce).

    Returns:
        `[count]` int32 tokens, and `[count]` bool: false where no token was left.
    """
    noise = jax.random.gumbel(key, logits.shape, logits.dtype)
    return largest(logits + noise, count)


def perturb(key: Array, logits: Array, top: Array) -> Array:
    """Logits + Gumbel `[V]`, given that the largest of them is `top` `[]`.

    From free ones `g` of largest `z`, in a form that keeps its digits,
    `-log(exp(-top) - exp(-z) + exp(-g))` (Kool, van Hoof and Welling 2019, appendix B).
    """
    free = logits + jax.random.gumbel(key, logits.shape, logits.dtype)
    v = top - free + jnp.log1p(-jnp.exp(free - jnp.max(free)))
    return top - jnp.maximum(v, 0.0) - jnp.log1p(jnp.exp(-jnp.abs(v)))


def accept(key: Array, wanted: Array, proposed: Array) -> Array:
    """`[]` bool, true with probability `min(1, wanted / proposed)`; never if none wanted.

    Args:
        key: used for this once.
        wanted: `[]`, a token's probability under the law to be kept.
        proposed: `[]`, its probability under the law that it was drawn from.
    """
    return jax.random.uniform(key, (), wanted.dtype) * proposed < wanted


def largest(scores: Array, count: int) -> tuple[Array, Array]:
    """Tokens `[count]` of the largest scores, and whether each is above minus infinity."""
    scores, tokens = jax.lax.top_k(scores, count)
    return tokens.astype(jnp.int32), scores > -jnp.inf


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
        noise = noise_key(key, Role.EMIT, sampling.position + 1)
        token = draw(noise, law_logits(logits, sampling, needs))
        return jnp.where(sampling.temperature > 0.0, token, greedy)

    return jax.lax.cond(needs.noise, sample, lambda: greedy)


def emission_noise(key: Array, position: Array, vocab_size: int) -> Array:
    """`[V]`, what `emit` adds to the logits of the token at `position`."""
    key = noise_key(key, Role.EMIT, position)
    return jax.random.gumbel(key, (vocab_size,), jnp.float32)


def law_logits(logits: Array, sampling: Sampling, needs: Needs) -> Array:
    """Filtered logits `[V]` over the temperature, or over 1 in a greedy row.

    The largest is 0: a compiler that contracts the quotient and the difference of a softmax
    leaves the rounding of the largest in the exponent, which overflows where it is cold.
    """
    kept = jax.lax.cond(
        needs.filters, filter_logits, lambda logits, _: logits, logits, sampling
    )
    kept -= jnp.max(kept)
    return kept / jnp.where(sampling.temperature > 0.0, sampling.temperature, 1.0)


def law(logits: Array, sampling: Sampling, needs: Needs) -> Array:
    """Probabilities `[V]` of the next token; all at the argmax in a greedy row."""
    sampled = jax.nn.softmax(law_logits(logits, sampling, needs))
    greedy = jax.nn.one_hot(jnp.argmax(logits), logits.shape[0], dtype=logits.dtype)
    return jnp.where(sampling.temperature > 0.0, sampled, greedy)


def residual(wanted: Array, proposed: Array) -> Array:
    """The law to go on with after a token of `proposed` was refused, both `[V]`.

    What is wanted beyond what was proposed, `norm(max(wanted - proposed, 0))`. Where
    rounding leaves nothing (a token is refused only if something is left), `wanted`.
    """
    beyond = jnp.maximum(wanted - proposed, 0.0)
    mass = jnp.sum(beyond)
    return jnp.where(mass > 0.0, beyond / jnp.where(mass > 0.0, mass, 1.0), wanted)


def filter_logits(logits: Array, sampling: Sampling) -> Array:
    """Sets the logits `[V]` that top-k and top-p do not keep to minus infinity.

    Tokens that tie with the last one kept are kept. Neither filter sorts: each searches
    the float32 numbers for the threshold, a bit at a time.
    """
    order = _ordered(logits.astype(jnp.float32))
    size = logits.shape[0]
    k = jnp.where(sampling.top_k > 0, jnp.minimum(sampling.top_k, size), size)
    ones = jnp.ones(logits.shape, jnp.float32)
    kept = order >= _threshold(order, ones, k.astype(jnp.float32))

    temperature = jnp.where(sampling.temperature > 0.0, sampling.temperature, 1.0)
    beyond = jnp.where(kept, logits - jnp.max(logits), -jnp.inf)
    mass = jax.nn.softmax(beyond / temperature)
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

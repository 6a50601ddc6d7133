"""From logits to tokens: temperature, top-k, top-p, and all the randomness there is.

Two rules, never mixed. *Emission noise* is a function of the sequence's key and of the
position of the token that it emits: whoever emits position `t`, with speculation or
without, from whatever tree, does it with the same noise, so that texts agree. *All other
noise* is keyed by a role and by the position of the root. No noise is used twice. Keys are
threefry's: those of other implementations give a batch under `jax.vmap` the noise of its
first row.

Chance enters in four places, each written for one row, which tests replace by an
enumerator: `draw`, `draw_without_replacement`, `perturb` and `accept`.
"""

import enum
from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


KEY_IMPL = "threefry2x32"


class Role(enum.IntEnum):
    """What noise is for."""

    EMIT = 0
    DRAFT = 1
    VERIFY = 2


class Sampling(NamedTuple):
    """How every row is sampled.

    Attributes:
        temperature: `[B]` float32; 0 is greedy.
        top_k: `[B]` int32, tokens of the largest logits that are kept; 0 keeps all, 1 is
            greedy.
        top_p: `[B]` float32, least mass of the likeliest tokens that are kept; 1 keeps
            all. Applied after `top_k`.
        position: `[B]` int32, position of the root, the last token of the row.
    """

    temperature: Array  # [B]
    top_k: Array  # [B]
    top_p: Array  # [B]
    position: Array  # [B]

    @property
    def is_drawn(self) -> Array:
        """`[B]` bool, whether chance has a say; false where a row is greedy."""
        return (self.temperature > 0.0) & (self.top_k != 1)


class Needs(NamedTuple):
    """What any row of the batch asks for, so that what none asks for costs nothing."""

    noise: Array  # [] bool
    filters: Array  # [] bool


def needs(sampling: Sampling) -> Needs:
    """Looks over the batch."""
    filtered = (sampling.top_k > 0) | (sampling.top_p < 1.0)
    return Needs(jnp.any(sampling.is_drawn), jnp.any(sampling.is_drawn & filtered))


def key(seed: int | Array) -> Array:
    """Makes the typed key of a seed, whatever `jax_default_prng_impl` says."""
    return jax.random.key(seed, impl=KEY_IMPL)


def wrap(data: Array) -> Array:
    """Makes typed keys `[...]` of their data `[..., 2]` uint32."""
    return jax.random.wrap_key_data(data, impl=KEY_IMPL)


def check_keys(keys: Array) -> None:
    """Refuses keys whose noise is not each row's own.

    Raises:
        ValueError: if they are not typed keys of threefry.
    """
    if not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key):
        raise ValueError(
            f"Expected typed keys (jax.random.key), got {keys.dtype} of shape {keys.shape}."
        )
    found = jax.random.key_impl(keys)
    if found != KEY_IMPL:
        raise ValueError(
            f"Expected keys of {KEY_IMPL}, got {found}, which gives every row of a batch "
            f"the noise of its first; make them by jax.random.key(seed, "
            f"impl={KEY_IMPL!r})."
        )


def noise_key(key: Array, role: Role, position: Array) -> Array:
    """The key of a role at a position of one sequence.

    Raises:
        ValueError: as `check_keys`.
    """
    check_keys(key)
    return jax.random.fold_in(jax.random.fold_in(key, role), position)


def draw(key: Array, logits: Array) -> Array:
    """Draws a token of the law `softmax(logits)` `[V]` by the largest of logit + Gumbel.

    Only what logits are below their largest counts, and it keeps its digits.
    """
    noise = jax.random.gumbel(key, logits.shape, logits.dtype)
    return jnp.argmax(logits - jnp.max(logits) + noise).astype(jnp.int32)


def draw_without_replacement(
    key: Array, logits: Array, count: int
) -> tuple[Array, Array]:
    """Draws distinct tokens, one after the other, each of the law of those that are left.

    The largest of logit + Gumbel, in descending order (Plackett-Luce).

    Returns:
        `[count]` int32 tokens, and `[count]` bool: false where no token was left.
    """
    noise = jax.random.gumbel(key, logits.shape, logits.dtype)
    return largest(_close_gaps(logits, count) + noise, count)


def perturb(
    key: Array, logits: Array, phi: Array, top: Array, count: int
) -> tuple[Array, Array]:
    """Draws children of a beam without replacement, with the values that order them.

    The value of a token is `G = phi + log softmax(logits) + Gumbel`, given that the largest
    is `top`; from free ones `g` of largest `z`, in a form that keeps its digits,
    `-log(exp(-top) - exp(-z) + exp(-g))` (Kool, van Hoof and Welling 2019, appendix B).
    The order is that of `draw_without_replacement`, also where values are too low to tell.

    Args:
        key: used for this once.
        logits: `[V]`.
        phi: `[]`, log-probability of the path down to the node.
        top: `[]`, the node's own value.
        count: how many children.

    Returns:
        `[count]` int32 tokens and their values, descending; minus infinity where no token
        was left.
    """
    noise = jax.random.gumbel(key, logits.shape, logits.dtype)
    tokens, exists = largest(_close_gaps(logits, count) + noise, count)
    free = (phi + jax.nn.log_softmax(logits) + noise)[tokens]
    v = top - free + jnp.log1p(-jnp.exp(free - free[0]))
    values = top - jnp.maximum(v, 0.0) - jnp.log1p(jnp.exp(-jnp.abs(v)))
    return tokens, jnp.where(exists, jax.lax.cummin(values), -jnp.inf)


def accept(key: Array, wanted: Array, proposed: Array) -> Array:
    """`[]` bool, true with probability `min(1, wanted / proposed)`.

    Never if nothing is wanted, nor if nothing was proposed: a token whose law has
    underflowed is refused. Whether it has is settled by its earlier siblings.

    Args:
        key: used for this once.
        wanted: `[]`, a token's probability under the law to be kept.
        proposed: `[]`, its probability under the law that it was drawn from.
    """
    chance = jax.random.uniform(key, (), wanted.dtype) * proposed
    return (chance < wanted) & (proposed > 0.0)


def largest(scores: Array, count: int) -> tuple[Array, Array]:
    """Tokens `[count]` of the largest scores, and whether each is above minus infinity."""
    scores, tokens = jax.lax.top_k(scores, count)
    return tokens.astype(jnp.int32), scores > -jnp.inf


def _close_gaps(logits: Array, count: int) -> Array:
    """Logits `[V]` whose `count` largest lie close together, in the same order.

    Noise in float32 is from -5 to 17, so that it never turns two logits round that are 24
    apart; beside a logit of -1000 it has lost its digits. Wider gaps are narrowed to 24.
    """
    level = jnp.max(logits)
    closer = logits - level
    for _ in range(count - 1):
        below = jnp.max(jnp.where(logits < level, logits, -jnp.inf))
        gap = level - below
        excess = jnp.where(gap < jnp.inf, jnp.maximum(gap - 24.0, 0.0), 0.0)
        closer += jnp.where(logits < level, excess, 0.0)
        level = below
    return closer


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
        return jnp.where(sampling.is_drawn, token, greedy)

    return jax.lax.cond(needs.noise, sample, lambda: greedy)


def emission_noise(key: Array, position: Array, vocab_size: int) -> Array:
    """`[V]`, what `emit` adds to the logits of the token at `position`."""
    key = noise_key(key, Role.EMIT, position)
    return jax.random.gumbel(key, (vocab_size,), jnp.float32)


def law_logits(logits: Array, sampling: Sampling, needs: Needs) -> Array:
    """Filtered logits `[V]` over the temperature; as they are, over 1, in a greedy row.

    The largest is 0: a compiler that contracts the quotient and the difference of a softmax
    leaves the rounding of the largest in the exponent, which overflows where it is cold.
    """

    def keep(logits: Array) -> Array:
        return jnp.where(sampling.is_drawn, filter_logits(logits, sampling), logits)

    kept = jax.lax.cond(needs.filters, keep, lambda logits: logits, logits)
    kept -= jnp.max(kept)
    return kept / jnp.where(sampling.is_drawn, sampling.temperature, 1.0)


def law(logits: Array, sampling: Sampling, needs: Needs) -> Array:
    """Probabilities `[V]` of the next token; all at the argmax in a greedy row."""
    sampled = jax.nn.softmax(law_logits(logits, sampling, needs))
    greedy = jax.nn.one_hot(jnp.argmax(logits), logits.shape[0], dtype=logits.dtype)
    return jnp.where(sampling.is_drawn, sampled, greedy)


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

"""The digits of sums of log decays over paths.

One float32 sum `G` would round by `|G|` times 6e-8, and so would the differences of two,
however small they are: after a few strong decays nothing is left of weak ones. A sum is
therefore kept in two parts (`cut`), the first of which is exact, and the parts are
subtracted apart.
"""

import jax
import jax.numpy as jnp

LEAST = -150.0  # exp and exp2 of it are zero in float32: a lower one changes nothing


def cut(g: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cuts log decays, of base e or 2, into a multiple of 2^-8 and the rest, in float32.

    float64 has digits enough for one sum, and is left whole.

    They are bounded where `exp` is zero: sums of 256 coarse parts stay below 2^16, and are
    exact in any order. Cut by the bits: a compiler simplifies `(g + large) - large` to `g`.
    """
    if g.dtype != jnp.float32:
        return g, jnp.zeros_like(g)
    g = jnp.maximum(g, LEAST)
    shifted = g - (256.0 + 2.0**-9)  # whose last bit is 2^-15; rounds to the nearest
    bits = jax.lax.bitcast_convert_type(shifted, jnp.uint32) & jnp.uint32(0xFFFFFF80)
    coarse = jax.lax.bitcast_convert_type(bits, jnp.float32) + 256.0
    return coarse, g - coarse

"""The definition of the recurrence that Mamba-2 and the gated delta rule share.

Every head decays its state by `exp(g)`, then writes `v k^T` on it.
"""

import jax.numpy as jnp


def advance(state, g, v, k):
    """One write on one row: state `[H, P, S]`, g `[H]`, v `[H P]`, k `[G S]`."""
    heads, dim, width = state.shape
    v, k = v.reshape(heads, dim), per_head(k.reshape(-1, width), heads)
    return jnp.exp(g)[:, None, None] * state + jnp.einsum("hp,hs->hps", v, k)


def per_head(keys, heads):
    """Keys `[..., G, S]` of groups as `[..., H, S]`."""
    return jnp.repeat(keys, heads // keys.shape[-2], axis=-2)

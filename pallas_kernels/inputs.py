"""What a token does to the state of a Mamba layer."""

from typing import NamedTuple

import jax


class Inputs(NamedTuple):
    """The record of `T` tokens from which their effect on a state can be replayed.

    A record of zeros leaves a state as it is, so unused slots need no mask. The values
    are per head in Mamba-2 and per channel in Mamba-1.

    Attributes:
        x: `[B, T, H, P]` or `[B, T, E]` values, the activations' dtype.
        dt: `[B, T, H]` or `[B, T, E]` float32 step sizes, after softplus and limits.
        B: `[B, T, G, S]` or `[B, T, S]` keys, the activations' dtype.
    """

    x: jax.Array
    dt: jax.Array
    B: jax.Array

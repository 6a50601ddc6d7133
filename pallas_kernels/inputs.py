"""What tokens do to the state of a Mamba layer.

Minor axes are flat, heads and channels in one: a minor axis of 64 would be padded to 128
lanes in a TPU's memory.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Inputs(NamedTuple):
    """The record of `T` tokens from which their effect on a state can be replayed.

    A record whose `dt` is zero leaves a state as it is, whatever the rest holds.

    Attributes:
        x: `[B, T, E]` values, `E` channels (`H` heads of `P` in Mamba-2), the
            activations' dtype.
        dt: `[B, T, H]` in Mamba-2, `[B, T, E]` in Mamba-1, float32 step sizes, after
            softplus and limits.
        B: `[B, T, G S]` (`G` groups of heads) or `[B, T, S]` keys, the activations' dtype.
    """

    x: jax.Array
    dt: jax.Array
    B: jax.Array


class Ring(NamedTuple):
    """Committed tokens that a state does not hold yet, oldest first.

    Attributes:
        inputs: records of `W` slots; those from `length` on hold anything finite.
        length: `[B]` int32, slots in use.
    """

    inputs: Inputs
    length: jax.Array

    def live(self) -> Inputs:
        """The records of one layer, with no effect left to the unused slots."""
        slots = jnp.arange(self.inputs.dt.shape[1], dtype=self.length.dtype)
        used = slots[None] < self.length[:, None]
        return self.inputs._replace(dt=jnp.where(used[..., None], self.inputs.dt, 0))

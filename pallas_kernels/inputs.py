"""What tokens do to the state of a recurrent layer.

Minor axes are flat, heads and channels in one: a minor axis of 64 would be padded to 128
lanes in a TPU's memory.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Inputs(NamedTuple):
    """The record of `T` tokens of a Mamba layer, from which their effect is replayed.

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

    def only(self, used: jax.Array) -> "Inputs":
        """Neutralises the tokens where `used` `[B, T]` is False."""
        return self._replace(dt=jnp.where(used[..., None], self.dt, 0))

    def complete(self, read: jax.Array) -> tuple["Inputs", jax.Array]:
        """The records of tokens that were read, as they were, and their outputs."""
        return self, read


class DeltaInputs(NamedTuple):
    """The record of `T` tokens of the gated delta rule, from which it is replayed.

    Once a token knows what it writes it does to a state what a Mamba-2 token does,
    `S = exp(g) S + u k^T`: nothing is left to solve. A record whose `u` and `g` are zero
    leaves a state as it is, whatever its finite `k`.

    Attributes:
        u: `[B, T, E]` float32, what is written, `H` heads of `P`; for tokens that are
            yet to be solved their values `v`.
        g: `[B, T, H]` float32 log decays, not positive.
        k: `[B, T, G S]` keys of `G` groups of heads, the activations' dtype.
    """

    u: jax.Array
    g: jax.Array
    k: jax.Array

    def only(self, used: jax.Array) -> "DeltaInputs":
        """Neutralises the tokens where `used` `[B, T]` is False."""
        used = used[..., None]
        u, g = (jnp.where(used, a, 0) for a in (self.u, self.g))
        return self._replace(u=u, g=g)

    def complete(
        self, read: tuple[jax.Array, jax.Array]
    ) -> tuple["DeltaInputs", jax.Array]:
        """The records of tokens that were solved and read, and their outputs."""
        u, y = read
        return self._replace(u=u), y


class Ring(NamedTuple):
    """Committed tokens that a state does not hold yet, oldest first.

    Attributes:
        inputs: records of `W` slots; those from `length` on hold anything finite.
        length: `[B]` int32, slots in use.
    """

    inputs: Inputs | DeltaInputs
    length: jax.Array

    def live(self) -> Inputs | DeltaInputs:
        """The records of one layer, with no effect left to the unused slots."""
        num_slots = self.inputs[0].shape[1]
        slots = jnp.arange(num_slots, dtype=self.length.dtype)
        return self.inputs.only(slots[None] < self.length[:, None])

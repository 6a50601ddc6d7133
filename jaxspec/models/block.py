"""One residual block, whatever it mixes with.

    x + m * sum over mixers of mixer(norm(x))

where most blocks have one mixer, and Falcon-H1's have two side by side; for Zamba2's
see `shared.py`. A new mixer joins as a module with `init_carry`, `init_tape`, `keep`,
`commit`, `split` and a `Mixer`.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from jaxspec.models import attention, delta, layers, mamba1, mamba2, mlp, moe, places
from jaxspec.models.config import BLOCKS, ModelConfig

MIXERS = {"mamba2": mamba2, "mamba1": mamba1, "delta": delta}
MIXERS |= {"attention": attention, "mlp": mlp, "moe": moe}


def init_carry(config: ModelConfig, kind: str, *settings: int) -> tuple:
    """Empty pasts of a block's mixers; `settings` as in a mixer's `init_carry`."""
    return tuple(MIXERS[name].init_carry(config, *settings) for name in BLOCKS[kind])


def init_tape(config: ModelConfig, kind: str, *settings: Any) -> tuple:
    """Empty tapes of a block's mixers; `settings` as in a mixer's `init_tape`."""
    return tuple(MIXERS[name].init_tape(config, *settings) for name in BLOCKS[kind])


def split(config: ModelConfig, params: dict[str, Any]) -> dict[str, Any]:
    """Stores the fused projections of a block's mixers in parts."""
    return {
        name: MIXERS[name].split(config, own) if name in MIXERS else own
        for name, own in params.items()
    }


def commit(
    config: ModelConfig, kind: str, carry: tuple, tape: tuple, path: places.Path
) -> tuple:
    """Keeps the accepted path."""
    return tuple(
        MIXERS[name].commit(config, own, left, path)
        for name, own, left in zip(BLOCKS[kind], carry, tape, strict=True)
    )


def keep(config: ModelConfig, kind: str, tape: tuple, slots: jax.Array) -> tuple:
    """Gathers slots `[B, K]` of a tape, -1 for room."""
    return tuple(
        MIXERS[name].keep(config, own, slots)
        for name, own in zip(BLOCKS[kind], tape, strict=True)
    )


class Block(nn.Module):
    """A residual block of one `kind`; its carry and tape are tuples over its mixers.

    Methods take the residual stream `x` and the tokens' `embedding`, both `[B, T, d_model]`
    (`[B, d_model]` in `step`), and return the stream first.
    """

    config: ModelConfig
    kind: str

    def setup(self):
        self.norm = layers.norm(self.config)
        for name in BLOCKS[self.kind]:
            setattr(self, name, MIXERS[name].Mixer(self.config))

    def _mix(
        self,
        x: jax.Array,
        embedding: jax.Array,
        call: Callable[..., tuple[Any, jax.Array]],
        past: tuple,
    ) -> tuple[jax.Array, tuple]:
        """Runs `call(mixer, past, x) -> past, y` on the mixers of the block."""
        h, y, kept = self.norm(x), 0, []
        for name, own in zip(BLOCKS[self.kind], past, strict=True):
            keep, out = call(getattr(self, name), own, h)
            y, kept = out + y, [*kept, keep]
        return x + layers.scale_by(y, self.config.residual_multiplier), tuple(kept)

    def step(self, x, embedding, carry, positions, layer=None):
        def call(mixer, own, h):
            return mixer.step(own, h, positions, layer)

        return self._mix(x, embedding, call, carry)

    def scan(self, x, embedding, carry, positions, lengths, layer=None):
        def call(mixer, own, h):
            return mixer.scan(own, h, positions, lengths, layer)

        return self._mix(x, embedding, call, carry)

    def tree(self, x, embedding, carry, tape, context, layer=None):
        def call(mixer, own, h):
            return mixer.tree(*own, h, context, layer)

        past = tuple(zip(carry, tape, strict=True))
        x, past = self._mix(x, embedding, call, past)
        return x, *zip(*past, strict=True)

    def fold_ring(self, carry, chosen, length):
        return tuple(
            getattr(self, name).fold_ring(own, chosen, length)
            if hasattr(own, "ring")
            else own
            for name, own in zip(BLOCKS[self.kind], carry, strict=True)
        )

"""What mixers have in common that have no past: empty carries and tapes."""

import jax
from flax import linen as nn

from jaxspec.models import places
from jaxspec.models.config import ModelConfig


def init_carry(
    config: ModelConfig, batch_size: int, max_rows: int, ring_size: int, split: bool
):
    """Nothing."""
    return ()


def init_tape(
    config: ModelConfig, batch_size: int, num_nodes: int, kind: str, split: bool
):
    """Nothing."""
    return ()


def commit(config: ModelConfig, carry: tuple, tape: tuple, path: places.Path) -> tuple:
    """Nothing to keep."""
    return carry


def keep(config: ModelConfig, tape: tuple, slots: jax.Array) -> tuple:
    """Nothing to gather."""
    return tape


class Mixer(nn.Module):
    """A layer of tokens each on its own; `mix` takes `x` `[B, ..., d_model]`."""

    config: ModelConfig

    def mix(self, x: jax.Array) -> jax.Array:
        """What the layer makes of its input."""
        raise NotImplementedError

    def step(
        self,
        carry: tuple,
        x: jax.Array,
        positions: places.Positions,
        layer: jax.Array | None = None,
    ):
        """One token."""
        return carry, self.mix(x)

    def scan(
        self,
        carry: tuple,
        x: jax.Array,
        positions: places.Positions,
        lengths: jax.Array,
        layer: jax.Array | None = None,
    ):
        """Many tokens."""
        return carry, self.mix(x)

    def tree(
        self,
        carry: tuple,
        tape: tuple,
        x: jax.Array,
        context: places.TreeContext,
        layer: jax.Array | None = None,
    ):
        """Nodes of a tree."""
        return (carry, tape), self.mix(x)

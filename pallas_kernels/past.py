"""The past of a token tree: what came before its root, in all layers of a model."""

from typing import NamedTuple

import jax

from pallas_kernels import stacked
from pallas_kernels.inputs import Ring


class Past(NamedTuple):
    """States and the tokens that they do not hold yet, as implementations take them.

    Attributes:
        state: `[L, B, ...]` float32, before the ring and the root.
        ring: every layer's tokens between `state` and the root, or None.
        fold: `[B]` bool, the rows whose state takes up the ring; None where the state is
            only read.
        layer: int32, the layer that is meant.
    """

    state: jax.Array
    ring: Ring | None
    fold: jax.Array | None
    layer: jax.Array

    @classmethod
    def of(
        cls,
        state: jax.Array,
        ring: Ring | None,
        *,
        layer: jax.Array | None,
        fold: jax.Array | None = None,
    ) -> "Past":
        """Stacks what is of one layer; with a `layer`, it is stacked already."""
        layer, state, ring = stacked.make(layer, state, ring)
        return cls(state, ring, fold, layer)

    @property
    def num_slots(self) -> int:
        """Slots of the ring, 0 if there is none."""
        return 0 if self.ring is None else self.ring.inputs[0].shape[2]

    def ring_of_layer(self) -> Ring | None:
        """The ring of the layer that is meant."""
        if self.ring is None:
            return None
        return self.ring._replace(inputs=stacked.take(self.ring.inputs, self.layer))

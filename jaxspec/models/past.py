"""All that a model keeps: of a text in its carry, of a tree on a tape."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec import mesh, ragged
from jaxspec.models import block, layers, places, shardings
from jaxspec.models.config import ModelConfig
from jaxspec.models.stack import Stack, Storage


class Carry(NamedTuple):
    """The past of a model.

    Attributes:
        position: `[B]` int32, tokens absorbed, those in the rings included.
        blocks: a storage of the blocks' pasts.
        ring_length: `[B]` int32, entries in use in every ring under lazy, else None.
    """

    position: jax.Array  # [B]
    blocks: Storage
    ring_length: jax.Array | None


class Tape(NamedTuple):
    """Records of the nodes of a tree.

    Attributes:
        blocks: a storage of the blocks' tapes.
        finite: `[B, N]` bool, whether a node and all above it are finite.
    """

    blocks: Storage
    finite: jax.Array  # [B, N]


class Keeper(NamedTuple):
    """Makes pasts and tapes of a model, and moves what is kept from one to the other.

    Attributes:
        config: the shape of the model.
        stack: how the blocks are stored.
    """

    config: ModelConfig
    stack: Stack

    def init_carry(
        self, params: Any, batch_size: int, *, max_rows: int, ring_size: int
    ) -> Carry:
        """An empty past; no rings where `ring_size` is 0."""
        zeros, split = jnp.zeros((batch_size,), jnp.int32), layers.is_split(params)
        rooms = batch_size, _whole_tiles(max_rows), _whole_tiles(ring_size)
        blocks = [
            block.init_carry(self.config, kind, *rooms, split)
            for kind in self.config.layers
        ]
        ring_length = zeros if ring_size else None
        return self._place(Carry(zeros, self.stack.collect(blocks), ring_length))

    def init_tape(
        self, params: Any, batch_size: int, num_nodes: int, *, rollback: str
    ) -> Tape:
        """An empty tape."""
        split = layers.is_split(params)
        blocks = [
            block.init_tape(self.config, kind, batch_size, num_nodes, rollback, split)
            for kind in self.config.layers
        ]
        sound = jnp.ones((batch_size, num_nodes), bool)
        return self._place(Tape(self.stack.collect(blocks), sound))

    def keep(self, tape: Tape, slots: jax.Array) -> Tape:
        """Gathers slots `[B, K]`, -1 for room."""

        def of_block(kind, own):
            return block.keep(self.config, kind, own, slots)

        blocks = self.stack.map(of_block, tape.blocks)
        sound = ragged.take(tape.finite, jnp.maximum(slots, 0)) | (slots < 0)
        return self._place(Tape(blocks, sound))

    def commit(self, carry: Carry, tape: Tape, slots: jax.Array) -> Carry:
        """Keeps the nodes of a path `[B, d]`, -1 padded, in every block's own way."""
        kept, nodes = slots >= 0, jnp.maximum(slots, 0)
        count = jnp.sum(kept, axis=1, dtype=jnp.int32)
        sound = jnp.all(ragged.take(tape.finite, nodes) | ~kept, axis=1)
        ring_length = carry.ring_length
        path = places.Path(nodes, kept, count, sound, carry.position, ring_length)

        def of_block(kind, past, own):
            return block.commit(self.config, kind, past, own, path)

        blocks = self.stack.map(of_block, carry.blocks, tape.blocks)
        return self._place(
            Carry(
                position=carry.position + count,
                blocks=blocks,
                ring_length=None if ring_length is None else ring_length + count,
            )
        )

    def _place(self, past: Any) -> Any:
        """Cuts a carry or a tape over the ambient mesh."""
        axes = mesh.sizes()
        return mesh.constrain(past, shardings.past_specs(self.config, past, axes))


def _whole_tiles(size: int) -> int:
    """Rounds up to whole tiles, which kernels read in place.

    Otherwise XLA copies the cache of every layer first.
    """
    return -(-size // 8) * 8

"""The pass of a model: embedding, blocks in order, norm.

Every block is residual: `x + m * mixer(norm(x))`, where a block of several mixers adds
what they make of the same input (Falcon-H1), or runs some of them first, with weights that
it shares (Zamba2). `scan_tree` of every rollback is the same pass over the blocks; what
differs is what the blocks keep (`rollback.py`).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec import checks, trees
from jaxspec.models import ends, finite, initial, layered, places, shared
from jaxspec.models.config import ModelConfig
from jaxspec.models.past import Carry, Keeper, Tape
from jaxspec.models.stack import Stack, Storage
from jaxspec.trees import TokenTree
from pallas_kernels import topology

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Network:
    """The functions of one model; `language_model` makes the public record of them.

    Attributes:
        config: the shape of the model.
        rollback: one of `rollback.ROLLBACKS`, but not joint, which wraps a model.
        max_path: `D`, the longest path that can be committed, in nodes.
        ring_size: `W >= D`, slots of the rings under lazy.
        stack: how the blocks are stored and run.
    """

    config: ModelConfig
    rollback: str
    max_path: int
    ring_size: int
    stack: Stack

    def step(self, params: Params, carry: Carry, token: jax.Array):
        carry = self._settle(params, carry)
        positions = self._positions(carry.position[:, None])

        def step(block, x, _, past, layer):
            return block(
                x=x, carry=past, positions=positions, layer=layer, method="step"
            )

        inputs = self.embed(params, token)
        x, blocks = self._run(step, params, inputs, carry.blocks)
        carry = carry._replace(position=carry.position + 1, blocks=blocks)
        return carry, ends.norm(self.config, params, x)

    def scan(self, params: Params, carry: Carry, tokens: jax.Array, lengths: jax.Array):
        return self.scan_inputs(params, carry, self.embed(params, tokens), lengths)

    def scan_inputs(
        self, params: Params, carry: Carry, inputs: jax.Array, lengths: jax.Array
    ):
        """`scan` of the blocks' inputs `[B, T, C]`, whatever they are made of."""
        carry = self._settle(params, carry)
        offsets = jnp.arange(inputs.shape[1], dtype=jnp.int32)
        live = offsets[None] < lengths[:, None]  # padding may be anything, NaN too
        inputs = jnp.where(live[..., None], inputs, 0)
        positions = self._positions(carry.position[:, None] + offsets[None])

        def scan(block, x, _, past, layer):
            where = dict(positions=positions, lengths=lengths, layer=layer)
            return block(x=x, carry=past, **where, method="scan")

        x, blocks = self._run(scan, params, inputs, carry.blocks)
        carry = carry._replace(position=carry.position + lengths, blocks=blocks)
        return carry, ends.norm(self.config, params, x)

    def extend_tree(
        self,
        params: Params,
        carry: Carry,
        tape: Tape,
        tree: TokenTree,
        start: int,
        stop: int,
    ):
        inputs = self.embed(params, trees.check(tree).tokens[:, start:stop])
        _, tape, hidden = self.extend_inputs(
            params, carry, tape, tree, inputs=inputs, start=start, stop=stop
        )
        return tape, hidden

    def extend_inputs(
        self,
        params: Params,
        carry: Carry,
        tape: Tape,
        tree: TokenTree,
        *,
        inputs: jax.Array,
        start: int,
        stop: int,
        fold: jax.Array | None = None,
    ):
        """`extend_tree` of the blocks' inputs `[B, stop - start, C]`.

        Folds the rings of some rows `[B]` in passing.
        """
        context = self._context(carry, tree, start, stop, fold)

        def read(block, x, past, own, layer):
            x, _, own = block(
                x=x, carry=past, tape=own, context=context, layer=layer, method="tree"
            )
            return x, own

        def read_and_fold(block, x, _, both, layer):
            past, own = both
            x, *both = block(
                x=x, carry=past, tape=own, context=context, layer=layer, method="tree"
            )
            return x, tuple(both)

        if fold is None:
            x, blocks = self._run(read, params, inputs, tape.blocks, carry.blocks)
        else:
            both = self.stack.pair(carry.blocks, tape.blocks)
            x, both = self._run(read_and_fold, params, inputs, both)
            past, blocks = self.stack.part(both)
            length = jnp.where(fold, 0, carry.ring_length)
            carry = carry._replace(blocks=past, ring_length=length)
        hidden, known = ends.norm(self.config, params, x), tape.finite
        ancestors = context.topology.ancestors[:, start:]
        sound = finite.reach(ancestors, known[:, :start], hidden)
        known = layered.put_slots(known, sound, start, None)[0]
        return carry, Tape(blocks, known), finite.spoil(hidden, sound[..., None])

    def scan_tree(self, params: Params, carry: Carry, tree: TokenTree):
        batch, num_nodes = trees.check(tree).parents.shape
        if carry.ring_length is not None:
            return self.extend_inputs(
                params,
                carry,
                self.init_tape(params, batch, num_nodes),
                tree,
                inputs=self.embed(params, tree.tokens),
                start=0,
                stop=num_nodes,
                fold=self._is_full(carry),
            )

        def verify(tree):
            """All slots of a tree."""
            tape = self.init_tape(params, batch, num_nodes)
            return self.extend_tree(params, carry, tape, tree, 0, num_nodes)

        def verify_root(tree):
            """No row has a draft: one slot is enough."""
            tape = self.init_tape(params, batch, num_nodes)
            tape, hidden = self.extend_tree(params, carry, tape, tree, 0, 1)
            return tape, jnp.pad(hidden, ((0, 0), (0, num_nodes - 1), (0, 0)))

        if num_nodes == 1:
            return carry, *verify(tree)
        has_draft = trees.has_draft(tree)
        return carry, *jax.lax.cond(has_draft, verify, verify_root, tree)

    def prepare(self, params: Params, carry: Carry) -> Carry:
        if carry.ring_length is None:
            return carry
        return self._fold_rings(params, carry, self._is_full(carry))

    def keep(self, tape: Tape, slots: jax.Array) -> Tape:
        return self._keeper.keep(tape, slots)

    def commit(self, carry: Carry, tape: Tape, path: jax.Array) -> Carry:
        checks.require(
            path.shape[1] <= self.max_path,
            f"The model keeps paths of at most {self.max_path} nodes, got "
            f"{path.shape[1]}; raise `max_path`.",
        )
        return self._keeper.commit(carry, tape, path)

    def init_carry(
        self,
        params: Params,
        batch_size: int,
        max_length: int,
        speculative: bool = True,
    ) -> Carry:
        for name, value in (("batch_size", batch_size), ("max_length", max_length)):
            checks.require(value >= 1, f"{name} must be positive, got {value}.")
        lazy = speculative and self.rollback == "lazy"
        return self._keeper.init_carry(
            params,
            batch_size,
            max_rows=max_length + self.max_path,
            ring_size=self.ring_size if lazy else 0,
        )

    def init_tape(self, params: Params, batch_size: int, num_nodes: int) -> Tape:
        return self._keeper.init_tape(
            params, batch_size, num_nodes, rollback=self.rollback
        )

    def init(self, key: jax.Array) -> Params:
        return initial.params(self.config, self.stack, key)

    def embed(self, params: Params, tokens: jax.Array) -> jax.Array:
        return ends.embed(self.config, params, tokens)

    def logits(self, params: Params, hidden: jax.Array) -> jax.Array:
        return ends.logits(self.config, params, hidden)

    def _run(self, f, params: Params, inputs: jax.Array, writes: Storage, reads=None):
        """Runs `x, writes = f(block, x, reads, writes, layer)` through the blocks.

        A block that reads what it writes is to read its writes: in scanned layers the
        reads are as they were before the first block. There are none unless given.
        """
        reads, blocks = writes if reads is None else reads, params["layers"]
        if "shared" in params:
            blocks = self.stack.share(shared.join, blocks, "S", params["shared"])

        def apply(kind, x, params, reads, writes, layer):
            block = shared.block_of(self.config, kind)
            bound = functools.partial(block.apply, {"params": params}, embedding=inputs)
            return f(bound, x, reads, writes, layer)

        return self.stack.run(apply, inputs, blocks, reads, writes)

    def _context(self, carry, tree, start, stop, fold) -> places.TreeContext:
        """The surroundings of some slots of a tree, the same in all layers."""
        checks.require(
            0 <= start < stop <= tree.num_nodes,
            f"Expected 0 <= start < stop <= {tree.num_nodes}, got {start} and {stop}.",
        )
        parents = tree.parents[:, :stop]
        topo = topology.derive(parents)
        index = carry.position[:, None] + topo.depth[:, start:]
        return places.TreeContext(
            topology=topo,
            start=start,
            window=topology.windows(parents, self.config.conv_width)[:, start:],
            positions=self._positions(index),
            length=carry.position,
            max_depth=self.max_path,
            ring_length=carry.ring_length,
            fold=fold,
        )

    def _positions(self, index: jax.Array) -> places.Positions:
        return places.positions(self.config.attention, index)

    @property
    def _keeper(self) -> Keeper:
        return Keeper(self.config, self.stack)

    def _is_full(self, carry: Carry) -> jax.Array:
        """Rows `[B]` whose rings have no room for a path."""
        return carry.ring_length + self.max_path > self.ring_size

    def _settle(self, params: Params, carry: Carry) -> Carry:
        """The same past without ring entries."""
        if carry.ring_length is None:
            return carry
        return self._fold_rings(params, carry, carry.ring_length > 0)

    def _fold_rings(self, params: Params, carry: Carry, chosen: jax.Array) -> Carry:
        """Folds the rings of the chosen rows into their states."""

        def fold(carry):
            def of_block(kind, params, past):
                block = shared.block_of(self.config, kind)
                return block.apply(
                    {"params": params},
                    carry=past,
                    chosen=chosen,
                    length=carry.ring_length,
                    method="fold_ring",
                )

            blocks = self.stack.map(of_block, params["layers"], carry.blocks)
            length = jnp.where(chosen, 0, carry.ring_length)
            return carry._replace(blocks=blocks, ring_length=length)

        return jax.lax.cond(jnp.any(chosen), fold, lambda carry: carry, carry)

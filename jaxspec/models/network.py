"""The functions of a model: embedding, blocks in order, head.

Every block is residual: `x + m * mixer(norm(x))`, where a block of several mixers adds
what they make of the same input (Falcon-H1), or runs some of them first, with weights that
it shares (Zamba2). `scan_tree` of every rollback is the same pass over the blocks; what
differs is what the blocks keep (`rollback.py`).
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxspec import partition, rows, trees
from jaxspec.models import block, finite, layers, layout, shared
from jaxspec.models.config import ModelConfig
from jaxspec.models.stack import Stack, Storage
from jaxspec.trees import TokenTree
from pallas_kernels import topology

Params = dict[str, Any]


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
    """What the nodes of a tree leave behind.

    Attributes:
        blocks: a storage of the blocks' tapes.
        finite: `[B, N]` bool, whether a node and all above it are finite.
    """

    blocks: Storage
    finite: jax.Array  # [B, N]


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

    def init(self, key: jax.Array) -> Params:
        config = self.config
        embed_key, head_key, *keys = jax.random.split(key, 2 + len(config.layers))
        normal = nn.initializers.normal(0.02)
        shape = (config.vocab_size, config.d_model)
        blocks = [
            self._init_block(kind, key)
            for kind, key in zip(config.layers, keys, strict=True)
        ]
        own, sets = shared.part_blocks(config, blocks)
        hidden = jnp.zeros((1, config.d_model), jnp.dtype(config.dtype))
        params = {
            "embed": {"embedding": normal(embed_key, shape, jnp.float32)},
            "layers": self.stack.collect(own),
            "final_norm": layers.norm(config).init(key, hidden)["params"],
        }
        if sets:
            kinds = config.storages["shared"]
            params["shared"] = Stack(kinds, self.stack.scanned).collect(sets)
        if not config.tie_embeddings:
            kernel = normal(head_key, shape[::-1], jnp.float32)
            params["lm_head"] = {"kernel": kernel}
        return params

    def _init_block(self, kind: str, key: jax.Array) -> Params:
        x = jnp.zeros((1, 1, self.config.d_model), jnp.dtype(self.config.dtype))
        carry = block.init_carry(self.config, kind, 1, 1, 0, False)
        positions = self._positions(jnp.zeros((1, 1), jnp.int32))
        one = jnp.ones((1,), jnp.int32)
        module = self._block(kind)
        return module.init(key, x, x, carry, positions, one, method="scan")["params"]

    def init_carry(
        self,
        params: Params,
        batch_size: int,
        max_length: int,
        speculative: bool = True,
    ) -> Carry:
        _require(batch_size >= 1, f"batch_size must be positive, got {batch_size}.")
        _require(max_length >= 1, f"max_length must be positive, got {max_length}.")
        lazy = speculative and self.rollback == "lazy"
        zeros = jnp.zeros((batch_size,), jnp.int32)
        blocks = [
            block.init_carry(
                self.config,
                kind,
                batch_size,
                _whole_tiles(max_length + self.max_path),
                _whole_tiles(self.ring_size) if lazy else 0,
                layers.is_split(params),
            )
            for kind in self.config.layers
        ]
        return self._place(
            Carry(
                position=zeros,
                blocks=self.stack.collect(blocks),
                ring_length=zeros if lazy else None,
            )
        )

    def step(self, params: Params, carry: Carry, token: jax.Array):
        carry = self._settle(params, carry)
        positions = self._positions(carry.position[:, None])
        inputs = self.embed(params, token)

        def run(kind, x, params, _, carry, layer):
            args = carry, positions, layer
            return self._apply("step", kind, params, x, inputs, *args)

        x, blocks = self._run(run, params, inputs, carry.blocks)
        carry = carry._replace(position=carry.position + 1, blocks=blocks)
        return carry, self._norm(params, x)

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

        def run(kind, x, params, _, carry, layer):
            args = carry, positions, lengths, layer
            return self._apply("scan", kind, params, x, inputs, *args)

        x, blocks = self._run(run, params, inputs, carry.blocks)
        carry = carry._replace(position=carry.position + lengths, blocks=blocks)
        return carry, self._norm(params, x)

    def prepare(self, params: Params, carry: Carry) -> Carry:
        if carry.ring_length is not None:
            full = carry.ring_length + self.max_path > self.ring_size
            return self._fold_rings(params, carry, full)
        return carry

    def init_tape(self, params: Params, batch_size: int, num_nodes: int) -> Tape:
        settings = batch_size, num_nodes, self.rollback, layers.is_split(params)
        blocks = [
            block.init_tape(self.config, kind, *settings) for kind in self.config.layers
        ]
        sound = jnp.ones((batch_size, num_nodes), bool)
        return self._place(Tape(self.stack.collect(blocks), sound))

    def extend_tree(
        self,
        params: Params,
        carry: Carry,
        tape: Tape,
        tree: TokenTree,
        start: int,
        stop: int,
    ):
        x = self.embed(params, trees.check(tree).tokens[:, start:stop])
        args = params, carry, tape, tree, x, start, stop
        _, tape, hidden = self.extend_inputs(*args)
        return tape, hidden

    def extend_inputs(
        self,
        params: Params,
        carry: Carry,
        tape: Tape,
        tree: TokenTree,
        inputs: jax.Array,
        start: int,
        stop: int,
        fold: jax.Array | None = None,
    ):
        """`extend_tree` of the blocks' inputs `[B, stop - start, C]`.

        Folds the rings of some rows `[B]` in passing.
        """
        _require(
            0 <= start < stop <= tree.num_nodes,
            f"Expected 0 <= start < stop <= {tree.num_nodes}, got {start} and {stop}.",
        )
        parents = tree.parents[:, :stop]
        topo = topology.derive(parents)
        index = carry.position[:, None] + topo.depth[:, start:]
        context = layers.TreeContext(
            topology=topo,
            start=start,
            window=topology.windows(parents, self.config.conv_width)[:, start:],
            positions=self._positions(index),
            length=carry.position,
            max_depth=self.max_path,
            ring_length=carry.ring_length,
            fold=fold,
        )

        def read(kind, x, params, carry, tape, layer):
            args = carry, tape, context, layer
            x, _, tape = self._apply("tree", kind, params, x, inputs, *args)
            return x, tape

        def read_and_fold(kind, x, params, _, past, layer):
            args = *past, context, layer
            x, *past = self._apply("tree", kind, params, x, inputs, *args)
            return x, tuple(past)

        if fold is None:
            x, blocks = self._run(read, params, inputs, tape.blocks, carry.blocks)
        else:
            past = self.stack.pair(carry.blocks, tape.blocks)
            x, past = self._run(read_and_fold, params, inputs, past)
            kept, blocks = self.stack.part(past)
            length = jnp.where(fold, 0, carry.ring_length)
            carry = carry._replace(blocks=kept, ring_length=length)
        hidden, known = self._norm(params, x), tape.finite
        sound = finite.reach(topo.ancestors[:, start:], known[:, :start], hidden)
        known = layers.put_slots(known, sound, start, None)[0]
        hidden = finite.spoil(hidden, sound[..., None])
        return carry, Tape(blocks, known), hidden

    def _run(self, f, params: Params, x: jax.Array, writes: Storage, reads=None):
        """Runs the blocks; nothing but their own is read unless it is given."""
        reads, blocks = writes if reads is None else reads, params["layers"]
        if "shared" in params:
            blocks = self.stack.share(shared.join, blocks, "S", params["shared"])
        return self.stack.run(f, x, blocks, reads, writes)

    def scan_tree(self, params: Params, carry: Carry, tree: TokenTree):
        batch, num_nodes = trees.check(tree).parents.shape
        if carry.ring_length is not None:
            tape = self.init_tape(params, batch, num_nodes)
            full = carry.ring_length + self.max_path > self.ring_size
            x = self.embed(params, tree.tokens)
            args = params, carry, tape, tree, x, 0, num_nodes
            return self.extend_inputs(*args, fold=full)

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

    def keep(self, tape: Tape, slots: jax.Array) -> Tape:
        blocks = self.stack.map(
            lambda kind, left: block.keep(self.config, kind, left, slots), tape.blocks
        )
        sound = rows.take(tape.finite, jnp.maximum(slots, 0)) | (slots < 0)
        return self._place(Tape(blocks, sound))

    def commit(self, carry: Carry, tape: Tape, path: jax.Array) -> Carry:
        _require(
            path.shape[1] <= self.max_path,
            f"The model keeps paths of at most {self.max_path} nodes, got "
            f"{path.shape[1]}; raise `max_path`.",
        )
        kept = path >= 0
        nodes = jnp.maximum(path, 0)
        count = jnp.sum(kept, axis=1, dtype=jnp.int32)
        sound = jnp.all(rows.take(tape.finite, nodes) | ~kept, axis=1)
        kept = layers.Path(nodes, kept, count, sound, carry.position, carry.ring_length)
        blocks = self.stack.map(
            lambda kind, *own: block.commit(self.config, kind, *own, kept),
            carry.blocks,
            tape.blocks,
        )
        ring_length = carry.ring_length
        carry = carry._replace(
            position=carry.position + count,
            blocks=blocks,
            ring_length=None if ring_length is None else ring_length + count,
        )
        return self._place(carry)

    def logits(self, params: Params, hidden: jax.Array) -> jax.Array:
        if "lm_head" in params:
            kernel = params["lm_head"]["kernel"]
        else:
            kernel = params["embed"]["embedding"].T
        kernel = kernel.astype(hidden.dtype)
        logits = jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)
        logits = partition.constrain_columns(logits)
        return layers.scale_by(logits, self.config.logits_multiplier)

    def _settle(self, params: Params, carry: Carry) -> Carry:
        """The same past without ring entries."""
        if carry.ring_length is not None:
            return self._fold_rings(params, carry, carry.ring_length > 0)
        return carry

    def _fold_rings(self, params: Params, carry: Carry, chosen: jax.Array) -> Carry:
        """Folds the rings of the chosen rows into their states."""

        def fold(carry):
            blocks = self.stack.map(
                lambda kind, p, c: self._apply(
                    "fold_ring", kind, p, c, chosen, carry.ring_length
                ),
                params["layers"],
                carry.blocks,
            )
            length = jnp.where(chosen, 0, carry.ring_length)
            return carry._replace(blocks=blocks, ring_length=length)

        return jax.lax.cond(jnp.any(chosen), fold, lambda carry: carry, carry)

    def _place(self, past: Any) -> Any:
        """Cuts a carry or a tape over the ambient mesh."""
        axes = partition.sizes()
        return partition.constrain(past, layout.past_specs(self.config, past, axes))

    def _apply(self, method: str, kind: str, params: Params, *args):
        return self._block(kind).apply({"params": params}, *args, method=method)

    def _block(self, kind: str) -> block.Block:
        of_kind = shared.Block if kind == "S" else block.Block
        return of_kind(self.config, kind)

    def embed(self, params: Params, tokens: jax.Array) -> jax.Array:
        x = params["embed"]["embedding"][tokens].astype(jnp.dtype(self.config.dtype))
        x = partition.constrain_rows(x)
        return layers.scale_by(x, self.config.embedding_multiplier)

    def _norm(self, params: Params, x: jax.Array) -> jax.Array:
        return layers.norm(self.config).apply({"params": params["final_norm"]}, x)

    def _positions(self, index: jax.Array) -> layers.Positions:
        return layers.positions(self.config.attention, index)


def _whole_tiles(rows: int) -> int:
    """Rounds up to what kernels read as it lies; else XLA copies all layers for them."""
    return -(-rows // 8) * 8


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)

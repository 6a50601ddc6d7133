"""Joint attainment and advancement: a model that keeps tokens instead of records.

A commit costs nothing: it keeps the path's *tokens*. The next tree hangs from the last of
them, and one pass over both advances the model and reads the tree (Snakes and Ladders
2025). It knows nothing of blocks: the inner model is any `LanguageModel`.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec import checks, mesh, ragged, trees
from jaxspec.core import LanguageModel
from jaxspec.trees import TokenTree


class Carry(NamedTuple):
    """A past, and tokens that are committed but not absorbed.

    Attributes:
        past: the inner model's carry.
        pending: `[B, D]` int32, or None where the carry is not speculative.
        num_pending: `[B]` int32, how many they are, or None.
    """

    past: Any
    pending: jax.Array | None
    num_pending: jax.Array | None


class Tape(NamedTuple):
    """What the nodes of a tree leave behind: `commit` needs the tokens alone.

    Attributes:
        nodes: the inner model's tape, for `extend_tree`.
        tokens: `[B, N]` int32.
    """

    nodes: Any
    tokens: jax.Array


@functools.cache
def joint(model: LanguageModel, max_path: int) -> LanguageModel:
    """Wraps a model so that commits are free and the next tree pays for them.

    The same model, in its own arithmetic; equal arguments return the same record.

    Args:
        model: the inner model. A path is run again in front of a tree, so that its trees
            are twice as deep: its own `max_path` must be at least `2 * max_path`.
        max_path: the longest path that can be committed, in nodes.

    Raises:
        ValueError: if `max_path` is not positive, or the inner model's is too small.
    """
    checks.require(max_path >= 1, f"max_path must be positive, got {max_path}.")
    checks.require(
        model.max_path >= 2 * max_path,
        f"Paths of {max_path} nodes take an inner model whose max_path is at least "
        f"{2 * max_path}, got {model.max_path}.",
    )
    wrapper = _Joint(model, max_path)
    return model._replace(
        init_carry=wrapper.init_carry,
        step=wrapper.step,
        scan=wrapper.scan,
        prepare=wrapper.prepare,
        init_tape=wrapper.init_tape,
        extend_tree=wrapper.extend_tree,
        scan_tree=wrapper.scan_tree,
        keep=wrapper.keep,
        commit=wrapper.commit,
        max_path=max_path,
    )


@dataclasses.dataclass(frozen=True)
class _Joint:
    """The functions of the wrapped model.

    Attributes:
        model: the inner one.
        max_path: `D`.
    """

    model: LanguageModel
    max_path: int

    def init_carry(self, params, batch_size, max_length, speculative=True) -> Carry:
        # The inner model has room for `2 D` tokens of a path, and `D` are committed.
        room = max_length - self.max_path if max_length > self.max_path else max_length
        past = self.model.init_carry(params, batch_size, room, speculative)
        if not speculative:
            return Carry(past, None, None)
        pending = jnp.zeros((batch_size, self.max_path), jnp.int32)
        count = jnp.zeros((batch_size,), jnp.int32)
        return Carry(past, *mesh.constrain_rows((pending, count)))

    def step(self, params, carry, token):
        carry = self._absorb(params, carry)
        past, hidden = self.model.step(params, carry.past, token)
        return carry._replace(past=past), hidden

    def scan(self, params, carry, tokens, lengths):
        carry = self._absorb(params, carry)
        past, hidden = self.model.scan(params, carry.past, tokens, lengths)
        return carry._replace(past=past), hidden

    def prepare(self, params, carry):
        carry = self._absorb(params, carry)
        return carry._replace(past=self.model.prepare(params, carry.past))

    def init_tape(self, params, batch_size, num_nodes) -> Tape:
        nodes = self.model.init_tape(params, batch_size, num_nodes)
        return _tape(nodes, jnp.zeros((batch_size, num_nodes), jnp.int32))

    def extend_tree(self, params, carry, tape, tree, start, stop):
        nodes, hidden = self.model.extend_tree(
            params, carry.past, tape.nodes, tree, start, stop
        )
        tokens = jax.lax.dynamic_update_slice_in_dim(
            tape.tokens, tree.tokens[:, start:stop], start, axis=1
        )
        return _tape(nodes, tokens), hidden

    def scan_tree(self, params, carry, tree):
        num_nodes = trees.check(tree).num_nodes
        scan_all = functools.partial(self._scan_all, params, carry)
        scan_root = functools.partial(self._scan_root, params, carry)
        if num_nodes == 1:
            return scan_all(tree)
        return jax.lax.cond(trees.has_draft(tree), scan_all, scan_root, tree)

    def keep(self, tape, slots) -> Tape:
        tokens = ragged.take(tape.tokens, jnp.maximum(slots, 0))
        return _tape(self.model.keep(tape.nodes, slots), tokens)

    def commit(self, carry, tape, path) -> Carry:
        checks.require(
            path.shape[1] <= self.max_path,
            f"The model keeps paths of at most {self.max_path} nodes, got "
            f"{path.shape[1]}; raise `max_path`.",
        )
        kept = path >= 0
        tokens = jnp.where(kept, ragged.take(tape.tokens, jnp.maximum(path, 0)), 0)
        pending = jnp.pad(tokens, ((0, 0), (0, self.max_path - path.shape[1])))
        count = jnp.sum(kept, axis=1, dtype=jnp.int32)
        return carry._replace(pending=pending, num_pending=count)

    def _scan_all(self, params, carry, tree):
        """One pass over the pending tokens and the tree that hangs from the last."""
        first, last = self.max_path, carry.num_pending[:, None] - 1
        parents = jnp.where(tree.parents >= 0, tree.parents + first, -1)
        both = TokenTree(
            tokens=jnp.concatenate([carry.pending, tree.tokens], axis=1),
            parents=jnp.concatenate([self._chain(carry), last, parents[:, 1:]], axis=1),
        )
        past = self.model.prepare(params, carry.past)
        tape = self.model.init_tape(params, *both.parents.shape)
        tape, hidden = self.model.extend_tree(
            params, past, tape, both, 0, both.num_nodes
        )
        carry = self._advance(carry._replace(past=past), tape)
        slots = jnp.arange(first, both.num_nodes, dtype=jnp.int32)[None]
        left = self.model.keep(tape, jnp.broadcast_to(slots, tree.parents.shape))
        return carry, _tape(left, tree.tokens), hidden[:, first:]

    def _scan_root(self, params, carry, tree):
        """No row has a draft: one slot is enough."""
        carry, num_nodes = self.prepare(params, carry), tree.num_nodes
        tape = self.init_tape(params, *tree.parents.shape)
        tape, hidden = self.extend_tree(params, carry, tape, tree, 0, 1)
        hidden = jnp.pad(hidden, ((0, 0), (0, num_nodes - 1), (0, 0)))
        return carry, tape._replace(tokens=tree.tokens), hidden

    def _absorb(self, params, carry):
        """Runs the pending tokens through the model, where there are any."""
        if carry.pending is None:
            return carry

        def absorb(carry):
            tree = TokenTree(carry.pending, self._chain(carry))
            past = self.model.prepare(params, carry.past)
            tape = self.model.init_tape(params, *tree.parents.shape)
            tape, _ = self.model.extend_tree(
                params, past, tape, tree, 0, tree.num_nodes
            )
            return self._advance(carry._replace(past=past), tape)

        waiting = jnp.any(carry.num_pending > 0)
        return jax.lax.cond(waiting, absorb, lambda carry: carry, carry)

    def _advance(self, carry, tape):
        """Commits the pending tokens, which are the first nodes on an inner tape."""
        slots = jnp.arange(self.max_path, dtype=jnp.int32)[None]
        path = jnp.where(slots < carry.num_pending[:, None], slots, -1)
        past = self.model.commit(carry.past, tape, path)
        return carry._replace(past=past, num_pending=jnp.zeros_like(carry.num_pending))

    def _chain(self, carry) -> jax.Array:
        """Parents `[B, D]` of the pending tokens."""
        slots = jnp.arange(self.max_path, dtype=jnp.int32)[None]
        return jnp.where(slots < carry.num_pending[:, None], slots - 1, -1)


def _tape(nodes: Any, tokens: jax.Array) -> Tape:
    return Tape(nodes, mesh.constrain_rows(tokens))

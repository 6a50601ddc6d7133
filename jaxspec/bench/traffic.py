"""Bytes that each rollback moves in one step: by formula, and as the compiler has it.

Per recurrent layer and row of the batch, with `s` the bytes of the state, `c` of one
token's record, `e` of one token's convolution input, `t = (K - 1) e` of the tail, `N`
nodes and `W` slots of the ring:

    rollback    scan_tree reads    scan_tree writes        commit reads        commit writes
    snapshot    s + t              N (s + e)               s + t + N (s + e)   s + t
    replay      s + t              N (c + e)               s + t + N (c + e)   s + t
    lazy        s + t + W c        N (c + e) + s           t + N (c + e) + W c t + W c
    joint       s + t              N (c + e) + s + t       -                   -

The write of `s` by lazy's `scan_tree` is XLA's: a state that is folded in some steps is
written in all of them. A kernel that writes under a predicate pays it when the ring is
full, once in about `W - D + 1` tokens. Joint keeps tokens instead of records, and pays for
it in arithmetic: its pass has `D + N` rows. The tapes of replay and joint also hold the
layer's decay rates, once per batch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec import sampling
from jaxspec.bench import targets
from jaxspec.core import LanguageModel
from jaxspec.models import block, rollback
from jaxspec.models.config import ModelConfig
from jaxspec.trees import TokenTree


class Traffic(NamedTuple):
    """Bytes moved in one step of a batch, without params and hidden states."""

    scan_tree_reads: int
    scan_tree_writes: int
    commit_reads: int
    commit_writes: int


class _Layer(NamedTuple):
    state: int
    record: int
    conv: int
    tail: int
    rates: int


def formula(
    config: ModelConfig, rollback: str, batch_size: int, num_nodes: int, ring_size: int
) -> Traffic:
    """The table above, summed over the recurrent layers and the batch."""
    total = Traffic(0, 0, 0, 0)
    for s, c, e, t, rates in _layers(config):
        ring, tape = ring_size * c, num_nodes * (c + e)
        states = num_nodes * (s + e)
        reads, writes, commit_reads, commit_writes = {
            "snapshot": (s + t, states, s + t + states, s + t),
            "replay": (s + t, tape, s + t + tape, s + t),
            "lazy": (s + t + ring, tape + s, t + tape + ring, t + ring),
            "joint": (s + t, tape + s + t, 0, 0),
        }[rollback]
        layer = [
            batch_size * reads,
            batch_size * writes + rates * (rollback in ("replay", "joint")),
            batch_size * commit_reads + rates * (rollback == "replay"),
            batch_size * commit_writes,
        ]
        total = Traffic(*(a + b for a, b in zip(total, layer, strict=True)))
    return total


def compiled(
    model: LanguageModel,
    batch_size: int,
    num_nodes: int,
    max_length: int = 64,
    target: str | None = None,
) -> Traffic:
    """Argument and output bytes of the compiled `scan_tree` and `commit`.

    Outputs that are an argument unchanged are not computed and do not count, nor do
    arguments that nothing reads. Params and hidden states are subtracted; small integer
    arrays (positions, parents, tokens) remain. A state that a kernel writes in place, in
    the rows and steps that fold, is an argument and an output, and counts in full as both:
    how many steps write it is not the compiler's to know. A TPU's arrays are padded to
    tiles, and so is what is counted here.

    Args:
        model: whose functions.
        batch_size: rows.
        num_nodes: of the trees.
        max_length: tokens in the caches.
        target: a machine of `targets` to compile for; None is the one that runs this.
    """
    params = jax.eval_shape(model.init, sampling.key(0))
    carry = jax.eval_shape(lambda: model.init_carry(None, batch_size, max_length))
    shape = jax.ShapeDtypeStruct((batch_size, num_nodes), jnp.int32)
    tree = TokenTree(shape, shape)
    _, tape, hidden = jax.eval_shape(model.scan_tree, params, carry, tree)
    path = jax.ShapeDtypeStruct((batch_size, model.max_path), jnp.int32)
    reads, writes = _sizes(target, model.scan_tree, params, carry, tree)
    commit = _sizes(target, model.commit, carry, tape, path)
    return Traffic(reads - _bytes(params), writes - _bytes(hidden), *commit)


def _layers(config: ModelConfig) -> list[_Layer]:
    """What the recurrent mixers of a model keep, by their own empty pasts."""
    layers = []
    for kind in config.layers:
        one, split = 1, False
        carries = block.init_carry(config, kind, one, one, one, split)
        tapes = block.init_tape(config, kind, one, one, "replay", split)
        for carry, tape in zip(carries, tapes, strict=True):
            if isinstance(carry, rollback.Carry):
                sizes = map(_bytes, (carry.state, carry.ring, tape.conv, carry.tail))
                layers.append(_Layer(*sizes, rates=_bytes(tape.A)))
    return layers


def _sizes(target: str | None, f: Callable, *args: Any) -> tuple[int, int]:
    """Bytes that a compiled function reads and writes."""
    jaxpr = jax.make_jaxpr(f)(*args).jaxpr
    computed = [i for i, var in enumerate(jaxpr.outvars) if var not in jaxpr.invars]

    def only_computed(*args):
        leaves = jax.tree.leaves(f(*args))
        return [leaves[i] for i in computed]

    if target is None:
        program = jax.jit(only_computed).lower(*args).compile()
    else:
        program = targets.compile(only_computed, *args, target=target)
    memory = program.memory_analysis()
    return memory.argument_size_in_bytes, memory.output_size_in_bytes


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

"""The contracts: records of pure functions, and the data that passes between them.

A user joins their own model, drafter or verifier by filling in a record; nothing is
inherited. Factories return equal records for equal settings, so that a record can be a
static argument of `jax.jit` and a notebook cell that is run again does not recompile.

    B batch    N nodes of a tree    T tokens    V vocabulary    C width of the hidden
    D nodes on the longest path, the root included    M expanded nodes
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import struct

from jaxspec.trees import TokenTree

Array = jax.Array
Carry = Any
Tape = Any


class LanguageModel(NamedTuple):
    """A causal language model whose past is a value.

    Every function is pure and natively batched. A carry is any pytree whose leaves have a
    batch axis; nothing else about it is public. To roll back is not to apply a commit; to
    fork is to use a carry twice. `tokens` are int32, `hidden` is after the final norm, in
    the model's dtype.

    Attributes:
        init: `key -> params`.
        init_carry: `params, batch_size, max_length, speculative=True -> carry`, an empty
            past with room for `max_length` tokens and a path. With `speculative=False`
            it serves `step` and `scan` only and carries nothing else.
        step: `params, carry, token [B] -> carry, hidden [B, C]`: the plain recurrence.
        scan: `params, carry, tokens [B, T], lengths [B] -> carry, hidden [B, T, C]`:
            chunk-parallel; row `b` absorbs its first `lengths[b]` tokens, perhaps none.
        prepare: `params, carry -> carry`: the same past with room for a path.
        init_tape: `params, batch_size, num_nodes -> tape`.
        extend_tree: `params, carry, tape, tree, start, stop -> tape, hidden
            [B, stop - start, C]`: some slots of a tree whose parents are on the tape.
            The carry is prepared; `start` and `stop` are static.
        scan_tree: `params, carry, tree -> carry, tape, hidden [B, N, C]`: `prepare`, then
            `extend_tree` over every slot of an empty tape, perhaps fused.
        commit: `carry, tape, path [B, D] -> carry`: keeps the nodes of a path that starts
            at the root, -1 padded; takes the carry that `scan_tree` or `prepare` returned.
        logits: `params, hidden [..., C] -> [..., V]` float32.
        vocab_size: `V`.
        max_path: the longest path that `commit` takes, in nodes.
    """

    init: Callable[..., Any]
    init_carry: Callable[..., Carry]
    step: Callable[..., tuple[Carry, Array]]
    scan: Callable[..., tuple[Carry, Array]]
    prepare: Callable[..., Carry]
    init_tape: Callable[..., Tape]
    extend_tree: Callable[..., tuple[Tape, Array]]
    scan_tree: Callable[..., tuple[Carry, Tape, Array]]
    commit: Callable[..., Carry]
    logits: Callable[..., Array]
    vocab_size: int
    max_path: int

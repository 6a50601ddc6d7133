"""The contract of a language model, and of each of its functions."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax

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
        init: makes params.
        init_carry: makes an empty past.
        step: reads a token: the plain recurrence.
        scan: reads tokens, in chunks.
        prepare: makes room for a path.
        init_tape: makes an empty tape.
        extend_tree: reads some slots of a tree.
        scan_tree: reads a tree.
        keep: keeps some slots of a tape.
        commit: keeps a path of a tree that was read.
        logits: the head.
        vocab_size: `V`.
        max_path: the longest path that `commit` takes, in nodes.
    """

    init: Init
    init_carry: InitCarry
    step: Step
    scan: Scan
    prepare: Prepare
    init_tape: InitTape
    extend_tree: ExtendTree
    scan_tree: ScanTree
    keep: Keep
    commit: Commit
    logits: Logits
    vocab_size: int
    max_path: int


class Init(Protocol):
    """`LanguageModel.init`, `DraftHead.init`."""

    def __call__(self, key: Array, /) -> Any:
        """Makes params of a typed key."""
        ...


class InitCarry(Protocol):
    """`LanguageModel.init_carry`."""

    def __call__(
        self,
        params: Any,
        batch_size: int,
        max_length: int,
        /,
        speculative: bool = True,
    ) -> Carry:
        """Makes an empty past.

        Args:
            params: of the model.
            batch_size: `B`.
            max_length: tokens that there is room for, besides a path.
            speculative: if False, the carry serves `step` and `scan` only and holds
                nothing else.
        """
        ...


class Step(Protocol):
    """`LanguageModel.step`."""

    def __call__(
        self, params: Any, carry: Carry, token: Array, /
    ) -> tuple[Carry, Array]:
        """Reads a token `[B]` a row: the carry after, and hidden `[B, C]`."""
        ...


class Scan(Protocol):
    """`LanguageModel.scan`."""

    def __call__(
        self, params: Any, carry: Carry, tokens: Array, lengths: Array, /
    ) -> tuple[Carry, Array]:
        """Reads tokens, chunk-parallel.

        Args:
            params: of the model.
            carry: the past.
            tokens: `[B, T]`.
            lengths: `[B]` int32; row `b` absorbs its first `lengths[b]` tokens, perhaps
                none.

        Returns:
            The carry after, and hidden `[B, T, C]`, unspecified beyond the lengths.
        """
        ...


class Prepare(Protocol):
    """`LanguageModel.prepare`."""

    def __call__(self, params: Any, carry: Carry, /) -> Carry:
        """The same past, with room for a path."""
        ...


class InitTape(Protocol):
    """`LanguageModel.init_tape`, `DraftHead.init_tape`."""

    def __call__(self, params: Any, batch_size: int, num_nodes: int, /) -> Tape:
        """Makes a tape of `num_nodes` slots, none of them read."""
        ...


class ExtendTree(Protocol):
    """`LanguageModel.extend_tree`."""

    def __call__(
        self,
        params: Any,
        carry: Carry,
        tape: Tape,
        tree: TokenTree,
        start: int,
        stop: int,
        /,
    ) -> tuple[Tape, Array]:
        """Reads some slots of a tree whose parents are on the tape.

        Args:
            params: of the model.
            carry: the past, prepared.
            tape: of as many slots as the tree.
            tree: the tree.
            start: the first slot, static.
            stop: the slot after the last, static.

        Returns:
            The tape after, and hidden `[B, stop - start, C]`.
        """
        ...


class ScanTree(Protocol):
    """`LanguageModel.scan_tree`."""

    def __call__(
        self, params: Any, carry: Carry, tree: TokenTree, /
    ) -> tuple[Carry, Tape, Array]:
        """Reads a tree: `prepare`, then `extend_tree` over every slot, perhaps fused.

        Returns:
            The carry, prepared, the tape, and hidden `[B, N, C]`.
        """
        ...


class Keep(Protocol):
    """`LanguageModel.keep`, `DraftHead.keep`."""

    def __call__(self, tape: Tape, slots: Array, /) -> Tape:
        """A tape of other slots.

        A node stays what it was while all that it hangs from is kept too or committed, so
        that a tree is grown on below a node that a commit made the root.

        Args:
            tape: the tape.
            slots: `[B, K]` int32; slot `k` of row `b` is what slot `slots[b, k]` was, or
                room for `extend_tree` to fill where that is -1.

        Returns:
            A tape of `K` slots.
        """
        ...


class Commit(Protocol):
    """`LanguageModel.commit`."""

    def __call__(self, carry: Carry, tape: Tape, path: Array, /) -> Carry:
        """Keeps the nodes of a path.

        Args:
            carry: as `scan_tree` or `prepare` returned it.
            tape: that the nodes are on.
            path: `[B, d]` int32 slots that start at the root, -1 padded, any
                `d <= max_path`; a row of -1 alone stays as it was.
        """
        ...


class Logits(Protocol):
    """`LanguageModel.logits`, `DraftHead.logits`."""

    def __call__(self, params: Any, hidden: Array, /) -> Array:
        """Logits `[..., V]` float32 of hidden `[..., C]`."""
        ...

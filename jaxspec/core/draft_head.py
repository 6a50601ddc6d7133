"""The contract of a draft head, and of each of its functions."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax

from jaxspec.core.language_model import Carry, Init, InitTape, Keep, Logits, Tape
from jaxspec.trees import TokenTree

Array = jax.Array


class DraftHead(NamedTuple):
    """A small model that drafts from what the target makes of a text (EAGLE, MTP).

    It reads pairs: a token, and the target's hidden of the token before it; for tokens
    that the target has not seen, its own hidden of the token before. Its past is of pairs,
    so that it is a token shorter than the text. Every function is pure and natively
    batched; a carry is a value, as in `LanguageModel`.

    Attributes:
        init: makes params, as a `LanguageModel`'s.
        init_carry: makes an empty past.
        scan: reads pairs.
        init_tape: makes an empty tape, as a `LanguageModel`'s.
        extend_tree: reads some slots of a tree.
        keep: keeps some slots of a tape, as a `LanguageModel`'s.
        logits: the head's own head, as a `LanguageModel`'s.
        vocab_size: `V`.
        hidden_size: `C`, the target's and its own.
    """

    init: Init
    init_carry: InitCarry
    scan: Scan
    init_tape: InitTape
    extend_tree: ExtendTree
    keep: Keep
    logits: Logits
    vocab_size: int
    hidden_size: int


class InitCarry(Protocol):
    """`DraftHead.init_carry`."""

    def __call__(self, params: Any, batch_size: int, max_length: int, /) -> Carry:
        """Makes an empty past with room for the pairs of `max_length` tokens."""
        ...


class Scan(Protocol):
    """`DraftHead.scan`."""

    def __call__(
        self, params: Any, carry: Carry, tokens: Array, before: Array, lengths: Array, /
    ) -> tuple[Carry, Array]:
        """Reads pairs.

        Args:
            params: of the head.
            carry: the past.
            tokens: `[B, T]`.
            before: `[B, T, C]`, the hidden of the token before each.
            lengths: `[B]` int32; row `b` absorbs its first `lengths[b]` pairs, perhaps
                none.

        Returns:
            The carry after, and the head's hidden `[B, T, C]`.
        """
        ...


class ExtendTree(Protocol):
    """`DraftHead.extend_tree`."""

    def __call__(
        self,
        params: Any,
        carry: Carry,
        tape: Tape,
        tree: TokenTree,
        before: Array,
        start: int,
        stop: int,
        /,
    ) -> tuple[Tape, Array]:
        """Reads some slots of a tree whose root's pair is in the carry.

        Args:
            params: of the head.
            carry: the past.
            tape: that the parents are on, except for the root.
            tree: the tree.
            before: `[B, stop - start, C]`, the hidden of each slot's parent.
            start: the first slot, static, at least 1.
            stop: the slot after the last, static.

        Returns:
            The tape after, and the head's hidden `[B, stop - start, C]`.
        """
        ...

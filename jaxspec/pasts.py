"""Pasts: what a target and a drafter keep of a text, absorbed piece by piece.

    past = init_past(params, batch, max_length, target=model, drafter=drafter)
    past = absorb(params, past, tokens, lengths, target=model, drafter=drafter)
    state = init_state(params, prompt, past=past, target=model, drafter=drafter)

A past is a value, as a carry is: kept, it serves every prompt that begins with its tokens.
Whoever absorbs pieces of the same size gets the same bits, whatever came from a kept past.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxspec import checks, compilation, padding, ragged
from jaxspec.core import Drafter, LanguageModel, Params

Array = jax.Array


class Past(struct.PyTreeNode):
    """What a target and a drafter keep of texts that they have absorbed.

    Attributes:
        carry: the target's.
        drafter: the drafter's state; None without one.
        lengths: `[B]` int32, tokens absorbed.
        max_length: the most tokens that a text can have; static.
    """

    carry: Any
    drafter: Any
    lengths: Array  # [B]
    max_length: int = struct.field(pytree_node=False)


def init_past(
    params: Params,
    batch_size: int,
    max_length: int,
    *,
    target: LanguageModel,
    drafter: Drafter | None = None,
    speculative: bool = False,
) -> Past:
    """Makes the past of texts without tokens.

    Args:
        params: of the target and the drafter.
        batch_size: `B`.
        max_length: the most tokens that a text can have, rounded up to a few sizes.
        target: the model.
        drafter: what will propose, if anything does.
        speculative: makes room for paths also without a drafter, whose drafts come from
            elsewhere.

    Raises:
        ValueError: on sizes that are not positive, or a drafter that does not fit.
        TypeError: on params that are not in `Params`, or what is not a record.
    """
    checks.machinery(params, target, drafter)
    batch_size = checks.integer("batch_size", batch_size, least=1)
    max_length = checks.integer("max_length", max_length, least=1)
    return _init_past(
        params,
        batch_size=batch_size,
        max_length=room(max_length, target),
        target=target,
        drafter=drafter,
        speculative=speculative or drafter is not None,
    )


@functools.partial(
    compilation.jit,
    static_argnames=("batch_size", "max_length", "target", "drafter", "speculative"),
)
def _init_past(params, *, batch_size, max_length, target, drafter, speculative):
    """`init_past` as a program, whose results share no buffer."""
    state = None
    if drafter is not None:
        with checks.drafter_errors(params.drafter):
            state = drafter.init(params.drafter, batch_size, max_length)
    return Past(
        carry=target.init_carry(params.target, batch_size, max_length, speculative),
        drafter=state,
        lengths=jnp.zeros((batch_size,), jnp.int32),
        max_length=max_length,
    )


def absorb(
    params: Params,
    past: Past,
    tokens: Array,
    lengths: Array,
    *,
    target: LanguageModel,
    drafter: Drafter | None = None,
) -> Past:
    """Absorbs the tokens that come next: a prompt, or a piece of one.

    A prompt's last token is not absorbed: it is the first root. It is compiled, as the
    loops are; within a `jit` of one's own the past may be donated.

    Args:
        params: of the target and the drafter.
        past: from `init_past`, with the same target and drafter.
        tokens: `[B, T]` int32, anything beyond the lengths.
        lengths: `[B]` int32, how many of them, perhaps none; with those absorbed before
            at most `past.max_length`.
        target: the model.
        drafter: the drafter, if the past has one.
    """
    return _absorb(params, past, tokens, lengths, target=target, drafter=drafter)


def _prefill(params, past, tokens, lengths, *, target, drafter):
    """`absorb` as a program."""
    carry, hidden = target.scan(params.target, past.carry, tokens, lengths)
    state = past.drafter
    if drafter is not None:
        with checks.drafter_errors(params.drafter):
            state = drafter.absorb(params.drafter, state, tokens, hidden, lengths)
    return past.replace(carry=carry, drafter=state, lengths=past.lengths + lengths)


_absorb = compilation.jit(_prefill, static_argnames=("target", "drafter"))
_absorb_into = compilation.jit(
    _prefill, static_argnames=("target", "drafter"), donate_argnames=("past",)
)


def room(max_length: int, target: LanguageModel) -> int:
    """Tokens that a text can have, rounded up so that few sizes are compiled for."""
    width = padding.round_up(max_length + target.max_path, padding.SIZES)
    return width - target.max_path


def absorb_rest(
    params: Params,
    past: Past,
    tokens: Array,
    lengths: Array,
    *,
    chunk_size: int,
    target: LanguageModel,
    drafter: Drafter | None,
) -> Past:
    """Absorbs what is left of the first `lengths` tokens `[B, T]`; the past is donated."""
    size = tokens.shape[1]
    width, absorbed, most = min(chunk_size, size), 0, size - 1
    if checks.is_known(past.lengths, lengths):
        absorbed, most = np.asarray(past.lengths), np.asarray(lengths)
    for _ in range(0, int(np.max(most - absorbed, initial=0)), width):
        piece, count = _piece(tokens, past.lengths, lengths, width=width)
        past = _absorb_into(params, past, piece, count, target=target, drafter=drafter)
    return past


@functools.partial(compilation.jit, static_argnames=("width",))
def _piece(tokens, absorbed, lengths, *, width):
    """The tokens `[B, width]` that come next, and how many they are."""
    index = absorbed[:, None] + jnp.arange(width)[None]
    piece = ragged.take(tokens, jnp.minimum(index, tokens.shape[1] - 1))
    return piece, jnp.clip(lengths - absorbed, 0, width)


@compilation.jit
def copied(tree: Any) -> Any:
    """The same values in buffers of their own, which may be donated."""
    return jax.tree.map(jnp.copy, tree)


def check(
    params: Params, past: Past, lengths: Array, max_length: int, **machinery: Any
) -> None:
    """Refuses a past that prompts of some lengths `[B]` do not begin with.

    Raises:
        ValueError: if it is of another batch, target or drafter, has too little room, or
            has absorbed a prompt's last token, which is the first root.
    """
    batch = len(lengths)
    checks.require(
        past.lengths.shape == (batch,),
        f"The past is of {past.lengths.shape[0]} texts, and there are {batch} prompts.",
    )
    checks.require(
        max_length <= past.max_length,
        f"The past has room for texts of {past.max_length} tokens, and max_length is "
        f"{max_length}; give init_past a larger max_length.",
    )
    begin = functools.partial(
        _init_past, batch_size=batch, max_length=past.max_length, **machinery
    )
    other = checks.difference(past, jax.eval_shape(begin, params))
    checks.require(
        other is None,
        f"The past was made with another target or drafter: {other}. Give init_past and "
        "init_state the same.",
    )
    if checks.is_known(past.lengths, lengths):
        absorbed, known = np.asarray(past.lengths), np.asarray(lengths)
        checks.require(
            bool((absorbed < known).all()),
            f"The past has absorbed {absorbed} tokens, and the prompts have {known}; the "
            "last token of a prompt is not absorbed.",
        )

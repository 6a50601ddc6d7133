"""Decodes a few steps at a time, reads the texts in between, and takes the time."""

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.decode_state import DecodeState
from jaxspec.spec_info import SpecInfo
from jaxspec.text.continuation import Continuation

STEPS = 4  # of the loop, between two looks at the texts

Decode = Callable[[DecodeState], tuple[DecodeState, SpecInfo | None]]
"""`STEPS` steps of a loop; the report is None without speculation."""
Show = Callable[[str, bool], None]
"""Takes a piece of row 0's text, and whether a draft supplied it."""


class Followed(NamedTuple):
    """Texts, and the course of decoding them.

    Attributes:
        state: the last one, its `tokens` and `lengths` on the host. `lengths` counts the
            tokens read: none after a stop.
        rows: the text of each row.
        info: the report, on the host; None without speculation.
        seconds: spent in the loop and in fetching its tokens; compiling, and decoding and
            printing the text, are not part of it.
        not_finite: row and position of the first token whose logits were not finite,
            which ends all texts; or None.
    """

    state: DecodeState
    rows: list[Continuation]
    info: SpecInfo | None
    seconds: float
    not_finite: tuple[int, int] | None


class _Seen(NamedTuple):
    """The part of a state that the host reads, and where its tokens are from."""

    tokens: np.ndarray  # [B, L + D]
    logprobs: np.ndarray  # [B, L + D]
    lengths: np.ndarray  # [B]
    done: np.ndarray  # [B]
    from_draft: np.ndarray | None  # [B, L + D]


def follow(
    decode: Decode,
    state: DecodeState,
    rows: list[Continuation],
    show: Show | None = None,
) -> Followed:
    """Decodes until every text has ended; a row whose text has ended is done.

    Before the clock starts `STEPS` steps are made and thrown away, which compiles them.

    Args:
        decode: the loop.
        state: where it starts; nothing of it is overwritten.
        rows: the reader of each row.
        show: called with row 0's text as it grows.
    """
    jax.block_until_ready(decode(state))
    starts = np.asarray(state.prompt_lengths)
    info, seconds, not_finite = None, 0.0, None
    while not_finite is None and any(text.finish_reason is None for text in rows):
        started = time.perf_counter()
        state, news = decode(state)
        seen, news = jax.device_get((_look(state, news), news))
        seconds += time.perf_counter() - started
        info = news if info is None else jax.tree.map(np.add, info, news)
        for row, text in enumerate(rows):
            bad = _read(text, seen, row, int(starts[row]), None if row else show)
            if bad is not None and not_finite is None:
                not_finite = row, bad
        ended = np.array([text.finish_reason is not None for text in rows])
        if (ended & ~seen.done).any():  # at a stop string
            state = state.replace(done=jnp.asarray(ended | seen.done))
    for text in rows:
        text.finish("error")  # those that another row's end has cut
    lengths = starts + np.array([len(text.tokens) for text in rows], np.int32)
    state = state.replace(tokens=seen.tokens, lengths=lengths)
    return Followed(state, rows, info, seconds, not_finite)


def _look(state: DecodeState, news: SpecInfo | None) -> _Seen:
    from_draft = None if news is None else news.from_draft
    return _Seen(state.tokens, state.logprobs, state.lengths, state.done, from_draft)


def _read(
    text: Continuation, seen: _Seen, row: int, start: int, show: Show | None
) -> int | None:
    """Reads the new tokens of a row; returns the position of one that is not to be."""
    for place in range(start + len(text.tokens), int(seen.lengths[row])):
        if text.finish_reason is not None:
            return None
        if not math.isfinite(seen.logprobs[row, place]):  # nor were the logits
            _tell(show, text.finish("error"), False)
            return None if text.finish_reason == "stop" else place
        piece = text.extend(int(seen.tokens[row, place]))
        is_draft = seen.from_draft is not None and bool(seen.from_draft[row, place])
        _tell(show, piece, is_draft)
    if seen.done[row]:
        _tell(show, text.finish("length"), False)
    return None


def _tell(show: Show | None, piece: str, is_draft: bool) -> None:
    if show is not None and piece:
        show(piece, is_draft)

"""What a run is judged by: tokens per target call, and whether two texts agree."""

import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec import sampling
from jaxspec.core import LanguageModel
from jaxspec.decode_state import DecodeState
from jaxspec.spec_info import SpecInfo

NEAR_TIE = 1e-4
"""Two scores are a tie if they differ by less than this times the largest logit."""


def block_efficiency(info: SpecInfo) -> float:
    """Tokens per target call, over all rows; 1 is autoregressive."""
    return float(jnp.sum(info.kept) / jnp.maximum(jnp.sum(info.target_calls), 1))


def accepted_per_step(info: SpecInfo) -> float:
    """Drafts accepted per target call, over all rows."""
    calls = jnp.maximum(jnp.sum(info.target_calls), 1)
    return float(jnp.sum(info.kept[:, 1:]) / calls)


def acceptance_by_depth(info: SpecInfo) -> np.ndarray:
    """`[D - 1]`: in what share of the target calls a draft at each depth was accepted."""
    calls = jnp.maximum(jnp.sum(info.target_calls), 1)
    return np.asarray(jnp.sum(info.kept[:, 1:], axis=0) / calls)


def first_non_finite(state: DecodeState) -> tuple[int, int] | None:
    """Row and position of the first token whose logits were not finite, or None.

    Its log-probability tells: it is not finite either if there was NaN or plus infinity
    among the logits, or minus infinity alone. What follows in the row means nothing.

    Args:
        state: after any steps of `generate` or of speculation.
    """
    found = np.argwhere(~np.isfinite(np.asarray(state.logprobs)))
    return tuple(found[0].tolist()) if len(found) else None


def memory_bound_speedup(
    block_efficiency: float,
    draft_length: float,
    draft_bytes: float,
    target_bytes: float,
) -> float:
    """MBSU, `tau / (c gamma + 1)`: the speedup if time is what memory has to move.

    A call of the target costs 1 and each of `gamma` drafts `c = draft / target` bytes. No
    substitute for a clock: where time is computing, or starting many small operations, it
    promises too much.

    Args:
        block_efficiency: `tau`, tokens per target call.
        draft_length: `gamma`, how often the draft model is read per call.
        draft_bytes: moved by a step of the draft model: the weights it reads, a table
            that is only looked up not counted, and states and caches, read and written.
        target_bytes: moved by a step of the target.

    Raises:
        ValueError: if a call moves nothing, or a length or size is negative.
    """
    if min(draft_length, draft_bytes) < 0 or target_bytes <= 0:
        raise ValueError(
            "Expected lengths and sizes that are not negative, and a target that moves "
            f"something; got {draft_length}, {draft_bytes} and {target_bytes}."
        )
    return block_efficiency / (draft_bytes / target_bytes * draft_length + 1.0)


def zlib_ratio(text: str) -> float:
    """Compressed bytes over bytes: how repetitive a text is (repetition drafts well)."""
    raw = text.encode()
    return len(zlib.compress(raw, 9)) / max(len(raw), 1)


class Agreement(NamedTuple):
    """How two texts compare, token by token.

    Attributes:
        identical: whether all tokens are the same.
        near_tie: whether the first difference is a choice between candidates of the same
            score, up to rounding. A text is not compared beyond its first difference.
        position: of the first difference, or -1.
        gap: difference of the two candidates' scores over the largest logit there.
    """

    identical: bool
    near_tie: bool
    position: int
    gap: float


def compare(
    model: LanguageModel, params: Any, first: DecodeState, second: DecodeState, row: int
) -> Agreement:
    """Compares one row of two states that were decoded with the same settings.

    A product of one row and of several round differently, so at a near tie two correct
    programs may choose differently. What was at stake is computed anew, by running the
    model over the common prefix; the scores are compared in float64.
    """
    a, b = (np.asarray(s.tokens[row, : int(s.lengths[row])]) for s in (first, second))
    common = min(len(a), len(b))
    differ = np.flatnonzero(a[:common] != b[:common])
    if len(differ) == 0:
        same = len(a) == len(b)
        return Agreement(same, False, -1 if same else common, 0.0 if same else np.inf)
    position = int(differ[0])
    scores, largest = _scores(model, params, first, row, position)
    gap = float(abs(scores[a[position]] - scores[b[position]]) / largest)
    return Agreement(False, gap < NEAR_TIE, position, gap)


def _scores(
    model: LanguageModel, params: Any, state: DecodeState, row: int, position: int
) -> tuple[np.ndarray, float]:
    """What the token at `position` was chosen by: float64 scores, and the largest logit."""
    size = state.tokens.shape[1]  # the same for all rows and positions
    carry = model.init_carry(params, 1, size, speculative=False)
    lengths = jnp.full((1,), position, jnp.int32)
    _, hidden = model.scan(params, carry, state.tokens[row : row + 1], lengths)
    logits = model.logits(params, hidden[:, position - 1])[0]
    largest = float(jnp.max(jnp.abs(logits)))
    settings = jax.tree.map(lambda leaf: leaf[row], state.sampling)
    temperature = float(settings.temperature)
    if temperature == 0.0:
        return np.asarray(logits, np.float64), largest
    key = sampling.noise_key(state.keys[row], sampling.Role.EMIT, position)
    noise = jax.random.gumbel(key, logits.shape, jnp.float32)
    kept = sampling.filter_logits(logits, settings)
    scores = np.asarray(kept, np.float64) / temperature + np.asarray(noise, np.float64)
    return scores, largest

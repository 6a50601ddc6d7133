"""Prompts and stops of any number, padded to a few shapes, so that few are compiled for."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec import checks

Array = jax.Array

SIZES = 64
"""Texts, and the room for them, are multiples of this."""
STOPS = 8
"""The columns of `DecodeState.stops` are a multiple of this."""


def pad_prompts(
    prompts: Sequence[Sequence[int]], multiple: int = SIZES
) -> tuple[Array, Array]:
    """Stacks token lists of any length: tokens `[B, T]` and lengths `[B]`.

    `T` is rounded up to a multiple, so that few lengths are compiled for.

    Raises:
        ValueError: if there is no prompt, an empty one, or one that is no list of tokens.
    """
    multiple = checks.integer("multiple", multiple, least=1)
    checks.require(
        not isinstance(prompts, str) and len(prompts) > 0,
        f"Expected at least one prompt, each a list of tokens, got {prompts!r}.",
    )
    texts = [_one_prompt(row, prompt) for row, prompt in enumerate(prompts)]
    lengths = np.array([len(text) for text in texts], np.int32)
    size = round_up(int(lengths.max()), multiple)
    tokens = np.zeros((len(texts), size), np.int64)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = text
    checks.require(
        np.iinfo(np.int32).min <= tokens.min()
        and tokens.max() <= np.iinfo(np.int32).max,
        f"Tokens are int32, got {tokens.min()} to {tokens.max()}.",
    )
    return jnp.asarray(tokens.astype(np.int32)), jnp.asarray(lengths)


def _one_prompt(row: int, prompt: Any) -> np.ndarray:
    tokens = checks.array(f"prompt {row}", prompt)
    is_empty = 0 in tokens.shape
    checks.require(
        tokens.ndim == 1 and (is_empty or jnp.issubdtype(tokens.dtype, jnp.integer)),
        f"Expected prompt {row} as a list of tokens, got {type(prompt).__name__} of "
        f"{tokens.dtype} and shape {tokens.shape}; text is encoded first, as by "
        "tokenizer.encode(text).ids.",
    )
    checks.require(not is_empty, f"Prompt {row} is empty; expected at least one token.")
    return np.asarray(tokens)


def pad_stops(stops: Any, batch: int) -> Array:
    """`[B, K]` int32, -1 padded to a multiple of columns."""
    numpy = np if checks.is_known(stops) else jnp
    stops = numpy.atleast_2d(numpy.asarray(stops)).astype(jnp.int32)
    more = round_up(stops.shape[1], STOPS) - stops.shape[1]
    stops = numpy.pad(stops, ((0, 0), (0, more)), constant_values=-1)
    return jnp.asarray(numpy.broadcast_to(stops, (batch, stops.shape[1])))


def round_up(size: int, multiple: int) -> int:
    """The least multiple of a number that is not below a size."""
    return -(-size // multiple) * multiple

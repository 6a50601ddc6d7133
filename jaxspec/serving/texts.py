"""Requests as arrays, on the host."""

import math
from collections.abc import Sequence

import numpy as np

from jaxspec import checks, padding
from jaxspec.serving.machinery import Machinery
from jaxspec.serving.programs import Text
from jaxspec.serving.requests import Request


def check(request: Request, machinery: Machinery) -> None:
    """Refuses a request that cannot be served as it is; nothing is cut in silence.

    Raises:
        ValueError: saying what was expected.
    """
    m, vocab_size = machinery, machinery.target.vocab_size
    prompt, stops = np.asarray(request.prompt), np.asarray(request.stops)
    checks.require(
        prompt.ndim == 1 and len(prompt) > 0 and prompt.dtype.kind in "iu",
        "Expected a prompt of at least one token, a list of integers.",
    )
    checks.require(
        0 <= prompt.min() and prompt.max() < vocab_size,
        f"Expected tokens from 0 to {vocab_size - 1}, got {prompt.min()} to "
        f"{prompt.max()}.",
    )
    for name in ("max_new_tokens", "top_k", "seed", "draft_budget"):
        checks.integer(name, getattr(request, name), least=0)
    checks.require(
        request.max_new_tokens >= 1
        and len(prompt) + request.max_new_tokens <= m.max_length,
        f"A prompt of {len(prompt)} tokens and max_new_tokens of "
        f"{request.max_new_tokens} do not fit; a text has {m.max_length} at most, and "
        "one is added at least.",
    )
    checks.require(
        math.isfinite(request.temperature) and request.temperature >= 0.0,
        f"Expected a temperature of at least 0, got {request.temperature}.",
    )
    checks.require(
        0.0 < request.top_p <= 1.0, f"Expected 0 < top_p <= 1, got {request.top_p}."
    )
    checks.require(
        len(stops) <= m.num_stops and (not len(stops) or stops.dtype.kind in "iu"),
        f"Expected at most {m.num_stops} stops, each a token, got {request.stops}.",
    )
    checks.require(request.seed < 2**32, f"Expected seed < 2^32, got {request.seed}.")
    checks.require(
        request.deadline is None or request.deadline > 0.0,
        f"Expected deadline of more than 0 seconds, or None, got {request.deadline}.",
    )


def text(request: Request, machinery: Machinery) -> Text:
    """A request as the device takes it."""
    m, size = machinery, len(request.prompt)
    tokens = np.zeros((1, m.width), np.int32)
    tokens[0, :size] = request.prompt
    stops = np.full((1, padding.round_up(m.num_stops, padding.STOPS)), -1, np.int32)
    stops[0, : len(request.stops)] = request.stops
    integers = {"top_k": request.top_k, "draft_budgets": request.draft_budget}
    reals = {"temperature": request.temperature, "top_p": request.top_p}
    settings = {name: np.array([n], np.int32) for name, n in integers.items()}
    settings |= {name: np.array([x], np.float32) for name, x in reals.items()}
    return Text(
        tokens=tokens,
        length=np.array([size], np.int32),
        limit=np.array([size + request.max_new_tokens], np.int32),
        settings=settings | {"stops": stops, "keys": key(request.seed)},
    )


def chunk(
    prompt: Sequence[int], index: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """A chunk `[1, size]` of what is absorbed of a prompt, and its length `[1]`."""
    piece = prompt[index * size : min((index + 1) * size, len(prompt) - 1)]
    tokens = np.zeros((1, size), np.int32)
    tokens[0, : len(piece)] = piece
    return tokens, np.array([len(piece)], np.int32)


def key(seed: int) -> np.ndarray:
    """The data `[1, 2]` of `sampling.key(seed)`."""
    return np.array([[0, seed]], np.uint32)

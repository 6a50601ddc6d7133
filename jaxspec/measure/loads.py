"""Requests that come: seldom, often, too often, or all at once."""

from collections.abc import Sequence

import numpy as np

from jaxspec.serving.replay import Costs, Recorded

LOADS = {"low": 0.15, "medium": 0.6, "saturated": 2.0, "bursty": None}
"""Offered, in parts of what is served without drafts; bursts change between two of them."""

_BURST = 15  # requests


def capacity(costs: Costs, texts: Sequence[Recorded], rows: int) -> float:
    """Requests a second that are served without drafts, with all rows running."""
    steps = np.mean([text.tokens for text in texts]) * costs.steps.of(rows)[1]
    chunks = np.mean([-(-(text.prompt - 1) // costs.chunk_size) for text in texts])
    return rows / (steps + rows * (chunks * costs.chunk + costs.admit))


def arrivals(
    load: float | None, count: int, capacity: float, draw: np.random.Generator
) -> np.ndarray:
    """The seconds at which requests come, independently of each other (Poisson).

    Args:
        load: of `LOADS`.
        count: requests.
        capacity: requests a second.
        draw: random numbers.
    """
    is_busy = np.arange(count) // _BURST % 2 == 1
    bursts = np.where(is_busy, LOADS["saturated"], LOADS["low"])
    rates = bursts if load is None else np.full(count, load)
    return np.cumsum(draw.exponential(1.0 / (rates * capacity)))

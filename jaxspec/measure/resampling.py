"""95 % intervals of what was measured, by resampling it (Efron 1979)."""

from typing import NamedTuple

import numpy as np

RESAMPLES = 2000


class Interval(NamedTuple):
    """A figure between the bounds of its 95 % interval."""

    low: float
    middle: float
    high: float


def ratio(numerators: np.ndarray, denominators: np.ndarray) -> Interval:
    """A sum `[n]` over another; what belongs together is drawn together."""
    pick = _pick(len(numerators))
    found = numerators[pick].sum(1) / denominators[pick].sum(1)
    return _interval(found, numerators.sum() / denominators.sum())


def median(values: np.ndarray) -> Interval:
    """The median of values `[n]`."""
    return _interval(np.median(values[_pick(len(values))], axis=1), np.median(values))


def _pick(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, count, (RESAMPLES, count))


def _interval(found: np.ndarray, middle: float) -> Interval:
    low, high = np.percentile(found, [2.5, 97.5])
    return Interval(float(low), float(middle), float(high))

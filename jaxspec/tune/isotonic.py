"""Curves from estimates to what they came to, and how far estimates are off.

The curve is the closest to the outcomes of all that do not descend (isotonic regression):
it moves estimates, and never makes two of them change places. With outcomes in bins of
equal width by their estimate, the expected calibration error is

    sum over bins of the share of outcomes in it x |mean estimate - mean outcome|.
"""

from typing import NamedTuple

import numpy as np
from scipy import optimize

from jaxspec.drafting.survival import Curve

KNOTS = 48  # of a curve at most; outcomes between are averaged


class Bins(NamedTuple):
    """Outcomes by their estimate, without empty bins.

    Attributes:
        estimate: mean estimate of each bin.
        outcome: mean outcome of each bin.
        count: outcomes in each bin.
    """

    estimate: np.ndarray
    outcome: np.ndarray
    count: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error."""
        gaps = np.abs(self.estimate - self.outcome)
        return float(np.average(gaps, weights=self.count))


def fit(estimate: np.ndarray, outcome: np.ndarray) -> Curve:
    """Fits a curve to estimates `[n]` from 0 to 1 and outcomes `[n]` of 0 or 1.

    Raises:
        ValueError: if there is nothing to fit to.
    """
    if not len(estimate):
        raise ValueError("Expected estimates to fit a curve to, got none.")
    levels, place = np.unique(np.asarray(estimate, np.float64), return_inverse=True)
    each = np.bincount(place)
    # Neighbours are put together until each group has its part; equal ones stay together.
    before = np.cumsum(each) - each
    group = np.unique(before * KNOTS // len(estimate), return_inverse=True)[1]
    weight = np.bincount(group, each)
    middle = np.bincount(group, levels * each) / weight
    mean = np.bincount(group[place], outcome) / weight
    share = optimize.isotonic_regression(mean, weights=weight).x
    share = np.clip(share, 0.0, 1.0)
    return Curve(tuple(middle.round(6).tolist()), tuple(share.round(6).tolist()))


def apply(curve: Curve, estimate: np.ndarray) -> np.ndarray:
    """The shares of estimates, as `Curve` maps them on the device."""
    return np.interp(estimate, curve.estimate, curve.share)


def bins(estimate: np.ndarray, outcome: np.ndarray, count: int = 10) -> Bins:
    """Sorts outcomes `[n]` into bins of equal width by their estimates `[n]`."""
    place = np.minimum((np.asarray(estimate) * count).astype(int), count - 1)
    size = np.bincount(place, minlength=count)
    full = size > 0
    means = (
        np.bincount(place, values, minlength=count)[full] / size[full]
        for values in (estimate, outcome)
    )
    return Bins(*means, size[full])

"""Curves never descend, are the closest that do not, and errors are what they say."""

import numpy as np
import pytest

from jaxspec.drafting import survival
from jaxspec.tune import isotonic


def drawn(seed, chance, count=20_000):
    """Estimates, and outcomes that come true with another chance."""
    rng = np.random.default_rng(seed)
    estimate = rng.random(count)
    return estimate, rng.random(count) < chance(estimate)


@pytest.mark.parametrize("chance", [np.square, np.sqrt, lambda x: 0.3 + 0 * x])
def test_a_curve_finds_what_estimates_come_to(chance):
    curve = survival.check(isotonic.fit(*drawn(0, chance)))
    assert len(curve.estimate) <= isotonic.KNOTS + 1
    points = np.linspace(0.05, 0.95, 19)
    assert np.abs(isotonic.apply(curve, points) - chance(points)).max() < 0.05
    estimate, outcome = drawn(1, chance)
    before = isotonic.bins(estimate, outcome).error
    after = isotonic.bins(isotonic.apply(curve, estimate), outcome).error
    assert after < 0.02 < 0.1 < before


def test_where_outcomes_descend_the_curve_is_flat():
    estimate = np.repeat([0.1, 0.2, 0.3, 0.9], [10, 10, 20, 10])
    outcome = np.concatenate(
        [np.arange(n) < k for n, k in ((10, 1), (10, 8), (20, 4), (10, 9))]
    )
    curve = isotonic.fit(estimate, outcome)
    np.testing.assert_allclose(curve.estimate, [0.1, 0.2, 0.3, 0.9])
    np.testing.assert_allclose(curve.share, [0.1, 0.4, 0.4, 0.9])  # 12 of 30 in between


def test_equal_estimates_stay_together():
    curve = isotonic.fit(np.full(100, 0.25), np.arange(100) < 30)
    assert curve == ((0.25,), (0.3,))
    with pytest.raises(ValueError, match="got none"):
        isotonic.fit(np.zeros(0), np.zeros(0))


def test_the_error_is_the_mean_gap_between_promise_and_outcome():
    estimate = np.array([0.05, 0.05, 0.95, 1.0])
    outcome = np.array([0, 1, 1, 0])
    bins = isotonic.bins(estimate, outcome)
    assert bins.count.tolist() == [2, 2]
    np.testing.assert_allclose(bins.estimate, [0.05, 0.975])
    assert bins.error == pytest.approx(0.5 * 0.45 + 0.5 * 0.475)

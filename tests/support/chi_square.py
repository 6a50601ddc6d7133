"""Counts of texts against their exact law.

Texts are cells of a table `[V + 1, V + 1, ...]`, an axis per token: its number and 1, or 0
after the end. Two statistics judge a sample, and every p-value is of a chi-square:

    texts     sum (O - E)^2 / E over all texts of a kind, the rare ones together
    tokens    O - E of each token given what stood before it, summed over places and kinds

The second adds up whatever leans the same way everywhere: its terms are uncorrelated, of
covariance `n (diag(p) - p p^T)` where a text was gone on with `n` times.
"""

from collections.abc import Iterable

import numpy as np
from scipy import stats

RARE = 20.0  # texts expected less often are put together
NEVER = 1e-6  # a text that is expected less often does not occur


def of_texts(counts: np.ndarray, law: np.ndarray) -> float:
    """The p-value of one kind's counts; 0 if there is a text that never occurs."""
    counts, expected = counts.ravel(), counts.sum() * law.ravel()
    if counts[expected < NEVER].any():
        return 0.0
    order = np.argsort(
        -expected
    )  # the rarest last, in one cell with the next if need be
    common = max(int((expected >= RARE).sum()), 1)
    if expected[order[common:]].sum() < RARE:
        common -= 1
    if common == 0:
        return 1.0
    cells = np.arange(common + 1)
    observed, expected = (np.add.reduceat(x[order], cells) for x in (counts, expected))
    square = ((observed - expected) ** 2 / expected).sum()
    return float(stats.chi2.sf(square, common))


def of_tokens(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """The p-value of the tokens of several kinds, each `counts, law`."""
    beyond, covariance = 0.0, 0.0
    for counts, law in pairs:
        for place in range(law.ndim):
            after = tuple(range(place + 1, law.ndim))
            observed, mass = (
                x.sum(axis=after).reshape(-1, len(x)) for x in (counts, law)
            )
            possible = mass.sum(axis=1) > 0.0
            observed, mass = observed[possible], mass[possible]
            chance = mass / mass.sum(axis=1, keepdims=True)
            expected = observed.sum(axis=1, keepdims=True) * chance
            beyond += (observed - expected).sum(axis=0)
            covariance += np.diag(expected.sum(axis=0)) - expected.T @ chance
    own, vectors = np.linalg.eigh(covariance)
    real = own > 1e-6 * own.max()
    square = ((beyond @ vectors[:, real]) ** 2 / own[real]).sum()
    return float(stats.chi2.sf(square, real.sum()))

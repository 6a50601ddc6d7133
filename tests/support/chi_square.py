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
    order = np.argsort(-expected)
    size = max(np.searchsorted(-expected[order], -RARE, side="right"), 1)
    cells = np.append(np.arange(size), size) if size < len(order) else np.arange(size)
    observed, expected = (np.add.reduceat(x[order], cells) for x in (counts, expected))
    if len(expected) > 1 and expected[-1] < RARE:  # all rare ones are still too few
        observed, expected = (
            np.append(x[:-2], x[-2] + x[-1]) for x in (observed, expected)
        )
    if len(expected) == 1:
        return 1.0
    square = ((observed - expected) ** 2 / expected).sum()
    return float(stats.chi2.sf(square, len(expected) - 1))


def of_tokens(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """The p-value of the tokens of several kinds, each `counts, law`."""
    beyond, covariance = 0.0, 0.0
    for counts, law in pairs:
        for place in range(law.ndim):
            after = tuple(range(place + 1, law.ndim))
            observed, mass = counts.sum(axis=after), law.sum(axis=after)
            size = law.shape[0]
            observed, mass = observed.reshape(-1, size), mass.reshape(-1, size)
            total = mass.sum(axis=1, keepdims=True)
            chance = np.where(total > 0.0, mass, 1.0 / size)
            chance /= chance.sum(axis=1, keepdims=True)
            times = np.where(total > 0.0, observed.sum(axis=1, keepdims=True), 0.0)
            beyond += np.where(total > 0.0, observed - times * chance, 0.0).sum(axis=0)
            each = np.einsum("ni,nj->ij", times * chance, chance)
            covariance += np.diag((times * chance).sum(axis=0)) - each
    own, vectors = np.linalg.eigh(covariance)
    real = own > 1e-6 * own.max()
    square = ((beyond @ vectors[:, real]) ** 2 / own[real]).sum()
    return float(stats.chi2.sf(square, real.sum()))

"""Exact laws of programs that draw: the program is run once for every way it can go.

The shipped function is run as it is, op by op (`jax.disable_jit`), with `sampling.draw`
replaced by a fork. Probabilities are float64.
"""

from collections import defaultdict

import jax
import numpy as np

from jaxspec import sampling


def softmax(logits):
    logits = np.asarray(logits, np.float64)
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def law(program, monkeypatch):
    """The law of a program's result: `{result: probability}`; the result is hashable."""
    outcomes, unfinished = defaultdict(float), [()]
    with monkeypatch.context() as patch, jax.disable_jit():
        while unfinished:
            run = _Run(unfinished.pop(), unfinished)
            patch.setattr(sampling, "draw", run.draw)
            result = program()
            outcomes[result] += run.probability
    return dict(outcomes)


class _Run:
    """One run of a program: makes given choices first, and notes others for later."""

    def __init__(self, choices, unfinished):
        self.given, self.made = choices, []
        self.unfinished, self.probability = unfinished, 1.0

    def draw(self, key, logits):
        weights = softmax(logits)
        possible = np.flatnonzero(weights > 0).tolist()
        if len(self.made) < len(self.given):
            choice = self.given[len(self.made)]
        else:
            choice, *others = possible
            self.unfinished.extend((*self.made, other) for other in others)
        self.made.append(choice)
        self.probability *= weights[choice]
        return np.int32(choice)


def distance(first, second):
    """Total variation."""
    keys = set(first) | set(second)
    return 0.5 * sum(abs(first.get(k, 0.0) - second.get(k, 0.0)) for k in keys)

"""Kinds of rows that one batch mixes, and the exact law of the text that each writes.

The law is worked out in float64 from a function that gives the logits after any text, by
the words of the documentation: it shares no code with what it judges.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Follow = Callable[[tuple[int, ...]], np.ndarray]
MARGIN = 1e-4  # of a filter or an argmax, but for equals, which the rules settle


class Kind(NamedTuple):
    """The settings of a row, as `init_state` takes them."""

    prompt: tuple[int, ...]
    budget: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    stops: tuple[int, ...] = ()

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0 or self.top_k == 1


KINDS = {
    "plain": Kind((2, 0, 1), 4),
    "cool, one token": Kind((3,), 4, 0.7),
    "a stop": Kind((0, 3), 4, 1.0, stops=(1,)),
    "hot, top-k": Kind((1, 2), 3, 1.5, top_k=2, stops=(3,)),
    "top-p": Kind((3, 1, 0), 4, 1.0, top_p=0.7),
    "cold, both filters": Kind((2,), 4, 0.4, top_k=3, top_p=0.9),
    "hot, at an end": Kind((0, 2), 2, 1.3, top_p=0.8, stops=(0, 2)),
    "budget of one": Kind((1, 1), 1, 1.2, top_k=3),
    "greedy": Kind((3, 2), 4, 0.0),
    "top-k of one": Kind((0, 2), 4, 1.2, top_k=1),
    "greedy, filters and a stop": Kind(
        (1, 0, 2), 4, 0.0, top_k=2, top_p=0.5, stops=(2,)
    ),
}
TOKENS = max(kind.budget for kind in KINDS.values())


def next_law(kind: Kind, logits: np.ndarray) -> np.ndarray:
    """`[V]` float64, of the next token of a row.

    Raises:
        ValueError: if rounding could decide a filter or an argmax.
    """
    logits = np.asarray(logits, np.float64)
    order = np.argsort(-logits, kind="stable")  # the lowest of equals first
    ranked = logits[order]
    if kind.is_greedy:
        _require(ranked[0] - ranked[1], "argmax")
        return np.eye(len(logits))[order[0]]
    kept = np.ones(len(logits), bool)  # from the likeliest on; equals stay together
    if 0 < kind.top_k < len(logits):
        kept = ranked >= ranked[kind.top_k - 1]
        _require(ranked[kind.top_k - 1] - ranked[kind.top_k], "top-k")
    law = softmax(np.where(kept, ranked, -np.inf) / kind.temperature)
    if kind.top_p < 1.0:
        mass = np.cumsum(law)
        _require(np.abs(mass - kind.top_p).min(), "top-p")
        kept &= ranked >= ranked[np.argmax(mass > kind.top_p)]
        law = softmax(np.where(kept, ranked, -np.inf) / kind.temperature)
    return law[np.argsort(order)]


def law(
    kind: Kind, follow: Follow, next_law: Callable[..., np.ndarray] = next_law
) -> dict[tuple[int, ...], float]:
    """Probabilities of all texts that a row can write, up to a stop or the budget."""
    done, going = {}, {(): 1.0}
    for _ in range(kind.budget):
        longer = {}
        for text, probability in going.items():
            for token, p in enumerate(next_law(kind, follow((*kind.prompt, *text)))):
                where = done if token in kind.stops else longer
                if p > 0.0:
                    where[*text, token] = probability * p
        going = longer
    return done | going


def cell(text: tuple[int, ...]) -> tuple[int, ...]:
    """A text of up to `TOKENS` tokens as digits from 1, 0 after the end."""
    return tuple(token + 1 for token in text) + (0,) * (TOKENS - len(text))


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - np.max(logits))
    return weights / weights.sum()


def _require(margin: float, name: str) -> None:
    if 0.0 != margin < MARGIN:
        raise ValueError(f"A table decides a {name} by {margin}: take another seed.")

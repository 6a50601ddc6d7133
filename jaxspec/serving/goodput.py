"""Goodput: as many drafts as pay, chosen anew in every turn (SmartSpec, Liu et al. 2024).

    goodput(n) = sum over rows of (1 + gain_(n-1)) / seconds of a step of n nodes

`gain_b` is the number of drafts that a row's tree brings under a budget of `b` (`gains`).
All rows go through one step, whose cost is that of its number of nodes: a row's own budget
saves no time, so the step is as wide as pays for all rows together, and every row uses its
width. Costs are a staircase, measured for every number of rows and nodes (`jaxspec tune
costs`), and all steps of it are compared: the best may lie behind a worse one.

Budgets follow from earlier steps only, so that they change no law; with `sample_and_match`
they change no text.
"""

import dataclasses
import functools
import random
from collections.abc import Mapping, Sequence

import numpy as np

from jaxspec import checks
from jaxspec.serving.gains import Gains
from jaxspec.serving.news import News
from jaxspec.serving.requests import Ticket

_BURST = 4  # steps of a probe; the first only finds out where it is


@dataclasses.dataclass(frozen=True)
class StepCosts:
    """Seconds of a step, drafting included.

    Attributes:
        seconds: by rows and nodes.
        idle: the same where no row has a draft, and only roots are verified; None if
            there is always one.
    """

    seconds: Mapping[tuple[int, int], float]
    idle: Mapping[tuple[int, int], float] | None = None

    def __post_init__(self):
        checks.require(
            len(self.seconds) > 0 and all(t > 0.0 for t in self.seconds.values()),
            "Expected positive costs of at least one number of rows and nodes.",
        )
        checks.require(
            self.idle is None or self.idle.keys() == self.seconds.keys(),
            "Expected idle costs of the same numbers of rows and nodes.",
        )

    def of(self, rows: int, chance_of_none: float = 0.0) -> dict[int, float]:
        """Seconds by nodes, not decreasing, at the least number of rows that is enough.

        Args:
            rows: that a step has.
            chance_of_none: that no row has a draft.
        """
        size = next((n for n in self.rows if n >= rows), self.rows[-1])
        found = sorted((n, t) for (r, n), t in self.seconds.items() if r == size)
        nodes, times = zip(*found, strict=True)
        times = np.maximum.accumulate(times)
        if self.idle is not None and chance_of_none:
            idle = np.array([self.idle[size, n] for n in nodes])
            times = times + chance_of_none * (np.minimum(idle, times) - times)
        return dict(zip(nodes, times.tolist(), strict=True))

    @functools.cached_property
    def rows(self) -> list[int]:
        """Numbers of rows, ascending."""
        return sorted({rows for rows, _ in self.seconds})


class Goodput:
    """A policy: the width of a step that promises most tokens per second.

    Attributes:
        costs: of steps.
        gains: the estimates.
        probes: the share of time that is spent on steps of one size more, a few in a row,
            since of drafts that are not proposed nothing is learnt.
    """

    def __init__(
        self,
        costs: StepCosts,
        gains: Gains,
        *,
        probes: float = 0.001,
        seed: int = 0,
    ):
        self.costs, self.gains, self.probes = costs, gains, probes
        self._draw, self._probing = random.Random(seed), 0

    def budgets(self, tickets: Sequence[Ticket | None]) -> list[int]:
        """See `Policy`: the same for all rows."""
        running = [ticket for ticket in tickets if ticket is not None]
        if not running:
            return [0] * len(tickets)
        chance = np.prod([1.0 - self.gains.chance_of_any(t) for t in running])
        costs = self.costs.of(len(tickets), float(chance))
        gains = np.sum([self.gains.of(ticket) for ticket in running], axis=0)
        nodes = best(gains, len(running), costs)
        wider = min((n for n in costs if n > nodes), default=nodes)
        if wider > nodes and not (self.gains.is_whole and nodes > 1):
            dearer = max(costs[wider] / costs[nodes] - 1.0, 0.1)
            if self._draw.random() < self.probes / dearer / _BURST:
                self._probing = _BURST
            nodes = wider if self._probing else nodes
        self._probing = max(self._probing - 1, 0)
        return [nodes - 1] * len(tickets)

    def see(self, ticket: Ticket, found: News, budget: int) -> None:
        """See `Policy`."""
        self.gains.see(ticket, found, budget)


class SmartSpec:
    """A policy: the published rule, one acceptance rate for all drafts of all requests.

    With `a` the share of tested drafts that were accepted, by censored likelihood, a
    chain of `k` drafts brings `(1 - a^(k + 1)) / (1 - a)` tokens.

    Attributes:
        costs: of steps.
        fading: of what was seen, per step of a row.
    """

    def __init__(
        self, costs: StepCosts, *, fading: float = 0.99, probes: float = 1 / 64
    ):
        self.costs, self.fading, self.probes = costs, fading, probes
        self._accepted, self._rejected = 0.7, 0.3
        self._draw = random.Random(0)

    def budgets(self, tickets: Sequence[Ticket | None]) -> list[int]:
        """See `Policy`."""
        costs = self.costs.of(len(tickets))
        rate = self._accepted / (self._accepted + self._rejected)
        gains = np.cumsum(rate ** np.arange(1, max(costs)))
        running = max(sum(ticket is not None for ticket in tickets), 1)
        nodes = best(running * gains, running, costs)
        if self._draw.random() < self.probes:
            nodes = min((n for n in costs if n > nodes), default=nodes)
        return [nodes - 1] * len(tickets)

    def see(self, ticket: Ticket, found: News, budget: int) -> None:
        """See `Policy`."""
        for m in np.nonzero(found.ran)[0]:
            accepted = int(found.kept[m].sum())
            tested = bool((found.shown[m] & ~found.kept[m]).any())
            self._accepted = self.fading * self._accepted + accepted
            self._rejected = self.fading * self._rejected + tested


def best(gains: np.ndarray, rows: int, costs: Mapping[int, float]) -> int:
    """Nodes of the step of largest goodput.

    Args:
        gains: `[N - 1]`, drafts that are accepted in all rows, by budget from 1 on.
        rows: that run.
        costs: seconds by nodes, the root included.
    """

    def goodput(nodes):
        more = gains[min(nodes - 1, len(gains)) - 1] if nodes > 1 else 0.0
        return (rows + more) / costs[nodes]

    return max(costs, key=lambda nodes: (goodput(nodes), -nodes))


def packed(
    gains: Sequence[np.ndarray], seconds: Sequence[float]
) -> tuple[list[int], float]:
    """Budgets where every row costs what it uses: the best prefix of all sorted drafts.

    Steps here are padded, and this is to compare with (`replay`).

    Args:
        gains: of each row, by budget from 1 on, concave.
        seconds: `[T + 1]`, of a step with so many drafts in all.

    Returns:
        Drafts of each row, and the goodput.
    """
    table = np.diff(np.stack(list(gains)), axis=1, prepend=0.0)
    order = np.argsort(-table, axis=None, kind="stable")
    total = np.concatenate([[0.0], np.cumsum(table.reshape(-1)[order])])
    goodput = (len(table) + total) / np.asarray(seconds)[: len(total)]
    count = int(np.argmax(goodput))
    chosen = np.zeros(table.size, bool)
    chosen[order[:count]] = True
    return chosen.reshape(table.shape).sum(axis=1).tolist(), float(goodput[count])

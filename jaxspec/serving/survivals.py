"""How likely drafts are to survive, estimated while texts are written.

A budget keeps the drafts of highest score, so what counts is the rank: `S_j` is the
probability that the draft of rank `j` lies on the path that the text takes. What is known
of a request is shrunk to what is known of its class, whose counts fade: with hits `h` and
trials `t`, and `w` the weight of the class,

    S_j = (w H_j / T_j + h_j) / (w + t_j),    not increasing in j.

With `sample_and_match` the text does not depend on the drafts. So every draft that was
proposed can be compared with the text, verified or not, as soon as there is enough of it
(shadow evaluation), and nothing is censored. With other verifiers, or where a drafter
proposes no more than its budget, ranks beyond the budget are no trials.
"""

import dataclasses
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxspec.serving.news import News
from jaxspec.serving.requests import Ticket


def ranks(parents: np.ndarray, score: np.ndarray) -> np.ndarray:
    """`[N]`: drafts that a budget keeps before each; `N` for the root and for padding.

    As `budgets.rank`, on the host.
    """
    size = len(parents)
    is_draft = (parents >= 0) & (np.arange(size) > 0)
    order = np.argsort(np.where(is_draft, -np.nan_to_num(score), np.inf), kind="stable")
    found = np.full(size, size)
    found[order[: is_draft.sum()]] = np.arange(is_draft.sum())
    return found


def path(drafts: np.ndarray, parents: np.ndarray, text: Sequence[int]) -> list[int]:
    """The slots of a tree that a text goes through, below the root."""
    found, node = [], 0
    for token in text:
        (children,) = np.nonzero((parents == node) & (drafts == token))
        children = children[children > 0]
        if not len(children):
            break
        node = int(children[0])
        found.append(node)
    return found


@dataclasses.dataclass(eq=False)
class _Known:
    """What is known of a request.

    Attributes:
        hits: `[N - 1]`, by rank.
        trials: `[N - 1]`.
        any: trees with a draft at all, of `trees`.
        trees: that were proposed.
        pending: trees whose text is not long enough yet: where it begins, and `see`'s.
    """

    hits: np.ndarray
    trials: np.ndarray
    any: float = 0.0
    trees: float = 0.0
    pending: list[tuple[int, Any, int]] = dataclasses.field(default_factory=list)


class Survivals:
    """Estimates of survival, by rank, for each request.

    Attributes:
        num_nodes: of the drafter's trees, the root included.
        is_exact: whether drafts are compared with the text (`sample_and_match`).
        is_whole: whether all of a tree is proposed whatever the budget.
        weight: of the class, in trials.
        fading: of the class's counts, per tree.
        class_of: what a request has in common with others. By default its client, so that
            nothing is learnt from, or told to, anybody else.
    """

    def __init__(
        self,
        num_nodes: int,
        *,
        is_exact: bool = True,
        is_whole: bool = False,
        weight: float = 8.0,
        fading: float = 0.98,
        class_of: Callable[[Ticket], Any] = lambda ticket: ticket.request.client,
    ):
        self.num_nodes = num_nodes
        self.is_exact, self.is_whole = is_exact, is_whole
        self.weight, self.fading, self.class_of = weight, fading, class_of
        self._classes: dict[Any, _Known] = {}
        self._known: weakref.WeakKeyDictionary[Ticket, _Known] = (
            weakref.WeakKeyDictionary()
        )

    def of(self, ticket: Ticket) -> np.ndarray:
        """`[N - 1]`: the estimates for a request, by rank."""
        common, own = self._class(ticket), self._known.get(ticket)
        rate = common.hits / common.trials
        if own is not None:
            rate = (self.weight * rate + own.hits) / (self.weight + own.trials)
        return np.minimum.accumulate(rate)

    def chance_of_any(self, ticket: Ticket) -> float:
        """The probability that a draft is proposed at all, where one may be."""
        common, own = self._class(ticket), self._known.get(ticket)
        rate = common.any / common.trees
        if own is not None:
            rate = (self.weight * rate + own.any) / (self.weight + own.trees)
        return rate

    def see(self, ticket: Ticket, found: News, budget: int) -> None:
        """Takes in the news of a request; the arguments are those of `Policy.see`."""
        size = self.num_nodes - 1
        own = self._known.setdefault(ticket, _Known(np.zeros(size), np.zeros(size)))
        text, at = list(ticket.tokens), len(ticket.tokens)
        for m in np.nonzero(found.ran)[0]:
            tree = found.drafts[m], found.parents[m], found.score[m], found.kept[m]
            if (found.parents[m] >= 0).any() or budget > 0:
                own.pending.append((at, tree, budget))
            text += found.tokens[m, : found.count[m]].tolist()
            at = len(text)
        is_over = bool((found.done & found.ran).any())
        waiting = []
        for at, tree, budget in own.pending:
            left = text[at:]
            if self.is_exact and not is_over and len(left) < _depth(tree[1]):
                waiting.append((at, tree, budget))
            elif not is_over or len(left) >= _depth(tree[1]):
                self._count(ticket, own, tree, left, budget)
        own.pending = waiting
        if is_over:
            del self._known[ticket]

    def _count(self, ticket: Ticket, own: _Known, tree, text, budget: int) -> None:
        drafts, parents, score, kept = tree
        rank = ranks(parents, score)
        on_path = path(drafts, parents, text) if self.is_exact else np.nonzero(kept)[0]
        limit = self.num_nodes - 1
        if not (self.is_exact and self.is_whole):
            limit = min(limit, budget)
        hits = np.zeros(self.num_nodes - 1)
        hits[[r for r in rank[on_path] if r < limit]] = 1.0
        trials = np.arange(self.num_nodes - 1) < limit
        common = self._class(ticket)
        if limit > 0:
            is_any = bool((rank < self.num_nodes).any())
            own.any, own.trees = own.any + is_any, own.trees + 1.0
            common.any = common.any * self.fading + is_any
            common.trees = common.trees * self.fading + 1.0
        own.hits += hits
        own.trials += trials
        fade = np.where(trials, self.fading, 1.0)
        common.hits = common.hits * fade + hits
        common.trials = common.trials * fade + trials

    def _class(self, ticket: Ticket) -> _Known:
        size, key = self.num_nodes - 1, self.class_of(ticket)
        if key not in self._classes:  # a little of what is not known yet
            self._classes[key] = _Known(np.full(size, 0.5), np.ones(size), 1.0, 1.0)
        return self._classes[key]


def _depth(parents: np.ndarray) -> int:
    """Drafts on the longest path of a tree."""
    depth = np.zeros(len(parents), int)
    for slot in range(1, len(parents)):
        if parents[slot] >= 0:
            depth[slot] = depth[parents[slot]] + 1
    return int(depth.max())

"""Estimates of the drafts that each budget brings, made while texts are written.

A budget of `b` keeps the drafts of ranks below `b`, and a tree brings as many tokens as
the text goes through of these. With `sample_and_match` the text does not depend on the
drafts. So a tree is compared with the text once there is enough of it, for every budget at
once, whichever it had (shadow evaluation). With other verifiers, or where a drafter
proposes no more than its budget, larger budgets learn nothing from it.

Trees are not alike. Whoever steps token by token meets a stretch that is easy to draft at
each of its tokens, and whoever takes it in one step meets it once. So for each budget only
those trees count that it would have come to by itself: a walker per budget goes through
the text, from a tree to the end of what it would have brought. A tree behind a step without
drafts is where a walker begins.

What is known of a request is shrunk to what is known of its class, whose counts fade: with
`s` accepted drafts of `t` trees, and `w` the weight of the class,

    gain_b = (w S_b / T_b + s_b) / (w + t_b),    not decreasing in b.
"""

import dataclasses
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxspec.serving.news import News
from jaxspec.serving.requests import Ticket

_HOPE = 0.7  # of a chain's drafts that come to be tested, before anything is known


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


def accepted(rank: Sequence[int], num_nodes: int) -> np.ndarray:
    """`[N - 1]`: how far a path goes under budgets of 1, 2, ..

    Args:
        rank: of the drafts on the path, root first.
        num_nodes: `N`.
    """
    needed = np.maximum.accumulate(np.array([*rank], int)) if len(rank) else []
    return np.searchsorted(needed, np.arange(1, num_nodes), side="left")


class _Counts:
    """Sums over trees.

    Attributes:
        accepted: `[N - 1]`, drafts, by budget from 1 on.
        trees: `[N - 1]`.
        any: trees with a draft at all, of `proposed`.
        proposed: trees that there were.
    """

    def __init__(self, size: int, trees: float):
        self.accepted = trees * np.cumsum(_HOPE ** np.arange(1, size + 1))
        self.trees = np.full(size, trees)
        self.any = self.proposed = trees

    def add(self, accepted, counts, is_any: bool, fading: float = 1.0) -> None:
        """Adds a tree, for the budgets for which it counts."""
        fade = np.where(counts, fading, 1.0)
        self.accepted = self.accepted * fade + accepted * counts
        self.trees = self.trees * fade + counts
        self.any = self.any * fading + is_any
        self.proposed = self.proposed * fading + 1.0


class _Tree(NamedTuple):
    """A tree that was proposed.

    Attributes:
        at: tokens of the text before it.
        budget: that it had.
        drafts, parents, score, kept: as in `News`, `[N]`.
    """

    at: int
    budget: int
    drafts: np.ndarray
    parents: np.ndarray
    score: np.ndarray
    kept: np.ndarray


@dataclasses.dataclass(eq=False)
class _Own:
    """A request's own counts.

    Attributes:
        counts: of its trees.
        walkers: `[N - 1]`, where each budget's next tree begins; -1 for wherever one is
            met next, which does not count.
        pending: trees whose text is not long enough yet.
    """

    counts: _Counts
    walkers: np.ndarray
    pending: list[_Tree] = dataclasses.field(default_factory=list)


class Gains:
    """Estimates of what budgets bring, for each request.

    Attributes:
        num_nodes: of the drafter's trees, the root included.
        is_exact: whether drafts are compared with the text (`sample_and_match`).
        is_whole: whether all of a tree is proposed whatever the budget.
        weight: of the class, in trees.
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
        weight: float = 16.0,
        fading: float = 0.995,
        class_of: Callable[[Ticket], Any] = lambda ticket: ticket.request.client,
    ):
        self.num_nodes = num_nodes
        self.is_exact, self.is_whole = is_exact, is_whole
        self.weight, self.fading, self.class_of = weight, fading, class_of
        self._classes: dict[Any, _Counts] = {}
        self._own: weakref.WeakKeyDictionary[Ticket, _Own] = weakref.WeakKeyDictionary()

    def of(self, ticket: Ticket) -> np.ndarray:
        """`[N - 1]`: drafts that a tree brings, by budget from 1 on."""
        common, own = self._class(ticket), self._own.get(ticket)
        rate = common.accepted / common.trees
        if own is not None:
            sums = self.weight * rate + own.counts.accepted
            rate = sums / (self.weight + own.counts.trees)
        return np.maximum.accumulate(rate)

    def chance_of_any(self, ticket: Ticket) -> float:
        """The probability that a draft is proposed at all, where one may be."""
        common, own = self._class(ticket), self._own.get(ticket)
        rate = common.any / common.proposed
        if own is not None:
            sums = self.weight * rate + own.counts.any
            rate = sums / (self.weight + own.counts.proposed)
        return rate

    def see(self, ticket: Ticket, found: News, budget: int) -> None:
        """Takes in the news of a request; the arguments are those of `Policy.see`."""
        size = self.num_nodes - 1
        if ticket not in self._own:
            self._own[ticket] = _Own(_Counts(size, 0.0), np.full(size, -1))
        own, text = self._own[ticket], list(ticket.tokens)
        for m in np.nonzero(found.ran)[0]:
            tree = _Tree(
                at=len(text),
                budget=budget,
                drafts=found.drafts[m],
                parents=found.parents[m],
                score=found.score[m],
                kept=found.kept[m],
            )
            own.pending.append(tree)
            text += found.tokens[m, : found.count[m]].tolist()
        is_over = bool((found.done & found.ran).any())
        waiting = []
        for tree in own.pending:
            is_long = len(text) - tree.at > depth(tree.parents) or not self.is_exact
            if waiting or not (is_long or is_over):  # trees are counted in order
                waiting.append(tree)
            elif is_long:
                self._count(ticket, own, tree, text[tree.at :])
        own.pending = waiting
        if is_over:
            del self._own[ticket]

    def _count(self, ticket: Ticket, own: _Own, tree: _Tree, text: list[int]) -> None:
        """Compares a tree with the text behind it."""
        most = self.num_nodes - 1
        if not (self.is_exact and self.is_whole):
            most = min(most, tree.budget)
        is_known = np.arange(1, self.num_nodes) <= most
        if tree.budget == 0 and not (tree.parents >= 0).any():  # nothing was proposed
            is_known[:] = False
        rank = ranks(tree.parents, tree.score)
        slots = np.nonzero(tree.kept)[0]
        if self.is_exact:
            slots = path(tree.drafts, tree.parents, text)
        brought = accepted(rank[slots], self.num_nodes)
        counts = is_known & (own.walkers >= 0) & (own.walkers <= tree.at)
        moves = is_known & (own.walkers <= tree.at)
        own.walkers = np.where(moves, tree.at + brought + 1, own.walkers)
        own.walkers = np.where(is_known, own.walkers, -1)
        if is_known.any():
            is_any = bool((rank < self.num_nodes).any())
            own.counts.add(brought, counts, is_any)
            self._class(ticket).add(brought, counts, is_any, self.fading)

    def _class(self, ticket: Ticket) -> _Counts:
        key = self.class_of(ticket)
        if key not in self._classes:  # what is hoped for is tried
            self._classes[key] = _Counts(self.num_nodes - 1, 1.0)
        return self._classes[key]


def depth(parents: np.ndarray) -> int:
    """Drafts on the longest path of a tree."""
    found = np.zeros(len(parents), int)
    for slot in range(1, len(parents)):
        if parents[slot] >= 0:
            found[slot] = found[parents[slot]] + 1
    return int(found.max())

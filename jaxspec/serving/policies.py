"""Policies: how many drafts are verified for whom, asked before every step.

With `sample_and_match` a policy changes no text, whatever it does. With other verifiers it
may use what was known before the drafts were drawn: what it saw of earlier steps.
"""

from collections.abc import Sequence
from typing import Protocol

from jaxspec.serving.news import News
from jaxspec.serving.requests import Ticket


class Policy(Protocol):
    """Decides on budgets, and learns from what became of drafts."""

    def budgets(self, tickets: Sequence[Ticket | None]) -> Sequence[int]:
        """Draft nodes of each row at most, before a step; a request's own hold as well.

        Args:
            tickets: who has each row, None for a free one.
        """
        ...

    def see(self, ticket: Ticket, found: News, budget: int) -> None:
        """Takes in the news of a ticket, one step late.

        Args:
            ticket: whose row it was; its tokens are those before the news.
            found: of its row, `[M, ...]` over the rounds of the step.
            budget: that it had in the step.
        """
        ...


class AsAsked:
    """The budget that each request asks for, always."""

    def budgets(self, tickets: Sequence[Ticket | None]) -> list[int]:
        """The budgets of the requests."""
        return [0 if t is None else t.request.draft_budget for t in tickets]

    def see(self, ticket: Ticket, found: News, budget: int) -> None:
        """Learns nothing."""


class Fixed(AsAsked):
    """The same number of drafts for all, always.

    Attributes:
        budget: draft nodes.
    """

    def __init__(self, budget: int):
        self.budget = budget

    def budgets(self, tickets: Sequence[Ticket | None]) -> list[int]:
        """The budget."""
        return [self.budget] * len(tickets)

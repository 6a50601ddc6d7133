"""The interface of engines, made of the few things that each does in its own way."""

import abc
from collections.abc import Iterator

from jaxspec.serving.requests import Delta, Request, Suspended, Ticket


class Service(abc.ABC):
    """Takes requests, and writes their texts turn by turn. It belongs to one thread.

    Attributes:
        is_draining: whether it takes no more requests.
    """

    is_draining: bool = False

    # --- What each does in its own way ---

    @abc.abstractmethod
    def submit_several(self, request: Request, n: int) -> list[Ticket]:
        """Takes a request for `n` texts, which share the reading of their prompt.

        Text `i` has the seed `request.seed + i`. Errors are those of `submit`.
        """

    @abc.abstractmethod
    def abort(self, ticket: Ticket) -> None:
        """Ends a text in the next turn, and frees its row."""

    @abc.abstractmethod
    def take(self, ticket: Ticket) -> Suspended:
        """Copies a running text: a value to resume from here or elsewhere.

        Raises:
            ValueError: if it does not run.
        """

    @abc.abstractmethod
    def resume(self, suspended: Suspended, seed: int | None = None) -> Ticket:
        """Goes on with a text that was taken, here or by an engine like this one.

        Args:
            suspended: the text.
            seed: of another key, for a fork; the same by default.

        Raises:
            ValueError: if its value is not a row of such a pool.
            Draining: if no more is taken.
        """

    @abc.abstractmethod
    def listen(self, ticket: Ticket, is_listening: bool = True) -> None:
        """Says that somebody waits for every token of a ticket, or does no longer.

        While somebody does, a turn is one step.
        """

    @abc.abstractmethod
    def reset_prefix_cache(self) -> None:
        """Forgets all pasts that are kept."""

    @abc.abstractmethod
    def turn(self) -> list[Delta]:
        """Does one turn, and returns the news that came in it, of all tickets."""

    @property
    @abc.abstractmethod
    def is_idle(self) -> bool:
        """True if there is nothing to do."""

    # --- What follows ---

    def submit(self, request: Request) -> Ticket:
        """Takes a request.

        Raises:
            ValueError: on a request that cannot be served as it is.
            QueueFull: if too many wait.
            Draining: if no more is taken.
        """
        return self.submit_several(request, 1)[0]

    def suspend(self, ticket: Ticket) -> Suspended:
        """Copies a running text, and ends it here. Errors are those of `take`."""
        found = self.take(ticket)
        self.abort(ticket)
        return found

    def stream(self, ticket: Ticket) -> Iterator[Delta]:
        """Yields the news of a ticket as they come, and does turns meanwhile."""
        self.listen(ticket)
        sent = 0
        try:
            while True:
                tokens, finish = tuple(ticket.tokens), ticket.finish
                if len(tokens) > sent or finish is not None:
                    logprobs = tuple(ticket.logprobs[sent:])
                    yield Delta(ticket.id, tokens[sent:], logprobs, finish)
                    sent = len(tokens)
                if finish is not None:
                    return
                self.turn()
        finally:  # whoever goes away does not slow down the others
            self.listen(ticket, False)

    def run(self) -> None:
        """Turns until nothing is left to do."""
        while not self.is_idle:
            self.turn()

    def drain(self) -> None:
        """Takes no more requests, and finishes those that there are."""
        self.is_draining = True
        self.run()

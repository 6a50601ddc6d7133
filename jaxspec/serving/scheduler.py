"""Who runs next: plain Python, without arrays, for engines and for simulations of them.

A turn asks for a `Plan`. Rows are free or let to a ticket. Whoever waits is ordered by

    priority + arrival / ageing + rows that its client has

the least first. Nobody waits for ever, since later requests rank behind by and by, and a
client that asks for much leaves room for one that asks for little. A prompt is absorbed at
a time, and a row goes to the first whose prompt is. Where none is free, a ticket takes the
row of the worst one of a higher priority, unless that has waited too long for it; it is set
aside, and goes on later where it was.
"""

import dataclasses
from collections.abc import Iterable, Sequence

from jaxspec import checks
from jaxspec.serving.requests import Finish, QueueFull, Ticket


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to do in a turn, in this order.

    Attributes:
        end: tickets that end now, and why.
        aside: tickets whose row is taken from them, and which it was.
        stop: rows whose texts go no further, of either.
        fill: whose prompt to go on with, None for none.
        admit: tickets that are given rows, whose number they know.
        rounds: steps on the device at most.
    """

    end: tuple[tuple[Ticket, Finish], ...]
    aside: tuple[tuple[Ticket, int], ...]
    stop: tuple[int, ...]
    fill: Ticket | None
    admit: tuple[Ticket, ...]
    rounds: int


class Scheduler:
    """Waiting lines and rows.

    Attributes:
        num_rows: rows of the pool.
        max_waiting: tickets that may wait; more are refused.
        ageing: seconds of waiting that are worth one step of priority.
        rounds: steps in a row, where nobody waits or listens.
        is_hurried: whether somebody does elsewhere, who shares the device.
    """

    def __init__(
        self,
        num_rows: int,
        *,
        max_waiting: int = 1024,
        ageing: float = 10.0,
        rounds: int = 8,
    ):
        self.num_rows = checks.integer("num_rows", num_rows, least=1)
        self.max_waiting = checks.integer("max_waiting", max_waiting, least=1)
        self.rounds = checks.integer("rounds", rounds, least=1)
        checks.require(ageing > 0, f"Expected a positive ageing, got {ageing}.")
        self.ageing = ageing
        self.rows: list[Ticket | None] = [None] * self.num_rows
        self.waiting: list[Ticket] = []  # prompts not absorbed
        self.filling: Ticket | None = None
        self.ready: list[Ticket] = []  # to be given rows
        self.num_preemptions = 0
        self.is_hurried = False
        self._aborted: list[Ticket] = []
        self._listening: set[Ticket] = set()

    def submit(self, ticket: Ticket) -> None:
        """Lets a ticket wait for its prompt to be absorbed.

        Raises:
            QueueFull: if too many do.
        """
        if len(self.waiting) >= self.max_waiting:
            raise QueueFull(
                f"{self.max_waiting} requests wait already; try again later."
            )
        self.waiting.append(ticket)

    def resume(self, ticket: Ticket) -> None:
        """Lets a ticket wait for a row; it has all else."""
        self.ready.append(ticket)

    def filled(self, tickets: Iterable[Ticket]) -> None:
        """Says that a prompt is absorbed, of which these are texts."""
        self.filling = None
        self.ready += tickets

    def abort(self, ticket: Ticket) -> None:
        """Ends a ticket in the next turn, whatever it does."""
        self._aborted.append(ticket)

    def listen(self, ticket: Ticket, to_it: bool) -> None:
        """Says whether somebody reads a ticket's tokens as they come."""
        (self._listening.add if to_it else self._listening.discard)(ticket)

    def release(self, ticket: Ticket) -> None:
        """Takes an ended ticket out of wherever it is."""
        if ticket.row is not None:
            self.rows[ticket.row] = None
            ticket.row = None
        for line in (self.waiting, self.ready):
            if ticket in line:
                line.remove(ticket)
        if self.filling is ticket:
            self.filling = None
        self._listening.discard(ticket)

    @property
    def is_idle(self) -> bool:
        """Nobody runs and nobody waits."""
        lines = self.waiting or self.ready or self._aborted
        return not lines and self.filling is None and not any(self.rows)

    @property
    def is_quiet(self) -> bool:
        """Nobody waits, and nobody reads along."""
        waits = self.waiting or self.ready or self.filling
        return not waits and not self._listening

    def move(self, index: Sequence[int]) -> None:
        """Lets tickets change their rows: row `i` was row `index[i]`."""
        moved = [self.rows[row] for row in index]
        self.rows = moved + [None] * (self.num_rows - len(moved))
        for row, ticket in enumerate(self.rows):
            if ticket is not None:
                ticket.row = row

    def plan(self, now: float) -> Plan:
        """Decides what to do in this turn; tickets know their rows afterwards."""
        end = self._ends(now)
        stop = [ticket.row for ticket, _ in end if ticket.row is not None]
        for ticket, _ in end:
            self.release(ticket)
        aside, admit = self._lets()
        stop += [row for _, row in aside]
        if self.filling is None and self.waiting:
            first = min(self.waiting, key=self._order)
            before = sum(self._rank(other) < self._rank(first) for other in self.ready)
            if before < self.num_rows:  # else its past would only lie about
                self.filling = first
                self.waiting.remove(first)
        rounds = self.rounds if self.is_quiet and not self.is_hurried else 1
        return Plan(end, aside, tuple(stop), self.filling, admit, rounds)

    def _ends(self, now: float) -> tuple[tuple[Ticket, Finish], ...]:
        late = [
            ticket
            for ticket in (*self.waiting, *self.ready, self.filling, *self.rows)
            if ticket is not None
            and ticket.request.deadline is not None
            and now - ticket.arrival >= ticket.request.deadline
        ]
        aborted, self._aborted = self._aborted, []
        reasons = dict.fromkeys(late, Finish.DEADLINE)
        reasons |= dict.fromkeys(aborted, Finish.ABORT)
        return tuple((t, why) for t, why in reasons.items() if t.finish is None)

    def _lets(self) -> tuple[tuple[tuple[Ticket, int], ...], tuple[Ticket, ...]]:
        """Lets free rows, and those of higher priorities, to whoever is ready."""
        aside, admit = [], []
        for _ in range(len(self.ready)):
            ticket = min((t for t in self.ready if t not in admit), key=self._order)
            row = next((i for i, t in enumerate(self.rows) if t is None), None)
            if row is None:
                worst = max(self.rows, key=self._rank)
                if worst in admit or not self._displaces(ticket, worst):
                    break
                row, worst.row = worst.row, None
                aside.append((worst, row))
                self.num_preemptions += 1
            ticket.row, self.rows[row] = row, ticket
            admit.append(ticket)
        self.ready = [t for t in self.ready if t not in admit]
        self.ready += [t for t, _ in aside]
        return tuple(aside), tuple(admit)

    def _rank(self, ticket: Ticket) -> tuple[float, int]:
        """The order of two tickets of one client; it does not change."""
        return ticket.request.priority + ticket.arrival / self.ageing, ticket.id

    def _order(self, ticket: Ticket) -> tuple[float, int]:
        rank, which = self._rank(ticket)
        client = ticket.request.client
        held = sum(t is not None and t.request.client == client for t in self.rows)
        return rank + held, which

    def _displaces(self, ticket: Ticket, other: Ticket) -> bool:
        """Tells if one takes the other's row."""
        is_lower = ticket.request.priority < other.request.priority
        return is_lower and self._rank(ticket) < self._rank(other)

"""One engine over several processes: process 0 decides, and the others do the same.

    link = serving.Link("10.0.0.1:5555", secret)     # in every process
    if link.index == 0:
        engine = serving.Leader(params, link=link, layout=layout, ...)
        ...                                          # as any engine
        engine.close()
    else:
        serving.follow(link, params, layout=layout, ...)

What an engine does follows from what it is asked, what its clock says, which budgets its
policy chooses, and the news of its steps. News are on every device. All else is said by
process 0 as it happens, so that the others run the same programs in the same order; they
compare what was written so far before every turn. A fault ends all of them: there is no
going on when one of several has lost a step.
"""

import time
from collections.abc import Callable, Sequence
from multiprocessing import connection
from typing import Any

import jax

from jaxspec.core import Params
from jaxspec.serving.engine import Engine
from jaxspec.serving.news import News
from jaxspec.serving.policies import AsAsked, Policy
from jaxspec.serving.requests import Draining, QueueFull, Request, Suspended, Ticket
from jaxspec.serving.suspended import pack, unpack

_PATIENCE = 60.0  # seconds in which all processes must have called


class Parted(RuntimeError):
    """A process does no longer do what process 0 does."""


class Link:
    """A line from process 0 to the others; it listens, and they call.

    Attributes:
        index: of this process.
        count: processes that there are.
    """

    def __init__(
        self,
        address: str,
        secret: str,
        *,
        index: int | None = None,
        count: int | None = None,
    ):
        """Waits until all have called.

        Args:
            address: HOST:PORT of process 0, as the others reach it.
            secret: what a caller must know; whoever does can run code in the others.
            index: of this process, `jax.process_index()` by default.
            count: of processes, `jax.process_count()` by default.

        Raises:
            ValueError: on an address that is not HOST:PORT.
            TimeoutError: if process 0 does not listen.
        """
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"Expected an address HOST:PORT, got {address!r}.")
        self.index = jax.process_index() if index is None else index
        self.count = jax.process_count() if count is None else count
        place, key = (host, int(port)), secret.encode()
        if self.index == 0:
            with connection.Listener(place, authkey=key) as listener:
                self._lines = [listener.accept() for _ in range(self.count - 1)]
        else:
            self._lines = [_call(place, key)]

    def say(self, kind: str, *values: Any) -> None:
        """Tells all others."""
        for line in self._lines:
            line.send((kind, *values))

    def hear(self, *kinds: str) -> tuple:
        """Waits for the next word of process 0.

        Raises:
            Parted: if it is of another kind, or process 0 is gone.
        """
        try:
            found = self._lines[0].recv()
        except (EOFError, OSError):
            raise Parted("Process 0 is gone.") from None
        if kinds and found[0] not in kinds:
            raise Parted(f"Process 0 said {found[0]}, and {kinds[0]} was expected.")
        return found

    def close(self) -> None:
        """Hangs up."""
        for line in self._lines:
            line.close()


class Leader(Engine):
    """The engine of process 0, which tells the others what it is asked and decides."""

    def __init__(
        self,
        params: Params,
        *,
        link: Link,
        clock: Callable[[], float] = time.monotonic,
        policy: Policy | None = None,
        **options: Any,
    ):
        """Compiles, as the others do; the arguments are those of `Engine`, and the link."""
        self._link = link
        self._listens: list[tuple[Ticket, bool]] = []
        said = _Said(link, AsAsked() if policy is None else policy, clock)
        super().__init__(params, clock=said.now, policy=said, **options)

    def submit_several(self, request: Request, n: int) -> list[Ticket]:
        """See `Service`."""
        self._link.say("submit", request, n)
        return super().submit_several(request, n)

    def abort(self, ticket: Ticket) -> None:
        """See `Service`."""
        self._link.say("abort", ticket.id)
        super().abort(ticket)

    def listen(self, ticket: Ticket, is_listening: bool = True) -> None:
        """See `Service`; from the next turn on, since a stream may be left at any time."""
        self._listens.append((ticket, is_listening))

    def drain(self) -> None:
        """See `Service`."""
        self._link.say("drain")
        super().drain()

    def reset_prefix_cache(self) -> None:
        """See `Service`."""
        self._link.say("reset")
        super().reset_prefix_cache()

    def take(self, ticket: Ticket) -> Suspended:
        """See `Service`."""
        self._link.say("take", ticket.id)
        return super().take(ticket)

    def resume(self, suspended: Suspended, seed: int | None = None) -> Ticket:
        """See `Service`."""
        self._link.say("resume", *pack(suspended), seed)
        return super().resume(suspended, seed)

    def turn(self) -> list:
        """See `Service`; a fault is raised, and is the end in all processes."""
        listens, self._listens = self._listens, []
        for ticket, is_listening in listens:
            self._link.say("listen", ticket.id, is_listening)
            super().listen(ticket, is_listening)
        self._link.say("turn", self.counts.tokens, sum(self.counts.finished.values()))
        return super().turn()

    def close(self) -> None:
        """Lets the others go."""
        self._link.say("close")
        self._link.close()

    def _recover(self, message: str) -> None:
        self._link.close()
        raise RuntimeError(message)


class _Follower(Engine):
    """The engine of another process."""

    def __init__(self, params: Params, *, link: Link, **options: Any):
        heard = _Heard(link)
        super().__init__(params, clock=heard.now, policy=heard, **options)

    def _recover(self, message: str) -> None:
        raise Parted(message)


def follow(link: Link, params: Params, **options: Any) -> None:
    """Does what process 0 does, until it closes.

    Args:
        link: to process 0.
        params: of the target and the drafter, this process's part of them.
        **options: of `Engine`, the same as process 0's, but for `clock` and `policy`.

    Raises:
        Parted: if it cannot.
    """
    engine = _Follower(params, link=link, **options)
    tickets: dict[int, Ticket] = {}
    while True:
        kind, *values = link.hear()
        if kind == "close":
            link.close()
            return
        try:
            found = _do(engine, tickets, kind, values)
        except (ValueError, TypeError, QueueFull, Draining):
            continue  # what was asked is refused, there as here
        tickets |= {ticket.id: ticket for ticket in found}
        tickets = {id: t for id, t in tickets.items() if t.finish is None}


def _do(engine: Engine, tickets: dict[int, Ticket], kind: str, values: list) -> list:
    """Does what was said; the new tickets."""
    if kind == "submit":
        return engine.submit_several(*values)
    if kind == "resume":
        record, arrays, seed = values
        suspended = unpack(record, arrays, like=engine.programs.value)
        return [engine.resume(suspended, seed)]
    if kind == "turn":
        counts = engine.counts
        own = [counts.tokens, sum(counts.finished.values())]
        if own != values:
            raise Parted(f"Process 0 has written {values} tokens and texts, not {own}.")
        engine.turn()
    elif kind == "reset":
        engine.reset_prefix_cache()
    elif kind == "drain":
        engine.is_draining = True
    elif values[0] in tickets:  # else it has ended
        ticket = tickets[values[0]]
        calls = {"abort": engine.abort, "listen": engine.listen, "take": engine.take}
        calls[kind](ticket, *values[1:])
    return []


class _Said:
    """A clock and a policy whose words go to the others."""

    def __init__(self, link: Link, policy: Policy, clock: Callable[[], float]):
        self._link, self._policy, self._clock = link, policy, clock
        self.see = policy.see

    def now(self) -> float:
        now = self._clock()
        self._link.say("clock", now)
        return now

    def budgets(self, tickets: Sequence[Ticket | None]) -> list[int]:
        found = [int(budget) for budget in self._policy.budgets(tickets)]
        self._link.say("budgets", found)
        return found


class _Heard:
    """The clock and the policy of process 0."""

    def __init__(self, link: Link):
        self._link = link

    def now(self) -> float:
        return self._link.hear("clock")[1]

    def budgets(self, tickets: Sequence[Ticket | None]) -> list[int]:
        return self._link.hear("budgets")[1]

    def see(self, ticket: Ticket, found: News, budget: int) -> None:
        """Process 0 sees for all."""


def _call(place: tuple[str, int], key: bytes) -> connection.Connection:
    """Calls process 0, which may not be there yet."""
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            return connection.Client(place, authkey=key)
        except ConnectionRefusedError:
            if time.monotonic() > until:
                message = f"Nobody listens at {place[0]}:{place[1]}."
                raise TimeoutError(message) from None
            time.sleep(0.05)

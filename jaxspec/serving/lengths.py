"""Pools by length: a short conversation does not take the room of a long one.

    engine = serving.ByLength(params, rows={512: 6, 8192: 2}, target=model, drafter=drafter)

A row of a hybrid has room for the keys and values of the longest text that it may hold,
and its attention looks over all of that room. Here every length has a pool and programs of
its own, and a request goes to the shortest in which its prompt and its `max_new_tokens`
fit, whatever the others do. So where it goes follows from the request, and its text from
params, prompt and key, as in one pool. Pure state-space models gain nothing: their rows are
of one size.
"""

import itertools
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from jaxspec import checks
from jaxspec.core import Params
from jaxspec.serving.engine import Engine
from jaxspec.serving.requests import Delta, Draining, Request, Suspended, Ticket
from jaxspec.serving.service import Service


class ByLength(Service):
    """Engines for texts of several lengths, which take turns on one device.

    Attributes:
        engines: by the most tokens of their texts, ascending.
    """

    def __init__(
        self,
        params: Params,
        *,
        rows: Mapping[int, int | Sequence[int]],
        cache_bytes: int = 256 * 2**20,
        **options: Any,
    ):
        """Compiles an engine for each length.

        Args:
            params: of the target and the drafter.
            rows: how many, by the most tokens of a text.
            cache_bytes: of pasts that are kept, in equal shares.
            **options: of `Engine`; a scheduler is each one's own.

        Raises:
            ValueError: on sizes out of range, or machinery that does not fit together.
            TypeError: on what is not a record.
        """
        checks.require(len(rows) > 0, "Expected rows of at least one length, got none.")
        checks.require(
            options.get("scheduler") is None,
            "Each length has a scheduler of its own; give none.",
        )
        options["cache_bytes"] = cache_bytes // len(rows)
        made = [
            Engine(params, rows=count, max_length=length, **options)
            for length, count in sorted(rows.items())
        ]
        self.engines = {engine.machinery.max_length: engine for engine in made}
        checks.require(
            len(self.engines) == len(rows),
            f"Lengths are rounded up, and two of {sorted(rows)} are the same then.",
        )
        numbers = itertools.count(1)  # of tickets, of all engines
        for engine in made:
            engine.numbers = numbers
        self._engine_of: weakref.WeakKeyDictionary[Ticket, Engine] = (
            weakref.WeakKeyDictionary()
        )

    def submit_several(self, request: Request, n: int) -> list[Ticket]:
        """See `Service`."""
        self._check_open()
        needed = len(request.prompt) + request.max_new_tokens
        fits = (e for length, e in self.engines.items() if length >= needed)
        longest = self.engines[max(self.engines)]  # says what does not fit
        engine = next(fits, longest)
        return self._of(engine, engine.submit_several(request, n))

    def abort(self, ticket: Ticket) -> None:
        """See `Service`."""
        self._engine_of[ticket].abort(ticket)

    def take(self, ticket: Ticket) -> Suspended:
        """See `Service`."""
        return self._engine_of[ticket].take(ticket)

    def resume(self, suspended: Suspended, seed: int | None = None) -> Ticket:
        """See `Service`; the text goes on in a pool of the length that it came from."""
        self._check_open()
        width = suspended.value.tokens.shape[1]
        widths = {engine.machinery.width: engine for engine in self.engines.values()}
        checks.require(
            width in widths,
            f"The text has room for {width} tokens, and pools here for {[*widths]}.",
        )
        engine = widths[width]
        return self._of(engine, [engine.resume(suspended, seed)])[0]

    def listen(self, ticket: Ticket, is_listening: bool = True) -> None:
        """See `Service`."""
        self._engine_of[ticket].listen(ticket, is_listening)

    def reset_prefix_cache(self) -> None:
        """See `Service`."""
        for engine in self.engines.values():
            engine.reset_prefix_cache()

    def turn(self) -> list[Delta]:
        """See `Service`: a turn of each that has something to do."""
        busy = [engine for engine in self.engines.values() if not engine.is_idle]
        are_quiet = all(engine.scheduler.is_quiet for engine in busy)
        deltas = []
        for engine in busy:
            engine.scheduler.is_hurried = not are_quiet
            deltas += engine.turn()
        return deltas

    @property
    def is_idle(self) -> bool:
        """See `Service`."""
        return all(engine.is_idle for engine in self.engines.values())

    def _check_open(self) -> None:
        if self.is_draining:
            raise Draining("The engines are draining: they take no more requests.")

    def _of(self, engine: Engine, tickets: list[Ticket]) -> list[Ticket]:
        self._engine_of.update((ticket, engine) for ticket in tickets)
        return tickets

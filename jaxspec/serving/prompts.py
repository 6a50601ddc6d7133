"""Prompts that are being absorbed, chunk by chunk, from where the cache ends."""

import dataclasses
from typing import Any

from jaxspec.core import Params
from jaxspec.pasts import Past
from jaxspec.serving import texts
from jaxspec.serving.machinery import Machinery
from jaxspec.serving.prefixes import Prefixes
from jaxspec.serving.programs import Programs
from jaxspec.serving.requests import Ticket


@dataclasses.dataclass(eq=False)
class Filling:
    """A prompt, and the texts that go on from it.

    Attributes:
        tickets: of the texts; the first stands in line for all.
        past: of what was absorbed, None before the first chunk.
        absorbed: chunks.
        branch: a border, in chunks, that another prompt has passed.
    """

    tickets: list[Ticket]
    past: Past | None = None
    absorbed: int = 0
    branch: int = 0


class Prompts:
    """Prompts on their way, by the first of their tickets.

    Attributes:
        prefixes: the cache of pasts.
        chunks: that were absorbed.
    """

    def __init__(
        self,
        machinery: Machinery,
        programs: Programs,
        params: Params,
        prefixes: Prefixes,
    ):
        self._machinery, self._params = machinery, params
        self.programs, self.prefixes = programs, prefixes
        self.chunks = 0
        self._fillings: dict[Ticket, Filling] = {}

    def __len__(self) -> int:
        return len(self._fillings)

    def add(self, tickets: list[Ticket]) -> None:
        """Takes a prompt of some texts."""
        self._fillings[tickets[0]] = Filling(tickets)

    def begun(self) -> list[Ticket]:
        """Tickets whose prompts are on the device in part."""
        found = [f.tickets for f in self._fillings.values() if f.past is not None]
        return [ticket for tickets in found for ticket in tickets]

    def tickets(self, first: Ticket) -> list[Ticket]:
        """The texts of a prompt, none if it is not on its way."""
        return self._fillings[first].tickets if first in self._fillings else []

    def drop(self, ticket: Ticket) -> Ticket | None:
        """Forgets a ticket that has ended; who stands in line for the others, if any."""
        filling = self._fillings.pop(ticket, None)
        rest = [t for t in filling.tickets if t.finish is None] if filling else []
        if not rest:
            return None
        self._fillings[rest[0]] = dataclasses.replace(filling, tickets=rest)
        return rest[0]

    def advance(self, first: Ticket) -> tuple[list[Ticket], Past] | None:
        """Absorbs a chunk; the texts and their past, if it was the last one."""
        filling, size = self._fillings[first], self._machinery.chunk
        prompt = first.request.prompt
        if filling.past is None:
            self._begin(filling)
        left = len(prompt) - 1 - filling.absorbed * size
        if left > 0:
            chunk = self._machinery.put(texts.chunk(prompt, filling.absorbed, size))
            absorb = self.programs.absorb
            filling.past = absorb(self._params, filling.past, *chunk)
            self.chunks += 1
            if left >= size:
                filling.absorbed += 1
                self._keep(prompt, filling)
        if left > size:
            return None
        del self._fillings[first]
        return [t for t in filling.tickets if t.finish is None], filling.past

    def _begin(self, filling: Filling) -> None:
        """Begins where the cache ends."""
        run, size = self.programs, self._machinery.chunk
        put = self._machinery.put_integer
        hit = self.prefixes.lookup(filling.tickets[0].request.prompt)
        past = run.open(self._params)
        for depth, piece in enumerate(hit.pieces):
            past = run.put_piece(past, piece, put(depth * size))
        if hit.depth:
            past = run.put_state(past, hit.state)
        filling.past, filling.absorbed, filling.branch = past, hit.depth, hit.branch
        for ticket in filling.tickets:
            ticket.reused = hit.depth * size

    def _keep(self, prompt: Any, filling: Filling) -> None:
        """Offers the border that a prompt has come to."""
        depth, run = filling.absorbed, self.programs
        is_end = depth == self.prefixes.borders(prompt)
        is_state = is_end or depth == filling.branch
        if self.prefixes.max_bytes and (is_state or depth > filling.branch):
            at = self._machinery.put_integer((depth - 1) * self._machinery.chunk)
            state = run.state(filling.past) if is_state else None
            self.prefixes.offer(prompt, depth, run.piece(filling.past, at), state)

"""The engine: a scheduler's plans carried out on a pool.

A turn, in program order:

    rows that are set aside are taken, step i + 1 is dispatched,
    behind it a chunk of a prompt is absorbed and texts are admitted into rows,
    and only then the news of step i are read.

So the device has work while the host thinks, a prompt stands in front of nobody's step,
and a row that ended in step i is let again behind step i + 1, in which it is silent.

With one compiled step, whose budgets are data, a text is a function of the parameters, the
prompt and the key if the verifier is `sample_and_match`; other verifiers keep its law.
"""

import collections
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from jaxspec import checks, loop_checks, padding, pasts
from jaxspec.core import Drafter, LanguageModel, Params, Verifier
from jaxspec.decode_state import DecodeState
from jaxspec.serving import news, programs, texts
from jaxspec.serving.counts import Counts, compilations
from jaxspec.serving.prefixes import Prefixes
from jaxspec.serving.programs import Control, Machinery
from jaxspec.serving.requests import Delta, Finish, Request, Suspended, Ticket
from jaxspec.serving.scheduler import Scheduler
from jaxspec.verification.sample_and_match import sample_and_match

Array = jax.Array

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(eq=False)
class _Filling:
    """A prompt that is being absorbed, and the texts that go on from it."""

    tickets: list[Ticket]
    past: Any = None
    absorbed: int = 0  # chunks
    branch: int = 0  # a border, in chunks, that another prompt has passed


class Engine:
    """Serves requests with one pool of rows. It belongs to one thread.

    Attributes:
        machinery: the models and sizes.
        scheduler: who runs next.
        prefixes: the cache of pasts.
        counts: what was done so far.
        programs: the functions of the pool, compiled.
        is_draining: whether it takes no more requests.
    """

    def __init__(
        self,
        params: Params,
        *,
        target: LanguageModel,
        drafter: Drafter,
        verifier: Verifier | None = None,
        rows: int = 8,
        max_length: int = 1024,
        chunk_size: int = 64,
        rounds: int = 8,
        num_stops: int = padding.STOPS,
        cache_bytes: int = 256 * 2**20,
        scheduler: Scheduler | None = None,
        clock: Callable[[], float] = time.monotonic,
        watch: Callable[[str], None] = lambda name: None,
    ):
        """Compiles everything there is to compile.

        Args:
            params: of the target and the drafter.
            target: the model.
            drafter: what proposes; `silent()` for nothing.
            verifier: what decides; `sample_and_match` by default.
            rows: texts that are decoded side by side.
            max_length: the most tokens of a text, prompt and output, rounded up.
            chunk_size: tokens of a prompt that are absorbed behind a step.
            rounds: steps in a row where nobody waits or listens.
            num_stops: stops of a request at most.
            cache_bytes: of pasts that are kept for prompts with the same beginning.
            scheduler: who runs next, of as many rows; first come, first served, within
                priorities, by default.
            clock: the time in seconds.
            watch: is told the name of each program when it is compiled.

        Raises:
            ValueError: on sizes out of range, or machinery that does not fit together.
            TypeError: on what is not a record.
        """
        verifier = sample_and_match() if verifier is None else verifier
        loop_checks.records(target=target, drafter=drafter, verifier=verifier)
        checks.machinery(params, target, drafter)
        loop_checks.paths(drafter.max_path, target)
        checks.arrays("params", params)
        max_length = checks.integer("max_length", max_length, least=2)
        self.machinery = Machinery(
            target=target,
            drafter=drafter,
            verifier=verifier,
            num_rows=checks.integer("rows", rows, least=1),
            max_length=pasts.room(max_length, target),
            chunk=checks.integer("chunk_size", chunk_size, least=1),
            rounds=checks.integer("rounds", rounds, least=1),
            num_stops=checks.integer("num_stops", num_stops, least=1),
        )
        if scheduler is None:
            scheduler = Scheduler(self.machinery.num_rows, rounds=rounds)
        checks.require(
            scheduler.num_rows == self.machinery.num_rows,
            f"The scheduler has {scheduler.num_rows} rows, and the engine {rows}.",
        )
        self.scheduler = scheduler
        self.prefixes = Prefixes(self.machinery.chunk, cache_bytes)
        self.counts = Counts()
        self.is_draining = False
        self._clock = clock
        self._params = params
        self.programs = programs.compile_all(self.machinery, params, watch)
        self._num_tickets = 0
        self._fillings: dict[Ticket, _Filling] = {}  # by the first of their tickets
        self._values: dict[Ticket, Any] = {}  # of those that wait for a row
        self._deltas: list[Delta] = []
        self._waited = 0.0
        self._reset()

    def _reset(self) -> None:
        """Begins with a pool of free rows."""
        self._pool = self.programs.pool(self._params)
        self._owners: list[Ticket | None] = [None] * self.machinery.num_rows
        self._stop: set[int] = set()  # rows without an owner that may not be done
        self._flying: collections.deque = collections.deque()

    # --- What is asked ---

    def submit(self, request: Request) -> Ticket:
        """Takes a request.

        Raises:
            ValueError: on a request that cannot be served as it is.
            QueueFull: if too many wait.
            RuntimeError: if the engine takes no more.
        """
        return self.submit_several(request, 1)[0]

    def submit_several(self, request: Request, n: int) -> list[Ticket]:
        """Takes a request for `n` texts, which share the reading of their prompt.

        Text `i` has the seed `request.seed + i`. Errors are those of `submit`.
        """
        if self.is_draining:
            raise RuntimeError("The engine is draining: it takes no more requests.")
        n = checks.integer("n", n, least=1)
        requests = [
            dataclasses.replace(request, seed=request.seed + i) for i in range(n)
        ]
        for each in requests:
            texts.check(each, self.machinery)
        tickets = [self._ticket(each) for each in requests]
        self.scheduler.submit(tickets[0])
        self._fillings[tickets[0]] = _Filling(tickets)
        return tickets

    def abort(self, ticket: Ticket) -> None:
        """Ends a text in the next turn, and frees its row."""
        if ticket.finish is None:
            self.scheduler.abort(ticket)

    def take(self, ticket: Ticket) -> Suspended:
        """Copies a running text: a value to resume from here or elsewhere.

        Raises:
            ValueError: if it does not run.
        """
        while self._flying:
            self._read()
        row = ticket.row
        if row is None or self._owners[row] is not ticket:
            raise ValueError(
                f"Request {ticket.id} does not run; only such has a value."
            )
        value = self.programs.take(self._pool, _integer(row))
        return Suspended(
            ticket.request, tuple(ticket.tokens), tuple(ticket.logprobs), value
        )

    def suspend(self, ticket: Ticket) -> Suspended:
        """Copies a running text, and ends it here. Errors are those of `take`."""
        found = self.take(ticket)
        self.abort(ticket)
        return found

    def resume(self, suspended: Suspended, seed: int | None = None) -> Ticket:
        """Goes on with a text that was taken, by this engine or one like it.

        Args:
            suspended: the text.
            seed: of another key, for a fork; the same by default.

        Raises:
            ValueError: if its value is not a row of such a pool.
            RuntimeError: if the engine takes no more.
        """
        if self.is_draining:
            raise RuntimeError("The engine is draining: it takes no more requests.")
        request = suspended.request
        if seed is not None:
            request = dataclasses.replace(request, seed=seed)
        texts.check(request, self.machinery)
        other = checks.difference(suspended.value, self.programs.value)
        checks.require(
            other is None, f"The text is of another engine: in its value {other}."
        )
        ticket = self._ticket(request)
        ticket.tokens += suspended.tokens
        ticket.logprobs += suspended.logprobs
        self._values[ticket] = jax.device_put(suspended.value)
        self.scheduler.resume(ticket)
        return ticket

    def stream(self, ticket: Ticket) -> Iterator[Delta]:
        """Yields the news of a ticket as they come, and turns the engine meanwhile."""
        self.scheduler.listen(ticket, True)
        sent = 0
        while True:
            tokens, finish = tuple(ticket.tokens), ticket.finish
            if len(tokens) > sent or finish is not None:
                logprobs = tuple(ticket.logprobs[sent:])
                yield Delta(ticket.id, tokens[sent:], logprobs, finish)
                sent = len(tokens)
            if finish is not None:
                return
            self.turn()

    def run(self) -> None:
        """Turns until nothing is left to do."""
        while not self.is_idle:
            self.turn()

    def drain(self) -> None:
        """Takes no more requests, and finishes those that there are."""
        self.is_draining = True
        self.run()

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return self.scheduler.is_idle and not self._flying

    # --- A turn ---

    def turn(self) -> list[Delta]:
        """Does one turn, and returns the news that came in it, of all tickets."""
        began, waited, compiled = time.perf_counter(), self._waited, compilations()
        try:
            self._turn()
        except Exception as error:  # whatever it is, no text may wait for ever
            _LOG.exception("A turn failed; its texts end with an error.")
            self._recover(f"{type(error).__name__}: {error}".splitlines()[0])
        self.counts.turns += 1
        self.counts.compilations += compilations() - compiled
        self.counts.seconds += time.perf_counter() - began
        self.counts.host_seconds += time.perf_counter() - began
        self.counts.host_seconds -= self._waited - waited
        found, self._deltas = self._deltas, []
        return found

    def _turn(self) -> None:
        plan = self.scheduler.plan(self._clock())
        for ticket, why in plan.end:
            self._finish(ticket, why)
        for ticket, row in plan.aside:
            self._values[ticket] = self.programs.take(self._pool, _integer(row))
        for row in plan.stop:
            self._owners[row] = None
            self._stop.add(row)
        in_flight = len(self._flying)
        if any(self._owners):
            self._dispatch(plan.rounds)
        if plan.fill is not None:
            self._fill(plan.fill)
        for ticket in plan.admit:
            self._admit(ticket)
        for _ in range(in_flight):
            self._read()

    def _dispatch(self, rounds: int) -> None:
        """Dispatches a step of all rows."""
        m = self.machinery
        stop, budgets = np.zeros(m.num_rows, bool), np.zeros(m.num_rows, np.int32)
        stop[list(self._stop)] = True
        for row, ticket in enumerate(self._owners):
            if ticket is not None:
                budgets[row] = ticket.request.draft_budget
        control = jax.device_put(Control(budgets, stop, np.int32(rounds)))
        self._pool, packed = self.programs.step(self._params, self._pool, control)
        self._stop.clear()
        packed.copy_to_host_async()
        self._flying.append((tuple(self._owners), packed))

    def _fill(self, ticket: Ticket) -> None:
        """Absorbs a chunk of a prompt; behind its last one its texts are ready."""
        filling, m = self._fillings[ticket], self.machinery
        prompt, size = ticket.request.prompt, m.chunk
        if filling.past is None:
            self._begin(filling)
        left = len(prompt) - 1 - filling.absorbed * size
        if left > 0:
            tokens, count = texts.chunk(prompt, filling.absorbed, size)
            filling.past = self.programs.absorb(
                self._params, filling.past, *jax.device_put((tokens, count))
            )
            self.counts.chunks += 1
            if left >= size:
                filling.absorbed += 1
                self._keep(prompt, filling)
        if left <= size:
            del self._fillings[ticket]
            alive = [each for each in filling.tickets if each.finish is None]
            self._values |= dict.fromkeys(alive, filling.past)
            self.scheduler.filled(alive)

    def _begin(self, filling: _Filling) -> None:
        """Begins a prompt where the cache ends."""
        prompt = filling.tickets[0].request.prompt
        hit, run = self.prefixes.lookup(prompt), self.programs
        past = run.open(self._params)
        for depth, piece in enumerate(hit.pieces):
            past = run.put_piece(past, piece, _integer(depth * self.machinery.chunk))
        if hit.depth:
            past = run.put_state(past, hit.state)
        filling.past, filling.absorbed, filling.branch = past, hit.depth, hit.branch
        for ticket in filling.tickets:
            ticket.reused = hit.depth * self.machinery.chunk

    def _keep(self, prompt: Any, filling: _Filling) -> None:
        """Offers the border that a prompt has come to."""
        depth, run = filling.absorbed, self.programs
        is_end = depth == self.prefixes.borders(prompt)
        is_branch = depth == filling.branch
        if self.prefixes.max_bytes and (is_end or depth >= filling.branch):
            at = _integer((depth - 1) * self.machinery.chunk)
            self.prefixes.offer(
                prompt,
                depth,
                run.piece(filling.past, at),
                run.state(filling.past) if is_end or is_branch else None,
            )

    def _admit(self, ticket: Ticket) -> None:
        """Gives a text its row."""
        value, row = self._values.pop(ticket), _integer(ticket.row)
        if isinstance(value, DecodeState):
            key = jax.device_put(texts.key(ticket.request.seed))
            self._pool = self.programs.put(self._pool, row, value, key)
        else:
            text = jax.device_put(texts.text(ticket.request, self.machinery))
            self._pool = self.programs.admit(self._pool, value, row, text)
        self._owners[ticket.row] = ticket
        self._stop.discard(ticket.row)

    def _read(self) -> None:
        """Reads the news of the oldest step, and tells the tickets."""
        owners, packed = self._flying.popleft()
        began = time.perf_counter()
        packed = jax.device_get(packed)
        self._waited += time.perf_counter() - began
        found = news.unpack(packed, self.machinery.drafter.max_path)
        now = self._clock()
        self.counts.steps += int(found.ran.any(axis=1).sum())
        for row, ticket in enumerate(owners):
            if ticket is not None and ticket.finish is None:
                self._tell(ticket, row, found, now)

    def _tell(self, ticket: Ticket, row: int, found: news.News, now: float) -> None:
        """Gives a ticket what its row wrote, unless it is not the row's any more."""
        count, ran = found.count[:, row], found.ran[:, row]
        slots = np.arange(found.tokens.shape[2])[None] < count[:, None]
        tokens = found.tokens[:, row][slots].tolist()
        logprobs = found.logprobs[:, row][slots]
        ticket.steps += int(ran.sum())
        self.counts.drafted += int(found.shown[:, row].sum())
        self.counts.accepted += int(found.kept[:, row].sum())
        self.counts.tokens += len(tokens)
        if tokens and ticket.first_token is None:
            ticket.first_token = now
        ticket.tokens += tokens
        ticket.logprobs += logprobs.tolist()
        finish = None
        if not np.isfinite(logprobs).all():
            ticket.error = "The model's logits are not finite."
            finish = Finish.ERROR
        elif bool((found.done[:, row] & ran).any()):
            stopped = tokens and tokens[-1] in ticket.request.stops
            finish = Finish.STOP if stopped else Finish.LENGTH
        if tokens or finish is not None:
            self._deltas.append(
                Delta(ticket.id, tuple(tokens), tuple(logprobs.tolist()))
            )
        if finish is not None:
            self._free(ticket)
            self._finish(ticket, finish)

    def _free(self, ticket: Ticket) -> None:
        """Takes the row of a ticket from it."""
        for row, owner in enumerate(self._owners):
            if owner is ticket:
                self._owners[row] = None
                self._stop.add(row)
        self.scheduler.release(ticket)

    def _finish(self, ticket: Ticket, why: Finish) -> None:
        """Ends a ticket that has no row."""
        ticket.finish, ticket.ended = why, self._clock()
        self.counts.finished[str(why)] += 1
        self._values.pop(ticket, None)
        self._deltas.append(Delta(ticket.id, (), (), why))
        filling = self._fillings.pop(ticket, None)
        if filling is not None:
            rest = [each for each in filling.tickets if each.finish is None]
            if rest:  # the prompt is still wanted
                self._fillings[rest[0]] = dataclasses.replace(filling, tickets=rest)
                self.scheduler.waiting.append(rest[0])

    def _recover(self, message: str) -> None:
        """Ends all that was on the device, and begins with an empty pool."""
        lines = self.scheduler
        running = {
            *self._owners,
            *self._values,
            *lines.rows,
            *lines.ready,
            lines.filling,
        }
        for owners, _ in self._flying:
            running |= {*owners}
        for filling in self._fillings.values():
            if filling.past is not None or filling.tickets[0] is lines.filling:
                running |= {*filling.tickets}
        for ticket in running:
            if ticket is not None and ticket.finish is None:
                ticket.error = message
                self._free(ticket)
                self._finish(ticket, Finish.ERROR)
        self.prefixes.clear()
        self._reset()

    def _ticket(self, request: Request) -> Ticket:
        self._num_tickets += 1
        return Ticket(self._num_tickets, request, self._clock())


def _integer(value: int) -> Array:
    return jax.device_put(np.int32(value))

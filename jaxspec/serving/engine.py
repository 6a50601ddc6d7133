"""The engine: a scheduler's plans carried out on a pool.

A turn, in program order:

    rows that are set aside are taken, step i + 1 is dispatched,
    behind it a chunk of a prompt is absorbed and texts are admitted into rows,
    and only then the news of step i are read.

So the device has work while the host thinks, a prompt stands in front of nobody's step,
and a row that ended in step i is let again behind step i + 1, in which it is silent.

With one compiled step, whose budgets are data (strict, the default), a text is a function
of the parameters, the prompt and the key if the verifier is `sample_and_match`; other
verifiers keep its law. With several numbers of rows or nodes (fast) a step costs what is
needed, and since programs of other shapes round differently, a text may part at a near tie.
"""

import dataclasses
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxspec import checks, padding, sharding
from jaxspec.core import Drafter, LanguageModel, Params, Verifier
from jaxspec.serving import programs, texts
from jaxspec.serving.counts import Counts, compilations
from jaxspec.serving.machinery import make_machinery
from jaxspec.serving.news import News
from jaxspec.serving.policies import AsAsked, Policy
from jaxspec.serving.pool import Pool
from jaxspec.serving.prefixes import Prefixes
from jaxspec.serving.programs import Programs
from jaxspec.serving.prompts import Prompts
from jaxspec.serving.requests import Delta, Draining, Finish, Request, Suspended, Ticket
from jaxspec.serving.scheduler import Plan, Scheduler
from jaxspec.serving.service import Service
from jaxspec.sharding import Layout
from jaxspec.verification.sample_and_match import sample_and_match

_LOG = logging.getLogger(__name__)
_PATIENCE = 16  # turns before a pool shrinks


class Engine(Service):
    """Serves requests with one pool of rows.

    Attributes:
        machinery: the models and sizes.
        scheduler: who runs next.
        policy: how many drafts are verified for whom.
        counts: what was done so far.
        numbers: of tickets that come.
    """

    def __init__(
        self,
        params: Params,
        *,
        target: LanguageModel,
        drafter: Drafter,
        verifier: Verifier | None = None,
        rows: int | Sequence[int] = 8,
        nodes: Sequence[int] = (),
        max_length: int = 1024,
        chunk_size: int = 64,
        rounds: int = 8,
        num_stops: int = padding.STOPS,
        cache_bytes: int = 256 * 2**20,
        layout: Layout | None = None,
        scheduler: Scheduler | None = None,
        policy: Policy | None = None,
        clock: Callable[[], float] = time.monotonic,
        watch: Callable[[str, int, int], None] = lambda name, done, total: None,
    ):
        """Compiles everything there is to compile.

        Args:
            params: of the target and the drafter.
            target: the model.
            drafter: what proposes; `silent()` for nothing.
            verifier: what decides; `sample_and_match` by default.
            rows: texts that are decoded side by side; or several numbers, of which that is
                taken which is needed.
            nodes: numbers of nodes that a step may verify, besides the drafter's own; 1
                is a step without drafts. That is taken which holds every row's budget.
            max_length: the most tokens of a text, prompt and output, rounded up.
            chunk_size: tokens of a prompt that are absorbed behind a step.
            rounds: steps in a row where nobody waits or listens.
            num_stops: stops of a request at most.
            cache_bytes: of pasts that are kept for prompts with the same beginning.
            layout: where arrays go on a mesh, on which `params` are (`sharding.Layout`).
            scheduler: who runs next, of as many rows; first come, first served, within
                priorities, by default.
            policy: how many drafts are verified for whom; as many as each request asks
                for by default.
            clock: the time in seconds.
            watch: is told the name of each program when it is compiled, how many are, and
                of how many; for a progress bar.

        Raises:
            ValueError: on sizes out of range, or machinery that does not fit together.
            TypeError: on what is not a record.
        """
        self.machinery = make_machinery(
            params,
            target=target,
            drafter=drafter,
            verifier=sample_and_match() if verifier is None else verifier,
            rows=(rows,) if isinstance(rows, int) else tuple(rows),
            nodes=tuple(nodes),
            max_length=max_length,
            chunk=chunk_size,
            rounds=rounds,
            num_stops=num_stops,
            layout=layout,
        )
        if scheduler is None:
            scheduler = Scheduler(self.machinery.num_rows, rounds=rounds)
        checks.require(
            scheduler.num_rows == self.machinery.num_rows,
            f"The scheduler has {scheduler.num_rows} rows, and the engine "
            f"{self.machinery.num_rows}.",
        )
        self.scheduler = scheduler
        self.policy = AsAsked() if policy is None else policy
        self.counts = Counts()
        self.numbers: Iterator[int] = itertools.count(1)
        self._clock = clock
        self._params = params
        compiled = programs.compile_all(self.machinery, params, watch)
        prefixes = Prefixes(self.machinery.chunk, cache_bytes)
        self._prompts = Prompts(self.machinery, compiled, params, prefixes)
        self._pool = Pool(self.machinery, compiled, params)
        self._values: dict[Ticket, Any] = {}  # of those that wait for a row
        self._deltas: list[Delta] = []
        self._spare = 0  # turns in which fewer rows would have done

    # --- What is asked ---

    def submit_several(self, request: Request, n: int) -> list[Ticket]:
        """See `Service`."""
        if self.is_draining:
            raise Draining("The engine is draining: it takes no more requests.")
        n = checks.integer("n", n, least=1)
        texts.check(request, self.machinery)
        requests = [
            dataclasses.replace(request, seed=request.seed + i) for i in range(n)
        ]
        for each in requests:
            texts.check(each, self.machinery)
        tickets = [self._ticket(each) for each in requests]
        self.scheduler.submit(tickets[0])
        self._prompts.add(tickets)
        return tickets

    def abort(self, ticket: Ticket) -> None:
        """See `Service`."""
        if ticket.finish is None:
            self.scheduler.abort(ticket)

    def take(self, ticket: Ticket) -> Suspended:
        """See `Service`."""
        while ticket.finish is None and self._pool.num_flying:
            self._read()
        owners, row = self._pool.owners, ticket.row
        if row is None or row >= len(owners) or owners[row] is not ticket:
            raise ValueError(
                f"Request {ticket.id} does not run; only such has a value."
            )
        value = self._pool.copy(row)
        if self.programs.whole is not None:
            value = sharding.local(self.programs.whole(value))
        return Suspended(
            request=ticket.request,
            tokens=tuple(ticket.tokens),
            logprobs=tuple(ticket.logprobs),
            value=value,
        )

    def resume(self, suspended: Suspended, seed: int | None = None) -> Ticket:
        """See `Service`."""
        if self.is_draining:
            raise Draining("The engine is draining: it takes no more requests.")
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
        self._values[ticket] = self.machinery.put(suspended.value)
        self.scheduler.resume(ticket)
        return ticket

    def listen(self, ticket: Ticket, is_listening: bool = True) -> None:
        """See `Service`."""
        self.scheduler.listen(ticket, is_listening and ticket.finish is None)

    def reset_prefix_cache(self) -> None:
        """See `Service`."""
        self.prefixes.clear()

    @property
    def is_strict(self) -> bool:
        """Whether all steps have one shape, so that texts are equal bit by bit."""
        return len(self.machinery.rows) == len(self.machinery.nodes) == 1

    @property
    def is_idle(self) -> bool:
        """See `Service`."""
        return self.scheduler.is_idle and not self._pool.num_flying

    @property
    def programs(self) -> Programs:
        """The functions of the pool, compiled."""
        return self._pool.programs

    @property
    def prefixes(self) -> Prefixes:
        """The cache of pasts."""
        return self._prompts.prefixes

    # --- A turn ---

    def turn(self) -> list[Delta]:
        """See `Service`."""
        began, waited, compiled = time.perf_counter(), self._pool.waited, compilations()
        try:
            self._turn()
        except Exception as error:  # whatever it is, no text may wait for ever
            _LOG.exception("A turn failed; its texts end with an error.")
            self._recover(f"{type(error).__name__}: {error}".splitlines()[0])
        self.counts.turns += 1
        self.counts.compilations += compilations() - compiled
        seconds = time.perf_counter() - began
        self.counts.seconds += seconds
        self.counts.host_seconds += seconds - (self._pool.waited - waited)
        found, self._deltas = self._deltas, []
        return found

    def _turn(self) -> None:
        plan = self.scheduler.plan(self._clock())
        for ticket, why in plan.end:
            self._finish(ticket, why)
        for ticket, row in plan.aside:
            self._values[ticket] = self._pool.copy(row)
        for row in plan.stop:
            self._pool.free(row)
        in_flight = self._pool.num_flying
        self._shrink(plan)
        if any(self._pool.owners):
            self._dispatch(plan.rounds)
        if plan.fill is not None:
            self._fill(plan.fill)
        self._grow()
        for ticket in plan.admit:
            self._pool.let(ticket, ticket.row, self._values.pop(ticket))
        for _ in range(in_flight):
            self._read()

    def _grow(self) -> None:
        """Makes room for the tickets that the scheduler has given rows."""
        rows = self.scheduler.rows
        needed = max((i + 1 for i, t in enumerate(rows) if t is not None), default=0)
        if needed > self._pool.size:
            size = next(n for n in self.machinery.rows if n >= needed)
            self._pool.resize(size, range(self._pool.size))
            self._spare = 0

    def _shrink(self, plan: Plan) -> None:
        """Goes on with fewer rows where they have been enough for some time."""
        owned = [i for i, t in enumerate(self._pool.owners) if t is not None]
        size = next(n for n in self.machinery.rows if n >= len(owned))
        is_less = size < self._pool.size and not plan.admit
        self._spare = self._spare + 1 if is_less else 0
        if self._spare >= _PATIENCE:
            self.scheduler.move(owned)
            self._pool.resize(size, owned)
            self._spare = 0

    def _dispatch(self, rounds: int) -> None:
        """Dispatches a step, in which no request has more drafts than it asks for."""
        asked = AsAsked().budgets(self._pool.owners)
        chosen = self.policy.budgets(tuple(self._pool.owners))
        budgets = np.minimum(asked, chosen).astype(np.int32)
        self._pool.dispatch(np.maximum(budgets, 0), rounds)

    def _fill(self, ticket: Ticket) -> None:
        """Absorbs a chunk of a prompt; behind its last one its texts are ready."""
        found = self._prompts.advance(ticket)
        if found is not None:
            tickets, past = found
            self._values |= dict.fromkeys(tickets, past)
            self.scheduler.filled(tickets)
        self.counts.chunks = self._prompts.chunks

    def _read(self) -> None:
        """Reads the news of the oldest step, and tells the tickets."""
        owners, budgets, found = self._pool.read()
        self.counts.steps += int(found.ran.any(axis=1).sum())
        now = self._clock()
        for row, ticket in enumerate(owners):
            if ticket is not None and ticket.finish is None:
                self._tell(ticket, found.of(row), int(budgets[row]), now)

    def _tell(self, ticket: Ticket, found: News, budget: int, now: float) -> None:
        """Gives a ticket what its row wrote."""
        slots = np.arange(found.tokens.shape[1])[None] < found.count[:, None]
        tokens = found.tokens[slots].tolist()
        logprobs = found.logprobs[slots].tolist()
        self.policy.see(ticket, found, budget)
        self.counts.drafted += int(found.shown.sum())
        self.counts.accepted += int(found.kept.sum())
        self.counts.tokens += len(tokens)
        if tokens and ticket.first_token is None:
            ticket.first_token = now
        ticket.steps += int(found.ran.sum())
        ticket.tokens += tokens
        ticket.logprobs += logprobs
        if tokens:
            self._deltas.append(Delta(ticket.id, tuple(tokens), tuple(logprobs)))
        if not np.isfinite(logprobs).all():
            ticket.error = "The model's logits are not finite."
            self._end(ticket, Finish.ERROR)
        elif bool((found.done & found.ran).any()):
            stopped = tokens and tokens[-1] in ticket.request.stops
            self._end(ticket, Finish.STOP if stopped else Finish.LENGTH)

    def _end(self, ticket: Ticket, why: Finish) -> None:
        """Ends a ticket, wherever it is."""
        for row, owner in enumerate(self._pool.owners):
            if owner is ticket:
                self._pool.free(row)
        self.scheduler.release(ticket)
        self._finish(ticket, why)

    def _finish(self, ticket: Ticket, why: Finish) -> None:
        """Ends a ticket that has no row."""
        ticket.finish, ticket.ended = why, self._clock()
        self.counts.finished[str(why)] += 1
        self._values.pop(ticket, None)
        self._deltas.append(Delta(ticket.id, (), (), why))
        heir = self._prompts.drop(ticket)
        if heir is not None:  # the prompt is still wanted
            self.scheduler.waiting.append(heir)

    def _recover(self, message: str) -> None:
        """Ends all that was on the device, and begins with an empty pool."""
        lines = self.scheduler
        running = {*self._pool.owners, *self._pool.flying, *self._values, *lines.rows}
        running |= {*lines.ready, lines.filling, *self._prompts.begun()}
        running |= {*self._prompts.tickets(lines.filling)}
        for ticket in running:
            if ticket is not None and ticket.finish is None:
                ticket.error = message
                self._end(ticket, Finish.ERROR)
        self.prefixes.clear()
        self._pool = Pool(self.machinery, self.programs, self._params)

    def _ticket(self, request: Request) -> Ticket:
        return Ticket(next(self.numbers), request, self._clock())

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

import collections
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Sequence
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
from jaxspec.serving.scheduler import Plan, Scheduler
from jaxspec.verification.sample_and_match import sample_and_match

Array = jax.Array

_LOG = logging.getLogger(__name__)
_PATIENCE = 16  # turns before a pool shrinks


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
        rows: int | Sequence[int] = 8,
        nodes: Sequence[int] = (),
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
            rows: texts that are decoded side by side; or several numbers, of which that is
                taken which is needed.
            nodes: numbers of nodes that a step may verify, besides the drafter's own; 1
                is a step without drafts. That is taken which holds every row's budget.
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
        num_nodes = programs.slots_of(params, target, drafter)
        self.machinery = Machinery(
            target=target,
            drafter=drafter,
            verifier=verifier,
            rows=_sizes("rows", (rows,) if isinstance(rows, int) else rows),
            nodes=_sizes("nodes", (*nodes, num_nodes), num_nodes),
            max_length=pasts.room(max_length, target),
            chunk=checks.integer("chunk_size", chunk_size, least=1),
            rounds=checks.integer("rounds", rounds, least=1),
            num_stops=checks.integer("num_stops", num_stops, least=1),
        )
        if scheduler is None:
            scheduler = Scheduler(self.machinery.num_rows, rounds=rounds)
        checks.require(
            scheduler.num_rows == self.machinery.num_rows,
            f"The scheduler has {scheduler.num_rows} rows, and the engine "
            f"{self.machinery.num_rows}.",
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
        self._pool = self.programs.pool[self.machinery.rows[0]](self._params)
        self._owners: list[Ticket | None] = [None] * self.machinery.rows[0]
        self._spare = 0  # turns in which fewer rows would have done
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
        value = self._copy(row)
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
    def is_strict(self) -> bool:
        """Whether all steps have one shape, so that texts are equal bit by bit."""
        return len(self.machinery.rows) == len(self.machinery.nodes) == 1

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
            self._values[ticket] = self._copy(row)
        for row in plan.stop:
            self._owners[row] = None
            self._stop.add(row)
        in_flight = len(self._flying)
        self._shrink(plan)
        if any(self._owners):
            self._dispatch(plan.rounds)
        if plan.fill is not None:
            self._fill(plan.fill)
        self._grow()
        for ticket in plan.admit:
            self._admit(ticket)
        for _ in range(in_flight):
            self._read()

    def _copy(self, row: int) -> DecodeState:
        """A row as a value."""
        return self.programs.take[len(self._owners)](self._pool, _integer(row))

    def _grow(self) -> None:
        """Makes room for the tickets that the scheduler has given rows."""
        rows = self.scheduler.rows
        needed = max((i + 1 for i, t in enumerate(rows) if t is not None), default=0)
        if needed > len(self._owners):
            size = next(n for n in self.machinery.rows if n >= needed)
            self._resize(size, list(range(len(self._owners))))

    def _shrink(self, plan: Plan) -> None:
        """Goes on with fewer rows where they have been enough for some time."""
        tickets = sum(ticket is not None for ticket in self.scheduler.rows)
        size = next(n for n in self.machinery.rows if n >= tickets)
        is_less = size < len(self._owners) and not plan.admit
        self._spare = self._spare + 1 if is_less else 0
        if self._spare >= _PATIENCE:
            owned = [i for i, ticket in enumerate(self._owners) if ticket is not None]
            self.scheduler.move(owned)
            self._resize(size, owned)

    def _resize(self, size: int, rows: list[int]) -> None:
        """A pool of another size, that begins with these rows of the old one."""
        index = np.zeros(size, np.int32)
        index[: len(rows)] = rows
        resize = self.programs.resize[len(self._owners), size]
        self._pool = resize(self._pool, jax.device_put(index))
        self._owners = [self._owners[row] for row in rows]
        self._stop = {i for i, row in enumerate(rows) if row in self._stop}
        self._stop |= {*range(len(rows), size)}
        self._owners += [None] * (size - len(rows))
        self._spare = 0

    def _dispatch(self, rounds: int) -> None:
        """Dispatches a step of all rows."""
        size = len(self._owners)
        stop, budgets = np.zeros(size, bool), np.zeros(size, np.int32)
        stop[list(self._stop)] = True
        for row, ticket in enumerate(self._owners):
            if ticket is not None:
                budgets[row] = ticket.request.draft_budget
        most = min(int(budgets.max()), self.machinery.num_nodes - 1)
        nodes = next(n for n in self.machinery.nodes if n > most)
        control = jax.device_put(Control(budgets, stop, np.int32(rounds)))
        step = self.programs.step[size, nodes]
        self._pool, packed = step(self._params, self._pool, control)
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
            put = self.programs.put[len(self._owners)]
            self._pool = put(self._pool, row, value, key)
        else:
            text = jax.device_put(texts.text(ticket.request, self.machinery))
            admit = self.programs.admit[len(self._owners)]
            self._pool = admit(self._pool, value, row, text)
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


def _sizes(name: str, sizes: Sequence[int], most: int | None = None) -> tuple[int, ...]:
    """Sizes in ascending order, checked."""
    found = sorted({checks.integer(name, size, least=1) for size in sizes})
    checks.require(len(found) > 0, f"Expected at least one number of {name}, got none.")
    checks.require(
        most is None or found[-1] == most,
        f"Expected {name} of at most {most}, which the drafter proposes, got {found}.",
    )
    return tuple(found)


def _integer(value: int) -> Array:
    return jax.device_put(np.int32(value))

"""An engine on a virtual clock: its scheduler and policies against recorded texts.

What an engine does in a turn is done here with times instead of programs. A step of a
recorded text writes what it would have written (`Trace`), the scheduler and the policy are
those of an engine and are told the same news, as late as there. So a policy can be judged
on thousands of requests under any load, exactly but for the costs, without a device.
"""

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxspec.serving.goodput import StepCosts
from jaxspec.serving.news import News
from jaxspec.serving.policies import AsAsked, Policy
from jaxspec.serving.requests import Finish, Request, Ticket
from jaxspec.serving.scheduler import Plan, Scheduler


class Recorded(Protocol):
    """A text, and what drafts would bring at every position of it.

    Attributes:
        prompt: tokens of the prompt.
        tokens: that are added.
        paths: of these, by position, the ranks of the drafts that the text goes through.
        sizes: by position, how many drafts are proposed.
    """

    prompt: int
    tokens: int
    paths: Sequence[Sequence[int]]
    sizes: Sequence[int]


class Costs(NamedTuple):
    """Seconds of the functions of a pool.

    Attributes:
        steps: by rows and nodes.
        chunk: seconds of a chunk of a prompt.
        chunk_size: its tokens.
        admit: seconds, of letting a row, or of taking one.
        host: seconds of a turn in which the host does not wait.
    """

    steps: StepCosts
    chunk: float
    chunk_size: int
    admit: float
    host: float = 0.0


@dataclasses.dataclass(eq=False)
class _Text:
    """A recorded text on its way."""

    record: Recorded
    written: int = 0  # by the device
    absorbed: int = 0  # chunks of the prompt


class Replay:
    """An engine without a device.

    Attributes:
        scheduler: who runs next.
        policy: how many drafts for whom.
        num_nodes: of a tree, the root included.
        steps: that were done, by rows and nodes.
    """

    def __init__(
        self, scheduler: Scheduler, policy: Policy, costs: Costs, num_nodes: int
    ):
        self.scheduler, self.policy = scheduler, policy
        self.costs, self.num_nodes = costs, num_nodes
        self.steps: collections.Counter = collections.Counter()
        self._owners: list[Ticket | None] = [None] * scheduler.num_rows
        self._texts: dict[Ticket, _Text] = {}
        self._flying: collections.deque = collections.deque()
        self._busy = 0.0  # until when the device is

    def run(self, arrivals: Iterable[tuple[float, Recorded]]) -> list[Ticket]:
        """Serves recorded texts that come at some seconds, in order; their tickets."""
        coming, now = collections.deque(arrivals), 0.0
        tickets = []
        while coming or not self.is_idle:
            while coming and coming[0][0] <= now:
                tickets.append(self.submit(*coming.popleft()))
            if self.is_idle:
                now = max(now, coming[0][0])
            else:
                now = self.turn(now)
        return tickets

    def submit(self, arrival: float, record: Recorded) -> Ticket:
        """Takes a recorded text."""
        ticket = Ticket(len(self._texts), Request([0], record.tokens), arrival)
        self._texts[ticket] = _Text(record)
        self.scheduler.submit(ticket)
        return ticket

    @property
    def is_idle(self) -> bool:
        """Nothing runs and nothing waits."""
        return self.scheduler.is_idle and not self._flying

    def turn(self, now: float) -> float:
        """Does a turn that begins at a time; the time at which the next may begin."""
        plan, in_flight = self.scheduler.plan(now), len(self._flying)
        for _, row in plan.aside:
            self._owners[row] = None
            self._spend(now, self.costs.admit)
        if any(self._owners):
            self._dispatch(now, plan)
        if plan.fill is not None:
            self._fill(now, plan.fill)
        for ticket in plan.admit:
            self._owners[ticket.row] = ticket
            self._spend(now, self.costs.admit)
        now += self.costs.host
        for _ in range(in_flight):
            now = self._read(now)
        return now

    def _spend(self, now: float, seconds: float) -> float:
        """Lets the device do something; when it will be done."""
        self._busy = max(self._busy, now) + seconds
        return self._busy

    def _dispatch(self, now: float, plan: Plan) -> None:
        used = max(i + 1 for i, ticket in enumerate(self._owners) if ticket is not None)
        sizes = self.costs.steps.rows
        rows = next((size for size in sizes if size >= used), sizes[-1])
        owners = tuple(self._owners[:rows])
        asked, chosen = AsAsked().budgets(owners), self.policy.budgets(owners)
        budgets = [max(min(a, b), 0) for a, b in zip(asked, chosen, strict=True)]
        costs, idle = self.costs.steps.of(rows), self.costs.steps.of(rows, 1.0)
        most = min(max(budgets), max(costs) - 1)
        nodes = next(n for n in sorted(costs) if n > most)
        news = []
        for _ in range(plan.rounds):
            pairs = zip(owners, budgets, strict=True)
            found = [self._advance(ticket, budget) for ticket, budget in pairs]
            if not any(found):
                break  # nobody is left: the device does nothing
            news.append(found)
            pairs = zip(found, budgets, strict=True)
            is_idle = not any(b and each and each[3] for each, b in pairs)
            self._spend(now, (idle if is_idle else costs)[nodes])
            self.steps[rows, nodes] += 1
            if any(each is not None and each[2] for each in news[-1]):
                break
        self._flying.append((owners, budgets, nodes > 1, news, self._busy))

    def _advance(self, ticket: Ticket | None, budget: int) -> Any:
        """Writes a round: its path, tokens, whether the text ends, drafts proposed."""
        if ticket is None:
            return None
        text = self._texts[ticket]
        left = text.record.tokens - text.written
        if left == 0:
            return None
        path, size = text.record.paths[text.written], text.record.sizes[text.written]
        kept = 0
        while kept < len(path) and path[kept] < budget:
            kept += 1
        count = min(kept + 1, left)
        text.written += count
        return path, count, count == left, size

    def _fill(self, now: float, ticket: Ticket) -> None:
        text = self._texts[ticket]
        left = text.record.prompt - 1 - text.absorbed * self.costs.chunk_size
        if left > 0:
            text.absorbed += 1
            self._spend(now, self.costs.chunk)
        if left <= self.costs.chunk_size:
            self.scheduler.filled([ticket])

    def _read(self, now: float) -> float:
        """Reads the news of the oldest step, once it has ended."""
        owners, budgets, are_drafted, news, end = self._flying.popleft()
        now = max(now, end)
        for row, ticket in enumerate(owners):
            if ticket is None or ticket.finish is not None:
                continue
            rounds = [each[row] for each in news if each[row] is not None]
            if not rounds:
                continue
            found = self._news(rounds, budgets[row], are_drafted)
            self.policy.see(ticket, found, budgets[row])
            count = sum(each[1] for each in rounds)
            ticket.first_token = (
                now if ticket.first_token is None else ticket.first_token
            )
            ticket.tokens += [0] * count
            ticket.steps += len(rounds)
            if rounds[-1][2]:
                self._end(ticket, now)
        return now

    def _end(self, ticket: Ticket, now: float) -> None:
        for row, owner in enumerate(self._owners):
            if owner is ticket:
                self._owners[row] = None
        self.scheduler.release(ticket)
        ticket.finish, ticket.ended = Finish.LENGTH, now

    def _news(self, rounds: list[Any], budget: int, are_drafted: bool) -> News:
        """The news of a row: texts of zeros, and trees whose right drafts are zeros."""
        shape = len(rounds), self.num_nodes
        drafts, parents = np.ones(shape, np.int32), np.full(shape, -1, np.int32)
        shown, kept = np.zeros(shape, bool), np.zeros(shape, bool)
        for m, (path, count, _, size) in enumerate(rounds if are_drafted else ()):
            parents[m, 1 : size + 1], above = 0, 0
            for i, rank in enumerate(path):
                drafts[m, rank + 1], parents[m, rank + 1] = 0, above
                above = rank + 1
                kept[m, rank + 1] = i < count - 1
            reached = kept[m] | (np.arange(self.num_nodes) == 0)
            within = np.arange(self.num_nodes) <= budget
            shown[m] = within & (parents[m] >= 0) & reached[parents[m]]
        count = np.array([each[1] for each in rounds])
        return News(
            tokens=np.zeros((len(rounds), int(count.max())), np.int32),
            logprobs=np.zeros((len(rounds), int(count.max())), np.float32),
            count=count,
            done=np.array([each[2] for each in rounds]),
            ran=np.ones(len(rounds), bool),
            drafts=drafts,
            parents=parents,
            score=np.broadcast_to(-np.arange(self.num_nodes, dtype=np.float32), shape),
            shown=shown,
            kept=kept,
        )

"""A replay does what an engine does, and as queues must."""

import dataclasses

import numpy as np
import pytest

import engines
from jaxspec import serving
from jaxspec.measure import traces
from jaxspec.serving import Scheduler
from jaxspec.serving.gains import Gains
from jaxspec.serving.goodput import Goodput, StepCosts
from jaxspec.serving.policies import AsAsked, Fixed
from jaxspec.serving.replay import Costs, Replay


@dataclasses.dataclass
class Text:
    """A text whose drafts are all wrong, or as given."""

    prompt: int = 1
    tokens: int = 10
    paths: list = None
    sizes: list = None

    def __post_init__(self):
        self.paths = self.paths or [[]] * self.tokens
        self.sizes = self.sizes or [9] * self.tokens


def costs(rows=1, nodes=(1,), step=1.0, chunk=0.0, admit=0.0):
    steps = {(r, n): step * n**0.5 for r in range(1, rows + 1) for n in nodes}
    return Costs(StepCosts(steps), chunk=chunk, chunk_size=4, admit=admit)


def replay(costs, rows=1, policy=None, rounds=1):
    scheduler = Scheduler(rows, rounds=rounds)
    nodes = max(n for _, n in costs.steps.seconds)
    return Replay(scheduler, policy or AsAsked(), costs, nodes)


@pytest.mark.parametrize("kind", engines.KINDS)
def test_steps_are_those_of_the_engine(kind):
    """Of every text, whatever else is served; from what one run has recorded."""
    params, records = engines.machinery(kind)
    requests = [
        serving.Request([i, 3, 1, i % 2, 4], 6 + i, seed=i, draft_budget=budget)
        for i, budget in enumerate([0, 1, 2, 100, 100, 3])
    ]
    recorded = traces.record(
        params,
        [request.prompt for request in requests],
        **records,
        max_new_tokens=11,
        temperature=0.0,
        batch_size=3,
    )
    engine = engines.fresh(kind)
    engine.policy = AsAsked()
    tickets = [engine.submit(request) for request in requests]
    engine.run()
    size = engine.machinery.num_nodes
    found = replay(costs(rows=3, nodes=(size,)), rows=3, rounds=8)
    for request, trace in zip(requests, recorded, strict=True):
        new = request.max_new_tokens
        assert trace.tokens == 11 and trace.prompt == 5
        cut = traces.Trace(trace.prompt, new, trace.paths[:new], trace.sizes[:new])
        ticket = found.submit(0.0, cut)
        ticket.request = dataclasses.replace(
            ticket.request, draft_budget=request.draft_budget
        )
    now = 0.0
    while not found.is_idle:
        now = found.turn(now)
    assert [t.steps for t in found._texts] == [t.steps for t in tickets]
    assert sum(found.steps.values()) == engine.counts.steps


def test_a_text_alone_takes_the_time_of_its_steps():
    found = replay(costs(chunk=0.5, admit=0.25))
    (ticket,) = found.run([(2.0, Text(prompt=10, tokens=7))])
    assert ticket.ended == pytest.approx(2.0 + 3 * 0.5 + 0.25 + 7)
    assert ticket.first_token == pytest.approx(2.0 + 3 * 0.5 + 0.25 + 1)
    assert len(ticket.tokens) == ticket.steps == 7


def test_drafts_that_are_right_save_steps():
    text = Text(tokens=12, paths=[[0, 1, 2]] * 12)
    for budget, steps in ((0, 12), (1, 6), (2, 4), (9, 3)):
        found = replay(costs(nodes=(1, 4, 10)), policy=Fixed(budget))
        (ticket,) = found.run([(0.0, text)])
        assert ticket.steps == steps and len(ticket.tokens) == 12


def test_waiting_is_that_of_a_queue():
    """M/D/1 (Pollaczek-Khinchine), and Little's law."""
    draw = np.random.default_rng(0)
    service, load = 10.0, 0.7
    arrivals = np.cumsum(draw.exponential(service / load, 20_000))
    tickets = replay(costs()).run([(t, Text()) for t in arrivals])
    waits = [t.ended - t.arrival - 10 for t in tickets]
    assert np.mean(waits) == pytest.approx(load * service / (2 * (1 - load)), rel=0.05)
    latency = np.mean([t.ended - t.arrival for t in tickets])
    events = sorted(
        [(t.arrival, 1) for t in tickets] + [(t.ended, -1) for t in tickets]
    )
    times, changes = np.array(events).T
    number = (np.cumsum(changes)[:-1] * np.diff(times)).sum() / (times[-1] - times[0])
    rate = len(tickets) / (times[-1] - times[0])
    assert number == pytest.approx(rate * latency, rel=1e-3)


@pytest.mark.parametrize("right", [0.1, 0.5, 0.9])
def test_goodput_is_about_the_best_fixed_width(right):
    """Learnt while it serves, from nothing but what has been written."""
    draw = np.random.default_rng(0)

    def text():
        paths = [
            [*range(int(np.argmin([*(draw.random(5) < right), False])))]
            for _ in range(60)
        ]
        return Text(tokens=60, paths=paths)

    arrivals = [(5.0 * i, text()) for i in range(60)]
    priced = costs(rows=4, nodes=range(1, 7))

    def latency(policy):
        tickets = replay(priced, rows=4, policy=policy).run(arrivals)
        return np.mean([t.ended - t.arrival for t in tickets])

    fixed = [latency(Fixed(budget)) for budget in range(6)]
    ours = latency(Goodput(priced.steps, Gains(6, is_whole=True)))
    assert min(fixed) / ours > 0.93

"""Pools by length: where a text is written follows from its request alone."""

import functools

import jax
import pytest

import engines
import traffic
from jaxspec import serving
from jaxspec.serving import Request

SHORT, LONG = 59, 123  # with paths of 5, multiples of 64


@functools.cache
def service():
    """Pools of two lengths, compiled once; leave them idle."""
    params, records = engines.machinery("look-up")
    rows = {LONG: 2, SHORT: 3}
    return serving.ByLength(
        params, rows=rows, chunk_size=traffic.CHUNK, **records, policy=traffic.Whims()
    )


def requests(seed, count):
    """Requests of which about half are too long for short rows."""
    for i, each in enumerate(traffic.requests(seed, count)):
        more = [1] * 40 if i % 2 else []
        yield traffic.dataclasses.replace(each, prompt=[*more, *each.prompt])


def test_texts_are_those_of_lone_runs():
    found = service()
    found.run()
    found.reset_prefix_cache()
    tickets = traffic.serve(found, requests(8, 60), 8)
    finished = [sum(e.counts.finished.values()) for e in found.engines.values()]
    assert min(finished) > 5 and len({ticket.id for ticket in tickets}) == len(tickets)
    for engine in found.engines.values():
        assert engine.counts.compilations == 0 and engine.prefixes.hits > 0
        assert not any(engine.scheduler.rows) and not engine._values
    for ticket in tickets:
        expected = traffic.alone(found, ticket.request)
        if ticket.finish is serving.Finish.ABORT:
            expected = expected[: len(ticket.tokens)]
        assert ticket.tokens == expected


def test_a_request_goes_to_the_shortest_row_that_holds_it():
    found = service()
    found.run()
    for size, new, length in ((1, 1, SHORT), (30, 29, SHORT), (30, 30, LONG)):
        ticket = found.submit(Request([1] * size, new))
        (busy,) = [n for n, engine in found.engines.items() if not engine.is_idle]
        assert busy == length
        found.abort(ticket)
        found.run()
    with pytest.raises(ValueError, match="do not fit; a text has 123 at most"):
        found.submit(Request([1] * 100, 24))


def test_a_text_goes_on_in_a_row_of_its_length():
    found = service()
    found.run()
    request = Request([2] * 40, 30, temperature=1.0, seed=3)
    expected = traffic.alone(found, request)
    ticket = found.submit(request)
    for _ in found.stream(ticket):
        if len(ticket.tokens) > 3:
            break
    resumed = found.resume(found.suspend(ticket))
    found.run()
    assert resumed.tokens == expected and ticket.finish is serving.Finish.ABORT


def test_nobody_waits_for_the_rounds_of_another_length():
    """Where somebody reads along in one pool, a turn is one step in all."""
    found = service()
    found.run()
    long = found.submit(Request([1] * 60, 40, draft_budget=0))
    while not long.tokens:
        found.turn()
    engine = found.engines[LONG]
    assert engine.scheduler.is_quiet
    found.listen(found.submit(Request([2] * 30, 8)))
    before = engine.counts.steps, engine.counts.turns
    while not found.engines[SHORT].is_idle:
        found.turn()
    steps, turns = engine.counts.steps - before[0], engine.counts.turns - before[1]
    assert turns > 8 and steps <= turns + 8  # those that were on their way
    found.run()


def test_a_short_row_takes_less_room():
    short, long = (
        sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(e.programs.value))
        for e in service().engines.values()
    )
    assert short < 0.7 * long


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rows": {}}, "at least one length"),
        ({"rows": {50: 1, 51: 2}}, "rounded up"),
        ({"rows": {50: 1}, "scheduler": serving.Scheduler(1)}, "scheduler of its own"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(options, words):
    params, records = engines.machinery("look-up")
    with pytest.raises(ValueError, match=words):
        serving.ByLength(params, **records, **options)
